"""A server's answer as tensors."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vllm_prune.features.errors import FeaturesError

WIRE_DTYPES: dict[str, np.dtype[Any]] = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2")}
"""In which rows travel."""


@dataclass(frozen=True, kw_only=True)
class Features:
    """Kept tokens of one video, or image, and chosen rows of text, all on the CPU."""

    tokens: torch.Tensor
    """[K, C] float32; with `pad`, K is the target and rows behind the video's tokens are zero."""
    mask: torch.Tensor
    """Which of them are tokens, [K] bool."""
    cells: torch.Tensor
    """(t, h, w) of each in the video's grid, [K, 3] int64; -1 where the mask is not set."""
    seconds: torch.Tensor | None
    """When the step of the grid that each lies in begins, [K] float32, -1 likewise; None where neither the model's
    processor nor the video's metadata say, and of an image."""
    grid_thw: tuple[int, int, int]
    """Of the unpruned video, in cells."""
    parts: tuple[tuple[int, int], ...] | None
    """(h, w) of the pictures, one after the other, whose cells an image has (docs/features.md); None of a video."""
    text: torch.Tensor
    """[Q, C] float32."""
    text_ids: torch.Tensor
    """Token ids [Q] of these rows."""
    layer: int
    """As Hugging Face numbers `hidden_states`."""
    report: Mapping[str, Any]
    """What pruning did (docs/metrics.md)."""


def read_answer(answer: Mapping[str, Any], wire_dtype: str) -> Features:
    """Tensors of a /pooling answer in base64.

    Args:
        answer: The JSON body.
        wire_dtype: One of WIRE_DTYPES, as asked for.

    Raises:
        FeaturesError: It is no answer of a server of features, or numbers did not fit `wire_dtype`.
    """
    described = answer.get("features")
    if described is None:
        raise FeaturesError(
            "the server's answer has no field `features`: it serves another model, or runs without vllm-prune; start "
            "it with `vllm-prune serve MODEL --runner pooling`"
        )
    data = np.frombuffer(base64.b64decode(answer["data"][0]["data"]), dtype=WIRE_DTYPES[wire_dtype])
    rows = torch.from_numpy(data.astype(np.float32).reshape(-1, described["hidden_size"]))
    if not torch.isfinite(rows).all():
        raise FeaturesError(f"wire_dtype={wire_dtype!r}: features are beyond its range; use float32")
    (video,) = described["media"]
    parts = video.get("parts")
    first, end = video["rows"]
    kept = video["tokens"]
    mask = torch.arange(end - first) < kept
    cells = torch.full((end - first, 3), -1)
    cells[:kept] = torch.tensor(video["cells"], dtype=torch.int64).view(-1, 3)
    text = described["text"]
    return Features(
        tokens=rows[first:end],
        mask=mask,
        cells=cells,
        seconds=None if video["seconds"] is None else _padded(video["seconds"], end - first),
        grid_thw=tuple(video["grid_thw"]),
        parts=None if parts is None else tuple((height, width) for height, width in parts),
        text=rows[text["rows"][0] : text["rows"][1]],
        text_ids=torch.tensor(text["token_ids"], dtype=torch.int64),
        layer=described["layer"],
        report=answer["prune"],
    )


def _padded(seconds: list[float], length: int) -> torch.Tensor:
    padded = torch.full((length,), -1.0)
    padded[: len(seconds)] = torch.tensor(seconds)
    return padded
