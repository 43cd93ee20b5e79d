"""A decoding process: opens one video after another for its server and may die of any of them.

Runs as a script and imports NumPy, OpenCV and the standard library only. Its first argument is the file descriptor of a
socket; over it come commands as JSON, with file descriptors where a command needs them: the video's bytes, and the
memory into which frames are written. It ends when the server closes the socket, or is gone.
"""

import json
import os
import resource
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from mmap import MAP_POPULATE, MAP_SHARED, mmap
from multiprocessing.connection import Connection
from typing import Any

import cv2
import numpy as np

_ALIVE_EVERY_S = 1.0
_FAILURES_AT_THE_END = 100  # grabs in a row; the decoder skips broken packets itself, so one failure says little
_CHANNELS = 3
_MAPPED_AT_ONCE = 64 << 20  # bytes; more may be what a file promises and does not hold


class Clip:
    """The video that is open."""

    def __init__(self, file: int, demuxers: str, alive: Callable[[], None]) -> None:
        self._file = open(file, "rb")  # noqa: SIM115 (as long as the clip)
        self._demuxers, self._alive = demuxers, alive
        self._capture = self._open()

    def _open(self, parameters: tuple[int, ...] = ()) -> cv2.VideoCapture:
        # The demuxer that the leading bytes ask for and no other, and nothing but the bytes that were sent.
        os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"] = f"format_whitelist;{self._demuxers}|protocol_whitelist;none"
        self._file.seek(0)
        # OpenCV takes any BufferedIOBase.
        return cv2.VideoCapture(self._file, cv2.CAP_FFMPEG, parameters)  # type: ignore[call-overload]

    def reopen(self) -> bool:
        """Start again: seeking to the beginning loses frames in some formats."""
        self._capture.release()
        self._capture = self._open()
        return self._capture.isOpened()

    def is_opened(self) -> bool:
        """Whether there is a video stream."""
        return self._capture.isOpened()

    def get(self, property_: int) -> float:
        """As OpenCV's."""
        return self._capture.get(property_)

    def set(self, property_: int, value: float) -> bool:
        """As OpenCV's."""
        return self._capture.set(property_, value)

    def grab(self) -> bool:
        """As OpenCV's."""
        return self._capture.grab()

    def retrieve(self, memory: mmap) -> list[int] | None:
        """Write the frame that was grabbed, in BGR, and tell its shape; None if there is none."""
        ok, frame = self._capture.retrieve()
        if not ok or frame is None:
            return None
        if frame.nbytes > len(memory):
            raise ValueError(f"a frame of {frame.shape[1]}x{frame.shape[0]} pixels is larger than the first one")
        np.frombuffer(memory, np.uint8, frame.size).reshape(frame.shape)[:] = frame
        return list(frame.shape)

    def read(self, memory: mmap, indices: list[int], height: int, width: int) -> list[int]:
        """Write the frames `indices` (rising), in RGB, one behind the other; tell which of them are there."""
        size = height * width * _CHANNELS
        there: list[int] = []
        wanted = set(indices)
        for index, grabbed in enumerate(self._grabs(self._capture, indices[-1] + 1)):
            if not grabbed or index not in wanted:
                continue
            ok, frame = self._capture.retrieve()
            if not ok:
                continue
            if frame.shape != (height, width, _CHANNELS):
                raise ValueError(
                    f"its frames have several sizes: {width}x{height} and {frame.shape[1]}x{frame.shape[0]} pixels"
                )
            place = np.frombuffer(memory, np.uint8, size, len(there) * size).reshape(height, width, _CHANNELS)
            cv2.cvtColor(frame, cv2.COLOR_BGR2RGB, dst=place)
            there.append(index)
        return there

    def count(self) -> int:
        """The number of frames from here to the end; start again."""
        number = sum(self._grabs(self._capture, None))
        self.reopen()
        return number

    def count_packets(self) -> int:
        """The number of frames in the file, of which none is decoded; start again."""
        self._capture.release()  # two could not read from one file
        capture = self._open((cv2.CAP_PROP_FORMAT, -1))
        number = sum(self._grabs(capture, None))
        capture.release()
        self.reopen()
        return number

    def _grabs(self, capture: cv2.VideoCapture, number: int | None) -> Iterator[bool]:
        failures, index, told = 0, 0, time.monotonic()
        while failures < _FAILURES_AT_THE_END and (number is None or index < number):
            grabbed = capture.grab()
            yield grabbed
            failures, index = 0 if grabbed else failures + 1, index + 1
            if time.monotonic() - told > _ALIVE_EVERY_S:
                self._alive()
                told = time.monotonic()


class Service:
    """Does what the server asks."""

    def __init__(self, server: socket.socket) -> None:
        self._socket, self._connection = server, Connection(os.dup(server.fileno()))
        self._clip: Clip | None = None

    def run(self) -> None:
        """Say that it is ready, and answer commands until the server hangs up."""
        self._send({"result": "ready"})
        while True:
            try:
                command = json.loads(self._connection.recv_bytes())
            except EOFError:
                return
            try:
                answer = {"result": self._do(command.pop("do"), command)}
            except Exception as error:  # it is told, and the next video is decoded
                answer = {"error": str(error) or type(error).__name__}
            self._send(answer)

    def _do(self, name: str, arguments: dict[str, Any]) -> Any:
        if name == "open":
            self._clip = Clip(self._receive_descriptor(), **arguments, alive=lambda: self._send({"alive": True}))
            return self._clip.is_opened()
        if name == "close":
            self._clip = None
            return None
        if (size := arguments.pop("memory", None)) is not None:
            arguments["memory"] = self._receive_memory(size)
        return getattr(self._clip, name)(**arguments)

    def _receive_memory(self, size: int) -> mmap:
        descriptor = self._receive_descriptor()
        try:
            return mmap(descriptor, size, flags=MAP_SHARED | (MAP_POPULATE if size <= _MAPPED_AT_ONCE else 0))
        finally:
            os.close(descriptor)

    def _receive_descriptor(self) -> int:
        _, (descriptor,), _, _ = socket.recv_fds(self._socket, 1, 1)
        return descriptor

    def _send(self, answer: dict[str, Any]) -> None:
        self._connection.send_bytes(json.dumps(answer).encode())


def _end_with(parent: int) -> None:
    """Ends this process when its server is gone, which a decoder at work would not notice."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def main(descriptor: int, parent: int, memory_bytes: int) -> None:
    """Serve over `descriptor` with at most `memory_bytes` of memory of its own (shared memory is not counted)."""
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    Service(socket.socket(fileno=descriptor)).run()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
