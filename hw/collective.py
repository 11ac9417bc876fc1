"""Collectives over the links between devices: what each rank sends, over how many steps, in which protocol.

S bytes (of the whole tensor), n ranks, link bandwidth B per direction. A rank sends W bytes and copies
L bytes of its own share, in ``steps`` steps along a ring (two times around for an all-reduce):

    all_reduce                  W = 2(n−1)/n · S    L = S/n    steps = 2(n−1)
    all_gather, reduce_scatter  W =  (n−1)/n · S    L = S/n    steps = n−1
    all_to_all                  W =  (n−1)/n · S    L = S/n    steps = log₂ n, all peers at once
    send                        W = S               L = 0      steps = 1

    fixed         start + steps · (hop + chunk · min(1, S/n / 8 KiB)) [+ pairing, between pairs]
    stream        (W + local · L) / B
    low latency   fixed + stream / low_latency_share                   a flag beside each word of data
    simple        fixed + stream / share + √(stream / share · tail)    flags per buffer
    in switch     as simple, of S·(1 + 1/n) bytes at in_switch_share   all_reduce, where the switch adds

and a library (NCCL) takes the fastest. Its *own kernel* for small all-reduces reads the peers' buffers
directly, in one stage or in two with a barrier between, up to 8 MiB over links that join all devices:

    one stage     direct_start + (n−1) · peer + (n−1) · S / (peer_share · B)
    two stages    the same with 2(n−1)/n · S, + barrier

Links that hang off a host, and devices whose file has no ``collective_*`` constants, get ring volume with
tree latency, behind one launch: α–β with the link's ``latency``. Sizes may be arrays; times are seconds.

Sources: volumes and α–β: Thakur, Rabenseifner, Gropp, IJHPCA 19(1), 2005; protocols, their choice by
least time and reduction in the switch (NVLS): NVIDIA NCCL, src/graph/tuning.cc; one- and two-stage
kernels and their limit: vLLM, csrc/custom_all_reduce.cuh and custom_all_reduce.py. √ as in :mod:`.gemm`.
Constants: ``python -m tokenfab.validation.collectives``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from .spec import Device, Link

Array = npt.NDArray[np.float64]

COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send")
CHUNK_BYTES = 8192
"""A step's smallest useful message: above, more channels carry it at once (512 threads × 16 bytes)."""
DIRECT_LIMIT = 8 * 2**20
"""Bytes up to which serving engines reduce with their own kernel (vLLM, custom_all_reduce.py: max_size)."""


@dataclass(frozen=True)
class SharedConstants:
    """What A100 and H100 have in common; meaning and bounds in :data:`SHARED_BOUNDS`."""

    hop_s: float
    hop_chunk_s: float
    pairing_s: float
    local: float
    peer_s: float
    peer_share: float


SHARED_BOUNDS: dict[str, tuple[float, float, str]] = {
    "hop_s": (1e-8, 1e-5, "one step: a flag to the neighbour"),
    "hop_chunk_s": (1e-8, 1e-5, "one step: a chunk through the neighbour's buffer"),
    "pairing_s": (1e-8, 1e-5, "sends and receives between pairs wait for one another"),
    "local": (0.05, 1.0, "copying a rank's own part, over the time to send as much"),
    "peer_s": (1e-9, 1e-5, "one more peer that the direct kernel signals"),
    "peer_share": (0.2, 1.0, "share of a link that the direct kernel's loads from peers reach"),
}
"""Bounds in the constants' units, and meaning."""

SHARED = SharedConstants(7.59e-7, 2.87e-7, 1.43e-6, 0.371, 1.16e-7, 0.652)
"""Fitted on both cards' even rows at once."""


@dataclass(frozen=True)
class CollectiveConstants:
    """What differs between generations of devices; meaning and bounds in :data:`BOUNDS`."""

    start_s: float
    low_latency_share: float
    share: float
    tail_s: float
    direct_start_s: float
    barrier_s: float
    in_switch_share: float | None = None


BOUNDS: dict[str, tuple[float, float, str]] = {
    "start_s": (1e-6, 5e-5, "launch, start and end of a library's kernel on all ranks"),
    "low_latency_share": (0.05, 0.5, "share of a link that words with flags beside them reach"),
    "share": (0.3, 1.0, "share of a link that a very long message reaches"),
    "tail_s": (1e-7, 1e-4, "a stream of t seconds ends √(t × this) late"),
    "direct_start_s": (1e-6, 5e-5, "launch, barrier and end of the direct kernel"),
    "barrier_s": (1e-7, 5e-5, "between the two stages of the direct kernel"),
    "in_switch_share": (0.3, 1.0, "share of a link that reduction in the switch reaches; None: switches only forward"),
}
"""Bounds in the constants' units, and meaning."""


def constants_of(device: Device, link: Link) -> CollectiveConstants | None:
    """The fitted constants of a device file; None where it has none, or the link hangs off a host."""
    m = device.model
    fitted = (
        m.collective_launch, m.collective_low_latency, m.collective_tail, m.direct_launch, m.direct_barrier
    )  # fmt: skip
    if link.topology == "host" or any(q is None for q in fitted):
        return None
    start, low_latency, tail, direct, barrier = (q.value for q in fitted if q is not None)
    reduces = m.collective_in_switch if link.topology == "switched" else None
    in_switch = reduces.value if reduces else None
    return CollectiveConstants(start, low_latency, m.link_efficiency.value, tail, direct, barrier, in_switch)


def fastest_link(device: Device, world: int) -> Link:
    """The link with the most bandwidth among those that join ``world`` devices.

    Raises ``InputError`` when the device has none.
    """
    if not device.links:
        raise InputError(f"device {device.name}: has no [links], so several of them cannot work together")
    wide = [link for link in device.links.values() if link.peers is None or link.peers.value >= world]
    if not wide:
        widest = max(link.peers.value for link in device.links.values() if link.peers)
        raise InputError(f"device {device.name}: no link joins {world} of them; the widest joins {widest:g}")
    return max(wide, key=lambda link: link.bandwidth.value)


def collective_time(collective: str, size: npt.ArrayLike, world: int, device: Device) -> Array:
    """Seconds of a collective of ``size`` bytes (the whole tensor) over ``world`` devices, by their fastest link.

    Raises ``InputError`` when no link joins so many.
    """
    link = fastest_link(device, world)
    nbytes, constants = np.asarray(size, np.float64), constants_of(device, link)
    if world == 1:
        return np.zeros_like(nbytes)
    bandwidth = link.bandwidth.value
    if constants is None:
        reached = bandwidth * device.model.link_efficiency.value
        return device.model.launch.value + _alpha_beta(collective, nbytes, world, reached, link.latency.value)
    time = library_time(collective, nbytes, world, bandwidth, constants)
    if collective == "all_reduce":
        time = np.where(nbytes <= DIRECT_LIMIT, direct_time(nbytes, world, bandwidth, constants), time)
    return time


def library_time(
    collective: str, size: Array, world: npt.ArrayLike, bandwidth: float, c: CollectiveConstants,
    shared: SharedConstants = SHARED,
) -> Array:  # fmt: skip
    """Seconds of a library's collective (NCCL) of ``size`` bytes over ``bandwidth`` byte/s per direction."""
    n = np.asarray(world, np.float64)
    sent, own, steps = _volumes(collective, n)
    pairs = collective in ("all_to_all", "send")
    fixed = c.start_s + steps * (shared.hop_s + shared.hop_chunk_s * np.minimum(size / n / CHUNK_BYTES, 1))
    fixed = fixed + pairs * shared.pairing_s
    stream = size * (sent + shared.local * own) / bandwidth
    bulk = _late(stream / c.share, c.tail_s)
    if collective == "all_reduce" and c.in_switch_share:
        bulk = np.minimum(bulk, _late(size * (1 + 1 / n) / (c.in_switch_share * bandwidth), c.tail_s))
    return np.asarray(fixed + np.minimum(stream / c.low_latency_share, bulk))


def direct_time(
    size: Array, world: npt.ArrayLike, bandwidth: float, c: CollectiveConstants, shared: SharedConstants = SHARED
) -> Array:
    """Seconds of a serving engine's own all-reduce of ``size`` bytes: the better of one and two stages."""
    n = np.asarray(world, np.float64)
    start, rate = c.direct_start_s + shared.peer_s * (n - 1), shared.peer_share * bandwidth
    return np.asarray(start + np.minimum((n - 1) * size / rate, c.barrier_s + 2 * (n - 1) / n * size / rate))


def _volumes(collective: str, n: Array) -> tuple[Array, Array, Array]:
    """Bytes sent and bytes copied per byte of the tensor, and steps."""
    ring, own = (n - 1) / n, 1 / n
    volumes = {
        "all_reduce": (2 * ring, own, 2 * (n - 1)),
        "all_gather": (ring, own, n - 1),
        "reduce_scatter": (ring, own, n - 1),
        "all_to_all": (ring, own, np.log2(n)),
        "send": (np.ones_like(n), np.zeros_like(n), np.ones_like(n)),
    }
    return volumes[collective]


def _late(t: Array, tail_s: float) -> Array:
    return np.asarray(t + np.sqrt(t * tail_s))


def _alpha_beta(collective: str, size: Array, world: int, bandwidth: float, latency_s: float) -> Array:
    """Ring volume with tree latency: 2⌈log₂n⌉ hops of an all-reduce, one of a send, else ⌈log₂n⌉."""
    sent, _, _ = _volumes(collective, np.asarray(world, np.float64))
    tree = int(np.ceil(np.log2(world)))
    hops = {"all_reduce": 2 * tree, "send": 1}.get(collective, tree)
    return np.asarray(size * sent / bandwidth + hops * latency_s)
