"""The model side of pruning: merges and drops after the vision encoder, and keeps positions exact.

Runs in every worker. Put `PruningModelMixin` before a vLLM model class; what it needs of that class are the methods of
vLLM's multimodal interfaces plus the few names listed in `qwen2_5_vl.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
import torch
from vllm.multimodal.inputs import MultiModalFeatureSpec

from vllm_prune.budget import plan_counts
from vllm_prune.config import PruneConfig
from vllm_prune.methods.base import VideoTokens
from vllm_prune.serving import carrier
from vllm_prune.serving.positions import Medium, fill_rows, medium_extent, medium_offsets, prompt_positions
from vllm_prune.serving.query_free import merge_and_select

_DELTA = "mrope_position_delta"
"""Attribute of a prompt's position tensor that remembers its delta (see `recompute_mrope_positions`)."""


class PruningModelMixin:
    """Pruning on top of a model whose videos are grids of tokens with M-RoPE positions."""

    _embed_width: int
    """C, the width of the language model's embeddings."""
    _placeholder_ids: tuple[int, ...]
    """Token ids of all placeholders of media."""

    def prune_video(
        self, features: torch.Tensor, grid: tuple[int, int, int], t_factor: float, config: PruneConfig
    ) -> torch.Tensor:
        """Rows of one video for vLLM's encoder cache.

        Args:
            features: From the vision encoder, [N, C].
            grid: (t, h, w) in merged tokens, t * h * w = N.
            t_factor: Temporal positions per step of the grid.
            config: What to prune.

        Returns:
            [N, C] where everything is kept, else [K, C + carrier.NUM_COLUMNS].
        """
        counts = plan_counts(config, len(features))
        if counts.kept == counts.total:
            return features
        kept = merge_and_select(VideoTokens.from_features(features, grid), config, counts)
        t, h, w = kept.grid.unbind(1)
        all_offsets = torch.from_numpy(medium_offsets(grid, t_factor)).to(features.device)
        offsets = all_offsets[(t * grid[1] + h) * grid[2] + w]
        return carrier.pack(kept.features, offsets, medium_extent(grid, t_factor))

    def get_mrope_input_positions(
        self, input_tokens: list[int], mm_features: list[MultiModalFeatureSpec]
    ) -> tuple[torch.Tensor, int]:
        """Positions of a prompt before its media are encoded; see `positions.py`."""
        features = sorted(mm_features, key=lambda feature: feature.mm_position.offset)
        grids = self.iter_mm_grid_thw(features)  # type: ignore[attr-defined]
        media = [
            Medium(offset, feature.mm_position.length, (t, h, w), t_factor)
            for feature, (offset, t, h, w, t_factor) in zip(features, grids, strict=True)
        ]
        positions, delta = prompt_positions(len(input_tokens), media)
        setattr(positions, _DELTA, delta)
        return positions, delta

    def recompute_mrope_positions(
        self,
        input_ids: list[int] | torch.Tensor,
        multimodal_embeddings: Sequence[torch.Tensor],
        mrope_positions: torch.Tensor,
        num_computed_tokens: int,
    ) -> tuple[Sequence[torch.Tensor], torch.Tensor, int]:
        """Strips the extra columns off the rows of this step and gives the rows their positions.

        The rows of a step are those of consecutive placeholders from `num_computed_tokens` on, whichever media they
        belong to and wherever chunks or prefix-cache hits begin.

        Args:
            input_ids: The whole prompt, [L].
            multimodal_embeddings: For every medium with placeholders in this step, its rows in this step.
            mrope_positions: Of the whole prompt, [3, L]; changed in place.
            num_computed_tokens: Where this step starts.
        """
        if not multimodal_embeddings:
            return multimodal_embeddings, mrope_positions, self._prompt_delta(mrope_positions, 0)
        index = self._placeholders_from(input_ids, num_computed_tokens, mrope_positions.device)
        stripped: list[torch.Tensor] = []
        text_goes_on = 0
        for rows in multimodal_embeddings:
            here, index = index[: len(rows)], index[len(rows) :]
            if rows.shape[1] != self._embed_width:
                rows, offsets, extents = carrier.unpack(rows)
                start = fill_rows(mrope_positions, here, offsets.to(mrope_positions.device))
                text_goes_on = int(start + extents[0])
            stripped.append(rows)
        return stripped, mrope_positions, self._prompt_delta(mrope_positions, text_goes_on)

    def _placeholders_from(self, input_ids: list[int] | torch.Tensor, start: int, device: torch.device) -> torch.Tensor:
        """Prompt indices of the placeholders at `start` and after it."""
        ids = torch.as_tensor(input_ids, device=device)[start:]
        return torch.isin(ids, torch.tensor(self._placeholder_ids, device=device)).nonzero().squeeze(1) + start

    def _prompt_delta(self, positions: torch.Tensor, text_goes_on: int) -> int:
        """What to add to the index of a token after the prompt to get its position.

        The V1 runner hands back the very tensor that `get_mrope_input_positions` returned, for every request in every
        step; the V2 runner hands a copy, in steps with embeddings. For a copy, the largest position tells, unless the
        prompt ends in a pruned video: then `text_goes_on`, the position after the last one of this step.
        """
        known = getattr(positions, _DELTA, None)
        if known is not None:
            return known
        return max(int(positions.max()) + 1, text_goes_on) - positions.shape[1]
