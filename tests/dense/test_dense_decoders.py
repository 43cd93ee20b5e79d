"""Dense steps through vLLM's own Qwen3-VL, dense and with experts, against Hugging Face's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from oracle.importance import importance, top_k
from oracle.micro_model import QWEN3_EXPERTS
from qwen3_decoder import BLOCK_SIZE, LEVELS, TEXT, WIDTH, Served, serving, write_checkpoint
from torch import Tensor
from transformers import DynamicCache

from vllm_prune.budget import TokenCounts
from vllm_prune.config import PruneConfig, PruneConfigError
from vllm_prune.layout import MediumLayout
from vllm_prune.serving.wire.decoder_layers import pruning_layers
from vllm_prune.serving.wire.long_spans import LongSpan
from vllm_prune.serving.worker.dense.decoder_view import DeepstackView
from vllm_prune.serving.worker.dense.layer_memory import inner_width
from vllm_prune.serving.worker.dense.prefix import DensePrefix
from vllm_prune.serving.worker.dense.step import DenseVideo, plan_step
from vllm_prune.serving.worker.medium_info import MediumInfo

GRID = (4, 5, 5)
CONTIGUOUS = MediumLayout(GRID)
STAMPED = MediumLayout(GRID, text=((7, 8), (7,), (7, 8, 9), (7,), (9,)), rope="per_step")
BEFORE, AFTER = 7, 9
OTHER = 40
"""Rows of another request, of which some are an image's."""
CASES = {
    "the first layer that may": ((2,), (30,), CONTIGUOUS),
    "several layers": ((2, 3), (60, 20), CONTIGUOUS),
    "the last layer that may": ((4,), (50,), STAMPED),
    "several layers, rows that stay": ((2, 4), (60, 1), STAMPED),
}


@dataclass
class Models:
    """The same weights twice."""

    served: Served
    oracle: Any


@pytest.fixture(scope="module", params=["dense", "experts"])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Models]:
    folder = tmp_path_factory.mktemp("decoders") / "model"
    oracle = write_checkpoint(folder, request.param == "experts")
    with serving(folder) as served:
        yield Models(served, oracle)


@dataclass
class Rows:
    """Some rows of a request."""

    embeds: Tensor
    """[n, C]"""
    levels: Tensor
    """[levels, n, C]"""
    positions: Tensor
    """[3, n]"""

    @classmethod
    def random(cls, seed: int, length: int, is_media: Tensor, start: int = 0) -> Rows:
        generator = torch.Generator().manual_seed(seed)
        embeds = torch.randn(length, WIDTH, generator=generator)
        levels = torch.randn(LEVELS, length, WIDTH, generator=generator) * is_media[:, None]
        return cls(embeds, levels, torch.arange(start, start + length).expand(3, -1).clone())


class Oracle:
    """One request through Hugging Face's layers."""

    def __init__(self, model: Any, pinned: Tensor) -> None:
        """`pinned`: which slots of the video nobody may drop, [n] bool."""
        self.pinned = pinned
        self.text = model.model.language_model
        self.cache = DynamicCache(config=model.config.text_config)

    @torch.no_grad()
    def run(self, rows: Rows, layers: tuple[int, ...] = (), counts: tuple[int, ...] = ()) -> Tensor:
        """Hidden states [n, C] of what is left of `rows` after `layers` dropped tokens of the video."""
        hidden, positions = rows.embeds[None], rows.positions
        for index, layer in enumerate(self.text.layers):
            hidden, weights = self._run_layer(layer, hidden, positions)
            if index < LEVELS:
                hidden = hidden + rows.levels[index]
            if index in layers:
                left = self._choose(weights, counts[layers.index(index)], hidden.shape[1])
                hidden, positions = hidden[:, left], positions[:, left]
                for cached in self.cache.layers[: index + 1]:
                    cached.keys, cached.values = cached.keys[:, :, left], cached.values[:, :, left]
        return self.text.norm(hidden)[0]

    def _run_layer(self, layer: Any, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states, and the attention weights [heads, n, S]."""
        found: list[Tensor] = []
        hook = layer.self_attn.register_forward_hook(lambda *call: found.append(call[2][1][0]))
        n, index = hidden.shape[1], layer.self_attn.layer_idx
        total = self.cache.get_seq_length(index) + n
        mask = (torch.arange(total) > torch.arange(total - n, total)[:, None]).float() * torch.finfo(torch.float32).min
        turned = self.text.rotary_emb(hidden, positions[:, None])
        hidden = layer(hidden, position_embeddings=turned, attention_mask=mask[None, None], past_key_values=self.cache)
        hook.remove()
        return hidden, found[0]

    def _choose(self, weights: Tensor, count: int, length: int) -> Tensor:
        tokens, pinned = (BEFORE + places.nonzero().squeeze(1) for places in (~self.pinned, self.pinned))
        questions = torch.arange(BEFORE + len(self.pinned), length)
        chosen = tokens[top_k(importance(weights[:, questions][:, :, tokens], "max"), count)]
        stay = torch.cat((chosen, pinned)).sort().values
        self.pinned = self.pinned[stay - BEFORE]
        return torch.cat((torch.arange(BEFORE), stay, questions))


def make_prompt(layers: tuple[int, ...], counts: tuple[int, ...], layout: MediumLayout) -> tuple[Rows, DenseVideo]:
    config = PruneConfig.parse({"method": "attention", "layers": list(layers), "keep_ratio": [0.5] * len(layers)})
    n, total, pinned = layout.num_cells, layout.num_slots, torch.from_numpy(layout.is_pinned())
    told = TokenCounts(total=n, encoded=n, stage1=n, entering=n, layers=counts, pinned=layout.num_pinned)
    info = MediumInfo(layout, told, config.to_json())
    is_media = torch.cat((torch.zeros(BEFORE, dtype=torch.bool), ~pinned, torch.zeros(AFTER, dtype=torch.bool)))
    rows = Rows.random(1, len(is_media), is_media)
    media = slice(BEFORE, BEFORE + total)
    features = torch.cat((rows.embeds[media], *(level[media] for level in rows.levels)), dim=1)
    video = DenseVideo(features, torch.arange(total), torch.zeros(total, dtype=torch.long), BEFORE, info, [])
    rows.positions[:, media] = BEFORE + torch.from_numpy(layout.offsets()).T
    rows.positions[:, BEFORE + total :] = BEFORE + layout.extent() + torch.arange(AFTER)
    return rows, video


@pytest.mark.parametrize("case", CASES)
def test_a_dense_step_and_the_tokens_after_it_are_hugging_faces(models: Models, case: str) -> None:
    layers, counts, layout = CASES[case]
    rows, video = make_prompt(layers, counts, layout)
    image = torch.zeros(OTHER, dtype=torch.bool)
    image[10:25] = True
    other = Rows.random(2, OTHER, image)

    pinned = torch.from_numpy(layout.is_pinned())
    oracle, beside = Oracle(models.oracle, pinned), Oracle(models.oracle, pinned)
    expected = torch.cat((beside.run(other), oracle.run(rows, layers, counts)))

    kept, served = counts[-1] + layout.num_pinned, models.served
    length = BEFORE + kept + AFTER
    tables = [[3, 9], [5, 1, 12, 8]]
    placeholders = torch.cat((torch.arange(BEFORE), torch.full((kept,), BEFORE), torch.arange(-AFTER, 0)))
    embeds = torch.cat((other.embeds, rows.embeds[placeholders]))
    embeds[OTHER + BEFORE : OTHER + BEFORE + kept] = torch.nan  # not looked at
    positions = torch.cat((other.positions, rows.positions[:, placeholders]), dim=1)
    is_media = torch.zeros(len(embeds), dtype=torch.bool)
    is_media[10:25] = is_media[OTHER + BEFORE : OTHER + BEFORE + kept] = True
    prefix = DensePrefix(served.config, DeepstackView(served.model), {}, None)
    with served.step([0, 0], [OTHER, length], tables):
        served.set_levels(list(torch.cat((other.levels, rows.levels[:, placeholders]), dim=1)))
        step = plan_step([video.at_row(OTHER + BEFORE)], is_media, prefix.batch(), len(embeds))
        found = prefix.run(step, embeds, positions)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)

    after = Rows.random(3, 1, torch.zeros(1, dtype=torch.bool), int(rows.positions.max()) + 1)
    with served.step([length], [1], tables[1:]):
        found = served.forward(after.embeds, after.positions, list(after.levels))
    torch.testing.assert_close(found, oracle.run(after), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_a_dense_prefix_over_several_steps_is_hugging_faces(models: Models, case: str) -> None:
    layers, counts, layout = CASES[case]
    rows, video = make_prompt(layers, counts, layout)
    image = torch.zeros(OTHER, dtype=torch.bool)
    image[10:25] = True
    other = Rows.random(2, OTHER, image)
    pinned = torch.from_numpy(layout.is_pinned())
    oracle, served, kept = Oracle(models.oracle, pinned), models.served, counts[-1] + layout.num_pinned
    beside, expected = Oracle(models.oracle, pinned).run(other), oracle.run(rows, layers, counts)
    table, total = [5, 1, 12, 8], layout.num_slots
    with served.step([0], [BEFORE], [table]):
        served.forward(rows.embeds[:BEFORE], rows.positions[:, :BEFORE], list(rows.levels[:, :BEFORE]))

    prefix = DensePrefix(served.config, DeepstackView(served.model), {}, None)
    span = LongSpan(table[BEFORE // BLOCK_SIZE], BLOCK_SIZE, BEFORE, total + AFTER, layers[0])
    of_each, done = -(-total // kept), 0
    for count in (1, (kept - 1) // 2, kept - 1 - (kept - 1) // 2):
        after = AFTER if done + count == kept else 0
        placeholders = torch.cat(
            (torch.full((count,), BEFORE), torch.arange(len(rows.embeds) - after, len(rows.embeds)))
        )
        own = slice(done * of_each, (done + count) * of_each)
        tags = {name: getattr(video, name)[own] for name in ("features", "slots", "groups")}
        part = replace(video, **tags, batch_row=OTHER, num_rows=count)
        embeds = torch.cat((other.embeds, rows.embeds[placeholders]))
        embeds[OTHER : OTHER + count] = torch.nan  # not looked at
        positions = torch.cat((other.positions, rows.positions[:, placeholders]), dim=1)
        is_media = torch.zeros(len(embeds), dtype=torch.bool)
        is_media[10:25] = is_media[OTHER : OTHER + count] = True
        prefix.long.begin_step([span])
        with served.step([0, BEFORE + done], [OTHER, count + after], [[3, 9], table]):
            served.set_levels(list(torch.cat((other.levels, rows.levels[:, placeholders]), dim=1)))
            found = prefix.run(plan_step([part], is_media, prefix.batch(), len(embeds)), embeds, positions)
        torch.testing.assert_close(found[:OTHER], beside, rtol=1e-4, atol=1e-4)
        done += count
        assert bool(prefix.long.num_bytes) == (done < kept)
    torch.testing.assert_close(found[OTHER:], expected[-len(found) + OTHER :], rtol=1e-4, atol=1e-4)

    after_it = Rows.random(3, 1, torch.zeros(1, dtype=torch.bool), int(rows.positions.max()) + 1)
    with served.step([BEFORE + kept + AFTER], [1], [table]):
        last = served.forward(after_it.embeds, after_it.positions, list(after_it.levels))
    torch.testing.assert_close(last, oracle.run(after_it), rtol=1e-4, atol=1e-4)


def test_levels_are_taken_once(models: Models) -> None:
    served = models.served
    rows = Rows.random(4, 5, torch.ones(5, dtype=torch.bool))
    view = DeepstackView(served.model)
    served.set_levels(list(rows.levels))
    assert torch.equal(torch.stack(view.take_level_rows(5)), rows.levels)
    assert not torch.stack(view.take_level_rows(5)).any()
    assert view.levels == LEVELS


def test_a_pruning_layer_above_the_last_level_is_refused(models: Models) -> None:
    config = models.served.config.model_config
    assert pruning_layers(PruneConfig.parse({"method": "attention", "keep_ratio": 0.5}), config) == (2,)
    with pytest.raises(PruneConfigError, match=r"layers=\[1\]: must lie between 2 and 4 .*deepstack"):
        pruning_layers(PruneConfig.parse({"method": "attention", "keep_ratio": 0.5, "layers": [1]}), config)


def test_memory_is_reserved_for_experts_too(models: Models) -> None:
    """Two experts of a row: its copy and its result, gate and up projections and their product."""
    layer = models.served.model.language_model.model.layers[0]
    experts = 2 * (2 * WIDTH + 3 * QWEN3_EXPERTS["moe_intermediate_size"])
    gate_and_up = 2 * 2 * TEXT["intermediate_size"]
    assert inner_width(layer) == (experts if hasattr(layer.mlp, "experts") else gate_and_up)
