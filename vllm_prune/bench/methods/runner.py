"""What is measured, and in which order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from vllm_prune.bench.methods import references
from vllm_prune.bench.methods.measure import measure
from vllm_prune.methods import VideoTokens, create

_REFERENCES = {"dpp by frame": references.dpp, "prunevid": references.prunevid, "tome": references.tome}
_VLLM = ("evs", "vidcom2")
_VARIANTS: dict[str, dict[str, dict[str, Any]]] = {"dpp": {"dpp by frame": {"scope": "frame"}}}
"""Method -> name of another way to use it -> its parameters."""


@dataclass(frozen=True)
class Size:
    """A video and what is kept of it."""

    frames: int
    rows: int
    columns: int
    keep_per_frame: int
    dim: int

    @property
    def tokens(self) -> int:
        """Tokens of the video."""
        return self.frames * self.rows * self.columns

    @property
    def budget(self) -> int:
        """Tokens kept."""
        return self.frames * self.keep_per_frame


@dataclass(frozen=True)
class Case:
    """One thing to time: a method, the plain version of one ("reference"), vLLM's own, or a floor."""

    name: str
    kind: str
    call: Callable[[], object]


def make_video(size: Size, device: str, dtype: str, still: float, seed: int) -> VideoTokens:
    """Gaussian noise in which the cells of a share `still` hardly change."""
    generator = torch.Generator().manual_seed(seed)
    cells = size.rows * size.columns
    features = torch.randn(size.frames, cells, size.dim, generator=generator)
    features[:, : int(still * cells)].mul_(0.1).add_(torch.randn(int(still * cells), size.dim, generator=generator))
    grid_thw = (size.frames, size.rows, size.columns)
    return VideoTokens.from_features(features.flatten(0, 1).to(device, getattr(torch, dtype)), grid_thw)


def make_cases(tokens: VideoTokens, size: Size, methods: Sequence[str], compare: bool) -> Iterator[Case]:
    """Every case for one video; with `compare` the floors, references and vLLM's own as well."""
    if compare:
        yield Case("Gram products", "floor", partial(references.gram_products, tokens))
        yield Case("distance matrices (cdist)", "floor", partial(references.distance_matrices, tokens))
    relevance = torch.linspace(0, 1, size.tokens, device=tokens.features.device)
    ways: list[tuple[str, str, dict[str, Any]]] = [(name, name, {}) for name in methods]
    ways += [(way, name, params) for name in methods for way, params in _VARIANTS.get(name, {}).items()]
    for way, name, params in ways:
        method = create(name, **params)
        wanted = getattr(method, "relevance", "unused") in ("required", "encoder")
        given = {"relevance": relevance} if wanted else {}
        yield Case(way, "method", partial(method.assign, tokens, size.budget, **given))
        if compare and way in _REFERENCES:
            yield Case(way, "reference", partial(_REFERENCES[way], tokens, size.budget))
        theirs = references.vllm_mask(name, tokens, size.budget) if compare and way in _VLLM else None
        if theirs is not None:
            yield Case(way, "vLLM", theirs)


def run_cases(
    tokens: VideoTokens, cases: Sequence[Case], repeats: int, clock: str, begin: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """Measure every case by the `clock` of `measure`; `begin` hears of each before it starts."""
    for case in cases:
        begin(f"{tokens.num_tokens} tokens, {case.name} ({case.kind})")
        found = measure(case.call, tokens.features.device.type, repeats, clock)
        yield {"name": case.name, "kind": case.kind, "tokens": tokens.num_tokens, **found.as_dict()}
