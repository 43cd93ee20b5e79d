"""How fast a device is at the parts of a prefill, from unpruned requests of several lengths, and what follows from it.

A ratio of FLOPs takes every operation for equally fast and everything else for free. Neither holds: attention over long
prompts runs slower than products with weights, the encoder has a speed of its own, and a request costs something before
any of it. Unpruned requests show all of these.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vllm_prune.estimate.dims import ModelDims
from vllm_prune.estimate.estimate import Cost, Estimate, Request, estimate
from vllm_prune.estimate.text_dims import EstimateError
from vllm_prune.estimate.video import PixelLimits, VideoShape

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One unpruned request as it was measured."""

    frames: int
    height: int
    width: int
    text_tokens: int
    seconds: float
    """From decoded frames to the first token."""
    decoder_seconds: float
    """Of it, in the language model."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Seconds for each operation, and those that a request takes whatever its size."""

    front_fixed: float
    front_per_flop: float
    """Preprocessing and encoder, per operation of the encoder: both grow with the pixels."""
    decoder_fixed: float
    linear_per_flop: float
    attention_per_flop: float
    decode_step: float
    """Seconds of a decoding step."""

    def seconds(self, cost: Cost) -> float:
        """From decoded frames to the first token."""
        flops = cost.flops
        linear = flops.total.linear - flops.encoder.linear
        attention = flops.total.attention - flops.encoder.attention
        front = self.front_fixed + self.front_per_flop * flops.encoder.total
        return front + self.decoder_fixed + self.linear_per_flop * linear + self.attention_per_flop * attention

    def ttft_ratio(self, found: Estimate) -> float:
        """Predicted time to the first token with pruning, as a share of that without."""
        return self.seconds(found.after) / self.seconds(found.before)

    def throughput_ratio(self, found: Estimate, output_tokens: int, clients: int) -> float:
        """Predicted requests a second with pruning, by those without, where `clients` always wait for an answer.

        Prefills follow each other; a decoding step serves all clients at once.
        """
        decoding = self.decode_step * output_tokens / clients
        return (self.seconds(found.before) + decoding) / (self.seconds(found.after) + decoding)


def fit_speed(dims: ModelDims, samples: Sequence[Sample], decode_step: float, limits: PixelLimits | None) -> Speed:
    """The speed that explains `samples` best, relative errors counting.

    Raises:
        EstimateError: Fewer than three samples, or all of one length.
    """
    import numpy as np

    if len({(sample.frames, sample.height, sample.width) for sample in samples}) < 3:
        raise EstimateError(f"samples={len(samples)!r}: give unpruned requests of three lengths or more")
    costs = [_unpruned(dims, sample, limits) for sample in samples]
    ones = np.ones(len(samples))
    encoder = np.array([cost.flops.encoder.total for cost in costs], dtype=float)
    linear = np.array([cost.flops.total.linear - cost.flops.encoder.linear for cost in costs], dtype=float)
    attention = np.array([cost.flops.total.attention - cost.flops.encoder.attention for cost in costs], dtype=float)
    decoder_seconds = np.array([sample.decoder_seconds for sample in samples])
    front_seconds = np.array([sample.seconds for sample in samples]) - decoder_seconds
    front = _fit([ones, encoder], front_seconds)
    decoder = _fit([ones, linear, attention], decoder_seconds)
    return Speed(
        front_fixed=front[0],
        front_per_flop=front[1],
        decoder_fixed=decoder[0],
        linear_per_flop=decoder[1],
        attention_per_flop=decoder[2],
        decode_step=decode_step,
    )


def _unpruned(dims: ModelDims, sample: Sample, limits: PixelLimits | None) -> Cost:
    from vllm_prune.config import PruneConfig

    request = Request(video=VideoShape(sample.frames, sample.height, sample.width), text_tokens=sample.text_tokens)
    return estimate(dims, request, PruneConfig(), limits).before


def _fit(columns: Sequence[Any], seconds: Any) -> list[float]:
    """Coefficients of 0 or more that give `seconds` with the least squared relative error."""
    import numpy as np

    matrix = np.stack(columns, axis=1)
    scale = matrix.max(axis=0)
    weighted, target = matrix / scale / seconds[:, None], np.ones(len(seconds))
    active = list(range(len(columns)))
    while True:
        found, *_ = np.linalg.lstsq(weighted[:, active], target, rcond=None)
        if (found >= 0).all() or len(active) == 1:
            break
        active.pop(int(np.argmin(found)))
    coefficients = np.zeros(len(columns))
    coefficients[active] = np.maximum(found, 0)
    return (coefficients / scale).tolist()


def save_speed(path: Path, speed: Speed, place: Mapping[str, Any]) -> None:
    """Writes the file that `--speed` reads; `place` says where it was measured."""
    path.write_text(json.dumps({"schema": SCHEMA, "speed": asdict(speed), **place}, indent=1) + "\n", encoding="utf-8")


def load_speed(path: Path) -> Speed:
    """What `save_speed` wrote.

    Raises:
        EstimateError: There is no such file, or it is another one.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["schema"] != SCHEMA:
            raise EstimateError(f"speed={str(path)!r}: schema {document['schema']!r}; calibrate again")
        return Speed(**{name: float(value) for name, value in document["speed"].items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, EstimateError):
            raise
        remedy = "write one with `vllm-prune estimate MODEL --calibrate FILE`"
        raise EstimateError(f"speed={str(path)!r}: not a calibration ({error!r}); {remedy}") from error
