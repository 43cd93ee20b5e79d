"""The model that a run measures: a folder, an embedded model, or random weights of given dimensions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vllm_prune.bench.throughput.errors import BenchmarkError
from vllm_prune.bench.throughput.named_dims import DIMS
from vllm_prune.bench.throughput.random_model import write_random_model
from vllm_prune.embedded import DEFAULT, LISTED, NAMES, model_path

EMBEDDED, RANDOM = DEFAULT, "random"


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model folder and what to tell about it."""

    path: Path
    name: str
    dummy_weights: bool
    description: str


def resolve_model(given: str, dims_name: str, work: Path) -> Model:
    """Find or write the model.

    Args:
        given: A folder, the name of an embedded model, or `random`.
        dims_name: A key of `DIMS`, for `random`.
        work: Where a random model is written.
    """
    if given == RANDOM:
        dims = DIMS[dims_name]
        path = write_random_model(work / f"model-{dims_name}", dims)
        return Model(
            path=path,
            name=f"random weights ({dims_name})",
            dummy_weights=True,
            description=f"random weights, `{dims_name}`: {dims.describe()}",
        )
    if given in NAMES:
        kind = "" if given == EMBEDDED else " Qwen3-VL"
        return Model(
            path=model_path(given),
            name=f"embedded{kind} model",
            dummy_weights=False,
            description=f"the embedded{kind} model",
        )
    path = Path(given)
    if not (path / "config.json").is_file():
        raise BenchmarkError(f"--model {given}: no config.json there; give a model's folder, {LISTED} or {RANDOM}")
    return Model(path=path.resolve(), name=path.resolve().name, dummy_weights=False, description=str(path.resolve()))
