"""From a model's trace and a node to a placement problem.

Every layer type of the trace is a block, every operator one of its operators; a cache is held where its attention
runs, so both are one operator. A request of B sequences runs three phases: *prefill* (B × P tokens, once), *handover*
(caches move where prefill and decode hold them in different places; once), *decode* (T − 1 steps, each costed at the
mean context, which is exact while time is linear in it). An option says where an operator runs in prefill and where
in decode; weights lie wherever either needs them, twice where the two differ.

A pass is one chain: operators of a layer run in the order of the trace, as :mod:`tokenfab.hw.estimate` adds them up,
so every operator waits for the one before even where it reads nothing of it. Transfers may overlap with operators
between producer and reader.

Memory: weights as stored; caches of P + T tokens where decode is, of P tokens where prefill is, if elsewhere;
``reserve``: the operands of the largest operator of a prefill pass, taken off every memory. Energy: dynamic energy of
the cost models, what an engine draws beyond idle while it works, links; the node idles all the while. Cost: each
engine is paid for while it works, sends or receives (its other seconds are other batches'), electricity on top where it
is bought.

Formats (``menu``): an option also says in which format its operator's weights are, one wherever both phases read them;
where prefill and decode run from different memories each may have its own, and the worse counts for quality. A limit on
quality (loss, bits) is a pool that options fill.

Left out: the token that goes back from the head to the embedding (4 bytes and one latency per step); adding up partial
sums (a read and a write of one activation).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from ..errors import InputError, unknown_name
from ..hw.estimate import Request
from ..hw.hourly import USD_PER_KWH
from ..workloads.trace import Block as TraceBlock
from ..workloads.trace import Operator as TraceOperator
from ..workloads.trace import Tensor, Trace
from .costs import Costs, Piece
from .node import Node
from .options import QUALITY, Built, Form, Joint, Option, Sizes
from .problem import INPUT, Array, Block, Edge, Index, Mask, Objective, Operator, Problem
from .quality import Menu
from .spreads import Spread, Transfers, divided, groups, may_part, replicated, whole

PHASES = ("prefill", "handover", "decode")
PARTS = 8
"""Shares that matrices are divided into, and heads and experts where their number is a multiple."""
POINTWISE = frozenset({"rope", "activation"})
REPLICATED = frozenset({"norm", "elementwise", "router", "embedding"})


def build(
    trace: Trace, node: Node, request: Request, objective: Objective, *,
    split: bool = True, move: bool = True, pins: Mapping[str, str] | None = None,
    together: Sequence[Sequence[str]] = (), formats: Menu | None = None, quality: Mapping[str, float] | None = None,
) -> Built:  # fmt: skip
    """The placement problem of ``request`` on ``node``.

    ``split``: operators may be divided over engines. ``move``: an operator may run elsewhere at decode than at prefill.
    ``pins``: operator (or operator kind, or BLOCK.OPERATOR) → engine, or "PREFILL|DECODE",
    each also with @FORMAT or @FORMAT alone. ``together``: groups of operators of one block that share their place.
    ``formats``: what weights may be stored in (:func:`.quality.menu`); ``quality``: the most ``loss``, the least
    ``bits``. Raises ``InputError`` for unknown names, requests the model cannot
    take, and prices that are not known where cost is asked for.
    """
    request.check(trace)
    return _Builder(trace, node, request, objective, split, move, dict(pins or {}), together,
                    formats, dict(quality or {})).built()  # fmt: skip


class _Builder:
    def __init__(
        self, trace: Trace, node: Node, request: Request, objective: Objective, split: bool, move: bool,
        pins: dict[str, str], together: Sequence[Sequence[str]], menu: Menu | None, quality: dict[str, float],
    ) -> None:  # fmt: skip
        self.trace, self.node, self.request, self.objective = trace, node, request, objective
        self.split, self.move, self.pins, self.together = split, move, pins, together
        self.names = [e.name for e in node.engines]
        self.n = len(self.names)
        b, p, t = float(request.batch), float(request.prompt), float(request.output)
        self.points = ((b, p, 0.0), (b, 1.0, p + max(t - 2, 0) / 2))
        self.repeats = np.array([1.0, 1.0 if t > 1 else 0.0, t - 1])
        self.transfers = Transfers(node)
        self.resources = (*self.names, *node.ports)
        self.priced = any(m == "cost" for m in (*objective.weights, *objective.limits))
        if self.priced and (missing := [e.name for e in node.engines if e.usd_s is None]):
            raise InputError(f"device {missing[0]}: no price in its file; cost cannot be told")
        rate = {e.name: e.usd_s or 0.0 for e in node.engines}
        self.port_usd = np.array([rate[port.partition(" ")[0]] for port in node.ports])
        self.hidden = self._hidden_joints()
        self.used_pins: set[str] = set()
        self.menu, self.quality = menu, quality
        if menu is not None and quality.get("bits", 0.0) > menu.widest:
            raise InputError(f"--limit bits={quality['bits']:g}: the widest of the formats has {menu.widest:.4g}")

    # -- pieces ------------------------------------------------------------------------------------
    def built(self) -> Built:
        blocks = self.trace.blocks
        pieces = [self._pieces(b) for b in blocks]
        forms = [[self._forms(b, p) for p in ps] for b, ps in zip(blocks, pieces, strict=True)]
        self.costs = Costs(self.trace, self.node.engines, self.points,
                           [f.piece for here in forms for fs in here for f in fs])  # fmt: skip
        made, joints, sizes, options = [], [], [], []
        for block, ps, fs in zip(blocks, pieces, forms, strict=True):
            one = self._block(block, ps, fs, first=self.trace.order[0][0] == block.name)
            made.append(one[0])
            options.append(one[1])
            joints.append([[o.joint for o in os] for os in one[1]])
            sizes.append(one[2])
        if unused := set(self.pins) - self.used_pins:
            known = {p.name for ps in pieces for p in ps} | {p.kind for ps in pieces for p in ps}
            raise unknown_name("operator", sorted(unused)[0], known, "--pin OPERATOR=DEVICE")
        names = {p.name for ps in pieces for p in ps}
        for group in self.together:
            if len(set(group)) < 2:
                raise InputError(f"--together {','.join(group)}: accepted: two operators or more, as A,B")
            for name in group:
                if name not in names:
                    raise unknown_name("operator", name, names, "--together A,B")
        index = {b.name: i for i, b in enumerate(blocks)}
        order = tuple(index[name] for name, times in self.trace.order for _ in range(times))
        reserve = self._reserve()
        problem = Problem(
            PHASES, self.repeats, self.resources, (*self.node.pools, *self.quality),
            np.concatenate([np.maximum(np.array(self.node.capacity) - reserve, 0.0), self._budgets()]),
            self.node.idle_w, tuple(made), order, self.objective,
        )  # fmt: skip
        prompt = [[self._cache(p, self.points[0][1]) for p in ps] for ps in pieces]
        return Built(problem, self.node, self.trace, self.request, joints, pieces, sizes, self.transfers, reserve,
                     _each(options, "weights"), _each(options, "caches"), prompt, self.menu,
                     _each(options, "narrowing"), self.quality)  # fmt: skip

    def _forms(self, block: TraceBlock, piece: Piece) -> list[Form]:
        """The formats that a piece may be in."""
        found = [v for op in piece.operators for v in (self.menu.variants.get((block.name, op.name), ())
                                                       if self.menu is not None else ())]  # fmt: skip
        if not found:
            return [Form("", piece)]
        return [Form(v.name, replace(piece, operators=(v.operator,)), v.loss, v.narrowing) for v in found]

    def _budgets(self) -> Array:
        """Capacities of the pools that limits on quality are."""
        widest = self.menu.widest if self.menu is not None else 0.0
        return np.array([QUALITY[q] * (limit if q == "loss" else widest - limit) for q, limit in self.quality.items()])

    def _reserve(self) -> float:
        b, p, _ = self.points[0]
        return max(
            sum(float(t.stored_bytes(b, p, 0)) for t in (*op.reads, *op.writes) if t.role == "activation")
            for op, _ in self.trace.operators()
        )

    def _pieces(self, block: TraceBlock) -> list[Piece]:
        readers = {op.name: [o for o in block.operators if op.name in o.deps] for op in block.operators}
        caching: dict[str, list[TraceOperator]] = {}
        for op in block.operators:
            if op.kind == "kv_append" and (at := [o for o in readers[op.name] if o.kind == "attention"]):
                caching.setdefault(at[0].name, []).append(op)
        inside = {op.name for ops in caching.values() for op in ops}
        found: list[Piece] = []
        modes: dict[str, str | None] = {}
        heads = next((int(o.dims["kv_heads"].constant or 1) for o in block.operators if o.kind == "attention"), PARTS)
        around = _units(heads)
        for op in block.operators:
            if op.name in inside:
                continue
            mode, units = None, PARTS
            divided_before = any(modes.get(d) in ("columns", "heads", "parts") for d in op.deps)
            if op.kind == "matmul" and op.weights and "batch" not in op.dims:
                mode = "rows" if divided_before else "columns"
            elif op.kind == "attention" and "latent_dim" not in op.dims:
                mode, units = ("heads", around) if around > 1 else (None, 1)
            elif op.kind in POINTWISE and divided_before:
                mode = "parts"
            elif op.kind == "experts":
                units = _units(int(op.dims["experts"].constant or 1))
                mode = "experts" if units > 1 else None
            if mode in ("columns", "rows", "parts") and any(o.kind == "attention" for o in block.operators):
                before = next(i for i, o in enumerate(block.operators) if o.kind == "attention")
                if block.operators.index(op) <= before + 1:
                    units = around
                    mode = mode if around > 1 else None
            modes[op.name] = mode if self.split else None
            found.append(Piece(op.name, op.kind, (*caching.get(op.name, ()), op), modes[op.name], units))
        last = block.name == self.trace.order[-1][0]
        output = next(p for p in found if block.output in (o.name for o in p.operators))
        if not last and output.kind not in REPLICATED:
            found.append(Piece("output", "output", (), None, 1))  # boundaries have options of their own
        return found

    # -- options -------------------------------------------------------------------------------------
    def _hidden_joints(self) -> list[Joint]:
        """Options of operators on the hidden state: everywhere alike, as layers meet in them."""
        spreads = [whole(a, self.n) for a in range(self.n)]
        if self.split:
            spreads += [replicated(g, self.n) for g in groups(self.node, range(self.n))]
        return [Joint(s, t) for s in spreads for t in spreads if s == t or self._may_part(s, t)]

    def _joints(self, piece: Piece, forms: list[Form]) -> list[Joint]:
        if piece.mode is None:
            return self.hidden if piece.kind in REPLICATED or not piece.operators else [
                j for j in self.hidden if j.prefill.mode == j.decode.mode == "whole"
            ]  # fmt: skip
        singles = [whole(a, self.n) for a in range(self.n)]
        seconds = [[self.costs.seconds(form.piece, s) for s in singles] for form in forms]
        able = [a for a in range(self.n) if any(np.isfinite(one[a]).all() for one in seconds)]
        speed = [[1 / max(s[phase], 1e-12) if np.isfinite(s[phase]) else 0.0 for s in one]
                 for one in seconds for phase in (0, 1)]  # fmt: skip
        spreads = divided(piece.mode, self.node, able, piece.units, speed)
        joints = [Joint(s, s) for s in (*singles, *spreads)]
        if self.move:
            even = {s.engines: s for s in reversed(spreads) if len({x for x in s.shares if x}) == 1}
            coarse = [*singles, *even.values()]
            joints += [Joint(s, t) for s in coarse for t in coarse if s != t and self._may_part(s, t)]
        return joints

    def _may_part(self, prefill: Spread, decode: Spread) -> bool:
        return self.move and may_part(self.node, prefill, decode)

    def _allowed(self, block: TraceBlock, piece: Piece, options: list[Option]) -> Mask:
        allowed = np.ones(len(options), dtype=bool)
        for key in (piece.name, piece.kind, f"{block.name}.{piece.name}"):
            if key not in self.pins:
                continue
            self.used_pins.add(key)
            wanted, _, format_ = self.pins[key].partition("@")
            parts = wanted.split("|") if "|" in wanted else [wanted, wanted]
            here = np.array(
                [all(w.strip() in ("", "*", s.label(self.names)) or _is_kind(w.strip(), s, self.node)
                     for w, s in zip(parts, (o.joint.prefill, o.joint.decode), strict=True)) for o in options]
            )  # fmt: skip
            if not here.any():
                raise InputError(f"--pin {key}={self.pins[key]}: no such place; devices: {', '.join(self.names)}")
            if format_:
                here &= np.array([o.format == format_ for o in options])
                if not here.any():
                    known = ", ".join(dict.fromkeys(o.format for o in options if o.format)) or "none, see --formats"
                    raise InputError(f"--pin {key}={self.pins[key]}: no such format here; formats: {known}")
            allowed &= here
        return allowed

    # -- blocks --------------------------------------------------------------------------------------
    def _block(
        self, block: TraceBlock, pieces: list[Piece], forms: list[list[Form]], first: bool
    ) -> tuple[Block, list[list[Option]], list[Sizes]]:
        """The block, its operators' options, and its edges' bytes."""
        joints = [self._joints(p, fs) for p, fs in zip(pieces, forms, strict=True)]
        made = [self._operator(block, p, js, fs) for p, js, fs in zip(pieces, joints, forms, strict=True)]
        edges, sizes = self._edges(block, pieces, joints, first)
        output = next(
            (i for i, p in enumerate(pieces) if p.kind == "output"),
            next(i for i, p in enumerate(pieces) if any(o.name == block.output for o in p.operators)),
        )
        operators = tuple(m[0] for m in made)
        return Block(block.name, operators, tuple(edges), output), [m[1] for m in made], sizes

    def _options(self, joints: list[Joint], forms: list[Form]) -> tuple[list[Option], Index]:
        """Every place in every format, in two where the phases work from different memories; and the place of each."""
        found, at = [], []
        for i, joint in enumerate(joints):
            first, second = ({self.node.engines[a].pool for a in s.engines} for s in (joint.prefill, joint.decode))
            for a in forms:
                for b in forms if self.repeats[2] and not first & second else (a,):
                    found.append(Option(joint, a, b))
                    at.append(i)
        return found, np.array(at)

    def _operator(
        self, block: TraceBlock, piece: Piece, joints: list[Joint], forms: list[Form]
    ) -> tuple[Operator, list[Option]]:
        """The operator, and its options with what each holds of weights and of caches in each memory."""
        options, at = self._options(joints, forms)
        k, f, r = len(options), len(PHASES), len(self.resources)
        time, busy = np.zeros((k, f)), np.zeros((k, f, r))
        energy, usd = np.zeros(k), np.zeros(k)
        weights, caches = np.zeros((k, len(self.node.pools))), np.zeros((k, len(self.node.pools)))
        allowed = self._allowed(block, piece, options)
        weight_bytes = {form.name: _weight_bytes(form.piece) for form in forms}
        p = self.points[0][1]
        held, prompt = self._cache(piece, p + self.request.output), self._cache(piece, p)
        for i, option in enumerate(options):
            joint = option.joint
            for phase, spread, form in ((0, joint.prefill, option.prefill), (2, joint.decode, option.decode)):
                for a in spread.engines if piece.operators else ():
                    seconds, joules = self.costs.of(form.piece, spread, a, phase // 2)
                    busy[i, phase, a] = seconds
                    energy[i] += self.repeats[phase] * joules
                    engine = self.node.engines[a]
                    if engine.usd_s is not None:
                        usd[i] += self.repeats[phase] * (
                            seconds * engine.usd_s + (joules / 3.6e6 * USD_PER_KWH if engine.bought else 0.0)
                        )
                time[i, phase] = busy[i, phase].max()
            if prompt and joint.prefill != joint.decode and self.repeats[1]:
                moved = self.transfers.cache(joint.prefill, joint.decode, prompt)
                time[i, 1] = moved.delay_s
                busy[i, 1, self.n :] = moved.busy_s
                energy[i] += moved.energy_j
                usd[i] += float(moved.busy_s @ self.port_usd)
            weights[i] = self._held(joint, weight_bytes[option.prefill.name], weight_bytes[option.decode.name])
            caches[i] = self._held(joint, prompt, held)
            option.weights, option.caches = weights[i], caches[i]
            if not np.isfinite(time[i]).all():
                allowed[i] = False
        for array in (time, busy, energy, usd):
            array[~np.isfinite(array)] = 0.0
        worse = {"loss": np.array([o.loss for o in options]), "bits": np.array([o.narrowing for o in options])}
        filled = [weights + caches, *(QUALITY[q] * worse[q][:, None] for q in self.quality)]
        made = Operator(
            piece.name, tuple(o.joint.label(self.names) for o in options), time, busy, energy, usd,
            np.concatenate(filled, axis=1), allowed,
        )  # fmt: skip
        if len(forms) > 1 or forms[0].name:
            made = replace(made, at=at, formats=tuple(o.format for o in options), loss=worse["loss"])
        return made, options

    def _held(self, joint: Joint, at_prefill: float, at_decode: float) -> Array:
        """Bytes in each pool of something both phases need: once where their places agree, else in both."""

        def parts(spread: Spread) -> Array:
            out = np.zeros(len(self.node.pools))
            for a in spread.engines:
                out[self.node.engines[a].pool] += spread.fraction(a)
            return np.minimum(out, 1.0)

        first, second = parts(joint.prefill), parts(joint.decode)
        if joint.prefill == joint.decode or np.array_equal(first, second):
            return np.maximum(first * at_prefill, second * at_decode)
        return np.minimum(first * at_prefill + second * at_decode, max(at_prefill, at_decode))

    def _cache(self, piece: Piece, tokens: float) -> float:
        total, b = 0.0, float(self.request.batch)
        for op in piece.operators:
            if op.kind == "kv_append":
                window = op.dims.get("window")
                kept = min(tokens, window.constant or tokens) if window is not None else tokens
                bits = next(t.bits for t in op.writes if t.role == "kv")
                total += (
                    float(op.dims["batch"](b, 1, 0)) * kept * float(op.dims["row_elements"].constant or 0) * bits / 8
                )
            total += sum(float(t.stored_bytes(b, 1, 0)) for t in op.writes if t.role == "state")
        return total

    def _edges(
        self, block: TraceBlock, pieces: list[Piece], joints: list[list[Joint]], first: bool
    ) -> tuple[list[Edge], list[Sizes]]:
        """Edges, and the bytes of each per phase."""
        place = {op.name: i for i, p in enumerate(pieces) for op in p.operators}
        moved: dict[tuple[int, int], list[float]] = {}
        for i, piece in enumerate(pieces):
            for op in piece.operators:
                names = {d: {t.name for t in o.writes} for d in op.deps for o in block.operators if o.name == d}
                for d in op.deps:
                    if place[d] != i:
                        moved.setdefault((place[d], i), [0.0, 0.0])
                for t in op.reads:
                    if t.role not in ("activation", "index"):
                        continue
                    source = next((place[d] for d in reversed(op.deps) if t.name in names[d]), INPUT)
                    if source == INPUT and (first or not _of_tokens(t)):
                        continue
                    if source != i:
                        known = moved.setdefault((source, i), [0.0, 0.0])
                        for n, point in enumerate(self.points):
                            known[n] += float(t.bytes(*point))
            if piece.kind == "output":
                source_op = next(o for o in block.operators if o.name == block.output)
                size = [
                    sum(float(t.bytes(*x)) for t in source_op.writes if t.role == "activation") for x in self.points
                ]
                moved[place[block.output], i] = size
        for i in range(1, len(pieces)):
            moved.setdefault((i - 1, i), [0.0, 0.0])  # a pass is a chain
        if not first and not any(s == INPUT for s, _ in moved):
            moved[INPUT, 0] = [0.0, 0.0]
        edges: list[Edge] = []
        sizes: list[Sizes] = []
        for (source, target), size in sorted(moved.items(), key=lambda x: (x[0][1], x[0][0])):
            there = self.hidden if source == INPUT else joints[source]
            pair = (INPUT if source == INPUT else source, target)
            edges.append(self._edge(pair, there, joints[target], size, self._bound(pieces, source, target)))
            sizes.append((size[0], 0.0, size[1]))
        return edges, sizes

    def _bound(self, pieces: list[Piece], source: int, target: int) -> bool:
        """Whether both ends are named in one group that shares its place."""
        if source == INPUT:
            return False
        names = {pieces[source].name, pieces[target].name}
        return any(names <= set(group) for group in self.together)

    def _edge(
        self, pair: tuple[int, int], source: list[Joint], target: list[Joint], size: list[float], bound: bool
    ) -> Edge:
        ks, kt, r = len(source), len(target), len(self.resources)
        delay, busy = np.zeros((ks, kt, len(PHASES))), np.zeros((ks, kt, len(PHASES), r))
        energy, usd = np.zeros((ks, kt)), np.zeros((ks, kt))
        allowed = np.ones((ks, kt), dtype=bool)
        for n, phase, pick in ((0, 0, _at_prefill), (1, 2, _at_decode)):
            if size[n] <= 0:
                continue
            froms, where_from = _distinct(source, pick)
            tos, where_to = _distinct(target, pick)
            table = [[self.transfers.between(s, t, size[n]) for t in tos] for s in froms]
            d = np.array([[t.delay_s for t in row] for row in table])
            u = np.array([[t.busy_s for t in row] for row in table])
            j = np.array([[t.energy_j for t in row] for row in table])
            at = np.ix_(where_from, where_to)
            delay[:, :, phase] = d[at]
            busy[:, :, phase, self.n :] = u[at]
            energy += self.repeats[phase] * j[at]
            usd += self.repeats[phase] * (u @ self.port_usd)[at]
        if bound:
            for k, a in enumerate(source):
                for m, b in enumerate(target):
                    allowed[k, m] = a.prefill.engines == b.prefill.engines and a.decode.engines == b.decode.engines
        return Edge(*pair, delay, busy, energy, usd, allowed)


def _each(options: list[list[list[Option]]], what: str) -> list[list[Array]]:
    """``what`` of all options of each operator of each block, as arrays."""
    return [[np.array([getattr(o, what) for o in os]) for os in block] for block in options]


def _weight_bytes(piece: Piece) -> float:
    return sum(float(w.stored_bytes.constant or 0) for op in piece.operators for w in op.weights)


def _units(count: int) -> int:
    """Shares that ``count`` like things are divided into: at most :data:`PARTS`, a divisor."""
    return next(n for n in range(min(PARTS, count), 0, -1) if count % n == 0)


def _at_prefill(joint: Joint) -> Spread:
    return joint.prefill


def _at_decode(joint: Joint) -> Spread:
    return joint.decode


def _distinct(joints: list[Joint], pick: Callable[[Joint], Spread]) -> tuple[list[Spread], list[int]]:
    spreads = [pick(j) for j in joints]
    known = {s: i for i, s in enumerate(dict.fromkeys(spreads))}
    return list(known), [known[s] for s in spreads]


def _is_kind(name: str, spread: Spread, node: Node) -> bool:
    """Whether ``name`` is the device that all engines of a spread are."""
    return all(node.engines[a].device.name == name for a in spread.engines)


def _of_tokens(t: Tensor) -> bool:
    """Whether a tensor's size depends on the request: what does not is a table every engine has."""
    return (t.elements if t.touched is None else t.touched).constant is None
