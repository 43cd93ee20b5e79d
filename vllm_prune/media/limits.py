"""What one video may cost."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds on the decoding processes and on what they return."""

    processes: int = 8
    """How many there may be; as many videos are decoded at a time."""
    seconds: float = 300.0
    """For one video, from opening it to its last frame."""
    silent_seconds: float = 30.0
    """For one step; a decoder that has more to do says every second that it goes on."""
    memory_bytes: int = 4 << 30
    """Of one process, the frames it returns not counted."""
    frame_pixels: int = 1 << 26
    """Of one frame; one of 8K video has half as many."""
    frames_bytes: int = 5 << 30
    """Of all frames that are taken of one video, decoded; 768 of 1920x1080 pixels have 4.5 GiB."""
    videos: int = 2000
    """That one process decodes before another takes its place: OpenCV keeps a little of each."""


DEFAULT_LIMITS = Limits()
