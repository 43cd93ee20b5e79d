"""One video's way through the model, and the step that prefills it beside two decoding requests, in the small model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from emulated_cuda import Counts, to_host
from small_decoder import WIDTH, SmallModel, feature
from vllm.distributed import parallel_state
from vllm.forward_context import override_forward_context

from vllm_prune.config import PruneConfig
from vllm_prune.layout import MediumLayout
from vllm_prune.methods import _greedy_map
from vllm_prune.serving.wire.request_spec import VideoSpec
from vllm_prune.serving.worker.trace import TraceWriter
from vllm_prune.spans import TurnFormat

GRID = (16, 14, 14)
BEFORE, AFTER, PADDING = 20, 30, 8
DECODING = (33, 50)
"""Tokens of the other requests, each with one row in the step."""
FIRST_BLOCK = 20


@dataclass
class Result:
    """What came out, on the CPU, and what each phase took."""

    values: dict[str, torch.Tensor] = field(default_factory=dict)
    counts: dict[str, Counts] = field(default_factory=dict)


class SmallStep:
    """The step on one kind of device."""

    def __init__(
        self,
        place: Callable[[torch.Tensor], torch.Tensor],
        counts: Counts,
        config: Any,
        *,
        runner: str = "v2",
        trace: TraceWriter | None = None,
    ) -> None:
        """The step of a runner, which decides where prompts are: V1 has their positions on the CPU, V2 on the device.

        Args:
            place: Puts a CPU tensor on the device.
            counts: Of the device.
            config: Of the video.
            runner: "v1" or "v2".
            trace: Gets what was decided.
        """
        self._place, self._counts, self._is_v1 = place, counts, runner == "v1"
        self._spec = VideoSpec(
            config=PruneConfig.parse(config), layout=MediumLayout(GRID), turn=TurnFormat(reply_start=(9,), num_more=2)
        )
        self._kept = self._spec.counts.kept
        self._model = SmallModel(place, trace)
        self._result = Result()

    def run(self) -> Result:
        """All phases."""
        rows = self._encode()
        rows, positions = self._recompute(rows)
        if self._spec.config.query_aware:
            self._forward(*self._embed(rows, positions))
        return self._result

    @contextlib.contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        self._counts.reset()
        yield
        self._result.counts[name] = Counts(list(self._counts.syncs), self._counts.launches)

    def _encode(self) -> torch.Tensor:
        random = torch.Generator().manual_seed(1)
        still = torch.randn(1, GRID[1] * GRID[2], WIDTH, generator=random)
        features = (still + 0.5 * torch.randn(GRID[0], GRID[1] * GRID[2], WIDTH, generator=random)).flatten(0, 1)
        features = self._place(features)
        with self._phase("stage 1"):
            (rows,) = self._model.pack_videos([self._model.prune_video(features, self._spec)])
        self._result.values["rows"] = to_host(rows)
        return rows

    def _recompute(self, rows: torch.Tensor) -> tuple[Any, torch.Tensor]:
        prompt = [1] * BEFORE + [2] * self._kept + [3] * AFTER
        positions, delta = self._model.get_mrope_input_positions(prompt, [feature(BEFORE, self._kept, GRID)])
        ids: Any = prompt
        if not self._is_v1:
            ids, positions = self._place(torch.tensor(prompt, dtype=torch.int32)), self._place(positions.clone())
        with self._phase("recompute"):
            embeddings, positions, found = self._model.recompute_mrope_positions(ids, [rows], positions, 0)
        assert found == delta
        self._result.values["positions"] = to_host(positions)
        return embeddings, positions

    def _embed(self, embeddings: Any, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        others, length = len(DECODING), positions.shape[1]
        media = torch.zeros(others + length, dtype=torch.bool)
        media[others + BEFORE : others + BEFORE + self._kept] = True
        ids = self._place(torch.arange(len(media)) % 100)
        embeds = self._model.embed_input_ids(ids, embeddings, is_multimodal=media)
        embeds = torch.cat((embeds, embeds.new_zeros(PADDING, WIDTH)))
        # Of a question-aware video they are not known yet.
        positions = self._place(positions) if self._is_v1 else positions
        batch = positions.new_zeros(3, len(embeds))
        batch[:, others : others + length] = positions
        return embeds, batch

    def _forward(self, embeds: torch.Tensor, positions: torch.Tensor) -> None:
        context = SimpleNamespace(attn_metadata={}, slot_mapping={})
        for layers in self._groups():
            self._place_group(layers, len(embeds), context)
        with override_forward_context(context), self._phase("dense step"):  # type: ignore[arg-type]
            hidden = self._model.forward(None, positions, None, embeds)
        self._result.values["hidden"] = to_host(hidden)[:-PADDING]
        self._result.values["keys and values"] = self._keys_and_values(context.slot_mapping)

    def _groups(self) -> list[list[Any]]:
        """Attention of the layers that have their blocks in common."""
        return [self._model.layers]

    def _place_group(self, layers: list[Any], num_rows: int, context: Any) -> None:
        """Writes into `context` where the layers of a group have their keys and values."""
        length, block_size = num_rows - PADDING - len(DECODING), layers[0].kv_cache.shape[2]
        lengths = [*DECODING, length]
        starts = [*range(len(DECODING) + 1), len(DECODING) + length]
        table = torch.zeros(len(lengths), max(4, -(-length // block_size)), dtype=torch.int32)
        table[: len(DECODING), :4] = torch.arange(1, 4 * len(DECODING) + 1).view(-1, 4)
        table[-1] = torch.arange(FIRST_BLOCK, FIRST_BLOCK + table.shape[1])
        slots = self._place(_slots(table, lengths, starts, num_rows, block_size))
        names = [layer.layer_name for layer in layers]
        context.attn_metadata |= dict.fromkeys(names, self._metadata(starts, lengths, table, slots))
        context.slot_mapping |= dict.fromkeys(names, slots)

    def _keys_and_values(self, slots: dict[str, torch.Tensor]) -> torch.Tensor:
        """The whole cache of all layers."""
        return torch.stack([to_host(layer.kv_cache) for layer in self._model.layers])

    def _metadata(self, starts: list[int], lengths: list[int], table: torch.Tensor, slots: torch.Tensor) -> Any:
        """Of the step, for the backend of the small decoder."""
        return SimpleNamespace(
            query_start_loc=self._place(torch.tensor(starts, dtype=torch.int32)),
            seq_lens=self._place(torch.tensor(lengths, dtype=torch.int32)),
            block_table=self._place(table),
            lengths=lengths,
            starts=starts,
        )


def _slots(table: torch.Tensor, lengths: list[int], starts: list[int], num_rows: int, block_size: int) -> torch.Tensor:
    """Slots [rows] of a step's rows, -1 of the padding."""
    slots = torch.full((num_rows,), -1)
    for index, length in enumerate(lengths):
        start, stop = starts[index : index + 2]
        place = torch.arange(length - (stop - start), length)
        slots[start:stop] = table[index][place // block_size].long() * block_size + place % block_size
    return slots


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """A process without a group for tensor parallelism, and without a device that Triton compiles for."""
    ranks = mock.patch.object(parallel_state, "_TP", SimpleNamespace(world_size=1, rank_in_group=0))
    with ranks, mock.patch.object(_greedy_map, "has_triton", return_value=False):
        yield
