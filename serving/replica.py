"""One replica of an engine: admits, runs iterations, jumps over decode steps while nothing can change.

Between two iterations the schedule says what comes next (:class:`.scheduling.Plan`). A plan with chunks is one event;
a plan of decode steps alone is one event for as many steps as pass until a sequence ends or blocks run out. A request
that arrives meanwhile, where it could change the plan, ends the run at the next boundary of steps.

What decode steps change is kept as sums (:mod:`.batch`), so that a run of k steps costs the same as one.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import TYPE_CHECKING

from .batch import Batch
from .blocks import BlockPool
from .engine import EngineProfile
from .loss import thrown_out
from .outcome import PACK_GAP, PACK_RUN, Gaps, Runs
from .pipeline import Pipeline
from .scheduling import ORDERS, Plan, Schedule
from .sequence import Sequence
from .steps import StepModel

if TYPE_CHECKING:
    from simpy import Event

    from .simulation import Simulation
    from .tiers import Tiers


class Replica(Batch):
    """One engine on its devices. ``speed`` divides iteration times (a power cap); ``up`` is False while it is down;
    ``load`` counts the requests that are here, waiting or running. With a ``pipeline`` it is one of the batches that
    pass through its stages, and ``number`` is the batch's. ``reserved``: seats of those whose cache is on its way here;
    ``away``: from when to when it is switched off, seconds; ``shifts``: from which run on which step times hold (the
    first are the rated ones); ``capped_s``, ``uncapped_s``: what iterations at others took, and would have taken."""

    def __init__(
        self, simulation: Simulation, number: int, steps: StepModel, pool: BlockPool, schedule: Schedule, seats: int,
        role: str = "",
    ) -> None:  # fmt: skip
        super().__init__(pool.size)
        self.simulation, self.number, self.steps, self.pool, self.schedule = simulation, number, steps, pool, schedule
        self.profile: EngineProfile = steps.profile
        self.seats, self.role = seats, role
        self.pipeline: Pipeline | None = None
        self._env, self._policy, self._longest_jump = simulation.env, simulation.policy, simulation.longest_jump
        self.speed, self.up = 1.0, True
        self.waiting: list[tuple[tuple[float, ...], int, Sequence]] = []
        self.runs, self.gaps = Runs(), Gaps()
        self._add_run, self._add_gaps = self.runs.flat.frombytes, self.gaps.flat.frombytes
        self.energy_scale = 1.0
        self.load = self.reserved = 0
        self.tiers: Tiers | None = None
        self.away: list[list[float]] = []
        self.shifts: list[tuple[int, StepModel]] = [(0, steps)]
        self.capped_s = self.uncapped_s = 0.0
        self.entering: list[Sequence] = []
        self._calls: list[Callable[[], None]] = []
        self._version, self._between = 0, False
        self._plan: Plan | None = None
        self._started, self._duration, self._steps = 0.0, 0.0, 0
        self._run, self._mixed, self._grows, self._queued = (0, 0.0, 0.0), (0, 0), 0, 0

    # -- what schedules and policies ask -------------------------------------------------------
    @property
    def busy(self) -> bool:
        """Whether an iteration is running."""
        return self._plan is not None

    def has_seat(self) -> bool:
        """Whether one more sequence may be admitted."""
        return len(self.prefilling) + len(self.decoding) + len(self.held) + self.reserved < self.seats

    # -- arrivals --------------------------------------------------------------------------------
    def submit(self, sequence: Sequence, *, front: bool = False) -> None:
        """Queue ``sequence``; ``front``: before all others (a preempted one)."""
        i = sequence.index
        if not sequence.key:
            order = ORDERS[self.schedule.order]
            arrival, priority = self.simulation.outcome.arrival_s[i], self.simulation.priority[i]
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
            self._begin(self._env.now)
        elif self._steps > 1 and self.schedule.interrupts(self):
            self.truncate()

    def between(self, call: Callable[[], None]) -> None:
        """``call`` at the next boundary between two iterations: at once where none runs. A failure forgets it."""
        if self._plan is None and not self._between:
            call()
        else:
            self._calls.append(call)
            self.truncate()

    def shift(self, steps: StepModel) -> None:
        """Iterations from the next on take what ``steps`` says, as at another clock."""

        def change() -> None:
            if steps is not self.steps:
                self.steps = steps
                self.shifts.append((len(self.runs), steps))

        self.between(change)

    def running(self) -> tuple[Plan, float, int] | None:
        """The iteration that runs: its plan, its seconds, decode steps of it that are over; None while it waits."""
        if self._plan is None or self._plan.chunks:
            return None if self._plan is None else (self._plan, self._duration, 0)
        n, mean, longer = self._run
        passed = self._over()
        return self._plan, self.steps.decode_s(n, mean + passed, longer, 1) / self.speed, passed

    def _over(self) -> int:
        """Decode steps of the running plan that are over now; one that ends now is not."""
        passed = self._env.now - self._started
        steps = self._passed(passed)
        return steps - 1 if steps and self._until(steps) >= passed else steps

    def reserve(self, blocks: int) -> bool:
        """Hold a seat and ``blocks`` for a sequence whose cache is on its way here; False where there are too few."""
        if not self.has_seat() or not self.hold(blocks):
            return False
        self.reserved += 1
        self.load += 1
        return True

    def hold(self, blocks: int) -> bool:
        """Take ``blocks`` at any time, beside what the running iteration will need; False where there are too few."""
        if not self.up or blocks > self.pool.free:
            return False
        growing = self._plan is not None and self._plan.decode
        if growing and self.grown(self._steps) + blocks > self.pool.free:
            self.truncate()
            if self.grown(self._steps) + blocks > self.pool.free:
                return False
        return self.pool.take(blocks)

    def free(self) -> int:
        """Free blocks now, in the middle of a run of decode steps too."""
        if self._plan is None or self._plan.chunks or self._steps == 1:
            return self.pool.free
        return self.pool.free - self.grown(self._over())

    def cancel(self, blocks: int) -> None:
        """Give a reservation back: nobody comes."""
        self.reserved -= 1
        self.load -= 1
        self.pool.give(blocks)
        self.wake()

    def enter(self, sequence: Sequence, blocks: int) -> None:
        """The cache of ``sequence`` is here, in ``blocks`` that were reserved; it decodes from the next iteration."""
        sequence.blocks, sequence.shared, sequence.used = blocks, 0, {}
        self._serial += 1
        sequence.serial = self._serial
        self.simulation.outcome.replica[sequence.index] = self.number
        self.entering.append(sequence)
        if self._plan is not None:
            self.truncate()
        else:
            self.wake()

    # -- admission, as schedules use it ------------------------------------------------------------
    def peek(self) -> Sequence | None:
        """The first of the waiting."""
        return self.waiting[0][2] if self.waiting else None

    def admit(self, reserve: int | None = None) -> Sequence | None:
        """Admit the first of the waiting where a seat and blocks are free; None otherwise.

        Blocks for its whole prompt are taken, or for ``reserve`` tokens. What is cached of its prefix is used; a prompt
        is never cached whole, its last token has to be computed. Those whose cache has to come from elsewhere first
        take their seat on the way, and the next one is admitted.
        """
        pool, outcome = self.pool, self.simulation.outcome
        while self.waiting and self.has_seat():
            sequence = self.waiting[0][2]
            if sequence.parked:
                if self.tiers is None or not self.tiers.swap_in(sequence):
                    return None
                heappop(self.waiting)
                continue
            hit = near = far = 0
            if sequence.node >= 0 and pool.prefixes and not sequence.brought:
                most = (sequence.prompt - 1) // pool.size
                hit = min(pool.cached(sequence.node) // pool.size, most)
                if self.tiers is not None:
                    near, far = self.tiers.beyond(sequence.node, most - hit)
            tokens = max(sequence.prompt if reserve is None else reserve, 1)
            need = -(-tokens // pool.size) - hit
            own = min(pool.left_behind(sequence.index, hit), need) if pool.keeps else 0
            idle = pool.unused(sequence.node, hit * pool.size) if hit else 0
            if self.short(pool.total - pool.held - need - idle):  # those who decode come first
                return None
            used = pool.refer(sequence.node, hit * pool.size) if hit else {}
            if pool.keeps:
                pool.claim(sequence.index, own)
            pool.take(need - own)
            heappop(self.waiting)
            self._serial += 1
            sequence.used, sequence.shared, sequence.blocks, sequence.serial = used, hit, need, self._serial
            i, found = sequence.index, (hit + own + near + far) * pool.size
            outcome.cached[i] += found
            sequence.done, sequence.brought = sequence.brought or found, 0
            if outcome.scheduled_s[i] != outcome.scheduled_s[i]:  # not a number yet
                outcome.scheduled_s[i] = self._env.now
            if self.tiers is not None and (near or far):
                self.tiers.fetch(sequence, near, far)
                continue
            sequence.place = 1
            self.prefilling.append(sequence)
            return sequence
        return None

    def preempt(self, sequence: Sequence) -> None:
        """Throw ``sequence`` out; it is queued first, and recomputes what nobody keeps of its cache."""
        self.simulation.outcome.preemptions[sequence.index] += 1
        if self.tiers is None or not self.tiers.swap_out(sequence):
            self.withdraw(sequence, keep=self.pool.keeps)
            sequence.done = 0
            self.submit(sequence, front=True)

    @property
    def leaving(self) -> int:
        """Blocks that will be free when caches are out that are on their way to the host."""
        return self.tiers.leaving if self.tiers is not None else 0

    def withdraw(self, sequence: Sequence, *, keep: bool = False) -> None:
        """Take ``sequence`` out of the batch; ``keep``: its blocks stay while nobody wants them. What it has written
        belongs to its prompt then."""
        if sequence.place == 2:
            self._leave(sequence, heap=True)
            sequence.prompt = sequence.done + 1
        else:
            self.prefilling.remove(sequence)
        if keep:
            sequence.blocks -= self.pool.leave_behind(sequence.index, sequence.used, sequence.done)
        self._release(sequence)
        sequence.place = 0

    def detach(self, sequence: Sequence) -> tuple[int, dict[int, int]]:
        """Take ``sequence``, which has at least one token, out of the batch; its cache stays until :meth:`let_go` of
        what is returned: its blocks, and the prefix nodes it refers to."""
        if sequence.place == 2:
            self._leave(sequence, heap=True)
        held = sequence.blocks, sequence.used
        sequence.blocks, sequence.shared, sequence.used, sequence.place = 0, 0, {}, 0
        self.load -= 1
        return held

    def let_go(self, held: tuple[int, dict[int, int]]) -> None:
        """The cache of a detached sequence is not needed here any more."""
        self.pool.give(held[0])
        self.pool.leave(held[1])
        self.wake()

    # -- iterations ----------------------------------------------------------------------------------
    def _begin(self, now: float) -> None:
        self._between = True
        if self.entering:
            for sequence in self.entering:
                self.reserved -= 1
                self.join(sequence)
            self.entering.clear()
        plan = self.schedule.plan(self)
        self._between = False
        n = len(self.decoding) + len(self.held) if plan is not None and plan.decode else 0
        if plan is None or not (n or plan.chunks or plan.extra_s):
            self._plan = None
            self._call()  # nothing runs that they could wait for
            return
        self._plan, self._queued = plan, len(self.waiting)
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
            duration = self.pipeline.enter(now, duration) - now
        self._lasts(now, duration, now)
        if plan.chunks:
            self._policy.computing(self, plan, duration)

    def _call(self) -> None:
        calls, self._calls = self._calls, []
        for call in calls:
            call()

    def _seconds(self, plan: Plan, steps: StepModel | None = None) -> float:
        """What the iterations take that begin now; by ``steps`` where others are asked about."""
        steps = steps or self.steps
        n, mean, longer = self._run
        if plan.chunks:
            chunks, ends = plan.parts()
            return steps.mixed_s(chunks, ends, n, mean, longer)
        return steps.decode_s(n, mean, longer, self._steps) if n else 0.0

    def _lasts(self, start_s: float, duration_s: float, now: float) -> None:
        """What runs ends ``duration_s`` after ``start_s``, whatever was said before."""
        self._started, self._duration = start_s, duration_s
        self._version += 1
        delay = start_s + duration_s - now
        self._env.timeout(delay if delay > 0 else 0.0, self._version).callbacks.append(self._ended)

    def _horizon(self, plan: Plan) -> int:
        """Decode steps that pass before a sequence ends or blocks run out."""
        if self.pipeline is not None:
            return 1  # batches meet in the stages
        steps = min(self.decoding[0][0] - self.counter, plan.most, self._longest_jump)
        pool, free = self.pool, self.pool.total - self.pool.held
        if pool.kept and pool.spill is not None:  # what is evicted leaves at the step that evicts it
            free -= pool.kept
            if self.short(free):
                return 1
        return steps if self._growing * (steps // pool.size + 1) <= free else self.lasting(steps, free)

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
            self._lasts(self._started, seconds, self._env.now)

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
        if self._calls:
            self._call()
        if self.schedule.together:
            self._sweep(now)
        self._policy.iterated(self)
        self._between = False
        if self.up and self._plan is None:
            self._begin(now)

    def _record(self, plan: Plan, n: int) -> None:
        joules = plan.extra_j
        if plan.chunks:
            joules += self.steps.chunks_j(*plan.parts(), n, self._run[1], self._run[2])
        tokens, ends = self._mixed
        rated = self.shifts[0][1]
        if self.steps is not rated:
            self.capped_s += self._duration
            self.uncapped_s += self._seconds(plan, rated) / self.speed + plan.extra_s
        mean = self._run[1] + (self._steps - 1) / 2 if n else 0.0
        self._grows = self.grown(self._steps) if n else 0
        self._add_run(PACK_RUN(
            self._started, self._duration, self._steps, n, mean, tokens, ends, joules, self.pool.held + self._grows / 2,
            self._queued,
        ))  # fmt: skip

    def _advance(self, plan: Plan, now: float) -> None:
        """``_steps`` decode steps are done."""
        n, steps, each = len(self.decoding), self._steps, self._duration / self._steps
        first = self._started + each
        add = self._add_gaps
        for stamp, count in self._cohorts.items():
            add(PACK_GAP(first - stamp, count))
        if steps > 1:
            add(PACK_GAP(each, n * (steps - 1)))
        self._cohorts, self._stepped = {now: n}, now
        self.counter += steps
        if self._grows and not self.pool.take(self._grows):
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
        pool, log = self.pool, self.simulation.log
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
        if not self.up:
            return []
        plan = self._plan
        if plan is not None and not plan.chunks and (steps := self._passed(self.simulation.now - self._started)):
            self._steps, self._duration = steps, self._until(steps)
            self._record(plan, self._run[0])
            self._advance(plan, self._started + self._duration)
        self.up = False
        self._version += 1
        self._plan = None
        self._calls.clear()
        return thrown_out(self)

    def recover(self) -> None:
        """Come back, empty."""
        self.up = True
        self.wake()
