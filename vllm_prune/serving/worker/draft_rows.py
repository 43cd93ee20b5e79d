"""Rows of media for a drafter that sees them, such as a checkpoint's own MTP layers.

Such a drafter takes, beside the hidden state and the position of each row of a step, the embedding of the token after
it: its rows are the step's, one token further on. vLLM takes them from its encoder cache, where those of pruned videos
are packed (see `carrier.py`) and those of which a question chooses are more than stay. Their positions are the step's.

Called by `patches/worker_draft_rows.py`, of the V2 runner.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from vllm.multimodal.utils import copy_mm_embedding_modality
from vllm.utils.gpu_sync_debug import gpu_sync_allowed

from vllm_prune.serving.worker import carrier
from vllm_prune.serving.worker.ask_first import AskFirst
from vllm_prune.serving.worker.medium_info import MediumTable

_REQUESTS = "_vllm_prune_requests"

Gathered = tuple[list[torch.Tensor], torch.Tensor]
"""Rows of each medium [n, ...] as vLLM's encoder cache has them, and which rows of the batch they are, [rows] bool."""


@dataclass(frozen=True)
class Window:
    """What a drafter sees of a request in one step."""

    start: int
    """Index in its prompt of the first token."""
    count: int
    """Of tokens."""
    prompt: Callable[[], Sequence[int]]
    """Its token ids."""


class DraftRows:
    """Unpacks rows of a model's media for its drafter."""

    def __init__(self, media: MediumTable, ask_first: AskFirst, row_width: int, width: int) -> None:
        """Of the model.

        Args:
            media: What is known of the videos in the encoder cache.
            ask_first: The choices of its worker.
            row_width: W, of a row with what later layers get.
            width: C, of an embedding.
        """
        self._media, self._ask_first, self._row_width, self._width = media, ask_first, row_width, width

    def unpack(
        self, media: Sequence[torch.Tensor], is_media: torch.Tensor, windows: Sequence[Window]
    ) -> list[torch.Tensor]:
        """Embeddings [n, C] of each medium's rows.

        Args:
            media: Rows as the encoder cache has them.
            is_media: Which rows of the batch they are.
            windows: Of every request, in the order of the batch, whose rows follow each other.
        """
        ends = list(itertools.accumulate(window.count for window in windows))
        embeds: list[torch.Tensor] = []
        with gpu_sync_allowed():
            rows = is_media.to("cpu").nonzero().squeeze(1).tolist()
            for packed in media:
                window, end = next(pair for pair in zip(windows, ends, strict=True) if rows[0] < pair[1])
                own = self._embeddings(packed, window.start + rows[0] - (end - window.count), window)
                embeds.append(copy_mm_embedding_modality(packed, own))
                rows = rows[len(packed) :]
        return embeds

    def _embeddings(self, packed: torch.Tensor, first: int, window: Window) -> torch.Tensor:
        """[n, C] of the rows of one medium, of which the first is at index `first` of the prompt."""
        if packed.shape[1] <= self._row_width:
            return packed[:, : self._width]
        ((part,), _, _) = carrier.read_parts([packed], packed.new_empty(0), [])
        if self._media[part.info].asks_first:
            rows = self._ask_first.look_ahead(part, len(packed), window.prompt(), first)
        else:
            rows = carrier.unpack(packed, self._row_width)[0]
        return rows[: len(packed), : self._width]


def remember_requests(state: Any, requests: Any) -> None:
    """Leaves vLLM's `RequestState` with its model's state, where `gather` finds it."""
    setattr(state, _REQUESTS, requests)


def gather(
    state: Any, batch: Any, ahead: int, packed: Callable[[], Gathered], original: Callable[[], Gathered]
) -> Gathered:
    """What vLLM's V2 runner gathers for a drafter, unpacked.

    Args:
        state: vLLM's `DefaultModelState`.
        batch: Its `InputBatch`.
        ahead: How many tokens the drafter is ahead of the step, 1 or more.
        packed: Gathers the rows as they are in the encoder cache.
        original: vLLM's own way.
    """
    rows: DraftRows | None = getattr(state.model, "draft_rows", None)
    if rows is None:
        return original()
    media, is_media = packed()
    if not media:
        return media, is_media
    requests = getattr(state, _REQUESTS, None)
    places = zip(
        batch.idx_mapping_np.tolist(),
        batch.num_computed_tokens_np.tolist(),
        batch.num_scheduled_tokens.tolist(),
        batch.prefill_len_np.tolist(),
        strict=True,
    )
    windows = [
        Window(start + ahead, count, functools.partial(_ids, requests, row, length))
        for row, start, count, length in places
    ]
    return rows.unpack(media, is_media, windows), is_media


def _ids(requests: Any, row: int, length: int) -> Sequence[int]:
    ids: list[int] = requests.all_token_ids.gpu[row, :length].tolist()
    return ids
