"""An engine whose runner is vLLM's for pooling, in a process of its own, and what the oracle says of its features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from dense_cases import Case, Oracle
from dense_engine import DenseEngine, RemoteEngine
from oracle.features import run_features
from oracle.from_vllm import to_prompt
from oracle.micro_model import micro_selector, micro_selectors
from oracle.rows import TEXT

TOLERANCE = 1e-4
LAYERS = (0, 2, -1)
NUM_LAYERS = 6
STEP_TOKENS = 350
"""In which the longest dense span has room, and a batch has not."""
HYBRIDS = ("qwen3_5", "qwen3_5_moe")
"""Families in which the question chooses before the decoder only."""
SERVED = dict.fromkeys(HYBRIDS, "stage1_only")
"""What an engine has, where it is not "default"."""


def selectors_of(model: str, family: str) -> list[str]:
    """Of its engine."""
    return [micro_selector(model)] if family in HYBRIDS else micro_selectors(model)


@dataclass
class Features:
    """What one request got, or why it was refused."""

    rows: np.ndarray | None = None
    """[R, C]"""
    described: dict[str, Any] | None = None
    report: dict[str, Any] | None = None
    num_cached: int = 0
    error: str = ""


class FeatureEngine(DenseEngine):
    """As `DenseEngine`, with the runner for pooling."""

    def __init__(self, model: str, config: Any, **options: Any) -> None:
        super().__init__(model, config, runner="pooling", feature_layers=LAYERS, **options)

    def encode(
        self, prompts: Sequence[Mapping[str, Any]], asked: Any, *, step_tokens: int | None = None
    ) -> list[Features]:
        """Features of all prompts, queued together, in steps of `step_tokens` tokens."""
        from vllm import PoolingParams

        self.scheduler.max_num_scheduled_tokens = step_tokens or self.max_step_tokens
        params = PoolingParams(extra_kwargs={"features": asked}, task="token_embed")
        found: list[Features] = []
        try:
            if len(prompts) == 1:
                try:
                    outputs = self.llm.encode([dict(prompts[0])], params, pooling_task="token_embed", use_tqdm=False)
                except ValueError as error:
                    return [Features(error=str(error))]
            else:
                outputs = self.llm.encode(
                    [dict(prompt) for prompt in prompts], params, pooling_task="token_embed", use_tqdm=False
                )
        finally:
            self.scheduler.max_num_scheduled_tokens = self.max_step_tokens
        for output in outputs:
            rows = output.outputs.data.numpy()
            found.append(Features(rows, output.prune.features, output.prune.to_dict(), output.num_cached_tokens))
        return found


def expected(oracle: Oracle, case: Case) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """By layer, the rows of all media that a configuration is about and then of all text; and the media's cells."""
    config = oracle.config_of(case)
    prompt = to_prompt(oracle.processor, case.text, videos=case.videos, images=case.images, typed=True)
    layers, rows, grids = run_features(oracle.model, prompt, config, oracle.selectors, oracle.contiguous)
    media = [i for i, medium in enumerate(prompt.media) if medium.kind == "video" or config.prunes_images]
    index = [(rows.medium == i).nonzero().squeeze(1) for i in media] + [(rows.medium == TEXT).nonzero().squeeze(1)]
    cells = [grids[i][rows.token[own]].numpy() for i, own in zip(media, index, strict=False)]
    return [np.concatenate([layer[own].numpy() for own in index]) for layer in layers], cells


def check(oracle: Oracle, case: Case, found: Features, layer: int) -> float:
    """Asserts that features are the oracle's, each row at its place, and returns the largest error."""
    assert not found.error, found.error
    layers, cells = expected(oracle, case)
    assert found.rows is not None
    assert found.described is not None
    assert found.rows.shape == layers[layer].shape, case
    for own, medium in zip(cells, found.described["media"], strict=True):
        assert np.array_equal(own, medium["cells"]), case
    error = float(np.abs(found.rows - layers[layer]).max())
    assert error < TOLERANCE, case
    return error


def check_cold_warm_and_in_chunks(
    engine: RemoteEngine, oracle: Oracle, batch: Sequence[Case], step_tokens: int = STEP_TOKENS
) -> float:
    """Asserts that all are the oracle's, and returns the largest error.

    At every layer, in one batch: the first finds no cache, the others the encoder's; and cold in steps that a batch
    does not fit in.
    """
    prompts = [case.prompt() for case in batch]
    errors: list[float] = []
    for layer in LAYERS:
        found = engine.call("encode", prompts, {"layer": layer, "text": "all"})
        for case, features in zip(batch, found, strict=True):
            errors.append(check(oracle, case, features, layer % (NUM_LAYERS + 1)))
            assert features.num_cached == 0
    engine.call("forget")
    found = engine.call("encode", prompts, {"text": "all"}, step_tokens=step_tokens)
    errors += [check(oracle, case, features, NUM_LAYERS) for case, features in zip(batch, found, strict=True)]
    return max(errors)
