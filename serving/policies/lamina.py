"""Lamina: attention and its cache on devices made for memory, everything else on devices made for arithmetic."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any, ClassVar

from ...hw.devices import load_device
from ...hw.spec import Device
from ...settings import Parameter
from ..apart import Apart, ApartSteps
from ..memory import KvMemory, kv_memory, weights_fit
from ..scheduling import Schedule
from ..steps import StepModel
from . import ADMIT, ORDER, PROMPTS, ROUTE, Policy
from .vllm import TokenBudget


@cache
def _device(name: str) -> Device:
    return load_device(name)


class Lamina(Policy):
    """vLLM's schedule; iterations as in :mod:`..apart`. The cluster's device holds the model, the first of its
    ``others`` or the setting ``device`` the cache, whose blocks are counted from the memory of ``count`` of them."""

    name = "lamina"
    description = "attention and KV cache on other devices than the model, batches alternating between them"
    source = "Chen et al., arXiv:2405.01814 v2, section 4"
    parameters: ClassVar[dict[str, Parameter]] = {
        "device": Parameter("h20", "attention device: of the catalogue, or a device file"),
        "count": Parameter(1, "attention devices", low=1, high=4096),
        "batches": Parameter(2, "batches in flight", low=1, high=64),
        "models": Parameter(0, "replicas of the model that they share; 0 = one less than batches", low=0, high=64),
        "split": Parameter("heads", "what an attention device has: heads of all sequences, or sequences whole",
                           choices=("heads", "sequences")),
        "bandwidth_gbs": Parameter(0.0, "of a wire, GB/s; 0 = the slower device's", low=0.0),
        "latency_us": Parameter(-1.0, "of a message, microseconds; -1 = the slower device's", low=-1.0, high=1e6),
        "overlap": Parameter("yes", "queries sent before keys and values", choices=("yes", "no")),
        "budget": Parameter(0, "most tokens of an iteration; 0 = the engine's", low=0, high=1e6),
        "prompts": PROMPTS,
        "admit": ADMIT,
        "order": ORDER,
        "route": ROUTE,
    }  # fmt: skip

    def schedule(self, role: str = "") -> Schedule:
        s = self.settings
        return TokenBudget(s["order"], int(s["budget"]), whole=s["admit"] == "whole")

    def step_model(self) -> StepModel:
        c, s = self.cluster, self.settings
        device = c.others[0] if c.others else _device(str(s["device"]))
        apart = Apart(
            device, int(s["count"]), int(s["batches"]), int(s["models"]) or max(int(s["batches"]) - 1, 1),
            s["split"] == "heads", float(s["bandwidth_gbs"]) * 1e9 or None,
            None if s["latency_us"] < 0 else float(s["latency_us"]) * 1e-6, s["overlap"] == "yes",
        )  # fmt: skip
        key = ("lamina", id(c.trace), id(c.device), c.parallel, id(device), tuple(sorted(s.items())))
        return c.made(key, lambda: ApartSteps(c.trace, c.device, c.parallel, c.profile, c.longest, apart))

    def room(self, steps: StepModel) -> KvMemory:
        assert isinstance(steps, ApartSteps)
        weights_fit(steps.share, steps.device, steps.profile)
        memory = kv_memory(steps.part, steps.apart.device, steps.profile)
        return memory if steps.apart.heads else replace(memory, blocks=memory.blocks * steps.apart.count)

    def result(self) -> dict[str, Any]:
        steps = self.simulation.replicas[0].steps
        assert isinstance(steps, ApartSteps)
        return {
            "attention_apart": {
                "device": steps.apart.device.name, "count": steps.apart.count, "model_devices": steps.model_devices,
                "batches": steps.apart.batches, "wire_bytes_per_s": steps.bandwidth, "latency_s": steps.latency_s,
                "bytes_per_token": steps.sent_bytes + steps.back_bytes,
            }
        }  # fmt: skip


POLICY = Lamina
