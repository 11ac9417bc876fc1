"""For tests of the serving room: step times written by hand, random request logs, and an engine that is as plain as
can be: every iteration and every token by itself, every KV block with a number and a count of who refers to it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tokenfab.serving.cluster import Cluster
from tokenfab.serving.engine import EngineProfile
from tokenfab.serving.memory import KvMemory
from tokenfab.workloads.parallel import ONE_DEVICE, Parallel
from tokenfab.workloads.request_log import RequestLog, plain


@dataclass
class StubSteps:
    """Seconds of iterations as a formula of what is in them, in place of :class:`tokenfab.serving.steps.StepModel`."""

    profile: EngineProfile = field(default_factory=EngineProfile)
    scale: float = 1.0
    longest: int = 4096
    fixed_s: float = 0.011
    token_s: float = 0.0007
    key_s: float = 0.000013
    longer_s: float = 0.000031
    end_s: float = 0.0017
    devices: int = 1
    static_w: float = 50.0
    idle_w: float = 20.0
    slower: tuple[float, float] = (1.0, 1.0)
    parallel: Parallel = ONE_DEVICE

    @property
    def contexts(self) -> StubSteps:
        return self

    def decode_s(self, n: int, mean: float, longer: float, steps: int = 1) -> float:
        first = self.fixed_s + self.token_s * n + self.key_s * n * mean + self.longer_s * longer
        return self.scale * (steps * first + self.key_s * n * steps * (steps - 1) / 2)

    def mixed_s(self, chunks: Any, ends: int, n: int, mean: float, longer: float) -> float:
        seconds = self.fixed_s + self.token_s * n + self.end_s * ends
        seconds += sum(self.token_s * q + self.key_s * q * c for q, c in chunks)
        if n:
            seconds += self.key_s * n * mean + self.longer_s * longer
        return self.scale * seconds

    def chunks_j(self, chunks: Any, ends: int, n: int, mean: float, longer: float) -> float:
        return sum(self.chunk(q, c)[1] for q, c in chunks)

    def chunk(self, query: int, cached: int) -> tuple[float, float]:
        return 0.0, 0.001 * query

    def decode_j(self, n: Any, mean: Any) -> Any:
        return 1.0 + 0.1 * n + 0.001 * n * mean

    def mixed_j(self, tokens: Any, ends: Any, n: Any, mean: Any, chunks: Any) -> Any:
        return 1.0 + 0.1 * tokens + 0.001 * n * mean + chunks


def cluster_of(
    steps: StubSteps, blocks: int, size: int, seats: int, replicas: int = 1, prefix_caching: bool = True
) -> Cluster:
    """Replicas of ``blocks`` blocks of ``size`` tokens whose iterations take what ``steps`` says."""
    memory = KvMemory.given(blocks, size, seats)
    cluster = _Stubbed(
        None, None, replicas=replicas, profile=replace(steps.profile, block=size, seats=seats), blocks=memory,
        prefix_caching=prefix_caching, longest=steps.longest,
    )  # type: ignore[arg-type]  # fmt: skip
    cluster._made["stub"] = steps
    return cluster


class _Stubbed(Cluster):
    def steps(self, *_: Any) -> Any:
        return self._made["stub"]


def random_log(rng: np.random.Generator, most: int = 14, long: int = 60, sessions: bool = True) -> RequestLog:
    """A few requests: in a burst or spread out, with classes, priorities, shared prefixes, conversations."""
    n = int(rng.integers(1, most + 1))
    arrival = np.sort(rng.exponential(1.0, n)).cumsum() * rng.choice([0.0, 0.01, 0.3])
    prompt, output = rng.integers(1, long, n), rng.integers(1, long, n)
    more: dict[str, Any] = {"priority": rng.integers(0, 3, n)}
    if sessions and rng.random() < 0.7:
        after, think = np.full(n, -1), np.zeros(n)
        prefix, extends = np.full(n, -1), np.full(n, -1)
        tokens: list[int] = []
        parents: list[int] = []
        for _ in range(int(rng.integers(1, 4))):  # system prompts, one below another at times
            parent = int(rng.integers(-1, len(tokens))) if tokens else -1
            tokens.append((tokens[parent] if parent >= 0 else 0) + int(rng.integers(1, long // 3)))
            parents.append(parent)
        roots = len(tokens)
        for i in range(n):
            told = [j for j in range(i) if extends[j] >= 0]
            if told and rng.random() < 0.5:
                j = int(rng.choice(told))
                prefix[i] = extends[j]
                if rng.random() < 0.7:
                    after[i], think[i] = j, rng.choice([0.0, 0.2])
            elif rng.random() < 0.8:
                prefix[i] = rng.integers(0, roots)
            if prefix[i] >= 0:  # at times nothing follows the prefix
                prompt[i] = tokens[prefix[i]] + (rng.integers(0, long // 3) if rng.random() < 0.7 else 0)
            if rng.random() < 0.6:
                whole = int(prompt[i] + output[i])
                if prefix[i] < 0 or whole > tokens[prefix[i]]:
                    extends[i] = len(tokens)
                    tokens.append(whole)
                    parents.append(int(prefix[i]))
        more |= {
            "after": after, "think_s": think, "prefix": prefix, "extends": extends, "prefix_tokens": tokens,
            "prefix_parent": parents,
        }  # fmt: skip
    return plain(arrival, prompt, output, **more)


# -- the plain engine ----------------------------------------------------------------------------------
@dataclass
class _Request:
    index: int
    tokens: int
    left: int
    node: int
    key: tuple[float, ...]
    front: int = 1
    joined: int = 0
    cached: int = 0
    table: list[int] = field(default_factory=list)
    shared: set[int] = field(default_factory=set)
    decodes: bool = False
    last_s: float = float("nan")


class NaiveEngine:
    """One replica under the token budget of vLLM's schedule, token by token. :meth:`run` fills the arrays that
    :class:`tokenfab.serving.outcome.Outcome` has, and ``gaps``, the seconds between tokens."""

    def __init__(
        self, log: RequestLog, steps: StubSteps, blocks: int, size: int, seats: int, budget: int, order: str = "fcfs",
        tile: int = 1, prefix_caching: bool = True, faults: tuple[tuple[float, float], ...] = (),
    ) -> None:  # fmt: skip
        self.log, self.steps, self.total, self.size, self.seats = log, steps, blocks, size, seats
        self.budget, self.order, self.tile, self.faults = budget, order, tile, sorted(faults)
        self.sharing = prefix_caching and log.prefix_tokens.size > 0
        self.keeps = prefix_caching and bool(steps.profile.keeps)
        self.references = [0] * blocks
        self.place_of: dict[tuple[int, int], int] = {}  # (node, position of a block) -> number of the block
        self.used_at: dict[int, tuple[int, int]] = {}  # node -> when it was last left
        self.clock = 0
        n = len(log)
        self.arrival_s, self.scheduled_s, self.first_s, self.last_s, self.finish_s = np.full((5, n), np.nan)
        self.written, self.preemptions, self.cached, self.state = np.zeros((4, n), dtype=int)
        self.gaps: list[float] = []
        self.waiting: list[_Request] = []
        self.running: list[_Request] = []
        self.coming = [(float(log.arrival_s[i]), i) for i in range(n) if log.after[i] < 0]
        self.turn = 0
        self.most_tokens = 0

    # -- blocks
    def free(self) -> int:
        return self.references.count(0)

    def span(self, node: int) -> range:
        parent = int(self.log.prefix_parent[node])
        start = int(self.log.prefix_tokens[parent]) // self.size if parent >= 0 else 0
        return range(start, int(self.log.prefix_tokens[node]) // self.size)

    def chain(self, node: int) -> list[int]:
        found: list[int] = []
        while node >= 0:
            found.insert(0, node)
            node = int(self.log.prefix_parent[node])
        return found

    def take(self) -> int:
        shared = set(self.place_of.values())
        for block, count in enumerate(self.references):
            if not count and block not in shared:
                break
        else:
            unused = [
                (self.used_at[key[0]], -key[1], key) for key, b in self.place_of.items() if not self.references[b]
            ]
            block = self.place_of.pop(min(unused)[2])
        self.references[block] = 1
        return block

    def found(self, request: _Request) -> list[int]:
        """Blocks of the request's prefix that are here."""
        blocks: list[int] = []
        for node in self.chain(request.node) if self.sharing else []:
            for position in self.span(node):
                if (node, position) not in self.place_of:
                    return self.own(request, blocks)
                blocks.append(self.place_of[node, position])
        return self.own(request, blocks)

    def own(self, request: _Request, blocks: list[int]) -> list[int]:
        """``blocks``, and those after them that the request left behind when it was preempted."""
        while (-1 - request.index, len(blocks)) in self.place_of:
            blocks.append(self.place_of[-1 - request.index, len(blocks)])
        return blocks

    def share(self, request: _Request, node: int) -> None:
        for each in self.chain(node) if self.sharing else []:
            here = [p for p in self.span(each) if (each, p) in self.place_of]
            if len(here) == len(self.span(each)):
                continue
            mine = [p for p in here if self.place_of[each, p] == request.table[p]]
            if mine != here:
                break
            for position in self.span(each)[len(here) :]:
                if (position + 1) * self.size > request.cached:
                    return
                self.place_of[each, position] = request.table[position]

    def give(self, request: _Request) -> None:
        self.clock += 1
        nodes = {key[0]: None for key, block in self.place_of.items() if block in request.table}
        for node in nodes:
            self.used_at[node] = self.clock
        for block in request.table:
            self.references[block] -= 1
        request.table = []

    # -- who runs
    def place(self, request: _Request, front: int = 1) -> None:
        request.front = front
        self.waiting.append(request)
        self.waiting.sort(key=lambda r: (r.front, r.key, r.index))

    def preempt(self, request: _Request, front: int = 0) -> None:
        self.running.remove(request)
        if request.decodes:
            request.tokens = request.cached + 1
        if self.keeps and front == 0:
            public = set(self.place_of.values())
            begin = max((p + 1 for p, block in enumerate(request.table) if block in public), default=0)
            for position in range(begin, request.cached // self.size):
                self.place_of[-1 - request.index, position] = request.table[position]
        self.give(request)
        request.decodes, request.cached = False, 0
        self.place(request, front)

    def growth(self) -> int:
        return sum(r.decodes and r.cached % self.size == 0 for r in self.running)

    def plan(self, now: float) -> list[tuple[_Request, int]]:
        preempted = False
        while self.growth() > self.free():
            youngest = self.running[-1]
            self.preemptions[youngest.index] += 1
            self.preempt(youngest)
            preempted = True
        left = self.budget - sum(r.decodes for r in self.running)
        chunks = []
        for request in self.running:
            if not request.decodes and left > 0:
                chunks.append((request, self.cut(request, left)))
                left -= chunks[-1][1]
        while left > 0 and not preempted and self.waiting and len(self.running) < self.seats:
            request = self.waiting[0]
            hit = self.found(request)[: (request.tokens - 1) // self.size]
            for block in hit:
                self.references[block] += 1
            need = -(-request.tokens // self.size) - len(hit)
            if need + self.growth() > self.free():
                for block in hit:
                    self.references[block] -= 1
                break
            self.waiting.remove(request)
            request.table = hit + [self.take() for _ in range(need)]
            request.cached = len(hit) * self.size
            for key in [key for key in self.place_of if key[0] == -1 - request.index]:
                del self.place_of[key]
            self.cached[request.index] += request.cached
            if np.isnan(self.scheduled_s[request.index]):
                self.scheduled_s[request.index] = now
            self.running.append(request)
            chunks.append((request, self.cut(request, left)))
            left -= chunks[-1][1]
        return chunks

    def cut(self, request: _Request, left: int) -> int:
        todo = request.tokens - request.cached
        if todo <= left:
            return todo
        used = self.budget - left
        whole = self.budget // self.tile * self.tile - used
        return whole if whole > 0 else left

    # -- time
    def arrive(self, now: float) -> None:
        due = sorted(x for x in self.coming if x[0] <= now)
        self.coming = [x for x in self.coming if x[0] > now]
        for arrival, i in due:
            self.arrival_s[i] = arrival
            prompt, output = int(self.log.prompt[i]), int(self.log.output[i])
            if prompt + output > self.steps.longest or -(-(prompt + output) // self.size) > self.total:
                self.state[i] = 2
                self.follow(i, arrival)
                continue
            key = {
                "fcfs": (arrival,), "priority": (int(self.log.priority[i]), arrival),
                "shortest": (prompt + output, arrival), "shortest-prompt": (prompt, arrival),
            }[self.order]  # fmt: skip
            self.place(_Request(i, prompt, output, int(self.log.prefix[i]), key))

    def follow(self, i: int, now: float) -> None:
        now = np.nextafter(now, np.inf)  # the next iteration begins before an answer is read
        for j in np.flatnonzero(self.log.after == i):
            self.coming.append((max(now + float(self.log.think_s[j]), float(self.log.arrival_s[j])), int(j)))

    def token(self, request: _Request, now: float) -> None:
        i = request.index
        if np.isnan(self.first_s[i]):
            self.first_s[i] = now
        else:
            self.gaps.append(now - request.last_s)
        request.last_s = now
        request.left -= 1
        if request.left == 0:
            self.share(request, int(self.log.extends[i]))
            self.give(request)
            self.running.remove(request)
            self.last_s[i] = self.finish_s[i] = now
            self.written[i], self.state[i] = self.log.output[i], 1
            self.follow(i, now)

    def fail(self, start: float, end: float) -> float:
        """Caches are lost, whoever ran starts over when the replica is back."""
        for request in self.waiting:
            request.front = 1
        for request in list(self.running):
            self.preempt(request, front=1)
        self.place_of, self.used_at = {}, {}
        return end

    def run(self) -> NaiveEngine:
        now = 0.0
        faults = list(self.faults)
        while self.coming or self.waiting or self.running:
            while any(x[0] <= now for x in self.coming):  # a rejection may let others arrive at once
                self.arrive(now)
            if faults and faults[0][0] <= now:
                now = self.fail(*faults.pop(0))
                continue
            chunks = self.plan(now)
            decoding = [r for r in self.running if r.decodes]
            if not chunks and not decoding:
                if not self.coming:
                    break
                now = min(min(self.coming)[0], faults[0][0] if faults else np.inf)
                continue
            contexts = [r.cached for r in decoding]
            mean = sum(contexts) / len(contexts) if contexts else 0.0
            longer = max(contexts) - mean if contexts else 0.0
            if chunks:
                ends = sum(r.cached + q == r.tokens for r, q in chunks)
                parts = [(q, r.cached) for r, q in chunks]
                seconds = self.steps.mixed_s(parts, ends, len(decoding), mean, longer)
            else:
                seconds = self.steps.decode_s(len(decoding), mean, longer)
            self.most_tokens = max(self.most_tokens, len(decoding) + sum(q for _, q in chunks))
            if faults and faults[0][0] <= now + seconds:
                now = self.fail(*faults.pop(0))
                continue
            now += seconds
            for request in decoding:
                if request.cached % self.size == 0:
                    request.table.append(self.take())
                request.cached += 1
            for request in sorted(decoding, key=lambda r: (r.left, r.joined)):
                self.token(request, now)
            for request, q in chunks:
                request.cached += q
                if request.cached == request.tokens:
                    self.share(request, request.node)
                    request.decodes = True
                    self.turn += 1
                    request.joined = self.turn
                    self.token(request, now)
        return self
