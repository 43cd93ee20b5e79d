"""A prompt through all stages, then greedy decoding on the compacted cache."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, PreTrainedModel

from vllm_prune.budget import plan_counts
from vllm_prune.config import ATTENTION, PruneConfig
from vllm_prune.methods import VideoTokens
from vllm_prune.selector import Selector

from .ask_first import choose
from .decoder import KVCache, logits_of, stateful_layers
from .learned import Learned
from .own_config import own_configs
from .prefill import Choice, Pruning, run_rows
from .prompt import Prompt
from .rows import Layout, Rows, join, lay_out, text_row
from .spans import dense_spans, segments
from .vision import entering_tokens


@dataclass(frozen=True)
class OracleResult:
    """What became of a prompt. Lists over videos are in the order of the prompt.

    kept: For each video (and each image, where a configuration is about images), increasing indices [K] into the N1
        tokens that entered the language model.
    importance: For each of them and each pruning layer, the importance [n] of the n tokens still there; without
        query-aware pruning an empty list for each.
    generated: Token ids; decoding goes on after an end-of-turn token.
    logits: [steps, vocab], those each generated token was chosen by.
    positions: [3, prompt_len_kept], of the rows that are left of the prompt.
    """

    prompt_len_kept: int
    kept: list[Tensor]
    importance: list[list[Tensor]]
    generated: list[int]
    logits: Tensor
    positions: Tensor


def load_model(folder: str | Path) -> PreTrainedModel:
    """The float32 model in `folder`."""
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


@torch.no_grad()
def run_oracle(
    model: PreTrainedModel,
    prompt: Prompt,
    config: PruneConfig,
    max_new_tokens: int,
    selectors: Mapping[str | int, Selector] | None = None,
    chooser: PreTrainedModel | None = None,
    contiguous: bool = False,
) -> OracleResult:
    """Prefill under `config` and `max_new_tokens` (>= 1) greedy steps.

    `selectors`: those of the server, by where they read. `chooser`: by whose embeddings a question chooses; None:
    `model`'s. `contiguous`: media of which no question chooses tokens are numbered anew.
    """
    configs = own_configs(model, prompt, config)
    tokens = [
        entering_tokens(model, medium, own, config.image) for medium, own in zip(prompt.media, configs, strict=True)
    ]
    tokens, chosen = choose(chooser or model, prompt, configs, tokens, selectors or {})
    renumbered = [i for i, own in enumerate(configs) if contiguous and not own.query_aware]
    all_cells = [own.num_tokens == math.prod(own.grid_thw) for own in tokens]
    whole = [i for i, own in enumerate(configs) if all_cells[i] and own.method != ATTENTION]
    layout = lay_out(model, prompt, tokens, renumbered, whole)
    pruning = plan_pruning(model, prompt, configs, tokens, selectors or {})
    cache = KVCache(model.config.text_config)
    hidden, rows = prefill(model, prompt, layout, pruning, cache)
    generated, logits = decode(model, hidden[-1], layout.next_position, cache, max_new_tokens)
    pruned = [i for i, medium in enumerate(prompt.media) if medium.kind == "video" or config.image is not None]
    return OracleResult(
        prompt_len_kept=len(rows),
        kept=[chosen[i][0] if i in chosen else rows.token[rows.medium == i] for i in pruned],
        importance=[[chosen[i][1]] if i in chosen else pruning.scores.get(i, []) if pruning else [] for i in pruned],
        generated=generated,
        logits=logits,
        positions=rows.positions,
    )


@torch.no_grad()
def run_known(
    model: PreTrainedModel,
    prompt: Prompt,
    config: PruneConfig,
    follows: Sequence[int],
    selectors: Mapping[str | int, Selector],
) -> tuple[Tensor, Rows]:
    """A prompt of which no question chooses inside the decoder, and the tokens that follow it.

    Returns:
        All rows after the last norm [R, C], and as they came in.
    """
    configs = own_configs(model, prompt, config)
    tokens = [
        entering_tokens(model, medium, own, config.image) for medium, own in zip(prompt.media, configs, strict=True)
    ]
    tokens, _ = choose(model, prompt, configs, tokens, selectors)
    layout = lay_out(model, prompt, tokens)
    later = [text_row(model, token_id, layout.next_position + i) for i, token_id in enumerate(follows)]
    hidden, rows = run_rows(model, join([layout.rows, *later]), KVCache(model.config.text_config))
    return model.model.language_model.norm(hidden), rows


def plan_pruning(
    model: PreTrainedModel,
    prompt: Prompt,
    configs: list[PruneConfig],
    tokens: list[VideoTokens],
    selectors: Mapping[str | int, Selector],
) -> Pruning | None:
    """Stages 2 and 3 of the media's `configs`, or None where the question decides nothing."""
    choices: dict[int, Choice] = {}
    for index, config in enumerate(configs):
        if config.method != ATTENTION:
            continue
        unknown = {"quota", "selector"} & set(config.params)
        if config.params.get("selector") == "topk" or config.needs_selector:
            unknown.discard("selector")
        if unknown:
            raise NotImplementedError(f"the oracle has no params {sorted(unknown)}")
        layers = config.resolved_layers(len(model.model.language_model.layers), stateful=stateful_layers(model))
        targets = plan_counts(dataclasses.replace(config, stage1=None), tokens[index].num_tokens).layers
        text, heads = config.params.get("text", "max"), config.params.get("heads", "max")
        learned = Learned(config, prompt, tokens, selectors) if config.needs_selector else None
        choices[index] = Choice(dict(zip(layers, targets, strict=True)), text, heads, learned)
    return Pruning(choices) if choices else None


def prefill(
    model: PreTrainedModel, prompt: Prompt, layout: Layout, pruning: Pruning | None, cache: KVCache
) -> tuple[Tensor, Rows]:
    """Fills `cache` with the prompt.

    Returns:
        The last rows after the last layer [n, C], and all rows that are left, as they came in.
    """
    spans = []
    if pruning is not None:
        places = [place for index, place in enumerate(layout.places) if index in pruning.choices]
        spans = dense_spans(prompt.ids, places, prompt.reply_header)
    left: list[Rows] = []
    for start, stop, dense in segments(len(prompt.ids), spans):
        rows = layout.rows.select(slice(layout.first_row[start], layout.first_row[stop]))
        hidden, rows = run_rows(model, rows, cache, pruning if dense else None)
        left.append(rows)
    return hidden, join(left)


def decode(
    model: PreTrainedModel, hidden: Tensor, position: int, cache: KVCache, steps: int
) -> tuple[list[int], Tensor]:
    """Greedy steps from the last prompt row `hidden` [C] on; `position` is that of the first generated token.

    Returns:
        The token ids and the logits [steps, vocab] they were chosen by.
    """
    logits = [logits_of(model, hidden)]
    generated = [int(logits[0].argmax())]
    for step in range(steps - 1):
        row = text_row(model, generated[-1], position + step)
        hidden, _ = run_rows(model, row, cache)
        logits.append(logits_of(model, hidden[-1]))
        generated.append(int(logits[-1].argmax()))
    return generated, torch.stack(logits)
