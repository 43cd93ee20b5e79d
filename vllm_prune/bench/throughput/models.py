"""The model that a run measures: a folder, the embedded model, or random weights of given dimensions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vllm_prune.bench.throughput.errors import BenchmarkError
from vllm_prune.bench.throughput.model_dims import DIMS
from vllm_prune.bench.throughput.random_model import write_random_model

EMBEDDED, RANDOM = "embedded", "random"


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
        given: A folder, `embedded` or `random`.
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
    if given == EMBEDDED:
        from vllm_prune.embedded import model_path

        return Model(
            path=Path(model_path()), name="embedded model", dummy_weights=False, description="the embedded model"
        )
    path = Path(given)
    if not (path / "config.json").is_file():
        raise BenchmarkError(f"--model {given}: no config.json there; give a model's folder, {EMBEDDED} or {RANDOM}")
    return Model(path=path.resolve(), name=path.resolve().name, dummy_weights=False, description=str(path.resolve()))
