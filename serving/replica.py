"""One replica of an engine: admits, runs iterations, jumps over decode steps while nothing can change.

Between two iterations the schedule says what comes next (:class:`.scheduling.Plan`). A plan with chunks is one event;
a plan of decode steps alone is one event for as many steps as pass until a sequence ends or blocks run out. A request
that arrives meanwhile, where it could change the plan, ends the run at the next boundary of steps.

What decode steps change is kept as sums, so that a run of k steps costs the same as one: a sequence's cached tokens
are its ``base`` + the replica's counter of decode steps; blocks grow by how many sequences have each remainder.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

from .blocks import BlockPool
from .engine import EngineProfile
from .outcome import Gaps, Runs
from .pipeline import Pipeline
from .scheduling import ORDERS, Plan, Schedule
from .sequence import Sequence
from .steps import StepModel

if TYPE_CHECKING:
    from simpy import Event

    from .simulation import Simulation


class Replica:
    """One engine on its devices. ``speed`` divides iteration times (a power cap); ``up`` is False while it is down;
    ``load`` counts the requests that are here, waiting or running. With a ``pipeline`` it is one of the batches that
    pass through its stages, and ``number`` is the batch's. ``held``: whose answers are written, but who keep their seat
    (:attr:`.Schedule.together`)."""

    def __init__(
        self, simulation: Simulation, number: int, steps: StepModel, pool: BlockPool, schedule: Schedule, seats: int,
        role: str = "",
    ) -> None:  # fmt: skip
        self.simulation, self.number, self.steps, self.pool, self.schedule = simulation, number, steps, pool, schedule
        self.profile: EngineProfile = steps.profile
        self.seats, self.role = seats, role
        self.pipeline: Pipeline | None = None
        self._env = simulation.env
        self.speed = 1.0
        self.up = True
        self.waiting: list[tuple[tuple[float, ...], int, Sequence]] = []
        self.prefilling: list[Sequence] = []
        self.decoding: list[tuple[int, int, Sequence]] = []
        self.held: list[Sequence] = []
        self.counter = 0
        self.runs, self.gaps = Runs(), Gaps()
        self._add_run = self.runs.flat.extend
        self.energy_scale = 1.0
        self._bases = 0
        self._tallest: list[tuple[int, int, Sequence]] = []
        self._remainders, self._growing = [0] * pool.size, 0
        self.load = 0
        self._cohorts: dict[float, int] = {}
        self._stepped = -1.0
        self._serial = 0
        self._version = 0
        self._between = False
        self._plan: Plan | None = None
        self._started = 0.0
        self._steps = 0
        self._duration = 0.0
        self._run = 0, 0.0, 0.0
        self._mixed = 0, 0

    # -- what schedules and policies ask -------------------------------------------------------
    @property
    def busy(self) -> bool:
        """Whether an iteration is running."""
        return self._plan is not None

    def has_seat(self) -> bool:
        """Whether one more sequence may be admitted."""
        return len(self.prefilling) + len(self.decoding) + len(self.held) < self.seats

    @property
    def batch(self) -> int:
        """Sequences that a decode step computes."""
        return len(self.decoding) + len(self.held)

    def context(self, sequence: Sequence) -> int:
        """Cached tokens of a decoding sequence."""
        return sequence.base + self.counter

    @property
    def mean(self) -> float:
        """Cached tokens per decoding sequence."""
        return self._bases / self.batch + self.counter if self.decoding else 0.0

    @property
    def longer(self) -> float:
        """Cached tokens by which the longest decoding sequence exceeds the mean."""
        return self._highest() - self._bases / self.batch if self.decoding else 0.0

    def _highest(self) -> int:
        """Base of the longest decoding sequence; there is one."""
        heap = self._tallest
        while heap[0][2].entry is not heap[0]:  # it left, or came back with another length
            heappop(heap)
        return -heap[0][0]

    def grown(self, steps: int) -> int:
        """Blocks that ``steps`` decode steps need."""
        counts, size = self._remainders, self.pool.size
        start = self.counter % size
        if steps == 1:
            return counts[start]
        whole, rest = divmod(steps, size)
        end = start + rest
        more = sum(counts[start:end]) if end <= size else sum(counts[start:]) + sum(counts[: end - size])
        return whole * self._growing + more

    # -- arrivals --------------------------------------------------------------------------------
    def submit(self, sequence: Sequence, *, front: bool = False) -> None:
        """Queue ``sequence``; ``front``: before all others (a preempted one)."""
        log, i = self.simulation.log, sequence.index
        if not sequence.key:
            order = ORDERS[self.schedule.order]
            arrival, priority = self.simulation.outcome.arrival_s[i], int(log.priority[i])
            sequence.key = (*order(arrival, priority, sequence.prompt, sequence.left), i)  # of equals, the log's first
        self._serial += 1
        heappush(self.waiting, ((-1.0, *sequence.key) if front else (0.0, *sequence.key), self._serial, sequence))
        self.simulation.outcome.replica[i] = self.number
        self.load += not front
        self.wake()

    def wake(self) -> None:
        """Something new: begin if idle, or end a run of decode steps at its next boundary where it matters.

        Between two iterations the next one is planned anyway.
        """
        if not self.up or self._between:
            return
        if self.simulation.together is not None:
            self.simulation.together[self] = None
        elif self._plan is None:
            self._begin()
        elif self._steps > 1 and self.schedule.interrupts(self):
            self.truncate()

    # -- admission, as schedules use it ------------------------------------------------------------
    def peek(self) -> Sequence | None:
        """The first of the waiting."""
        return self.waiting[0][2] if self.waiting else None

    def admit(self, reserve: int | None = None) -> Sequence | None:
        """Admit the first of the waiting where a seat and blocks are free; None otherwise.

        Blocks for its whole prompt are taken, or for ``reserve`` tokens. What is cached of its prefix is used; a prompt
        is never cached whole, its last token has to be computed.
        """
        if not self.waiting or not self.has_seat():
            return None
        sequence = self.waiting[0][2]
        pool = self.pool
        hit = 0
        if sequence.node >= 0 and pool.prefixes and not sequence.parked:
            hit = min(pool.cached(sequence.node), (sequence.prompt - 1) // pool.size * pool.size)
        tokens = max(sequence.prompt if reserve is None else reserve, 1)
        need = -(-tokens // pool.size) - hit // pool.size
        # The next token of those that decode comes first. Who is not admitted leaves no trace.
        if pool.free < need + self.grown(1) + (pool.unused(sequence.node, hit) if hit else 0):
            return None
        used = pool.refer(sequence.node, hit) if hit else {}
        pool.take(need)
        heappop(self.waiting)
        sequence.used, sequence.shared, sequence.blocks = used, hit // pool.size, need
        sequence.place = 1
        self._serial += 1
        sequence.serial = self._serial
        outcome, i = self.simulation.outcome, sequence.index
        if not sequence.parked:
            sequence.done = hit
            outcome.cached[i] += hit
        if outcome.scheduled_s[i] != outcome.scheduled_s[i]:  # not a number yet
            outcome.scheduled_s[i] = self.simulation.now
        self.prefilling.append(sequence)
        return sequence

    def preempt(self, sequence: Sequence) -> None:
        """Throw ``sequence`` out; it is queued first and recomputes its cache."""
        self.withdraw(sequence)
        self.simulation.outcome.preemptions[sequence.index] += 1
        sequence.done = 0
        self.submit(sequence, front=True)

    def youngest(self) -> Sequence | None:
        """The sequence admitted last."""
        everyone = [s for _, _, s in self.decoding] + self.prefilling
        return max(everyone, key=lambda s: s.serial, default=None)

    def withdraw(self, sequence: Sequence) -> None:
        """Take ``sequence`` out of the batch, its blocks too. What it has written belongs to its prompt then."""
        if sequence.place == 2:
            self._leave(sequence, heap=True)
            sequence.prompt = sequence.done + 1
        else:
            self.prefilling.remove(sequence)
        self._release(sequence)
        sequence.place = 0

    def join(self, sequence: Sequence) -> None:
        """``sequence``, whose last token is out and everything before it cached (``done``), decodes from now on."""
        sequence.place = 2
        sequence.base = sequence.done - self.counter
        sequence.joined = self.counter
        sequence.finish_at = self.counter + sequence.left
        self._serial += 1
        heappush(self.decoding, (sequence.finish_at, self._serial, sequence))
        self._bases += sequence.base
        sequence.entry = entry = (-sequence.base, self._serial, sequence)
        heappush(self._tallest, entry)
        whole = -(-(sequence.done + sequence.left) // self.pool.size)
        sequence.grows = sequence.blocks + sequence.shared < whole  # else all its blocks were taken at once
        if sequence.grows:
            self._remainders[-sequence.base % self.pool.size] += 1
            self._growing += 1
        stamp = sequence.stamp
        self._cohorts[stamp] = self._cohorts.get(stamp, 0) + 1

    # -- iterations ----------------------------------------------------------------------------------
    def _begin(self) -> None:
        self._between = True
        plan = self.schedule.plan(self)
        self._between = False
        n = len(self.decoding) + len(self.held) if plan is not None and plan.decode else 0
        if plan is None or not (n or plan.chunks or plan.extra_s):
            self._plan = None
            return
        self._plan = plan
        mean = longer = 0.0
        if n:
            base = self._bases / n
            mean, longer = base + self.counter, self._highest() - base
        self._run = n, mean, longer
        self._steps, self._mixed = 1, (0, 0)
        if plan.chunks:
            chunks, ends = plan.parts()
            self._mixed = n + sum([q for q, _ in chunks]), ends
        elif n and not plan.proposals:
            self._steps = self._horizon(plan)
        duration = self._seconds(plan) / self.speed + plan.extra_s
        if self.pipeline is not None:
            duration = self.pipeline.enter(self._env.now, duration) - self._env.now
        self._lasts(self._env.now, duration)

    def _seconds(self, plan: Plan) -> float:
        """What the iterations take that begin now."""
        n, mean, longer = self._run
        if plan.chunks:
            chunks, ends = plan.parts()
            return self.steps.mixed_s(chunks, ends, n, mean, longer)
        return self.steps.decode_s(n, mean, longer, self._steps) if n else 0.0

    def _lasts(self, start_s: float, duration_s: float) -> None:
        """What runs ends ``duration_s`` after ``start_s``, whatever was said before."""
        self._started, self._duration = start_s, duration_s
        self._version += 1
        env = self._env
        delay = start_s + duration_s - env.now
        env.timeout(delay if delay > 0 else 0.0, self._version).callbacks.append(self._ended)

    def _horizon(self, plan: Plan) -> int:
        """Decode steps that pass before a sequence ends or blocks run out."""
        if self.pipeline is not None:
            return 1  # batches meet in the stages
        steps = min(self.decoding[0][0] - self.counter, plan.most, self.simulation.longest_jump)
        free = self.pool.free
        if self._growing * (steps // self.pool.size + 1) <= free:
            return steps
        low, high = 1, steps
        while low < high:  # the most steps whose blocks are there
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.grown(middle) <= free else (low, middle - 1)
        return low

    def truncate(self) -> None:
        """End a run of decode steps at the first boundary that is not in the past."""
        plan = self._plan
        if plan is None or plan.chunks or self._steps == 1:
            return
        passed = self._env.now - self._started
        steps = min(int(passed / self._duration * self._steps) + 1, self._steps)
        seconds = self._until(steps)
        while seconds < passed and steps < self._steps:
            steps += 1
            seconds = self._until(steps)
        while steps > 1 and (before := self._until(steps - 1)) >= passed:
            steps, seconds = steps - 1, before
        if steps < self._steps:
            self._steps = steps
            self._lasts(self._started, seconds)

    def _until(self, steps: int) -> float:
        """Seconds from the start of the run of decode steps to the end of the first ``steps``."""
        assert self._plan is not None
        return self.steps.decode_s(*self._run, steps) / self.speed + self._plan.extra_s

    def _passed(self, seconds: float) -> int:
        """Steps of the run of decode steps that are over after ``seconds``, the last one never."""
        steps = min(int(seconds / self._duration * self._steps), self._steps - 1)
        while steps and self._until(steps) > seconds:
            steps -= 1
        while steps < self._steps - 1 and self._until(steps + 1) <= seconds:
            steps += 1
        return steps

    def _ended(self, timer: Event) -> None:
        plan = self._plan
        if timer.value != self._version or plan is None:
            return  # a run that was cut short, or a replica that went down
        self._plan = None
        self._between = True
        now, n = self._env.now, self._run[0]
        self._record(plan, n)
        if n:
            self._advance(plan, now)
        for sequence, tokens in plan.chunks:
            sequence.done += tokens
            if sequence.done >= sequence.prompt and sequence.place == 1:
                self._prompt_ends(sequence, now)
        if self.schedule.together:
            self._sweep(now)
        self.simulation.policy.iterated(self)
        self._between = False
        if self.up and self._plan is None:
            self._begin()

    def _record(self, plan: Plan, n: int) -> None:
        joules = plan.extra_j
        if plan.chunks:
            joules += self.steps.chunks_j(*plan.parts(), n, self._run[1], self._run[2])
        tokens, ends = self._mixed
        mean = self._run[1] + (self._steps - 1) / 2 if n else 0.0
        self._add_run((
            self._started, self._duration, self._steps, n, mean, tokens, ends, joules, self.pool.held, len(self.waiting)
        ))  # fmt: skip

    def _advance(self, plan: Plan, now: float) -> None:
        """``_steps`` decode steps are done."""
        n, steps, each = len(self.decoding), self._steps, self._duration / self._steps
        first = self._started + each
        gaps = [x for stamp, count in self._cohorts.items() for x in (first - stamp, count)]
        if steps > 1:
            gaps += each, n * (steps - 1)
        self.gaps.flat.extend(gaps)
        self._cohorts, self._stepped = {now: n}, now
        grown = self.grown(steps)
        self.counter += steps
        if grown and not self.pool.take(grown):
            raise AssertionError("a run of decode steps was planned without blocks")
        self._sweep(now)

    def _sweep(self, now: float) -> None:
        """Who has written all tokens leaves; of a batch that stays together, when all of them have."""
        heap, counter, together = self.decoding, self.counter, self.schedule.together
        while heap and heap[0][0] <= counter:
            sequence = heappop(heap)[2]
            if together:
                self.simulation.outcome.last_s[sequence.index] = now
                self._part(sequence)
                self.held.append(sequence)
            else:
                self._leave(sequence)
                self._finish(sequence, now)
        if self.held and not heap and not self.prefilling:
            done = list(self.held)
            for sequence in done:
                self._leave(sequence)
            for sequence in done:
                self._finish(sequence, now)

    def _leave(self, sequence: Sequence, *, heap: bool = False) -> None:
        """A decoding sequence leaves; its own blocks are known again."""
        if heap:
            self.decoding = [entry for entry in self.decoding if entry[2] is not sequence]
            heapify(self.decoding)
        sequence.done = context = self.context(sequence)
        self._bases -= sequence.base
        if sequence.grows:
            self._remainders[-sequence.base % self.pool.size] -= 1
            self._growing -= 1
            sequence.blocks = -(-context // self.pool.size) - sequence.shared
        sequence.left = sequence.finish_at - self.counter
        sequence.place, sequence.entry = 0, None
        if sequence in self.held:
            self.held.remove(sequence)
        else:
            self._part(sequence)

    def _part(self, sequence: Sequence) -> None:
        """A sequence writes no more tokens with the others."""
        # Who has made a step since it joined got its last token with all others, else when it joined.
        if self.counter > sequence.joined:
            sequence.stamp = self._stepped
        self._cohorts[sequence.stamp] -= 1
        if not self._cohorts[sequence.stamp]:
            del self._cohorts[sequence.stamp]

    def _prompt_ends(self, sequence: Sequence, now: float) -> None:
        """The iteration that ended the prompt wrote a token too."""
        outcome, i = self.simulation.outcome, sequence.index
        if outcome.first_s[i] != outcome.first_s[i]:  # not a number yet
            outcome.first_s[i] = now
        elif sequence.stamp >= 0:
            self.gaps.add(now - sequence.stamp, 1)
        sequence.stamp = now
        sequence.left -= 1
        self.prefilling.remove(sequence)
        if sequence.node >= 0:
            given = self.pool.publish(sequence.node, sequence.used, sequence.done)
            sequence.blocks -= given
            sequence.shared += given
        if sequence.left == 0 and not self.schedule.together:
            sequence.place = 0
            self._finish(sequence, now)
        elif not self.simulation.policy.prefilled(self, sequence):
            self.join(sequence)

    def _finish(self, sequence: Sequence, now: float) -> None:
        self._release(sequence, kept=True)
        self.simulation.finished(self, sequence, now)

    def _release(self, sequence: Sequence, *, kept: bool = False) -> None:
        """Give back blocks; ``kept``: what a later turn starts with stays as long as nobody wants the room."""
        pool = self.pool
        log = self.simulation.log
        if kept and pool.prefixes and (node := int(log.extends[sequence.index])) >= 0:
            sequence.blocks -= pool.publish(node, sequence.used, sequence.done)
        pool.give(sequence.blocks)
        if sequence.used:
            pool.leave(sequence.used)
        sequence.blocks, sequence.shared, sequence.used = 0, 0, {}

    # -- faults ------------------------------------------------------------------------------------------
    def fail(self) -> list[Sequence]:
        """Go down: caches are lost and the iteration that runs; every sequence that was here is returned, to start
        over elsewhere with the tokens that it has."""
        plan = self._plan
        if plan is not None and not plan.chunks and (steps := self._passed(self.simulation.now - self._started)):
            self._steps, self._duration = steps, self._until(steps)
            self._record(plan, self._run[0])
            self._advance(plan, self._started + self._duration)
        self.up = False
        self._version += 1
        self._plan = None
        lost = [s for _, _, s in sorted(self.waiting, key=lambda w: w[:2])]
        for sequence in sorted([s for _, _, s in self.decoding] + self.held + self.prefilling, key=lambda s: s.serial):
            held = sequence in self.held
            self.withdraw(sequence)
            if held:  # the answer is lost before it was returned: its last token is written again
                sequence.prompt, sequence.left = sequence.prompt - 1 + sequence.left, 1
                self.simulation.outcome.last_s[sequence.index] = float("nan")
            sequence.done = 0
            lost.append(sequence)
        self.waiting = []
        self.load = 0
        self.pool.clear()
        return lost

    def recover(self) -> None:
        """Come back, empty."""
        self.up = True
        self.wake()
