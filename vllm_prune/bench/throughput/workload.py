"""The requests: windows of real clips with a question, or random pixels of a fixed size."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from vllm_prune.bench.throughput.errors import BenchmarkError

CLIP_FPS = 30
MIN_CROP = 0.7  # of the frame's height and width
RANDOM_TEXT_TOKENS = 32
QUESTIONS = (
    "What happens in this video?",
    "Describe what moves, and where it goes.",
    "How many things move in the video?",
    "What is in the background of the scene?",
)

Frames = list[np.ndarray]  # of [height, width, 3] uint8, BGR


@dataclass(frozen=True, kw_only=True)
class ClipShape:
    """Size of a video as it reaches the server."""

    frames: int
    width: int  # pixels
    height: int

    def __post_init__(self) -> None:
        for name in ("frames", "width", "height"):
            if getattr(self, name) < 2:
                raise BenchmarkError(f"{name}={getattr(self, name)}: a video to measure with needs 2 or more")


def read_clip(path: Path) -> Frames:
    """All frames of a video file."""
    capture = cv2.VideoCapture(str(path))
    try:
        frames = list(_decoded(capture))
    finally:
        capture.release()
    if not frames:
        raise BenchmarkError(f"--clips {path}: no frame can be read; give a video file that OpenCV decodes")
    return frames


def _decoded(capture: cv2.VideoCapture) -> Iterator[np.ndarray]:
    while True:
        more, frame = capture.read()
        if not more:
            return
        yield frame


def cut_window(frames: Frames, shape: ClipShape, rng: random.Random) -> Frames:
    """A random stretch of `frames`, cropped, perhaps mirrored, and scaled to `shape`.

    A clip shorter than `shape.frames` is played to and fro.
    """
    start = rng.randrange(max(len(frames) - shape.frames, 0) + 1)
    scale, mirrored = rng.uniform(MIN_CROP, 1.0), rng.random() < 0.5
    height, width = (round(side * scale) for side in frames[0].shape[:2])
    top = rng.randrange(frames[0].shape[0] - height + 1)
    left = rng.randrange(frames[0].shape[1] - width + 1)
    window = []
    for index in range(start, start + shape.frames):
        crop = frames[to_and_fro(index, len(frames))][top : top + height, left : left + width]
        scaled = cv2.resize(crop, (shape.width, shape.height), interpolation=cv2.INTER_AREA)
        window.append(cv2.flip(scaled, 1) if mirrored else scaled)
    return window


def to_and_fro(index: int, length: int) -> int:
    """The frame that a clip of `length` frames shows at `index` when it is played forwards and backwards for ever.

    >>> [to_and_fro(index, 3) for index in range(7)]
    [0, 1, 2, 1, 0, 1, 2]
    """
    if length == 1:
        return 0
    phase = index % (2 * length - 2)
    return min(phase, 2 * length - 2 - phase)


def write_clip(path: Path, frames: Frames) -> None:
    """Write `frames` as an mp4 of `CLIP_FPS` frames a second."""
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), CLIP_FPS, (width, height))
    try:
        if not writer.isOpened():
            raise BenchmarkError(f"{path}: OpenCV cannot write mp4 (codec mp4v); install opencv-python-headless")
        for frame in frames:
            writer.write(frame)
    finally:
        writer.release()


def prepare_clips(
    sources: Sequence[Path], count: int, shape: ClipShape, folder: Path, seed: int, tick: Callable[[], None]
) -> list[str]:
    """Cut `count` distinct windows from the `sources` in turn and return the options that send them.

    vLLM's `sharegpt` dataset is the one that takes videos from local files; it sends them as `file://` URLs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    decoded = [read_clip(path) for path in sources]
    entries = []
    for index in range(count):
        path = folder / f"clip-{index:03}.mp4"
        write_clip(path, cut_window(decoded[index % len(decoded)], shape, rng))
        entries.append(_conversation(path, QUESTIONS[index % len(QUESTIONS)]))
        tick()
    dataset = folder / "requests.json"
    dataset.write_text(json.dumps(entries, indent=1), encoding="utf-8")
    return ["--dataset-name", "sharegpt", "--dataset-path", str(dataset)]


def _conversation(video: Path, question: str) -> dict[str, object]:
    """An entry of vLLM's `sharegpt` dataset; the answer is never used, as the output length is given."""
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "-"}]
    return {"conversations": turns, "video": str(video)}


def random_pixels(shape: ClipShape) -> list[str]:
    """The options of vLLM's `random-mm` dataset for one video of `shape` a request, other pixels each time."""
    bucket = f"{{({shape.height}, {shape.width}, {shape.frames}): 1.0}}"
    return [
        "--dataset-name", "random-mm",
        "--random-input-len", str(RANDOM_TEXT_TOKENS),
        "--random-mm-base-items-per-request", "1",
        "--random-mm-limit-mm-per-prompt", '{"image": 0, "video": 1}',
        "--random-mm-bucket-config", bucket,
    ]  # fmt: skip
