"""Reads what `serving/worker/trace.py` wrote."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vllm_prune.config import PruneConfig
from vllm_prune.serving.worker.trace import FORMAT
from vllm_prune.show.errors import ShowError

_REQUIRED = ("grid", "config", "slot", "anchor", "layers", "counts", "kept")


@dataclass(frozen=True)
class TracedVideo:
    """One video of a trace; the fields are those of `serving/worker/trace.py`."""

    grid: tuple[int, int, int]
    config: PruneConfig
    counts: tuple[int, ...]
    slot: np.ndarray
    anchor: np.ndarray
    kept: np.ndarray
    layers: tuple[int, ...]
    importance: Mapping[int, np.ndarray]
    segment: np.ndarray | None
    structure: int = 0

    @classmethod
    def unpruned(cls, grid: tuple[int, int, int], config: PruneConfig, structure: int = 0) -> TracedVideo:
        """A video that keeps everything, of which no trace is written."""
        num_tokens = grid[0] * grid[1] * grid[2]
        every = np.arange(num_tokens)
        return cls(grid, config, (num_tokens, num_tokens), every, every, every, (), {}, None, structure)


def read_trace(path: str | Path) -> list[TracedVideo]:
    """All videos of the request in a trace file, in the order of its prompt.

    Raises:
        ShowError: It is no trace, or one of another format.
    """
    arrays = _load(Path(path))
    if "format" not in arrays:
        raise ShowError(f"trace={str(path)!r}: not a trace; give a file from the folder of `serve --prune-trace`")
    found = arrays["format"].tolist()
    if found != FORMAT:
        raise ShowError(
            f"trace={str(path)!r}: format {found!r}, this version reads {FORMAT}; use the version that wrote it, "
            f"or write it again"
        )
    count = len({name.partition("/")[0] for name in arrays if name.startswith("video")})
    return [_parse(path, arrays, f"video{index}/") for index in range(count)]


def read_prompt(path: str | Path) -> np.ndarray:
    """Token ids of the request's prompt; empty where no question chose."""
    return _load(Path(path)).get("prompt", np.zeros(0, dtype=np.int64))


def _load(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise ShowError(f"trace={str(path)!r}: no such file; give a file from the folder of `serve --prune-trace`")
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise ShowError(f"trace={str(path)!r}: not a readable .npz file: {error}; write it again") from error


def _parse(path: str | Path, arrays: Mapping[str, np.ndarray], prefix: str) -> TracedVideo:
    for name in _REQUIRED:
        if prefix + name not in arrays:
            raise ShowError(f"trace={str(path)!r}: {prefix}{name} is missing; write it again with this version")
    fields = {name: arrays[prefix + name] for name in _REQUIRED}
    t, h, w = fields["grid"].tolist()
    layers = tuple(fields["layers"].tolist())
    return TracedVideo(
        grid=(t, h, w),
        config=PruneConfig.parse(str(fields["config"])),
        counts=tuple(fields["counts"].tolist()),
        slot=fields["slot"],
        anchor=fields["anchor"],
        kept=fields["kept"],
        layers=layers,
        importance={layer: arrays[f"{prefix}importance_layer{layer}"] for layer in layers},
        segment=arrays.get(prefix + "segment"),
        structure=int(arrays.get(prefix + "structure", 0)),
    )
