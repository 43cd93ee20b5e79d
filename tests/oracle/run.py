"""A prompt through all stages, then greedy decoding on the compacted cache."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, PreTrainedModel

from vllm_prune.budget import plan_counts
from vllm_prune.config import ATTENTION, QUESTION, PruneConfig
from vllm_prune.methods import VideoTokens
from vllm_prune.selector import Selector

from .ask_first import choose
from .decoder import KVCache, logits_of
from .prefill import Pruning, run_rows
from .prompt import Prompt
from .rows import Layout, Rows, join, lay_out, text_row
from .spans import dense_spans, segments
from .vision import entering_tokens


@dataclass(frozen=True)
class OracleResult:
    """What became of a prompt. Lists over videos are in the order of the prompt.

    kept: For each video, increasing indices [K] into the N1 tokens that entered the language model.
    importance: For each video and pruning layer, the importance [n] of the n tokens still there; without
        query-aware pruning an empty list for each video.
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
    model: PreTrainedModel, prompt: Prompt, config: PruneConfig, max_new_tokens: int, selector: Selector | None = None
) -> OracleResult:
    """Prefill under `config` and `max_new_tokens` (>= 1) greedy steps. `selector`: that of the server."""
    tokens = [entering_tokens(model, medium, config) for medium in prompt.media]
    chosen: dict[int, tuple[Tensor, Tensor]] = {}
    if config.method == QUESTION:
        tokens, chosen = choose(model, prompt, config, tokens, selector)
    layout = lay_out(model, prompt, tokens)
    pruning = plan_pruning(model, prompt, config, tokens)
    cache = KVCache(len(model.model.language_model.layers))
    hidden, rows = prefill(model, prompt, layout, pruning, cache)
    generated, logits = decode(model, hidden[-1], layout.next_position, cache, max_new_tokens)
    videos = [index for index, medium in enumerate(prompt.media) if medium.kind == "video"]
    return OracleResult(
        prompt_len_kept=len(rows),
        kept=[chosen[video][0] if video in chosen else rows.token[rows.medium == video] for video in videos],
        importance=[
            [chosen[video][1]] if video in chosen else pruning.scores.get(video, []) if pruning else []
            for video in videos
        ],
        generated=generated,
        logits=logits,
        positions=rows.positions,
    )


def plan_pruning(
    model: PreTrainedModel, prompt: Prompt, config: PruneConfig, tokens: list[VideoTokens]
) -> Pruning | None:
    """Stages 2 and 3 of `config` for this prompt, or None where the question decides nothing."""
    if config.method != ATTENTION:
        return None
    unknown = {"quota", "selector"} & set(config.params)
    if config.params.get("selector") == "topk":
        unknown.discard("selector")
    if unknown:
        raise NotImplementedError(f"the oracle has no params {sorted(unknown)}")
    layers = config.resolved_layers(len(model.model.language_model.layers))
    alone = dataclasses.replace(config, stage1=None)
    videos = [index for index, medium in enumerate(prompt.media) if medium.kind == "video"]
    targets = {index: plan_counts(alone, tokens[index].num_tokens).layers for index in videos}
    return Pruning(layers, targets, config.params.get("text", "max"), config.params.get("heads", "max"))


def prefill(
    model: PreTrainedModel, prompt: Prompt, layout: Layout, pruning: Pruning | None, cache: KVCache
) -> tuple[Tensor, Rows]:
    """Fills `cache` with the prompt.

    Returns:
        The last rows after the last layer [n, C], and all rows that are left, as they came in.
    """
    spans = []
    if pruning is not None:
        spans = dense_spans(prompt.ids, layout.videos, prompt.reply_header)
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
