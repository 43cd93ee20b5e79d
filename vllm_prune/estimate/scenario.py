"""A configuration for a purpose and a device, with the reasons for it.

Every scenario walks from the gentlest preset to the strongest and takes the first that reaches its goal, so that no
more accuracy is given away than the goal needs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vllm_prune.config import PRESETS, PruneConfig
from vllm_prune.estimate.device import GIB, Device, kv_space
from vllm_prune.estimate.dims import ModelDims
from vllm_prune.estimate.estimate import Estimate, Request, estimate
from vllm_prune.estimate.text_dims import EstimateError
from vllm_prune.estimate.video import PixelLimits

_GENTLEST_FIRST = ("conservative", "default", "aggressive")
_EDGE_REQUESTS = 2
_CLOUD_GAIN = 2.0
_REALTIME_SHARE = 0.5


@dataclass(frozen=True)
class Proposal:
    """What to start the server with."""

    scenario: str
    preset: str
    estimate: Estimate
    reasons: tuple[str, ...]
    reached: bool
    """Whether the goal is reached; where no preset reaches it, the strongest is proposed."""

    @property
    def config(self) -> PruneConfig:
        """The configuration."""
        return self.estimate.config

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "scenario": self.scenario,
            "preset": self.preset,
            "reached": self.reached,
            "reasons": list(self.reasons),
            **self.estimate.to_dict(),
        }


@dataclass(frozen=True)
class _Case:
    dims: ModelDims
    request: Request
    device: Device
    limits: PixelLimits | None

    def estimate(self, preset: str) -> Estimate:
        return estimate(self.dims, self.request, PRESETS[preset], self.limits)

    @property
    def weight_bytes(self) -> int:
        return self.dims.parameters * self.dims.dtype_bytes

    @property
    def space(self) -> int:
        return kv_space(self.device, self.weight_bytes)

    def fitting(self, kv_bytes: int) -> int:
        """Requests that fit beside the weights at a time."""
        return self.space // kv_bytes

    def memory(self) -> str:
        """How the device's memory is shared out."""
        return (
            f"{self.device.name}: {self.device.memory / GIB:.1f} GiB, weights take {self.weight_bytes / GIB:.2f}, "
            f"{self.space / GIB:.1f} are left for KV blocks"
        )


def _first(case: _Case, reaches: Callable[[Estimate], bool]) -> tuple[str, Estimate, bool]:
    """The gentlest preset that `reaches` the goal; the strongest if none does."""
    for preset in _GENTLEST_FIRST:
        found = case.estimate(preset)
        if reaches(found):
            return preset, found, True
    return preset, found, False


def _edge(case: _Case) -> Proposal:
    def reaches(found: Estimate) -> bool:
        return case.fitting(found.after.kv.bytes) >= _EDGE_REQUESTS

    preset, found, reached = _first(case, reaches)
    goal = f"little memory: at least {_EDGE_REQUESTS} requests at a time; {preset} is the gentlest preset that does it"
    if not reached:
        goal = f"little memory: not even {preset} fits {_EDGE_REQUESTS} requests; take fewer frames or a smaller model"
    return Proposal("edge", preset, found, (case.memory(), goal, _concurrency(case, found)), reached)


def _cloud(case: _Case) -> Proposal:
    def reaches(found: Estimate) -> bool:
        return found.kv_ratio <= 1 / _CLOUD_GAIN and found.prefill_ratio <= 1 / _CLOUD_GAIN * 1.5

    preset, found, reached = _first(case, reaches)
    goal = (
        f"throughput: {_CLOUD_GAIN:g} times the requests in the same KV memory, at no more than "
        f"{1.5 / _CLOUD_GAIN:.0%} of the prefill's FLOPs; {preset} {'does it' if reached else 'comes closest'}"
    )
    return Proposal("cloud", preset, found, (case.memory(), goal, _concurrency(case, found), _time(found)), reached)


def _realtime(case: _Case) -> Proposal:
    preset, found, reached = _first(case, lambda found: found.decoder_ratio <= _REALTIME_SHARE)
    goal = (
        f"latency: the language model's prefill in at most {_REALTIME_SHARE:.0%} of its time; {preset} "
        f"{'is the gentlest preset that does it' if reached else 'comes closest'}"
    )
    encoder = found.before.flops.encoder.total / found.before.flops.total.total
    share = f"the vision encoder is {encoder:.0%} of the unpruned prefill and is not shortened: ask again about a video"
    return Proposal("realtime", preset, found, (goal, _time(found), share + " and it is not run again"), reached)


def _research(case: _Case) -> Proposal:
    found = case.estimate("conservative")
    goal = "quality first: the gentlest preset; compare with baseline by a request's override (--prune-override any)"
    return Proposal("research", "conservative", found, (goal, _concurrency(case, found), _time(found)), True)


def _concurrency(case: _Case, found: Estimate) -> str:
    before, after = case.fitting(found.before.kv.bytes), case.fitting(found.after.kv.bytes)
    return f"requests like this that fit at a time: {before} without pruning, {after} with"


def _time(found: Estimate) -> str:
    return (
        f"predicted prefill time: {found.prefill_ratio:.0%} of the unpruned one, {found.decoder_ratio:.0%} where the "
        f"encoder's output is cached (both are ratios of FLOPs)"
    )


SCENARIOS: dict[str, Callable[[_Case], Proposal]] = {
    "edge": _edge,
    "cloud": _cloud,
    "realtime": _realtime,
    "research": _research,
}


def propose(
    scenario: str, dims: ModelDims, request: Request, device: Device, limits: PixelLimits | None = None
) -> Proposal:
    """What to use for `scenario` on `device`."""
    if scenario not in SCENARIOS:
        raise EstimateError(f"scenario={scenario!r}: unknown; use one of {', '.join(SCENARIOS)}")
    return SCENARIOS[scenario](_Case(dims, request, device, limits))
