"""POLCA: more servers than a row's power is provisioned for, kept within it by clocks."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, ClassVar

from ...errors import InputError
from ...hw.cost import rated_power
from ...hw.frequency import FLOOR, KNEE, Clock
from ...settings import Parameter
from ..power import power_w
from ..replica import Replica
from ..scheduling import Schedule
from ..sequence import Sequence
from ..steps import StepModel
from . import ORDER, ROUTE, Policy
from .vllm import TokenBudget

if TYPE_CHECKING:
    from ..simulation import Simulation

LOW, HIGH = "low", "high"
FREE, FIRST, SECOND, BOTH, BRAKE = range(5)
"""Levels: no cap; low-priority servers at their first clock; at their second; high-priority ones too; all at once."""


class Polca(Policy):
    """A row of servers whose power is read every ``period`` seconds, and two thresholds of the provisioned power.

    Above ``t1`` low-priority servers get a lower clock, above ``t2`` a lower one still and, where that was not enough,
    high-priority servers one of their own; below ``free2`` and ``free1`` the caps go. Above the provisioned power
    itself the powerbrake slows everybody down. A cap takes ``latency`` seconds to be there, a brake ``brake_latency``.

    A replica is a server; ``other`` watts of it are no device's. The row is provisioned for ``servers`` of them at
    their rated power. Requests of a priority above 0 go to low-priority servers; where a log has one priority, all
    servers take all of them.
    """

    name = "polca"
    description = "more servers than the power is provisioned for: clocks capped by priority, powerbrake"
    source = "Patel et al., POLCA, ASPLOS 2024, sections 5 and 6"
    parameters: ClassVar[dict[str, Parameter]] = {
        "servers": Parameter(0, "servers that the power is provisioned for; 0 = all there are", low=0, high=1e6),
        "other": Parameter(0.0, "watts that a server draws beside its devices", low=0.0, high=1e6),
        "rated": Parameter(0.0, "rated watts of a server; 0 = those of its devices and the other", low=0.0, high=1e7),
        "low": Parameter(0.5, "share of servers with low priority", low=0.0, high=1.0),
        "caps": Parameter("yes", "whether clocks are capped at all", choices=("yes", "no")),
        "t1": Parameter(0.80, "share of the power above which the first cap is set", low=0.0, high=2.0),
        "t2": Parameter(0.89, "share above which the second is", low=0.0, high=2.0),
        "free1": Parameter(0.75, "share below which no cap is left", low=0.0, high=2.0),
        "free2": Parameter(0.84, "share below which the second cap goes", low=0.0, high=2.0),
        "low1": Parameter(0.904, "clock of low-priority servers at the first cap", low=0.05, high=1.0),
        "low2": Parameter(0.787, "and at the second", low=0.05, high=1.0),
        "high2": Parameter(0.926, "clock of high-priority servers at the second cap", low=0.05, high=1.0),
        "brake": Parameter(0.204, "clock of all servers while the powerbrake is on", low=0.05, high=1.0),
        "period": Parameter(2.0, "seconds between two readings", low=0.01, high=1e4),
        "latency": Parameter(40.0, "seconds until a cap is there", low=0.0, high=1e4),
        "brake_latency": Parameter(5.0, "seconds until the powerbrake is there", low=0.0, high=1e4),
        "floor": Parameter(FLOOR, "least voltage over the rated one", low=0.1, high=1.0),
        "knee": Parameter(KNEE, "clock below which the voltage falls no more", low=0.0, high=0.99),
        "order": ORDER,
        "route": ROUTE,
    }

    def build(self, simulation: Simulation) -> list[Replica]:
        self.unstaged()
        self.simulation = simulation
        c, s = self.cluster, self.settings
        if not s["free1"] <= s["t1"] <= s["t2"] or not s["free1"] <= s["free2"] <= s["t2"]:
            raise InputError("policy polca: accepted: free1 ≤ t1 ≤ t2, and free1 ≤ free2 ≤ t2")
        self.rated = self.step_model()
        cheap = round(c.replicas * s["low"])
        roles = [HIGH] * (c.replicas - cheap) + [LOW] * cheap
        replicas = [self.replica(i, self.rated, role) for i, role in enumerate(roles)]
        server_w = s["rated"] or self.rated.devices * rated_power(c.device)[0] + s["other"]
        self.budget_w = server_w * (int(s["servers"]) or c.replicas)
        self._apart = len(set(simulation.log.priority.tolist())) > 1 and 0 < cheap < c.replicas
        self._models: dict[float, StepModel] = {1.0: self.rated}
        self.level = self.asked = FREE
        self._since = 0.0
        self._order = 0
        self.level_s: Counter[int] = Counter()
        self.readings = self.over = self.brakes = 0
        self.sum_w = self.peak_w = 0.0
        return replicas

    def schedule(self, role: str = "") -> Schedule:
        return TokenBudget(self.settings["order"])

    def begin(self, simulation: Simulation) -> None:
        simulation.every(self.settings["period"], self._read)

    def route(self, sequence: Sequence) -> Replica | None:
        up = [r for r in self.simulation.replicas if r.up]
        if self._apart:
            wanted = LOW if self.simulation.log.priority[sequence.index] > 0 else HIGH
            up = [r for r in up if r.role == wanted] or up
        return self.choose(up, sequence)

    # -- power -------------------------------------------------------------------------------------
    def power_w(self) -> float:
        """Watts of the row now."""
        other = self.settings["other"]
        return float(sum(power_w(r) + other * r.up for r in self.simulation.replicas))

    def _read(self) -> None:
        s, watts, now = self.settings, self.power_w(), self.simulation.now
        share = watts / self.budget_w
        self.readings += 1
        self.sum_w += watts
        self.peak_w = max(self.peak_w, watts)
        self.over += share > 1
        if s["caps"] == "no":
            return
        # A reading less than a period after a change is partly of what was before.
        wanted, there = self.asked, self.asked == self.level and now - self._since >= s["period"]
        if share > 1:
            wanted = BRAKE
        elif there:  # else what was asked for is on its way
            if share < s["free1"]:
                wanted = BOTH if self.level == BRAKE else FREE
            elif share < s["free2"] and self.level > FIRST:
                wanted = BOTH if self.level == BRAKE else FIRST
            elif share > s["t2"] and self.level < BOTH:
                wanted = BOTH if self.level == SECOND else SECOND
            elif share > s["t1"] and self.level == FREE:
                wanted = FIRST
        if wanted != self.asked:
            self.brakes += wanted == BRAKE
            self.asked = wanted
            self._order += 1
            delay = s["brake_latency"] if wanted == BRAKE else s["latency"]
            self.simulation.after(delay, self._set, (self._order, wanted))

    def _set(self, order: tuple[int, int]) -> None:
        number, level = order
        if number != self._order:  # another one was given meanwhile
            return
        self._count()
        self.level = level
        for replica in self.simulation.replicas:
            self._apply(replica)

    def _count(self) -> None:
        now = self.simulation.now
        self.level_s[self.level] += now - self._since  # type: ignore[assignment]
        self._since = now

    def _apply(self, replica: Replica) -> None:
        replica.shift(self._model(self.clock(replica.role)))

    def clock(self, role: str) -> float:
        """Share of the rated clock of servers of ``role`` at the level that holds."""
        s = self.settings
        if self.level == BRAKE:
            return float(s["brake"])
        if role == HIGH:
            return float(s["high2"]) if self.level == BOTH else 1.0
        return float({FREE: 1.0, FIRST: s["low1"]}.get(self.level, s["low2"]))

    def _model(self, share: float) -> StepModel:
        if share not in self._models:
            c, s = self.cluster, self.settings
            self._models[share] = c.steps(clock=Clock.at(share, s["floor"], s["knee"]))
        return self._models[share]

    def recovered(self, replica: Replica) -> None:
        self._apply(replica)

    def result(self) -> dict[str, Any]:
        self._count()
        names = {FREE: "none", FIRST: "first", SECOND: "second", BOTH: "both", BRAKE: "brake"}
        return {
            "power_capping": {
                "provisioned_w": self.budget_w, "peak_w": self.peak_w, "peak_share": self.peak_w / self.budget_w,
                "mean_share": self.sum_w / self.readings / self.budget_w if self.readings else None,
                "readings_above": self.over, "readings": self.readings, "brakes": self.brakes,
                "level_s": {names[level]: self.level_s[level] for level in names},
                "slowdown": {role: self._slowdown(role) for role in (HIGH, LOW)},
            }
        }  # fmt: skip

    def _slowdown(self, role: str) -> float | None:
        """Busy time of servers of ``role`` over what it would have been without caps."""
        here = [r for r in self.simulation.replicas if r.role == role]
        busy = sum(float(r.runs.columns().duration_s.sum()) for r in here)
        longer = sum(r.capped_s - r.uncapped_s for r in here)
        return busy / (busy - longer) if busy else None


POLICY = Polca
