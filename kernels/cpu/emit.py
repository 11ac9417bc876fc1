"""The kernels, emitted: activations to integers and tables, and a block of 64 outputs.

Each ``emit_…`` writes its code at the builder's place. ``job`` is the address of :data:`FIELDS`, 64-bit words that
say where operands lie; activations are given group by group:

    dot   bytes (groups, tokens, group), sums (groups, tokens), scales (groups, tokens)
    lut   tables (groups, quads, 16) of one token, sums (groups,), scales (groups,)

Sums are what is taken from the integer result because stored weights are unsigned, and table entries raised by 128.
"""

from __future__ import annotations

from typing import Any

from .golden import DOT_TOP, LEAST, LUT_DROPPED, LUT_TOP
from .vector import B64, F16, F32, H32, I8, I16, I32, I64, W16, Code, Value, ir

FIELDS = ("next", "done", "prepared", "items", "data", "scales", "acts", "sums", "factors", "x", "out", "groups",
          "group", "tokens", "k", "n")  # fmt: skip
"""``next`` item to take, how many are ``done``, how many come before the blocks (``prepared``), and all ``items``."""
PANEL = 64
"""Tokens whose sums of a block are kept together; more are done one panel after the other."""
TILE = {"avx512": 6, "avx2": 1, "portable": 1}
"""Tokens of a register tile, times 64 outputs: 24 of 32 registers, or what narrower ones can hold."""
AHEAD = 2048
"""Bytes that weights are fetched ahead of their use."""
RAISED = 128
PATIENCE = 20_000
"""Looks at what others do, some microseconds, before the processor is offered to them."""


class Job:
    """Fields of a job, read when asked for."""

    def __init__(self, code: Code, address: Value) -> None:
        self.code = code
        self.address = address

    def place(self, name: str) -> Value:
        """Address of a field."""
        return self.code.at(self.address, 8 * FIELDS.index(name))

    def __getattr__(self, name: str) -> Value:
        return self.code.load(I64, self.place(name), align=8)


# -- sharing work ----------------------------------------------------------------------------------
def emit_kernel(code: Code, address: Value, name: str, stored: int, bits: int, odd: bool, half: bool) -> None:
    """All that a thread does for a job, see :mod:`.compiled`; ``stored`` bits per weight in memory."""
    b, job = code.b, Job(code, address)
    head, body, end = (b.append_basic_block(label) for label in ("take", "work", "none_left"))
    b.branch(head)
    b.position_at_end(head)
    item = code.exchange_add(job.place("next"), 1)
    b.cbranch(b.icmp_signed("<", item, job.items), body, end)
    b.position_at_end(body)
    prepared = job.prepared
    with b.if_else(b.icmp_signed("<", item, prepared)) as (first, second):
        with first:
            if name == "lut_gemv":
                emit_tables(code, job, bits, odd)
            else:
                emit_dot_activations(code, job, item, bits, odd)
        with second:
            code.wait_for(job.place("done"), prepared)
            block = b.sub(item, prepared)
            if name == "lut_gemv":
                emit_lut_gemv(code, job, block, stored, half)
            else:
                (emit_dot_gemv if name == "dot_gemv" else emit_dot_gemm)(code, job, block, stored, odd, half)
    code.exchange_add(job.place("done"), 1)
    b.branch(head)
    b.position_at_end(end)


def emit_begin(code: Code, address: Value) -> None:
    """Make a job's items available. None of an earlier run may be at work."""
    job = Job(code, address)
    code.store(I64(0), job.place("done"))
    code.b.atomic_rmw("xchg", code.b.inttoptr(job.place("next"), I64.as_pointer()), I64(0), "seq_cst")


def emit_wait(code: Code, address: Value) -> Value:
    """How many items are not done yet, after some time at most."""
    job = Job(code, address)
    return code.b.sub(job.items, code.wait_for(job.place("done"), job.items, PATIENCE))


# -- activations -----------------------------------------------------------------------------------
def emit_dot_activations(code: Code, job: Job, token: Value, bits: int, odd: bool) -> None:
    """One token's activations to bytes, their scales, and zero points."""
    b = code.b
    groups, group, tokens = job.groups, job.group, job.tokens
    row, acts, sums, factors = code.at(job.x, code.times(token, code.times(job.k, 4))), job.acts, job.sums, job.factors
    with code.loop(groups) as g:
        source = code.at(row, code.times(g, code.times(group, 4)))
        top = code.variable(F16, code.splat(F16, 0))
        with code.loop(b.lshr(group, I64(4))) as i:
            size = code.intrinsic("fabs", code.load(F16, code.at(source, code.times(i, 64))))
            b.store(code.intrinsic("maximum", code.get(top), size), top)
        greatest = code.folded(code.get(top), "maximum")
        factor = code.fill(F16, _factor(code, greatest, float(DOT_TOP)))
        place = b.add(code.times(g, tokens), token)
        target = code.at(acts, code.times(place, group))
        total = code.variable(W16, code.splat(W16, 0))
        with code.loop(b.lshr(group, I64(4))) as i:
            x = b.fmul(code.load(F16, code.at(source, code.times(i, 64))), factor)
            whole = b.fptosi(code.intrinsic("rint", x), W16)
            code.add_to(total, whole)
            code.store(b.trunc(whole, ir.VectorType(I8, 16)), code.at(target, code.times(i, 16)))
        zero = 1 if odd else 2 ** (bits - 1)
        code.store(b.mul(code.folded(code.get(total), "add"), I32(zero)), code.at(sums, code.times(place, 4)))
        scale = b.fmul(greatest, F32(float(type(DOT_TOP)(1) / DOT_TOP)))
        code.store(scale, code.at(factors, code.times(place, 4)))


def _factor(code: Code, top: Value, limit: float) -> Value:
    b = code.b
    small = b.fcmp_ordered(">=", top, F32(float(LEAST)))
    return b.select(small, b.fdiv(F32(limit), top), F32(0))


def emit_tables(code: Code, job: Job, bits: int, odd: bool) -> None:
    """One token's tables, their scales, and what they are raised by."""
    b = code.b
    groups, group, x, acts, sums, factors = job.groups, job.group, job.x, job.acts, job.sums, job.factors
    runs = b.lshr(group, I64(4))  # of 16 activations, 4 tables
    with code.loop(groups) as g:
        source = code.at(x, code.times(g, code.times(group, 4)))
        top = code.variable(ir.VectorType(F32, 4), ir.Constant(ir.VectorType(F32, 4), [F32(0)] * 4))
        with code.loop(runs) as i:
            size = code.intrinsic("fabs", code.load(F16, code.at(source, code.times(i, 64))))
            a = [code.picked(size, list(range(j, 16, 4))) for j in range(4)]
            total = b.fadd(b.fadd(a[0], a[1]), b.fadd(a[2], a[3]))
            b.store(code.intrinsic("maximum", code.get(top), total), top)
        greatest = code.folded(code.get(top), "maximum")
        factor = code.fill(F16, _factor(code, greatest, float(LUT_TOP)))
        tables = code.at(acts, code.times(g, code.times(group, 4)))
        plus = code.variable(I32, I32(0))
        with code.loop(runs) as i:
            scaled = b.fmul(code.load(F16, code.at(source, code.times(i, 64))), factor)
            whole = b.fptosi(code.intrinsic("rint", scaled), W16)
            values = b.trunc(whole, ir.VectorType(I16, 16))
            parts = [_entries(code, values, [0, 1]), _entries(code, values, [2, 3])]
            code.add_to(plus, code.folded(b.sext(code.joined([code.picked(p, [7, 23]) for p in parts]),
                                                 ir.VectorType(I32, 4)), "add"))  # fmt: skip
            raised = b.trunc(b.add(code.joined(parts), code.splat(ir.VectorType(I16, 64), RAISED)), B64)
            code.store(raised, code.at(tables, code.times(i, 64)))
        planes = (1 << bits) - 1
        bias = b.mul(b.trunc(b.lshr(group, I64(2)), I32), I32(RAISED * planes))
        constant = bias if odd else b.add(bias, code.get(plus))
        code.store(constant, code.at(sums, code.times(g, 4)))
        step = type(LUT_TOP)(2**LUT_DROPPED) / LUT_TOP
        scale = b.fmul(greatest, F32(float(step)))
        code.store(scale if odd else b.fmul(scale, F32(0.5)), code.at(factors, code.times(g, 4)))


def _entries(code: Code, values: Value, quads: list[int]) -> Value:
    """Entries T, then -T, of two of four quads, 32 lanes of 16 bits."""
    b = code.b
    total = code.picked(values, [4 * q + 3 for q in quads for _ in range(16)])
    for i in range(3):
        sign = code.vector(H32, [1 if j >> i & 1 else -1 for _ in quads for j in range(16)])
        total = b.add(total, b.mul(code.picked(values, [4 * q + i for q in quads for _ in range(16)]), sign))
    rounded = b.ashr(b.add(total, code.splat(H32, 1 << LUT_DROPPED >> 1)), code.splat(H32, LUT_DROPPED))
    return b.mul(rounded, code.vector(H32, [-1 if j & 8 else 1 for _ in quads for j in range(16)]))


# -- one token by integer dot products -------------------------------------------------------------
def emit_dot_gemv(code: Code, job: Job, block: Value, stored: int, odd: bool, half: bool) -> None:
    """A block of 64 outputs of one token.

    Weights are not moved to the low end of their byte: products by each place's mask have sums of their own,
    shifted once per group. The upper nibble is shifted, so that four masks do and no byte is above 15.
    """
    b = code.b
    groups, group = job.groups, job.group
    acts, sums, factors = job.acts, job.sums, job.factors
    bytes_group = b.lshr(code.times(group, 64 * stored), I64(3))
    run = 4 * (8 // stored)  # weights of 64 bytes, per output
    source = code.at(job.data, code.times(block, code.times(groups, bytes_group)))
    scales = code.at(job.scales, code.times(block, code.times(groups, 128 if half else 256)))
    masks = [((1 << stored) - 1) << i for i in range(0, 4, stored)]
    split = 2 if stored == 4 else 1  # sums per mask: enough that one product need not wait for another
    rows = 4 if code.isa == "avx512" else (1 if stored == 1 else 2)
    result = [code.variable(F16, code.splat(F16, 0)) for _ in range(4)]
    with code.loop(groups) as g:
        data = code.at(source, code.times(g, bytes_group))
        for first in range(0, 4, rows):
            totals = [[[code.variable(W16, code.splat(W16, 0)) for _ in range(split)] for _ in masks]
                      for _ in range(rows)]  # fmt: skip
            with code.loop(b.udiv(group, I64(run))) as i:
                near = code.at(acts, code.times(g, group), code.times(i, run))
                quads = [code.broadcast(code.at(near, 4 * j)) for j in range(run // 4)]
                for r in range(rows):
                    place = code.at(data, code.times(i, 256), 64 * (first + r))
                    code.prefetch(code.at(place, AHEAD))
                    weights = code.load(B64, place)
                    for upper in range(2):
                        moved = code.shifted(weights, 4 * upper)
                        for m, mask in enumerate(masks):
                            slot = totals[r][m][upper % split]
                            quad = quads[upper * len(masks) + m]
                            b.store(code.dot(code.get(slot), code.bits(moved, mask), quad), slot)
            for r in range(rows):
                total = None
                for m, slots in enumerate(totals[r]):
                    for slot in slots:
                        value = code.get(slot)
                        left = int(odd) - m * stored  # 1 bit: w = 2 u - 1
                        if left:
                            shift = b.shl if left > 0 else b.ashr
                            value = shift(value, code.splat(W16, abs(left)))
                        total = value if total is None else b.add(total, value)
                total = b.sub(total, code.fill(W16, code.load(I32, code.at(sums, code.times(g, 4)))))
                factor = code.fill(F16, code.load(F32, code.at(factors, code.times(g, 4))))
                _accumulate(code, result[first + r], total, factor, scales, g, first + r, half)
    out = code.at(job.out, code.times(block, 256))
    for r in range(4):
        code.store(code.get(result[r]), code.at(out, 64 * r))


def _scale(code: Code, scales: Value, g: Value, r: int, half: bool) -> Value:
    """16 scales of weights as binary32."""
    if not half:
        return code.load(F16, code.at(scales, code.times(g, 256), 64 * r))
    kind: Any = ir.VectorType(ir.HalfType(), 16)
    return code.b.fpext(code.load(kind, code.at(scales, code.times(g, 128), 32 * r)), F16)


def _accumulate(
    code: Code, slot: Value, total: Value, factor: Value, scales: Value, g: Value, r: int, half: bool
) -> None:
    """``slot`` += (total · factor) · scale, the last two fused."""
    product = code.b.fmul(code.b.sitofp(total, F16), factor)
    code.b.store(code.intrinsic("fma", product, _scale(code, scales, g, r, half), code.get(slot)), slot)


# -- one token by tables ---------------------------------------------------------------------------
def emit_lut_gemv(code: Code, job: Job, block: Value, bits: int, half: bool) -> None:
    """A block of 64 outputs of one token by table lookup.

    Two sums of 16-bit lanes take bytes in without widening them: that of whole lanes, and that of odd bytes.
    What even bytes sum to is the first less 256 times the second, modulo 2^16.
    """
    b = code.b
    groups, group = job.groups, job.group
    acts, sums, factors = job.acts, job.sums, job.factors
    bytes_group = code.times(group, 8 * bits)
    source = code.at(job.data, code.times(block, code.times(groups, bytes_group)))
    scales = code.at(job.scales, code.times(block, code.times(groups, 128 if half else 256)))
    zero = code.splat(H32, 0)
    result = [code.variable(F16, code.splat(F16, 0)) for _ in range(4)]
    with code.loop(groups) as g:
        data = code.at(source, code.times(g, bytes_group))
        lanes = [[code.variable(H32, zero) for _ in range(2)] for _ in range(bits)]
        with code.loop(b.lshr(group, I64(3))) as i:
            near = code.at(acts, code.times(g, code.times(group, 4)), code.times(i, 32))
            tables = [code.table(code.at(near, 16 * j)) for j in range(2)]
            for plane in range(bits):
                place = code.at(data, code.times(i, 64 * bits), 64 * plane)
                code.prefetch(code.at(place, AHEAD))
                weights = code.load(B64, place)
                for upper in range(2):
                    index = code.bits(code.shifted(weights, 4 * upper), 15)
                    found = b.bitcast(code.lookup(tables[upper], index), H32)
                    code.add_to(lanes[plane][0], found)
                    code.add_to(lanes[plane][1], b.lshr(found, code.splat(H32, 8)))
        wide: list[list[Value]] = []  # pairs of planes: (even, odd) bytes, 16 bits unsigned
        for plane in range(bits):
            whole, odd_bytes = (code.get(slot) for slot in lanes[plane])
            both = [b.sub(whole, b.shl(odd_bytes, code.splat(H32, 8))), odd_bytes]
            if plane % 2:
                wide[-1] = [b.add(low, b.shl(v, code.splat(H32, 1))) for low, v in zip(wide[-1], both, strict=True)]
            else:
                wide.append(both)
        constant = code.fill(W16, code.load(I32, code.at(sums, code.times(g, 4))))
        factor = code.fill(F16, code.load(F32, code.at(factors, code.times(g, 4))))
        for r in range(4):
            total = b.sub(b.zext(code.part(wide[0][r // 2], 16 * (r % 2), 16), W16), constant)
            for pair in range(1, len(wide)):
                more = b.zext(code.part(wide[pair][r // 2], 16 * (r % 2), 16), W16)
                total = b.add(total, b.shl(more, code.splat(W16, 2 * pair)))
            _accumulate(code, result[r], total, factor, scales, g, r, half)
    out = code.at(job.out, code.times(block, 256))
    for r in range(4):
        code.store(code.get(result[r]), code.at(out, 64 * r))


# -- many tokens -----------------------------------------------------------------------------------
def emit_dot_gemm(code: Code, job: Job, block: Value, stored: int, odd: bool, half: bool) -> None:
    """A block of 64 outputs of all tokens: each group's weights are unpacked once per panel, then tiles of tokens."""
    b = code.b
    groups, group, tokens = job.groups, job.group, job.tokens
    n = job.n
    bytes_group = b.lshr(code.times(group, 64 * stored), I64(3))
    source = code.at(job.data, code.times(block, code.times(groups, bytes_group)))
    scales = code.at(job.scales, code.times(block, code.times(groups, 128 if half else 256)))
    unpacked, sums = code.room(64 * 128), code.room(PANEL * 256)
    with code.loop(b.udiv(b.add(tokens, I64(PANEL - 1)), I64(PANEL))) as p:
        first = code.times(p, PANEL)
        left = b.sub(tokens, first)
        count = b.select(b.icmp_signed("<", left, I64(PANEL)), left, I64(PANEL))
        with code.loop(code.times(count, 4)) as i:
            code.store(code.splat(F16, 0), code.at(sums, code.times(i, 64)))
        with code.loop(groups) as g:
            _unpack(code, code.at(source, code.times(g, bytes_group)), unpacked, group, stored, odd)
            side = b.add(code.times(g, tokens), first)
            weights = [_scale(code, scales, g, r, half) for r in range(4)]
            tile = TILE[code.isa]
            tiles = b.udiv(b.add(count, I64(tile - 1)), I64(tile))
            least, greater = b.udiv(count, tiles), b.urem(count, tiles)  # tiles of one more come first
            with code.loop(tiles) as t:
                before = b.select(b.icmp_signed("<", t, greater), t, greater)
                token = b.add(code.times(t, least), before)
                many = b.add(least, b.zext(b.icmp_signed("<", t, greater), I64))
                for size in range(1, tile + 1):
                    with b.if_then(b.icmp_signed("==", many, I64(size))):
                        _tile(code, job, unpacked, sums, weights, side, token, size)
        with code.loop(count) as t:
            row = code.at(job.out, code.times(b.add(first, t), code.times(n, 4)), code.times(block, 256))
            for r in range(4):
                code.store(code.load(F16, code.at(sums, code.times(t, 256), 64 * r)), code.at(row, 64 * r))


def _unpack(code: Code, data: Value, target: Value, group: Value, stored: int, odd: bool) -> None:
    """A group's weights as unsigned bytes, (quads, 4 vectors): 0 and 2 for 1 bit, else w + zero point."""
    b = code.b
    per = 8 // stored
    mask = ((1 << stored) - 1) << int(odd)
    ahead = b.lshr(code.times(group, 64 * stored), I64(3))  # the next group, while this one is multiplied
    with code.loop(b.udiv(group, I64(4 * per))) as i:
        for r in range(4):
            place = code.at(data, code.times(i, 256), 64 * r)
            code.prefetch(code.at(place, ahead))
            weights = code.load(B64, place)
            for j in range(per):
                right = j * stored - int(odd)
                moved = code.shifted(weights, right) if right >= 0 else b.add(weights, weights)
                code.store(code.bits(moved, mask), code.at(target, code.times(i, 256 * per), 256 * j + 64 * r))


def _tile(
    code: Code, job: Job, unpacked: Value, sums: Value, weights: list[Value], side: Value, token: Value, size: int
) -> None:
    """``size`` tokens from ``token`` on by 64 outputs, one group of k."""
    b = code.b
    group = job.group
    place = b.add(side, token)
    acts = code.at(job.acts, code.times(place, group))
    zeros, factors = (code.at(base, code.times(place, 4)) for base in (job.sums, job.factors))
    totals = []
    for t in range(size):
        start = b.neg(code.load(I32, code.at(zeros, 4 * t)))
        totals.append([code.variable(W16, code.fill(W16, start)) for _ in range(4)])
    with code.loop(b.lshr(group, I64(2))) as i:
        vectors = [code.load(B64, code.at(unpacked, code.times(i, 256), 64 * r)) for r in range(4)]
        for t in range(size):
            quad = code.broadcast(code.at(acts, code.times(group, t), code.times(i, 4)))
            for r in range(4):
                b.store(code.dot(code.get(totals[t][r]), vectors[r], quad), totals[t][r])
    for t in range(size):
        factor = code.fill(F16, code.load(F32, code.at(factors, 4 * t)))
        for r in range(4):
            at = code.at(sums, code.times(token, 256), 256 * t + 64 * r)
            product = b.fmul(b.sitofp(code.get(totals[t][r]), F16), factor)
            code.store(code.intrinsic("fma", product, weights[r], code.load(F16, at)), at)
