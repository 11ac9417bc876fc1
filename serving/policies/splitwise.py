"""Splitwise: prompts on some replicas, tokens on others, caches sent between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ...errors import InputError
from ...hw.devices import load_device
from ...settings import Parameter
from ..links import Network, Transfer
from ..memory import CacheBytes
from ..replica import Replica
from ..scheduling import Plan, Schedule
from ..sequence import Sequence
from . import ORDER, Policy
from .vllm import TokenBudget

if TYPE_CHECKING:
    from ..simulation import Simulation

PROMPT, TOKEN = "prompt", "token"


class WholePrompts(TokenBudget):
    """Whole prompts together until ``budget`` tokens, a longer one alone; decoding sequences (of a full pool) too."""

    def plan(self, replica: Replica) -> Plan | None:
        preempted = self._make_room(replica)
        if replica.leaving and replica.short(replica.pool.free):
            return None
        plan = Plan([(s, s.todo) for s in replica.prefilling], most=1 if preempted else 1 << 30)
        tokens = sum(q for _, q in plan.chunks)
        while not preempted and (first := replica.peek()) is not None:
            if plan.chunks and tokens + first.todo > self.limit(replica):
                break
            sequence = replica.admit()
            if sequence is None:
                break
            plan.chunks.append((sequence, sequence.todo))
            tokens += sequence.todo
        return plan if plan.chunks or replica.decoding else None


@dataclass(eq=False)
class Move:
    """A cache on its way from ``source`` to ``target``, where ``blocks`` are held for it.

    ``held``: blocks and prefix nodes at the source, once the prompt is computed, at ``computed_s`` after ``prompt_s``;
    ``begun``: sent with the computation; ``arrived``: all bytes are there.
    """

    sequence: Sequence
    source: Replica
    target: Replica
    blocks: int
    size: float
    transfer: Transfer | None = None
    held: tuple[int, dict[int, int]] | None = None
    prompt_s: float = 0.0
    computed_s: float = 0.0
    begun: bool = False
    arrived: bool = False
    dropped: bool = False


class Splitwise(Policy):
    """A prompt pool and a token pool; a replica of a pool whose like is full does the other pool's work too.

    Caches are sent layer by layer while prompts are computed. Those of one iteration, B bytes over r bytes/s, take
    the link for B / r; what is left at the end of the computation is the last of L layers, B / (L r), unless the link
    is slower than layers come. So they start B (L − 1) / (L r) before the end, at the earliest after the first layer.
    """

    name = "splitwise"
    description = "prompts and tokens on replicas of their own, caches sent layer by layer between them"
    source = "Patel et al., Splitwise, ISCA 2024, sections IV.A to IV.D"
    parameters: ClassVar[dict[str, Parameter]] = {
        "prompt": Parameter(0, "replicas for prompts; 0 = those that are not for tokens, or half", low=0, high=1e6),
        "token": Parameter(0, "replicas for tokens; 0 = those that are not for prompts, or half", low=0, high=1e6),
        "token_device": Parameter("", "device of the token replicas; nothing = the same"),
        "batch": Parameter(2048, "tokens of prompts computed together", low=1, high=1e6),
        "seats": Parameter(0, "sequences of a token replica; 0 = the engine's", low=0, high=1e6),
        "overflow": Parameter(8192, "prompt tokens waiting at every prompt replica from which token replicas help",
                              low=1, high=1e9),
        "overlap": Parameter("layer", "sent layer by layer, or whole when the prompt is computed",
                             choices=("layer", "none")),
        "network": Parameter(0.0, "GB/s of a replica each way; 0 = its devices' links", low=0.0, high=1e5),
        "order": ORDER,
    }  # fmt: skip

    def build(self, simulation: Simulation) -> list[Replica]:
        self.unstaged()
        self.simulation = simulation
        c, s = self.cluster, self.settings
        prompt, token = pools(c.replicas, int(s["prompt"]), int(s["token"]))
        steps = self.step_model()
        name = s["token_device"] or (c.others[0].name if c.others else "")
        device = next((d for d in c.others if d.name == name), None) or (load_device(name) if name else c.device)
        others = steps if device is c.device else c.steps(device=device)
        replicas = [self.replica(i, steps, PROMPT) for i in range(prompt)]
        replicas += [self.replica(prompt + i, others, TOKEN) for i in range(token)]
        for r in replicas[prompt:]:
            r.seats = min(r.seats, int(s["seats"]) or r.seats)
        self.cache = CacheBytes(c.trace)
        self.network = Network(simulation, replicas, s["network"])
        self.pending = [0] * len(replicas)
        self.moves: dict[Sequence, Move] = {}
        self.done: list[Move] = []
        self.stayed = self.helped = 0
        self.visible_s = 0.0
        self._expected: dict[Sequence, int] = {}
        return replicas

    def schedule(self, role: str = "") -> Schedule:
        if role == PROMPT:
            return WholePrompts(self.settings["order"], int(self.settings["batch"]))
        return TokenBudget(self.settings["order"])

    def capacity(self, replica: Replica) -> int:
        return min(m.blocks for m in self.memory.values())

    # -- where requests go -----------------------------------------------------------------------
    def route(self, sequence: Sequence) -> Replica | None:
        up = [r for r in self.simulation.replicas if r.up]
        best = min((r for r in up if r.role == PROMPT), key=self._queue, default=None)
        if best is None or self.pending[best.number] + sequence.todo > self.settings["overflow"]:
            helper = min((r for r in up if r.role == TOKEN), key=self._queue, default=None)
            if helper is not None and (best is None or self.pending[helper.number] < self.pending[best.number]):
                best = helper
                self.helped += 1
        if best is not None:
            self._expected[sequence] = sequence.todo
            self.pending[best.number] += sequence.todo
        return best

    def _queue(self, replica: Replica) -> tuple[int, int]:
        return self.pending[replica.number], replica.load

    # -- caches on their way ---------------------------------------------------------------------
    def computing(self, replica: Replica, plan: Plan, seconds: float) -> None:
        if replica.role != PROMPT:
            return
        ending = (s for s, tokens in plan.chunks if tokens == s.todo and s.left > 1)
        moves = [m for s in ending if (m := self._target(replica, s)) is not None]
        for m in moves:
            m.prompt_s = seconds
            m.begun = self.settings["overlap"] == "layer"
        if moves and moves[0].begun:
            rate, layers = min(map(self._rate, moves)), self.cache.layers
            early = sum(m.size for m in moves) * (1 - 1 / layers) / rate if rate else seconds
            self.simulation.after(max(seconds - early, seconds / layers), self._send_all, moves)

    def _target(self, replica: Replica, sequence: Sequence) -> Move | None:
        """Hold a place for ``sequence`` at the token replica with the fewest requests; None where none has room."""
        blocks = -(-sequence.prompt // replica.pool.size)
        pool = [r for r in self.simulation.replicas if r.role == TOKEN and r.up]
        for target in sorted(pool, key=lambda r: (r.load, r.number)):
            if target.reserve(blocks):
                move = Move(sequence, replica, target, blocks, self.cache(sequence.prompt))
                self.moves[sequence] = move
                return move
        return None

    def _rate(self, move: Move) -> float:
        return self.network.rate(move.source, move.target)

    def _send_all(self, moves: list[Move]) -> None:
        for move in moves:
            self._send(move)

    def _send(self, move: Move) -> None:
        if not move.dropped:
            move.transfer = self.network.send(move.source, move.target, move.size, self._arrived, move)

    def prefilled(self, replica: Replica, sequence: Sequence) -> bool:
        self.pending[replica.number] -= self._expected.pop(sequence, 0)
        if replica.role != PROMPT:
            return False
        move = self.moves.get(sequence) or self._target(replica, sequence)
        if move is None:  # the token pool is full: this replica writes the tokens too
            self.stayed += 1
            return False
        move.held = replica.detach(sequence)
        move.computed_s = self.simulation.now
        if not move.begun:
            self._send(move)
        elif move.arrived:  # but for its last layer, which came into being only now
            rate = self._rate(move)
            self.simulation.after(move.size / self.cache.layers / rate if rate else 0.0, self._hand_over, move)
        return True

    def _arrived(self, move: Move) -> None:
        move.arrived = True
        if move.held is not None:
            self._hand_over(move)

    def _hand_over(self, move: Move) -> None:
        if move.dropped:
            return
        del self.moves[move.sequence]
        self.done.append(move)
        self.visible_s += self.simulation.now - move.computed_s
        assert move.held is not None  # its prompt is computed
        move.source.let_go(move.held)
        move.target.enter(move.sequence, move.blocks)

    # -- faults ------------------------------------------------------------------------------------
    def failed(self, replica: Replica) -> list[Sequence]:
        """Transfers to and from ``replica`` are void. Where the prompt was computed, the request starts over."""
        self.pending[replica.number] = 0
        lost = []
        for move in [m for m in self.moves.values() if replica in (m.source, m.target)]:
            move.dropped = True
            del self.moves[move.sequence]
            if move.transfer is not None:
                move.transfer.cancel()
            if move.target is not replica:
                move.target.cancel(move.blocks)
            if move.held is not None:
                if move.source is not replica:
                    move.source.let_go(move.held)
                move.sequence.prompt, move.sequence.done = move.sequence.done + 1, 0
                lost.append(move.sequence)
        return lost

    def result(self) -> dict[str, Any]:
        moved, n = self.done, len(self.done)
        computed = sum(m.prompt_s for m in moved)
        return {
            "disaggregation": {
                "prompt_replicas": sum(r.role == PROMPT for r in self.simulation.replicas),
                "token_replicas": sum(r.role == TOKEN for r in self.simulation.replicas),
                "transfers": n, "bytes": sum(m.size for m in moved),
                "visible_s": self.visible_s / n if n else None,
                "visible_share_of_prompt": self.visible_s / computed if computed else None,
                "written_at_prompt_replicas": self.stayed, "prompts_at_token_replicas": self.helped,
                "network_busy": self.network.busiest(self.simulation.now),
            }
        }  # fmt: skip


def pools(replicas: int, prompt: int, token: int) -> tuple[int, int]:
    """Sizes of the prompt and the token pool; a single replica is both. Raises ``InputError`` where one is empty."""
    if prompt and token:
        return prompt, token
    if replicas == 1 and not (prompt or token):
        return 1, 0
    if prompt or token:
        prompt, token = prompt or replicas - token, token or replicas - prompt
    else:
        prompt, token = -(-replicas // 2), replicas // 2
    if prompt < 1 or token < 1:
        raise InputError(f"splitwise: {replicas} replicas leave {max(prompt, 0)} for prompts and {max(token, 0)} for "
                         "tokens; accepted: at least one each (--count, prompt=, token=)")  # fmt: skip
    return prompt, token


POLICY = Splitwise
