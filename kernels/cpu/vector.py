"""Vector code in LLVM's language, with the two instructions low-bit products live on.

Vectors are 64 bytes wide whatever the processor: 16 lanes of 32 bits, 32 of 16, 64 of 8; LLVM splits them where
registers are narrower. Only :meth:`Code.dot` and :meth:`Code.lookup` depend on the instruction set:

    avx512     vpdpbusd and vpshufb on 64 bytes (AVX-512 BW and VNNI)
    avx2       vpmaddubsw, vpmaddwd and vpshufb on 32 bytes; unsigned bytes must be below 128
    portable   what every processor has; a lookup is 64 loads
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

ir: Any = import_module("llvmlite.ir")

I8, I16, I32, I64 = (ir.IntType(b) for b in (8, 16, 32, 64))
F32 = ir.FloatType()
B64, H32, W16, F16 = (ir.VectorType(t, n) for t, n in ((I8, 64), (I16, 32), (I32, 16), (F32, 16)))
ISAS: Mapping[str, tuple[str, ...]] = {
    "avx512": ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni"),
    "avx2": ("avx2", "fma", "f16c"),
    "portable": (),
}
"""Instruction sets, best first, and the processor features each needs (LLVM's names)."""
Value = Any


class Code:
    """A builder of vector code at the builder's place in a function."""

    def __init__(self, builder: Any, isa: str) -> None:
        self.b = builder
        self.isa = isa

    # -- constants and variables ------------------------------------------------------------------
    def word(self, value: int | Value) -> Value:
        """A 64-bit constant, or what is one already."""
        return I64(value) if isinstance(value, int) else value

    def splat(self, kind: Any, value: float) -> Value:
        """A vector of equal constants."""
        return ir.Constant(kind, [kind.element(value)] * kind.count)

    def vector(self, kind: Any, values: list[int]) -> Value:
        return ir.Constant(kind, [kind.element(v) for v in values])

    def fill(self, kind: Any, scalar: Value) -> Value:
        """A vector whose lanes are all ``scalar``."""
        one = self.b.insert_element(ir.Constant(kind, ir.Undefined), scalar, I32(0))
        return self.b.shuffle_vector(one, one, ir.Constant(ir.VectorType(I32, kind.count), None))

    def variable(self, kind: Any, value: Value | None = None) -> Value:
        """A stack slot; LLVM makes registers of those that are never indexed."""
        with self.b.goto_entry_block():
            slot = self.b.alloca(kind)
        if value is not None:
            self.b.store(value, slot)
        return slot

    def room(self, size: int) -> Value:
        """The address of ``size`` bytes of the stack, aligned to a vector."""
        with self.b.goto_entry_block():
            slot = self.b.alloca(ir.ArrayType(I8, size))
            slot.align = 64
        return self.b.ptrtoint(slot, I64)

    def get(self, slot: Value) -> Value:
        return self.b.load(slot)

    def add_to(self, slot: Value, value: Value) -> None:
        self.b.store(self.b.add(self.get(slot), value), slot)

    # -- addresses and loops ----------------------------------------------------------------------
    def at(self, base: Value, *terms: int | Value) -> Value:
        """Address ``base`` plus bytes."""
        for term in terms:
            base = self.b.add(base, self.word(term))
        return base

    def times(self, a: int | Value, b: int | Value) -> Value:
        return self.b.mul(self.word(a), self.word(b))

    def load(self, kind: Any, address: Value, align: int = 1) -> Value:
        return self.b.load(self.b.inttoptr(address, kind.as_pointer()), align=align)

    def store(self, value: Value, address: Value) -> None:
        self.b.store(value, self.b.inttoptr(address, value.type.as_pointer()), align=1)

    def broadcast(self, address: Value) -> Value:
        """Four bytes of memory in every lane of 32 bits, as bytes."""
        return self.b.bitcast(self.fill(W16, self.load(I32, address)), B64)

    @contextmanager
    def loop(self, count: int | Value) -> Iterator[Value]:
        """Run the body ``count`` times; gives the index."""
        slot = self.variable(I64, I64(0))
        head, body, end = (self.b.append_basic_block(name) for name in ("head", "body", "end"))
        self.b.branch(head)
        self.b.position_at_end(head)
        index = self.b.load(slot)
        self.b.cbranch(self.b.icmp_signed("<", index, self.word(count)), body, end)
        self.b.position_at_end(body)
        yield index
        self.b.store(self.b.add(index, I64(1)), slot)
        self.b.branch(head)
        self.b.position_at_end(end)

    def prefetch(self, address: Value) -> None:
        """Ask for the bytes at ``address``, which need not exist, to be read once."""
        place = self.b.inttoptr(address, I8.as_pointer())
        self.call("llvm.prefetch.p0i8", ir.VoidType(), place, I32(0), I32(3), I32(1))

    def call(self, name: str, result: Any, *arguments: Value) -> Value:
        """Call an LLVM intrinsic."""
        kind = ir.FunctionType(result, [a.type for a in arguments])
        module = self.b.module
        found = module.globals.get(name) or ir.Function(module, kind, name)
        return self.b.call(found, arguments)

    # -- what threads share -----------------------------------------------------------------------
    def exchange_add(self, address: Value, value: int) -> Value:
        """Add to a 64-bit word of memory at once; what it was."""
        return self.b.atomic_rmw("add", self.b.inttoptr(address, I64.as_pointer()), I64(value), "seq_cst")

    def wait_for(self, address: Value, least: Value, looks: int | None = None) -> Value:
        """A 64-bit word of memory, when it is ``least`` or more, or after so many looks at it."""
        left = self.variable(I64, I64(looks or 0))
        head, again, end = (self.b.append_basic_block(name) for name in ("look", "again", "go"))
        self.b.branch(head)
        self.b.position_at_end(head)
        found = self.b.load_atomic(self.b.inttoptr(address, I64.as_pointer()), "acquire", 8)
        self.b.cbranch(self.b.icmp_signed("<", found, least), again, end)
        self.b.position_at_end(again)
        if looks is None:
            self.b.branch(head)
        else:
            self.add_to(left, I64(-1))
            self.b.cbranch(self.b.icmp_signed(">", self.get(left), I64(0)), head, end)
        self.b.position_at_end(end)
        return found

    # -- arithmetic -------------------------------------------------------------------------------
    def bits(self, value: Value, mask: int) -> Value:
        return self.b.and_(value, self.splat(B64, mask))

    def shifted(self, value: Value, count: int) -> Value:
        """Bytes shifted right, with bits of neighbours where a mask must follow."""
        if not count:
            return value
        return self.b.bitcast(self.b.lshr(self.b.bitcast(value, H32), self.splat(H32, count)), B64)

    def part(self, value: Value, start: int, count: int) -> Value:
        """``count`` lanes from ``start`` on."""
        mask = self.vector(ir.VectorType(I32, count), list(range(start, start + count)))
        return self.b.shuffle_vector(value, value, mask)

    def joined(self, parts: list[Value]) -> Value:
        """Vectors one after the other; a power of two of them."""
        while len(parts) > 1:
            lanes = 2 * parts[0].type.count
            mask = self.vector(ir.VectorType(I32, lanes), list(range(lanes)))
            parts = [self.b.shuffle_vector(a, b, mask) for a, b in zip(parts[::2], parts[1::2], strict=True)]
        return parts[0]

    def picked(self, value: Value, lanes: list[int]) -> Value:
        """Lanes of ``value`` by number."""
        return self.b.shuffle_vector(value, value, self.vector(ir.VectorType(I32, len(lanes)), lanes))

    def folded(self, value: Value, name: str) -> Value:
        """All lanes joined pairwise by ``add``, or the LLVM intrinsic ``name``; a scalar."""
        count = value.type.count
        while count > 1:
            count //= 2
            a, b = self.part(value, 0, count), self.part(value, count, count)
            value = self.b.add(a, b) if name == "add" else self.intrinsic(name, a, b)
        return self.b.extract_element(value, I32(0))

    def intrinsic(self, name: str, *arguments: Value) -> Value:
        """``llvm.NAME`` of floating-point vectors, lane by lane."""
        kind = arguments[0].type
        label = f"v{kind.count}f32" if isinstance(kind, ir.VectorType) else "f32"
        return self.call(f"llvm.{name}.{label}", kind, *arguments)

    # -- what instruction sets differ in ----------------------------------------------------------
    def dot(self, total: Value, unsigned: Value, signed: Value) -> Value:
        """``total`` (16 lanes of 32 bits) plus the products of each lane's four bytes."""
        if self.isa == "avx512":
            words = [self.b.bitcast(v, W16) for v in (unsigned, signed)]
            return self.call("llvm.x86.avx512.vpdpbusd.512", W16, total, *words)
        if self.isa == "avx2":
            halves = []
            for start in (0, 32):
                u, s = (self.part(v, start, 32) for v in (unsigned, signed))
                pairs = self.call("llvm.x86.avx2.pmadd.ub.sw", ir.VectorType(I16, 16), u, s)
                ones = self.splat(ir.VectorType(I16, 16), 1)
                halves.append(self.call("llvm.x86.avx2.pmadd.wd", ir.VectorType(I32, 8), pairs, ones))
            return self.b.add(total, self.joined(halves))
        for i in range(4):
            lanes = list(range(i, 64, 4))
            a = self.b.zext(self.picked(unsigned, lanes), W16)
            total = self.b.add(total, self.b.mul(a, self.b.sext(self.picked(signed, lanes), W16)))
        return total

    def table(self, address: Value) -> Value:
        """16 bytes of memory as :meth:`lookup` wants them."""
        if self.isa == "portable":
            return address
        row = self.load(ir.VectorType(I8, 16), address)
        return self.picked(row, [*range(16)] * 4)

    def lookup(self, table: Value, index: Value) -> Value:
        """Bytes of a table of 16 by the bytes of ``index``, 0 to 15."""
        if self.isa == "avx512":
            return self.call("llvm.x86.avx512.pshuf.b.512", B64, table, index)
        if self.isa == "avx2":
            kind = ir.VectorType(I8, 32)
            parts = [[self.part(v, start, 32) for v in (table, index)] for start in (0, 32)]
            return self.joined([self.call("llvm.x86.avx2.pshuf.b", kind, *p) for p in parts])
        found = ir.Constant(B64, ir.Undefined)
        for i in range(64):
            place = self.at(table, self.b.zext(self.b.extract_element(index, I32(i)), I64))
            found = self.b.insert_element(found, self.load(I8, place), I32(i))
        return found
