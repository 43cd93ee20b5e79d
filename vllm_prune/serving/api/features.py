"""Features of a request: which of its prompt's hidden states are handed out, and what each of them is.

Lives in the API server (or the process of `vllm.LLM`). The worker sends the hidden states of the whole prompt with the
slot of each row; which rows are media's, and where they lie in the grid, follows from what the processor knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from vllm_prune.config import PruneConfigError, brief
from vllm_prune.question import question_places
from vllm_prune.serving.api.prompt_facts import IMAGE, PromptFacts, PromptMedium
from vllm_prune.serving.wire.architectures import is_variant
from vllm_prune.serving.wire.digits import DIGITS, from_digits
from vllm_prune.serving.wire.features import ALL_TEXT, KEY, NO_TEXT, QUESTION_TEXT, FeatureRequest, served_layers
from vllm_prune.serving.wire.settings import read_settings


def hands_out_features(model_config: Any) -> bool:
    """Whether a server of this vLLM `ModelConfig` is one of features."""
    return model_config.runner_type == "pooling" and is_variant(model_config.architecture)


def parse_request(model_config: Any, value: object) -> FeatureRequest:
    """What a request's `features` ask of this server; see `FeatureRequest.parse`."""
    num_layers = model_config.get_total_num_hidden_layers()
    layers = served_layers(read_settings(model_config.hf_config).feature_layers, num_layers)
    return FeatureRequest.parse(value, layers, num_layers)


def begin_request(model_config: Any, params: Any, prompt: Any, facts: PromptFacts | None) -> FeatureRequest | None:
    """Checks a processed prompt's request for features, and settles it in `params`; None on other servers.

    Args:
        model_config: vLLM's `ModelConfig`.
        params: vLLM's `PoolingParams`, changed in place.
        prompt: The processed prompt.
        facts: What the processor knows of it; None if it has no media.

    Raises:
        PruneConfigError: It asks for what there is not.
    """
    if not hands_out_features(model_config):
        return None
    asked = parse_request(model_config, (params.extra_kwargs or {}).get(KEY))
    if facts is None:
        raise PruneConfigError(
            f"{KEY}: the request has no video (nor an image that `prune` is about), and features of text alone are "
            f"not handed out; send one as video_url"
        )
    if asked.pad:
        for modality in facts.modalities:
            _pad_target(facts, modality)
    text_places(asked, facts, prompt["prompt_token_ids"])
    params.extra_kwargs = {**(params.extra_kwargs or {}), KEY: asked.to_dict()}
    return asked


def _pad_target(facts: PromptFacts, modality: str) -> int:
    """Rows of a padded medium."""
    target = facts.config_of(modality).target_token_num
    if target is None:
        raise PruneConfigError(
            f"{KEY}.pad=true: nothing says to how many rows; give prune.target_token_num for {modality}s, or leave pad "
            f"out"
        )
    return target if isinstance(target, int) else target[-1]


def text_places(asked: FeatureRequest, facts: PromptFacts, prompt: Sequence[int]) -> list[int]:
    """Indices into `prompt` of the text rows that are handed out.

    Raises:
        PruneConfigError: One is not of the prompt, or of a medium; or there is no question.
    """
    media = {place for medium in facts.media for place in range(medium.offset, medium.offset + medium.length)}
    text = [place for place in range(len(prompt)) if place not in media]
    if asked.text == NO_TEXT:
        return []
    if asked.text == ALL_TEXT:
        return text
    if asked.text == QUESTION_TEXT:
        end = max(media) + 1
        behind = [place for place in text if place >= end]
        if not behind:
            raise PruneConfigError(f"{KEY}.text={QUESTION_TEXT!r}: no text stands behind the last medium of the prompt")
        return behind if facts.turn is None else question_places(prompt, behind, facts.turn)
    places: list[int] = []
    for index in asked.text:
        assert isinstance(index, int)
        place = index + len(prompt) if index < 0 else index
        if not 0 <= place < len(prompt) or place in media:
            raise PruneConfigError(
                f"{KEY}.text: index {brief(index)} is not one of text; the prompt has {len(prompt)} tokens after "
                f"pruning, of which {len(text)} are text"
            )
        places.append(place)
    return places


def hand_out(
    asked: FeatureRequest, facts: PromptFacts, prompt: Sequence[int], rows: torch.Tensor
) -> tuple[torch.Tensor, dict[str, Any]]:
    """The features and what they are.

    Args:
        asked: By the request.
        facts: Of its prompt.
        prompt: Token ids [L].
        rows: What the worker sent, [L, C + 3].

    Returns:
        [R, C]: of every medium its tokens, padded if so asked, then text; and a description, JSON-ready.
    """
    hidden, slots = rows[:, :-DIGITS], from_digits(rows[:, -DIGITS:].float())[:, 0].numpy()
    parts: list[torch.Tensor] = []
    media: list[dict[str, Any]] = []
    first = 0
    for number, medium in facts.numbered():
        own, described = _medium(facts, medium, slots)
        features = hidden[torch.from_numpy(own)]
        if asked.pad:
            missing = _pad_target(facts, medium.modality) - len(features)
            features = torch.cat((features, features.new_zeros(missing, features.shape[1])))
        parts.append(features)
        bounds = [first, first := first + len(features)]
        media.append({"medium": number, "rows": bounds, "tokens": len(own), **described})
    places = text_places(asked, facts, prompt)
    parts.append(hidden[places])
    text = {"rows": [first, first + len(places)], "places": places, "token_ids": [prompt[place] for place in places]}
    described = {"layer": asked.layer, "dtype": str(rows.dtype).removeprefix("torch.")}
    return torch.cat(parts), {**described, "hidden_size": hidden.shape[1], "media": media, "text": text}


def _medium(facts: PromptFacts, medium: PromptMedium, slots: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """Rows [K] of the prompt that are a medium's tokens, and what they are."""
    layout = medium.layout
    assert layout is not None  # as the configuration is about it
    places = np.arange(medium.offset, medium.offset + medium.length)
    # Of a medium that keeps everything the worker knows nothing; it has all slots, in order.
    of_rows = np.arange(layout.num_slots) if medium.length == layout.num_slots else slots[places]
    pinned = layout.is_pinned()
    is_token = ~pinned[of_rows]
    cells = (of_rows - pinned.cumsum()[of_rows])[is_token]
    grid = np.stack(np.unravel_index(cells, layout.grid), axis=1)
    described = {"modality": medium.modality, "grid_thw": list(layout.grid), "cells": grid.tolist(), "seconds": None}
    if medium.modality == IMAGE:
        described["parts"] = [list(part) for part in facts.image_parts(layout)]
    elif seconds := facts.step_seconds(layout) or medium.seconds:
        described["seconds"] = [seconds[step] for step in grid[:, 0]]
    return places[is_token], described
