"""What a serving engine is, beside its schedule: memory it takes, blocks, limits, and its host's time per iteration."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field


@dataclass(frozen=True)
class EngineProfile:
    """Limits and overheads of an engine. Times in seconds, memory as a share of the device's or in bytes.

    ``utilisation``: share of memory an engine takes in all; ``reserved_bytes`` of it hold neither weights, cache nor
    activations (library contexts, captured graphs). ``block``: tokens per KV block. ``budget``: most tokens of an
    iteration (``max_num_batched_tokens``), ``seats``: most sequences (``max_num_seqs``). ``host_s`` and
    ``host_sequence_s``: the host prepares the next iteration, fixed and per sequence; hidden behind the device where
    ``asynchronous``. ``step_s``, ``sequence_s``, ``token_s``: what each iteration, sequence that gets a token and token
    of it add that nothing hides. ``graphs``: token counts that are captured, ascending; fewer tokens are padded.
    """

    name: str = "ideal"
    utilisation: float = 0.9
    reserved_bytes: float = 0.0
    block: int = 16
    budget: int = 2048
    seats: int = 256
    host_s: float = 0.0
    host_sequence_s: float = 0.0
    asynchronous: bool = False
    step_s: float = 0.0
    sequence_s: float = 0.0
    token_s: float = 0.0
    graphs: tuple[int, ...] = ()
    sources: dict[str, str] = field(default_factory=dict)

    def padded(self, tokens: int) -> int:
        """Tokens that the kernels of ``tokens`` tokens are run with."""
        if not self.graphs or tokens > self.graphs[-1]:
            return tokens
        return self.graphs[bisect_left(self.graphs, tokens)]

    def iterations_s(self, device_s: float, tokens: int, sequences: int, count: int) -> float:
        """Seconds of ``count`` like iterations that occupy the device for ``device_s`` together."""
        host = (self.host_s + self.host_sequence_s * sequences) * count
        extra = (self.step_s + self.sequence_s * sequences + self.token_s * tokens) * count
        return (max(device_s, host) if self.asynchronous else device_s + host) + extra
