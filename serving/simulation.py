"""A stream of requests on replicas: SimPy's clock, arrivals, faults, and the one place where requests end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Many
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import simpy

from ..workloads.request_log import RequestLog
from .faults import Fault, Faults, LinkFault
from .links import Link
from .outcome import FINISHED, REJECTED, WAITING, Outcome
from .replica import Replica
from .sequence import Sequence

if TYPE_CHECKING:
    from .policies import Policy


class Simulation:
    """One run of ``log`` under ``policy``; build, then :meth:`run` or :meth:`done` once.

    ``longest_jump``: most decode steps that one event stands for (1: every iteration is an event). ``longest``: tokens
    that a model's context holds. ``until_s``: stop the clock there; requests may then be left waiting.
    """

    def __init__(
        self, log: RequestLog, policy: Policy, *, longest: int | None = None, seed: int = 0,
        longest_jump: int = 1 << 30, faults: Many[Fault | LinkFault] = (), until_s: float | None = None,
    ) -> None:  # fmt: skip
        self.log, self.policy, self.longest, self.seed = log, policy, longest, seed
        self.longest_jump, self.until_s = longest_jump, until_s
        self.env = simpy.Environment()
        self.random = np.random.default_rng(seed)
        self.outcome = Outcome(len(log))
        self.ended = 0
        self.priority: list[int] = log.priority.tolist()
        self._prompt, self._output, self._node = log.prompt.tolist(), log.output.tolist(), log.prefix.tolist()
        self._followers: dict[int, list[int]] = {}
        self._turns: dict[float, list[int]] = {}
        after = np.flatnonzero(log.after >= 0)
        for i in after.tolist():
            self._followers.setdefault(int(log.after[i]), []).append(i)
        self._first = np.flatnonzero(log.after < 0).tolist()
        self._at = log.arrival_s[self._first].tolist()
        self._next = 0
        self.homeless: list[Sequence] = []
        self.together: dict[Replica, None] | None = None
        self.links: list[Link] = []
        self.replicas: list[Replica] = policy.build(self)
        self.faults = Faults(self, faults)

    @property
    def now(self) -> float:
        """Seconds of the simulated clock."""
        return self.env.now

    @property
    def busy(self) -> bool:
        """Whether any request has not ended: what periodic work of policies goes on for."""
        return self.ended < len(self.log)

    def after(self, delay_s: float, call: Callable[[Any], None], value: Any = None) -> None:
        """``call(value)`` in ``delay_s`` seconds."""
        self.timer(delay_s, lambda event: call(event.value), value)

    def timer(self, delay_s: float, call: Callable[[simpy.Event], None], value: Any = None) -> None:
        """``call`` with an event of ``value`` in ``delay_s`` seconds."""
        self.env.timeout(delay_s, value).callbacks.append(call)

    def every(self, period_s: float, call: Callable[[], None]) -> None:
        """``call()`` every ``period_s`` seconds, until all requests have ended or nothing else can happen any more."""

        def tick(_: Any) -> None:
            if self.busy:
                call()
                if self.env.peek() < float("inf"):
                    self.after(period_s, tick)

        self.after(period_s, tick)

    def done(self) -> Simulation:
        """Itself, after :meth:`run`."""
        self.run()
        return self

    def start(self) -> None:
        """Put faults, the policy's own work and the first requests on the clock."""
        self.faults.begin()
        self.policy.begin(self)
        self._arrivals()

    def run(self) -> Outcome:
        """Simulate until every request has ended."""
        self.start()
        self.env.run(until=self.until_s)
        return self.finish()

    def finish(self) -> Outcome:
        """The clock has stopped: who still waits will not be served."""
        if self.until_s is None:
            for i in np.flatnonzero(np.frombuffer(bytes(self.outcome.state), dtype=np.uint8) == WAITING).tolist():
                self.reject(i, "no replica came back to serve it")
        return self.outcome

    # -- requests ------------------------------------------------------------------------------
    def _arrivals(self, _: Any = None) -> None:
        """Let in everybody whose time has come, and come back for the next."""
        now, at, i = self.env.now, self._at, self._next
        end = i
        while end < len(at) and at[end] <= now:
            end += 1
        self._next = end
        if end - i == 1:
            self._arrive(self._first[i])
        elif end > i:
            with self.at_once():
                for each in self._first[i:end]:
                    self._arrive(each)
        if end < len(at):
            self.timer(at[end] - now, self._arrivals)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Whatever is submitted inside is there before any replica begins on it."""
        if self.together is not None:
            yield
            return
        self.together = {}
        yield
        woken, self.together = self.together, None
        for replica in woken:
            replica.wake()

    def _arrive(self, i: int) -> None:
        self.outcome.arrival_s[i] = self.env.now
        prompt, output = self._prompt[i], self._output[i]
        if self.longest is not None and prompt + output > self.longest:
            self.reject(i, f"{prompt} + {output} tokens exceed the model's context of {self.longest}")
            return
        self.place(Sequence(i, prompt, output, self._node[i]))

    def place(self, sequence: Sequence) -> None:
        """Send ``sequence`` to a replica by the policy; to nobody while none is up."""
        replica = self.policy.route(sequence)
        if replica is None:
            self.homeless.append(sequence)
            return
        size, room = replica.pool.size, self.policy.capacity(replica)
        if -(-(sequence.prompt + sequence.left) // size) > room:
            self.reject(
                sequence.index,
                f"{sequence.prompt} + {sequence.left} tokens exceed the KV cache of {room} × {size}",
            )
            return
        replica.submit(sequence)

    def finished(self, replica: Replica, sequence: Sequence, now: float) -> None:
        """All tokens of ``sequence`` are written."""
        outcome, i = self.outcome, sequence.index
        if outcome.state[i] != WAITING:
            raise AssertionError(f"request {i} ends twice")
        if outcome.last_s[i] != outcome.last_s[i]:  # not a number: it was not held back
            outcome.last_s[i] = now
        outcome.finish_s[i] = now
        outcome.written[i] = self._output[i]
        outcome.state[i] = FINISHED
        outcome.replica[i] = replica.number
        replica.load -= 1
        self.ended += 1
        self._release(i)

    def reject(self, i: int, reason: str) -> None:
        """Request ``i`` ends without an answer."""
        if self.outcome.state[i] != WAITING:
            raise AssertionError(f"request {i} ends twice")
        self.outcome.state[i] = REJECTED
        self.outcome.reasons[i] = reason
        self.ended += 1
        self._release(i)

    def _release(self, i: int) -> None:
        """The next turns of a session follow."""
        if not self._followers:
            return
        for j in self._followers.pop(i, ()):
            start = max(self.env.now + float(self.log.think_s[j]), float(self.log.arrival_s[j]))
            if start not in self._turns:
                self._turns[start] = []
                self.after(start - self.env.now, self._turn, start)
            self._turns[start].append(j)

    def _turn(self, start: float) -> None:
        with self.at_once():
            for j in self._turns.pop(start):
                self._arrive(j)

    def recovered(self, replica: Replica) -> None:
        """``replica`` is back; who had nowhere to go goes."""
        with self.at_once():
            replica.recover()
            self.policy.recovered(replica)
            self.rehouse()

    def rehouse(self) -> None:
        """Send those who had nowhere to go by the policy again."""
        waiting, self.homeless = self.homeless, []
        with self.at_once():
            for sequence in waiting:
                self.place(sequence)
