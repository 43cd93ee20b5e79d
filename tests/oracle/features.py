"""Hidden states of the rows that are left of a prompt, before each layer and after the last."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel

from vllm_prune.config import PruneConfig
from vllm_prune.selector import Selector

from .ask_first import choose
from .decoder import KVCache
from .own_config import own_configs
from .prefill import run_rows
from .prompt import Prompt
from .rows import Rows, join, lay_out
from .run import plan_pruning
from .spans import dense_spans, segments
from .vision import entering_tokens


@torch.no_grad()
def run_features(
    model: PreTrainedModel,
    prompt: Prompt,
    config: PruneConfig,
    selectors: Mapping[str | int, Selector],
    contiguous: bool = False,
) -> tuple[list[Tensor], Rows, list[Tensor]]:
    """Prefill under `config`; `contiguous`: see `run_oracle`.

    Returns:
        Hidden states [rows, C] before each layer, and after the last one, normalized; the rows that are left, as they
        came in; and for each medium the cells [N1, 3] of the tokens that entered.
    """
    configs = own_configs(model, prompt, config)
    tokens = [
        entering_tokens(model, medium, own, config.image) for medium, own in zip(prompt.media, configs, strict=True)
    ]
    tokens, _ = choose(model, prompt, configs, tokens, selectors)
    renumbered = [i for i, own in enumerate(configs) if contiguous and not own.query_aware]
    layout = lay_out(model, prompt, tokens, renumbered)
    pruning, cache = plan_pruning(model, prompt, configs, tokens, selectors), KVCache(model.config.text_config)
    places = [] if pruning is None else [place for i, place in enumerate(layout.places) if i in pruning.choices]
    parts: list[list[Tensor]] = []
    left: list[Rows] = []
    for start, stop, dense in segments(len(prompt.ids), dense_spans(prompt.ids, places, prompt.reply_header)):
        rows = layout.rows.select(slice(layout.first_row[start], layout.first_row[stop]))
        seen: list[Tensor] = []
        last, rows = run_rows(model, rows, cache, pruning if dense else None, seen)
        parts.append([*seen, model.model.language_model.norm(last)])
        left.append(rows)
    return [torch.cat(layer) for layer in zip(*parts, strict=True)], join(left), [own.grid for own in tokens]
