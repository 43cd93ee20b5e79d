"""Refuses prompts that are longer than the model even after pruning; runs in the API server."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_prune.budget import TokenCounts
from vllm_prune.config import PruneConfigError


def check_length(prompt_len: int, counts: Sequence[TokenCounts], max_model_len: int) -> None:
    """Refuses what vLLM would, and says what a video has to do with it.

    Args:
        prompt_len: Tokens of the prompt, with those of its videos that stay.
        counts: Of its videos.
        max_model_len: vLLM's limit on prompt and answer together.

    Raises:
        PruneConfigError: The prompt alone is longer.
    """
    if prompt_len <= max_model_len:
        return
    kept, total = sum(video.kept for video in counts), sum(video.total for video in counts)
    raise PruneConfigError(
        f"input_tokens={prompt_len}: the prompt, with {kept} of {total} tokens of its media kept, is longer than "
        f"max_model_len={max_model_len}; ask for fewer tokens by mm_processor_kwargs.prune (keep_ratio, "
        f"target_token_num), or send fewer images, a shorter video or less text"
    )
