"""A video that is open in a decoding process, with the methods of cv2.VideoCapture."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from vllm_prune.media.errors import UnusableVideo
from vllm_prune.media.limits import DEFAULT_LIMITS, Limits
from vllm_prune.media.process import DecoderProcess

_WIDTH, _HEIGHT, _FOURCC = 3, 4, 6  # OpenCV's CAP_PROP_FRAME_WIDTH, _HEIGHT and CAP_PROP_FOURCC
_CHANNELS = 3


class RemoteCapture:
    """Like cv2.VideoCapture, over an open file.

    Args:
        demuxers: FFmpeg's names of those that may read it, separated by commas.
    """

    def __init__(self, decoder: DecoderProcess, data: bytes, demuxers: str) -> None:
        self._decoder = decoder
        self._opened: bool = decoder.call("open", decoder.file.put(data), demuxers=demuxers)

    def isOpened(self) -> bool:
        """Whether there is a video stream."""
        return self._opened

    def get(self, property_: int) -> float:
        """As OpenCV's."""
        return self._decoder.call("get", property_=property_)

    def set(self, property_: int, value: float) -> bool:
        """As OpenCV's."""
        return self._decoder.call("set", property_=property_, value=value)

    def grab(self) -> bool:
        """As OpenCV's."""
        return self._decoder.call("grab")

    def retrieve(self) -> tuple[bool, np.ndarray | None]:
        """As OpenCV's: whether there is a frame, and the frame [height, width, 3] in BGR."""
        height, width = self._size()
        size = height * width * _CHANNELS
        if size == 0:
            return False, None
        _check_size(1, height, width)
        descriptor, memory = self._decoder.memory.take(size)
        shape = self._decoder.call("retrieve", descriptor, memory=size)
        if shape is None:
            return False, None
        return True, np.frombuffer(memory, np.uint8, math.prod(shape)).reshape(shape)

    def read(self) -> tuple[bool, np.ndarray | None]:
        """As OpenCV's."""
        return self.retrieve() if self.grab() else (False, None)

    def reopen(self) -> None:
        """Go back to the first frame; unlike seeking, this loses none."""
        self._opened = self._decoder.call("reopen")

    def count(self) -> int:
        """The number of frames that can be decoded; goes back to the first one."""
        return self._decoder.call("count")

    def count_packets(self) -> int:
        """The number of frames in the file, decoded or not; goes back to the first one."""
        return self._decoder.call("count_packets")

    def read_rgb(self, indices: Iterable[int]) -> tuple[np.ndarray, list[int]]:
        """Frames [F, height, width, 3] in RGB, and the indices of those that could be decoded.

        From the first frame on, each index once; one call for all of them, where `grab` takes one for each.
        """
        wanted = sorted(set(indices))
        height, width = self._size()
        if not wanted or 0 in (height, width):
            return np.empty((0, height, width, _CHANNELS), np.uint8), []
        _check_size(len(wanted), height, width)
        shape = (len(wanted), height, width, _CHANNELS)
        descriptor, memory = self._decoder.memory.take(math.prod(shape))
        there: list[int] = self._decoder.call(
            "read", descriptor, memory=math.prod(shape), indices=wanted, height=height, width=width
        )
        return np.frombuffer(memory, np.uint8).reshape(shape)[: len(there)], there

    def fourcc(self) -> str:
        """The codec, in four letters, as the file has it."""
        return int(self.get(_FOURCC)).to_bytes(8, "little", signed=True)[:4].decode("latin-1").strip("\0 ")

    def _size(self) -> tuple[int, int]:
        return max(0, int(self.get(_HEIGHT))), max(0, int(self.get(_WIDTH)))


def _check_size(frames: int, height: int, width: int, limits: Limits = DEFAULT_LIMITS) -> None:
    """Raise UnusableVideo for frames that take more memory than a request may have.

    A file of some hundred bytes can claim gigabytes.
    """
    if height * width > limits.frame_pixels:
        raise UnusableVideo(
            f"frames of {width}x{height} pixels; they may have {limits.frame_pixels}", "send a smaller video"
        )
    size = frames * height * width * _CHANNELS
    if size > limits.frames_bytes:
        raise UnusableVideo(
            f"{frames} frames of {width}x{height} pixels take {size} bytes; they may take {limits.frames_bytes}",
            "send fewer or smaller frames",
        )
