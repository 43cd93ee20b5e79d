"""The sample clips that the page offers."""

from __future__ import annotations

from typing import Any

from vllm_prune.embedded import Clip, clips

_TITLES = {"clean": "clean", "all": "disturbed in every way"}


def list_samples() -> list[dict[str, Any]]:
    """Name, title and questions of every sample clip, JSON-ready.

    >>> list_samples()[0]["title"]
    '00: 16 frames, clean'
    """
    return [_describe(clip) for clip in clips()]


def _describe(clip: Clip) -> dict[str, Any]:
    disturbed = _TITLES.get(clip.disturbance, f"with {clip.disturbance}")
    title = f"{clip.name.split('_')[0]}: {clip.frames} frames, {disturbed}"
    return {"name": clip.name, "title": title, "questions": [asked.question for asked in clip.questions]}
