"""How many frames of a video a request's configuration allows. Lives in the API server.

Frames are sampled where a file is decoded, before the multimodal processor (`frame_sampling.py`); those of videos that
are arrays, or lists of pictures, are taken out of these by the processor (`frame_limit.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vllm_prune.budget import TokenCounts, count_most
from vllm_prune.config import PruneConfig, PruneConfigError
from vllm_prune.config.frames import FramesConfig
from vllm_prune.frames import most_steps
from vllm_prune.media.limits import DEFAULT_LIMITS
from vllm_prune.serving.wire.settings import StepLimits, read_step_limits

if TYPE_CHECKING:
    from vllm_prune.serving.api.family import FamilyProcessor

FOR_VIDEO = 7 / 8
"""Of what a step holds; the rest is for the question and the text between a video's frames."""
_CHANNELS = 3


@dataclass(frozen=True)
class FrameBudget:
    """What a configuration with `frames` allows videos of one model."""

    processor: FamilyProcessor
    config: PruneConfig
    options: Mapping[str, Any]
    """The Hugging Face processor's, of the request."""

    @property
    def frames(self) -> FramesConfig:
        """The part that says it."""
        assert self.config.frames is not None
        return self.config.frames

    def count(self, size: tuple[int, int], most: int, fewest: int = 1) -> int:
        """Frames of a video that are sampled.

        Args:
            size: Width and height of its frames in pixels.
            most: Frames that there are, or that somebody else allows; 1 or more.
            fewest: Frames that somebody wants at the least.

        Raises:
            PruneConfigError: Even the fewest keep more tokens than allowed.
        """
        width, height = size
        bytes_of_frame = max(width * height, 1) * _CHANNELS
        most = max(min(most, self.frames.most, DEFAULT_LIMITS.frames_bytes // bytes_of_frame), 1)
        step = self.processor.frames_of_step
        limits = read_step_limits(self.processor.info.get_hf_config())

        def cells(steps: int) -> int:
            return self.processor.tokens_of_frames(width, height, steps * step, self.options) // steps

        steps = most_steps(
            cells, lambda steps, size: self._fits(self._counts(steps, size), limits), max(most // step, 1)
        )
        needed = max(min(fewest, most) // step, 1)
        if steps < needed:
            self._refuse(self._counts(needed, cells(needed)), min(needed * step, most), limits)
        return min(steps * step, most)

    def _counts(self, steps: int, cells: int) -> TokenCounts:
        return count_most(self.config.of_videos, steps * cells, steps)

    def _fits(self, counts: TokenCounts, limits: StepLimits) -> bool:
        return counts.kept <= self.frames.tokens and not self._outgrown(counts, limits)

    def _outgrown(self, counts: TokenCounts, limits: StepLimits) -> str:
        """The limit of a step that a video is above, as its option is called; "" if it is above none."""
        if not self.config.chooses_inside:
            return ""
        if limits.dense_tokens is not None and counts.entering > limits.dense_tokens * FOR_VIDEO:
            return "--prune-dense-tokens"
        in_a_step = None if limits.several_steps else limits.tokens
        if in_a_step is not None and counts.kept > in_a_step * FOR_VIDEO:
            return "--max-num-batched-tokens"
        return ""

    def _refuse(self, counts: TokenCounts, frames: int, limits: StepLimits) -> None:
        said = f"frames.tokens={self.frames.tokens}: {frames} frames of this video keep {counts.kept} tokens"
        if counts.kept > self.frames.tokens:
            raise PruneConfigError(
                f"{said}, and there are to be no fewer; ask for {counts.kept} or more, keep fewer of them "
                f"(keep_ratio, target_token_num), or send smaller frames"
            )
        raise PruneConfigError(
            f"{said} of {counts.entering} that the model's first layers see, which is above what this server's "
            f"{self._outgrown(counts, limits)} leaves room for; send smaller frames, or start the server with more"
        )
