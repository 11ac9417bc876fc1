"""Latency of attention kernels on GPUs: FlashAttention 2 and 3, prefill and split-KV decoding.

A kernel cuts the queries of one head into tiles of M rows; the block of threads that owns a tile walks
over the keys it may see, N at a time. Per step two M × N products and M·N exponentials; per tile a
start and an end that nothing overlaps. Seconds of a call:

    time   = launch + write + hypot(compute, memory) + combine + gather + left
    write  = this call's keys and values into the cache: bandwidth, or tokens × latency when they are few
    compute= steps × step time + tiles × tile time, over the multiprocessors; not below the longest tile
    memory = Q, O and the keys and values that L2 does not hold, over DRAM; all of it over L2
    combine= second kernel that adds the partial results when the keys of a tile are split
    gather = FlashAttention 2 only: kernels that put the query heads of one KV head beside each other
    left   = decoding sequences of different lengths, keys not split, kernel not persistent: what the longest one still
             has to walk, alone, when the others are done (:func:`left_over`), × step time

The hypotenuse lies above both and within 41 % of the larger: tiles start by waiting for memory and
end by writing to it, so the two overlap while both are far apart, and partly when they are near.
What comes from published source (tile shapes, packing, splitting) is in :class:`Kernel`; what is a
fact of the card in :class:`.card.Card`; the six numbers fitted per architecture in
:class:`AttentionConstants` (``python -m tokenfab.validation.attention``). All sizes may be arrays that
broadcast; times are seconds.

Held by tests: never below the roofline; more keys never make a call faster, nor does a slower clock,
matrix rate, DRAM or L2. More sequences may: the rules then split less and save the combine kernel; a
second query may, where it leaves decoding's gather kernels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from .card import Card, constants_of, library_of
from .spec import Device

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Size = float | npt.NDArray[np.float64] | npt.NDArray[np.int64]

EXPONENTIALS_PER_CLOCK = 16
"""Of one multiprocessor's special function units (CUDA C++ programming guide, arithmetic throughput)."""
LOAD_BYTES_PER_CLOCK = 64
"""From L2 into one multiprocessor (NVIDIA A100 white paper, 2020: 5120 bytes per clock over its crossbar)."""
THREADS_PER_SM, WRITE_THREADS = 2048, 512
"""Resident threads of one multiprocessor; threads of one block of vLLM's cache write (one token each)."""

SOFTMAX_SHARE = 0.80
"""Share of a step's exponentials that the products do not hide. Fitted on H100 head sizes 64 … 256."""
DRAM_SHARE = 0.93
"""Achievable share of DRAM bandwidth where nothing else limits. Fitted: 0.91 (A100), 0.93 (H100)."""
L2_SHARE = 0.35
"""Share of L2 whose keys survive from one repetition to the next. Fitted: 0.27 (A100), 0.39 (H100)."""


@dataclass(frozen=True)
class AttentionConstants:
    """What is fitted per architecture; meaning and bounds in :data:`BOUNDS`."""

    matrix_share: float
    tile_s: float
    launch_s: float
    next_launch_s: float
    token_s: float
    split_s: float
    dram_share: float = DRAM_SHARE


BOUNDS: dict[str, tuple[float, float, str]] = {
    "matrix_share": (0.3, 1.0, "share of the matrix rate that the products of a full tile reach"),
    "tile_s": (0.0, 1e-5, "start and end of a tile beyond moving its data: addresses, page table, normalising"),
    "launch_s": (2e-6, 2e-5, "fixed time of a call: cache write and attention kernel launched, drained, timed"),
    "next_launch_s": (0.0, 6e-6, "one more kernel that depends on the previous one"),
    "token_s": (5e-7, 1e-5, "a block of the cache write: slot looked up, row read, row written"),
    "split_s": (0.0, 1e-6, "one more partial result in the chain of the combine kernel"),
}
"""Bounds in the constants' units, and meaning."""
OPTIONAL: dict[str, tuple[float, float, str]] = {
    "dram_share": (0.5, 1.0, "share of the DRAM bandwidth where nothing else limits; 0.93 where a file has none"),
}
"""The same of constants that a file may leave out."""


@dataclass(frozen=True)
class Kernel:
    """How a published kernel cuts its work. Tiles: (largest head size, rows, keys), ascending.

    ``small`` tiles serve up to ``small[·].rows`` packed query rows. ``packs_prefill``: query heads of
    one KV head may share a tile in prefill too (they always do in decoding). ``fill``: share of the
    slots (multiprocessors × ``ctas_per_sm``) that splitting aims at. ``tail``: share of the longest
    tile that runs on while multiprocessors idle at the end: a half for tiles in ascending order.
    ``persistent``: blocks fetch tiles from a list; others have a block for each place of the grid (largest
    number of tiles × sequences × heads), and those of short sequences find nothing to do.
    """

    name: str
    tiles: tuple[tuple[int, int, int], ...]
    small: tuple[tuple[int, int, int], ...]
    narrow_tiles: tuple[tuple[int, int, int], ...]
    narrow_small: tuple[tuple[int, int, int], ...]
    packs_prefill: bool
    splits_prefill: bool
    splits_single_heads: bool
    gather_kernels: int
    ctas_per_sm: int
    fill: float
    max_splits: int
    max_split_batch: float
    tail: float
    persistent: bool = False


_FLASH2_TILES = ((80, 64, 256), (128, 64, 128), (512, 64, 64))
FLASH2 = Kernel(
    "FlashAttention 2, paged", _FLASH2_TILES, (), _FLASH2_TILES, (),
    packs_prefill=False, splits_prefill=False, splits_single_heads=False, gather_kernels=2,
    ctas_per_sm=2, fill=0.85, max_splits=128, max_split_batch=np.inf, tail=0.5,
)  # fmt: skip
"""vllm-project/flash-attention csrc/flash_attn: flash_fwd_launch_template.h (run_mha_fwd_splitkv_dispatch),
flash_api.cpp (num_splits_heuristic: the fewest splits within 85 % of the best fill of 2 blocks per SM)."""

FLASH3 = Kernel(
    "FlashAttention 3, paged",
    tiles=((96, 192, 128), (128, 128, 128), (192, 128, 96), (512, 128, 80)), small=((64, 64, 192), (128, 64, 128)),
    narrow_tiles=((64, 192, 160), (96, 192, 128), (192, 128, 160), (512, 128, 128)),
    narrow_small=((64, 64, 128), (128, 64, 96)),
    packs_prefill=True, splits_prefill=True, splits_single_heads=True, gather_kernels=0,
    ctas_per_sm=1, fill=1 / 1.1, max_splits=32, max_split_batch=992, tail=0.2, persistent=True,
)  # fmt: skip
"""vllm-project/flash-attention hopper: tile_size.h, heuristics.h (should_pack_gqa), flash_prepare_scheduler.cu
(splits such that the blocks of keys, plus 10 %, are spread over the SMs; none beyond 992 sequences)."""

FLASHINFER = replace(
    FLASH3, name="FlashInfer, paged", small=((256, 16, 128),), narrow_small=((256, 16, 128),),
    ctas_per_sm=2, fill=1.0, max_splits=1024, max_split_batch=np.inf,
)  # fmt: skip
"""flashinfer-ai/flashinfer: FlashAttention 3's tiles for prompts; tiles of 16 rows where a KV head's queries are no
more (utils.cuh, FA2DetermineCtaTileQ), split into two blocks per SM at most (scheduler.cuh,
PrefillBinarySearchKVChunkSize). Their 128 keys are assumed: four warps' two products of 16."""


LIBRARIES = {"flash-2": FLASH2, "flash-3": FLASH3, "flash-infer": FLASHINFER}
"""By the name that ``[kernels.attention] library`` of a device file gives."""


def attention_kernels(device: Device, bits: float = 16) -> tuple[AttentionConstants, Kernel]:
    """Constants and library of attention over a cache of ``bits`` per element on ``device``.

    Narrow caches have constants of their own where the file has a ``[kernels.attention_8bit]``. Raises
    ``InputError`` for what it lacks.
    """
    narrow = bits < 16 and "attention_8bit" in device.kernels
    family = "attention_8bit" if narrow else "attention"
    return constants_of(device, family, AttentionConstants), library_of(device, family, LIBRARIES)


def prefill_time(
    batch: Size, query: Size, kv: Size, heads: Size, kv_heads: Size, head_dim: Size, value_dim: Size,
    card: Card, constants: AttentionConstants, kernel: Kernel = FLASH3,
    window: Size | None = None, bits: int = 16, warm: bool = False,
) -> Array:  # fmt: skip
    """Seconds of causal attention of ``query`` new tokens, the last of which sees ``kv`` keys.

    ``batch`` sequences, ``kv`` ≥ ``query`` keys (the cached prefix included) per sequence, ``heads`` query
    and ``kv_heads`` key heads of ``head_dim`` (values ``value_dim``) elements; ``window`` keys at most per
    query; ``bits`` (16 or 8) per cached element, which is also the format of the products. ``warm``: the
    call is repeated on the same data, as benchmarks do, so that keys may still lie in L2.
    """
    return attention_parts(
        batch, query, kv, heads, kv_heads, head_dim, value_dim, card, constants, kernel,
        window=window, bits=bits, warm=warm,
    ).seconds  # fmt: skip


def decode_time(
    batch: Size, kv: Size, heads: Size, kv_heads: Size, head_dim: Size, value_dim: Size,
    card: Card, constants: AttentionConstants, kernel: Kernel = FLASH3,
    kv_max: Size | None = None, window: Size | None = None, bits: int = 16, warm: bool = False,
) -> Array:  # fmt: skip
    """Seconds of attention of one new token per sequence over ``kv`` keys on average, ``kv_max`` at most.

    The longest sequence bounds the time from below however short the others are. Other arguments as
    in :func:`prefill_time`.
    """
    return attention_parts(
        batch, 1.0, kv, heads, kv_heads, head_dim, value_dim, card, constants, kernel,
        kv_max=kv_max, window=window, bits=bits, warm=warm,
    ).seconds  # fmt: skip


@dataclass(frozen=True)
class AttentionParts:
    """Seconds of a call by part; they broadcast, and :attr:`seconds` adds them up."""

    launch_s: float
    write: Array
    compute: Array
    memory: Array
    rest: Array
    """Partial results combined, grouped heads gathered: further kernels; what the longest sequence has left."""
    corner: float | Array = 2.0
    """Power mean in which compute and memory overlap."""

    @property
    def seconds(self) -> Array:
        if np.ndim(self.corner) == 0 and self.corner == 2:
            core = np.hypot(self.compute, self.memory)
        else:
            core = (self.compute**self.corner + self.memory**self.corner) ** (1 / np.asarray(self.corner))
        total: Array = self.launch_s + self.write + core + self.rest
        return total


def write_time(tokens: Size, row_elements: Size, card: Card, c: AttentionConstants, bits: float = 16) -> Array:
    """Seconds beyond its launch of writing ``tokens`` new cache rows of ``row_elements`` (keys and values)."""
    written = np.asarray(tokens, dtype=float) * row_elements * (2 + bits / 8)  # 16-bit values read, elements written
    blocks = np.asarray(tokens) * np.minimum(np.asarray(row_elements) / 2, WRITE_THREADS) / (THREADS_PER_SM * card.sms)
    return np.maximum(written / (c.dram_share * card.dram_bytes_s), blocks * c.token_s)


def attention_parts(
    batch: Size, query: Size, kv: Size, heads: Size, kv_heads: Size, head_dim: Size, value_dim: Size,
    card: Card, constants: AttentionConstants, kernel: Kernel = FLASH3, *, kv_max: Size | None = None,
    window: Size | None = None, bits: float = 16, warm: bool = False,
) -> AttentionParts:  # fmt: skip
    """Parts of a call of ``query`` new tokens per sequence: decoding where it is 1, else prefill.

    Arguments as in :func:`prefill_time` and :func:`decode_time`.
    """
    b, q, s, s_max, h, hk, d, dv = (
        np.asarray(x, dtype=float)
        for x in (batch, query, kv, kv if kv_max is None else kv_max, heads, kv_heads, head_dim, value_dim)
    )
    c, width = constants, bits / 8
    group, head = h / hk, d + dv
    cut = False if window is None else s > np.asarray(window)
    rows, keys, pack = tiling(kernel, q, group, np.maximum(d, dv), bits, cut)
    share = np.where(pack, group, 1.0)  # query rows of a tile that belong to one token
    tiles = np.ceil(q * share / rows)  # per sequence and unit; a unit is a KV head if packed, else a head
    seen = s if window is None else np.minimum(s, np.asarray(window) + q - 1)
    steps = causal_steps(tiles, rows / share, keys, seen, q, window)
    count = b * h / share * tiles

    last = s_max if window is None else np.minimum(s_max, np.asarray(window) + rows / share - 1)
    longest_steps = np.ceil(last / keys)
    splits = _splits(kernel, card, count, longest_steps, b, q, group)
    step, tile = tile_times(rows, keys, head, width, card, c)
    longest = np.maximum(longest_steps / splits, 1.0) * step + tile
    # Several tiles per head differ in length: list scheduling. One tile per head: whole waves.
    work = (b * h / share * steps * step + count * splits * tile) / card.sms
    waves = np.ceil(count * splits / card.sms - 1e-9)
    mean = np.maximum(np.ceil(seen / keys) / splits, 1.0) * step + tile
    late: Array | float = 0.0
    if kv_max is not None and not kernel.persistent:
        whole = (tiles == 1) & (splits == 1)
        most = s_max if window is None else np.minimum(s_max, np.asarray(window) + q - 1)
        late = np.where(whole, step * left_over(seen / keys, most / keys, count / (card.sms * kernel.ctas_per_sm)), 0.0)
        longest = np.where(whole, mean, longest)
    compute = np.maximum(longest, np.where(tiles > 1, work + kernel.tail * longest, waves * mean))

    dram = c.dram_share * card.dram_bytes_s
    kv_bytes = b * seen * hk * head * width
    qo_bytes = b * q * h * (d * width + 2 * dv)
    missed = np.clip(kv_bytes / (L2_SHARE * card.l2_bytes) - 1, 0.0, 1.0) if warm and card.l2_bytes else 1.0
    memory = np.maximum((kv_bytes * missed + qo_bytes) / dram, (kv_bytes + qo_bytes) / card.l2_bytes_s)

    partial = 2 * 4 * splits * b * q * h * dv / dram  # 32-bit, written and read
    # Between one and two splits the real rules take one or the other; the mean of both is continuous.
    combine = np.minimum(splits - 1, 1.0) * (c.next_launch_s + c.split_s * splits + partial)
    if kernel.gather_kernels:
        gathered = (q == 1) & (h > hk) & (hk > 1) & (b > 1)
        combine = combine + np.where(gathered, kernel.gather_kernels * (c.next_launch_s + qo_bytes / dram), 0.0)
    return AttentionParts(c.launch_s, write_time(b * q, hk * head, card, c, bits), compute, memory, combine + late)


def left_over(mean: Array, longest: Array, rounds: Array) -> Array:
    """Steps that a sequence of ``longest`` steps has to go when the others, of ``mean`` steps, are done.

    Tiles that share a card advance at one pace, ``rounds`` after each other on each place (1 where there are places for
    all): the others take max(rounds, 1) · mean steps, and the longest starts anywhere in them but in the last
    ``mean``. What it has left then it walks alone, and nothing hides that.
    """
    all_steps = np.maximum(rounds, 1.0) * mean
    span, beyond = all_steps - mean, longest - all_steps
    until = np.maximum(longest - mean, 0.0)
    return np.where(beyond >= 0, beyond + span / 2, until**2 / (2 * np.maximum(span, 1e-9)))


def tile_times(
    rows: Size, keys: Size, head: Size, width: float, card: Card, c: AttentionConstants
) -> tuple[Array, Array]:
    """Seconds of one step of a tile of ``rows`` × ``keys``, and of its start and end.

    ``head``: elements of a key and a value together, of ``width`` bytes each.
    """
    rate = card.matrix_flops / card.sms
    port = LOAD_BYTES_PER_CLOCK * card.clock_hz
    softmax = SOFTMAX_SHARE / (EXPONENTIALS_PER_CLOCK * card.clock_hz)
    step = np.maximum(rows * keys * (2 * head / (rate * c.matrix_share) + softmax), keys * head * width / port)
    return step, c.tile_s + np.asarray(head * (keys + rows) * width / port)


def tiling(
    kernel: Kernel, query: Array, group: Array, head_dim: Array, bits: float, cut: Mask | bool = False
) -> tuple[Array, Array, Mask]:
    """Rows and keys of a tile, and whether the ``group`` query heads of a KV head share tiles.

    ``cut``: a window hides keys. Measured: no small tiles then for heads up to 64 elements.
    """
    large, small = (kernel.tiles, kernel.small) if bits >= 16 else (kernel.narrow_tiles, kernel.narrow_small)
    rows, keys = _lookup(large, head_dim)
    pack = query == 1
    if kernel.packs_prefill:
        alone = query / (np.ceil(query / rows) * rows)
        packed = query * group / (np.ceil(query * group / rows) * rows)
        pack = (query <= rows) | (alone < 0.9 * packed)
    if small:
        few_rows, few_keys = _lookup(small, np.minimum(head_dim, small[-1][0]))
        few = (head_dim <= small[-1][0]) & (query * np.where(pack, group, 1.0) <= few_rows)
        few &= (head_dim > 64) | np.logical_not(cut)
        rows, keys = np.where(few, few_rows, rows), np.where(few, few_keys, keys)
    return rows, keys, pack


def causal_steps(tiles: Array, tokens: Array, keys: Array, kv: Array, query: Array, window: Size | None) -> Array:
    """Steps of one head of one sequence: its ``tiles``, of ``tokens`` queries each, over ``keys`` at a time.

    Tile i (from 1) ends at key kv − query + i·tokens. The sum over the tiles but the last is an
    arithmetic series, each term rounded up to whole steps: half of (1 − tokens / keys) on average. A
    window caps the series at window + tokens keys.
    """
    full = np.maximum(tiles - 1, 0.0)
    before = kv - query
    last = kv
    total = full * before + tokens * full * tiles / 2
    if window is not None:
        cap = np.asarray(window, dtype=float) + tokens - 1
        rising = np.clip(np.floor((cap - before) / tokens), 0.0, full)  # tiles that the window does not cut
        total = rising * before + tokens * rising * (rising + 1) / 2 + (full - rising) * cap
        last = np.minimum(kv, cap)
    rounding = full * 0.5 * (1 - np.minimum(tokens / keys, 1.0))
    steps: Array = np.maximum(total / keys + rounding + np.ceil(last / keys), tiles)
    return steps


def _splits(kernel: Kernel, card: Card, count: Array, steps: Array, batch: Array, query: Array, group: Array) -> Array:
    """Parts into which the keys of each tile are split, as a real number (the rules choose whole ones)."""
    room = np.minimum(steps, kernel.max_splits)
    splits: Array = np.maximum(np.minimum(kernel.fill * card.sms * kernel.ctas_per_sm / count, room), 1.0)
    barred = batch > kernel.max_split_batch
    if not kernel.splits_prefill:
        barred = barred | (query > 1)
    if not kernel.splits_single_heads:
        barred = barred | (group == 1)
    return np.where(barred, 1.0, splits)


def _lookup(table: tuple[tuple[int, int, int], ...], head_dim: Array) -> tuple[Array, Array]:
    limits, rows, keys = np.array(table, dtype=float).T
    index = np.minimum(np.searchsorted(limits, head_dim), len(table) - 1)
    return rows[index], keys[index]
