"""Videos as the two ways of asking need them: frames for an engine in this process, a data URL for a server."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vllm_prune.bench.throughput.errors import BenchmarkError
from vllm_prune.media.kinds import media_type


@dataclass(frozen=True)
class Frames:
    """Frames taken from a video."""

    pixels: np.ndarray
    """uint8 [T, height, width, 3], RGB."""
    indices: tuple[int, ...]
    """Which frames of the video they are."""
    total: int
    """Frames of the video."""
    fps: float
    """Frames a second of the video."""

    def metadata(self) -> dict[str, Any]:
        """What a decoder of vLLM tells about them."""
        return {
            "fps": self.fps,
            "duration": self.total / self.fps,
            "total_num_frames": self.total,
            "frames_indices": list(self.indices),
            "video_backend": "opencv",
            "do_sample_frames": False,
        }


class Video(Protocol):
    """A video that questions are about. Hashable and picklable: engines run in processes of their own."""

    @property
    def key(self) -> str:
        """Equal for questions about the same video."""

    @property
    def scene(self) -> str:
        """Equal for videos that show much the same; what is said about them is not independent."""

    def frames(self, limit: int) -> Frames:
        """At most `limit` frames, evenly spaced."""

    def data_url(self) -> str:
        """The whole video, as base64."""


class _OnDisk:
    """What names a video that is a file or a folder, or a part of one."""

    path: Path
    start: float | None
    end: float | None

    @property
    def key(self) -> str:
        return f"{self.path}@{self.start}-{self.end}"

    @property
    def scene(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class FileVideo(_OnDisk):
    """A video file, or the part of it from `start` to `end` (seconds; None: its beginning and end)."""

    path: Path
    start: float | None = None
    end: float | None = None

    def frames(self, limit: int) -> Frames:
        with _Capture(self.path) as capture:
            first, last = _range(capture.count, capture.fps, self.start, self.end)
            chosen = spread(last - first, limit)
            pixels = list(capture.read([first + index for index in chosen]))
            # Containers overstate their frames now and then.
            if not pixels:
                raise BenchmarkError(f"{self.path}: no frame can be read; give a video file that OpenCV decodes")
            return Frames(np.stack(pixels), tuple(chosen[: len(pixels)]), last - first, capture.fps)

    def data_url(self) -> str:
        if self.start is None and self.end is None:
            return data_url(self.path.read_bytes(), media_type(self.path.name, "video/mp4"))
        with _Capture(self.path) as capture:
            first, last = _range(capture.count, capture.fps, self.start, self.end)
            return mp4_url(np.stack(list(capture.read(range(first, last)))), capture.fps)


@dataclass(frozen=True)
class FrameFolder(_OnDisk):
    """A video that is published as a folder of pictures, in the order of their names."""

    path: Path
    fps: float
    start: float | None = None
    end: float | None = None

    def frames(self, limit: int) -> Frames:
        files = self._files()
        chosen = spread(len(files), limit)
        return Frames(_read_pictures([files[index] for index in chosen]), tuple(chosen), len(files), self.fps)

    def data_url(self) -> str:
        return mp4_url(_read_pictures(self._files()), self.fps)

    def _files(self) -> list[Path]:
        files = sorted(path for path in self.path.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
        if not files:
            raise BenchmarkError(f"{self.path}: holds no .jpg or .png frame")
        first, last = _range(len(files), self.fps, self.start, self.end)
        return files[first:last]


def spread(count: int, limit: int) -> list[int]:
    """At most `limit` of `count` places, each in the middle of an equal share.

    >>> spread(12, 3), spread(2, 3)
    ([2, 6, 10], [0, 1])
    """
    chosen = min(count, limit)
    return [(2 * index + 1) * count // (2 * chosen) for index in range(chosen)]


def _range(count: int, fps: float, start: float | None, end: float | None) -> tuple[int, int]:
    """First frame, and the one after the last, from `start` to `end`; one frame at least."""
    first = min(max(round((start or 0) * fps), 0), count - 1)
    last = count if end is None else min(max(round(end * fps), first + 1), count)
    return first, last


class _Capture:
    """An open video file."""

    def __init__(self, path: Path) -> None:
        import cv2

        self._cv2, self._path = cv2, path
        self._capture = cv2.VideoCapture(str(path))
        self.count = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.fps = float(self._capture.get(cv2.CAP_PROP_FPS))
        if not self._capture.isOpened() or self.count < 1 or not self.fps > 0:
            self._capture.release()
            remedy = "check the file, or leave its questions out"
            raise BenchmarkError(f"{path}: not a video that OpenCV can read; {remedy}")

    def read(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """The frames `indices` (increasing), as far as the file goes."""
        place = 0
        for index in indices:
            while place < index and self._capture.grab():
                place += 1
            found, frame = self._capture.read()
            if place < index or not found:
                return
            place += 1
            yield self._cv2.cvtColor(frame, self._cv2.COLOR_BGR2RGB)

    def __enter__(self) -> _Capture:
        return self

    def __exit__(self, *_: object) -> None:
        self._capture.release()


def _read_pictures(files: Sequence[Path]) -> np.ndarray:
    import cv2

    pictures = []
    for path in files:
        picture = cv2.imread(str(path))
        if picture is None:
            raise BenchmarkError(f"{path}: not a picture that OpenCV can read; check the file")
        pictures.append(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))
    return np.stack(pictures)


def mp4_url(pixels: np.ndarray, fps: float) -> str:
    """RGB frames [T, height, width, 3] as the data URL of an mp4 file."""
    import cv2

    height, width = pixels.shape[1:3]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "clip.mp4")
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, (width, height))
        if not writer.isOpened():
            raise BenchmarkError("OpenCV cannot write mp4 (codec mp4v); install opencv-python-headless")
        for frame in pixels:
            writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        writer.release()
        return data_url(path.read_bytes(), "video/mp4")


def data_url(data: bytes, kind: str) -> str:
    """A file of media type `kind` as a data URL."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
