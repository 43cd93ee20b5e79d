"""Dense steps through vLLM's own Qwen3.5, whose layers of Gated DeltaNet keep a state, against Hugging Face's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import float32_deltanet
import pytest
import torch
from oracle import load_model, micro_model
from oracle.decoder import KVCache
from oracle.micro_model import write_micro_model
from oracle.prefill import Choice, Pruning, run_rows
from oracle.rows import TEXT, Rows
from qwen3_decoder import Served, serving
from torch import Tensor
from vllm.config import set_current_vllm_config
from vllm.forward_context import get_forward_context
from vllm.v1.attention.backend import CommonAttentionMetadata

from vllm_prune.budget import TokenCounts
from vllm_prune.config import PruneConfig
from vllm_prune.layout import MediumLayout
from vllm_prune.serving.worker.dense.decoder_view import DecoderView
from vllm_prune.serving.worker.dense.prefix import DensePrefix
from vllm_prune.serving.worker.dense.step import DenseVideo, plan_step
from vllm_prune.serving.worker.medium_info import MediumInfo

LAYERS = ["linear_attention", "full_attention"] * 3
LAYOUT = MediumLayout((4, 5, 5))
BEFORE, AFTER, OTHER, CONTEXT = 7, 9, 40, 21
CHOICES = {1: 40, 3: 12}
SLOTS = [4, 2]
"""Of the states of two requests."""


class Hybrid(Served):
    """With states, of which earlier requests left something."""

    def place_caches(self) -> None:
        view = DecoderView(self.model.language_model)
        self.attention, self.states = list(view.attention.values()), list(view.states.values())
        self.place_keys()
        for layer in self.states:
            spec = layer.get_kv_cache_spec(self.config)
            layer.kv_cache = tuple(torch.randn(6, *shape) for shape in spec.shapes)
        layer = self.states[0]
        make = layer.get_attn_backend().get_builder_cls()
        with set_current_vllm_config(self.config):
            spec = layer.get_kv_cache_spec(self.config)
            self._states_builder = make(spec, [layer.prefix], self.config, torch.device("cpu"))

    @contextlib.contextmanager
    def step_of(
        self, contexts: list[int], lengths: list[int], tables: list[list[int]], slots: list[int]
    ) -> Iterator[None]:
        starts = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        seq_lens = torch.tensor([a + b for a, b in zip(contexts, lengths, strict=True)], dtype=torch.int32)
        common = CommonAttentionMetadata(
            query_start_loc=starts,
            query_start_loc_cpu=starts,
            seq_lens=seq_lens,
            num_reqs=len(lengths),
            num_actual_tokens=sum(lengths),
            max_query_len=max(lengths),
            max_seq_len=int(seq_lens.max()),
            block_table_tensor=torch.tensor(slots, dtype=torch.int32)[:, None],
            slot_mapping=starts,
            causal=True,
            seq_lens_cpu_upper_bound=seq_lens,
            is_prefilling=torch.ones(len(lengths), dtype=torch.bool),
        )
        states = self._states_builder.build(common_prefix_len=0, common_attn_metadata=common)
        with self.step(contexts, lengths, tables):
            metadata = get_forward_context().attn_metadata
            metadata.update({layer.prefix: states for layer in self.states})
            yield


@pytest.fixture(scope="module", params=["qwen3_5", "qwen3_5_moe"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(micro_model.QWEN3_5_TEXT, "layer_types", LAYERS)
        return write_micro_model(tmp_path_factory.mktemp("states") / "micro", family=request.param)


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Hybrid]:
    assert float32_deltanet.Worker
    with serving(folder, Hybrid, enable_prefix_caching=False) as served:
        yield served


def rows_of(seed: int, length: int, start: int, width: int) -> Rows:
    embeds = torch.randn(length, width, generator=torch.Generator().manual_seed(seed))
    positions = torch.arange(start, start + length).expand(3, -1).clone()
    none = torch.full((length,), TEXT)
    return Rows(embeds, positions, none, torch.zeros_like(none), torch.empty(0, length, width))


@pytest.mark.parametrize("rows_at_once", [1024, 32])
def test_states_see_all_rows_and_go_on(served: Hybrid, folder: Path, rows_at_once: int) -> None:
    model = load_model(folder)
    width = model.config.text_config.hidden_size
    ahead, other = rows_of(1, CONTEXT, 0, width), rows_of(2, OTHER, 0, width)
    rows = rows_of(3, BEFORE + LAYOUT.num_cells + AFTER, CONTEXT, width)
    media = slice(BEFORE, BEFORE + LAYOUT.num_cells)
    start = CONTEXT + BEFORE
    rows.medium[media] = 0
    rows.token[media] = torch.arange(LAYOUT.num_cells)
    rows.positions[:, media] = start + torch.from_numpy(LAYOUT.offsets()).T
    rows.positions[:, media.stop :] = start + LAYOUT.extent() + torch.arange(AFTER)
    after = rows_of(4, 1, int(rows.positions.max()) + 1, width)

    with torch.no_grad():
        cache, beside = KVCache(model.config.text_config), KVCache(model.config.text_config)
        expected_ahead = finish(model, run_rows(model, ahead, cache)[0])
        expected_other = finish(model, run_rows(model, other, beside)[0])
        expected = finish(model, run_rows(model, rows, cache, Pruning({0: Choice(CHOICES)}))[0])
        expected_after = finish(model, run_rows(model, after, cache)[0])

    tables, kept = [[3, 9], [5, 1, 12, 8]], min(CHOICES.values())
    with served.step_of([0], [CONTEXT], tables[1:], SLOTS[1:]):
        found = served.model(None, ahead.positions, None, ahead.embeds)
    torch.testing.assert_close(found, expected_ahead, rtol=1e-4, atol=1e-4)

    length = BEFORE + kept + AFTER
    places = torch.cat((torch.arange(BEFORE), torch.full((kept,), BEFORE), torch.arange(-AFTER, 0)))
    embeds = torch.cat((other.embeds, rows.embeds[places]))
    positions = torch.cat((other.positions, rows.positions[:, places]), dim=1)
    is_media = torch.zeros(len(embeds), dtype=torch.bool)
    is_media[OTHER + BEFORE : OTHER + BEFORE + kept] = True
    embeds[is_media] = torch.nan  # not looked at
    prefix = DensePrefix(served.config, DecoderView(served.model.language_model), {}, None)
    prefix.rows_at_once = rows_at_once
    with served.step_of([0, CONTEXT], [OTHER, length], tables, SLOTS):
        step = plan_step([video(rows, start).at_row(OTHER + BEFORE)], is_media, prefix.batch(), len(embeds))
        found = prefix.run(step, embeds, positions)
    torch.testing.assert_close(found, torch.cat((expected_other, expected)), rtol=1e-4, atol=1e-4)

    with served.step_of([CONTEXT + length], [1], tables[1:], SLOTS[1:]):
        found = served.model(None, after.positions, None, after.embeds)
    torch.testing.assert_close(found, expected_after, rtol=1e-4, atol=1e-4)


def finish(model: Any, hidden: Tensor) -> Tensor:
    return model.model.language_model.norm(hidden)


def video(rows: Rows, start: int) -> DenseVideo:
    n = LAYOUT.num_cells
    config = PruneConfig.parse({"method": "attention", "layers": list(CHOICES), "keep_ratio": [0.5, 0.5]})
    counts = TokenCounts(total=n, encoded=n, stage1=n, entering=n, layers=tuple(CHOICES.values()), pinned=0)
    info = MediumInfo(LAYOUT, counts, config.to_json())
    features = rows.embeds[BEFORE : BEFORE + n]
    return DenseVideo(features, torch.arange(n), torch.zeros(n, dtype=torch.long), start, info, [])
