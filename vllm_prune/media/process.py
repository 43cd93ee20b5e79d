"""One decoding process, as the server sees it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from vllm_prune.media.errors import DecoderUnavailable, UnusableVideo
from vllm_prune.media.limits import Limits
from vllm_prune.media.memory import FileMemory, FrameMemory

_SCRIPT = Path(__file__).with_name("child.py")
_LARGEST_ANSWER = 64 << 20  # bytes
_START_SECONDS = 60.0
_LAST_SECONDS = 0.2
# Nothing else of the server's environment: it holds keys, and decoders read files of anybody's making.
_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_", "LD_", "PYTHON", "VIRTUAL_ENV", "TMPDIR", "OMP_", "OPENCV_")
_QUIET = {"OPENCV_LOG_LEVEL": "SILENT", "OPENCV_FFMPEG_LOGLEVEL": "-8"}  # every damaged packet has a line otherwise


class DecoderProcess:
    """A child that decodes one video after another; one thread at a time may use it.

    Raises:
        DecoderUnavailable: It does not start.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits, self._deadline = limits, time.monotonic() + _START_SECONDS
        self._videos = 0
        self.file, self.memory = FileMemory(), FrameMemory()
        self._socket, theirs = socket.socketpair()
        self._connection = Connection(os.dup(self._socket.fileno()))
        arguments = (theirs.fileno(), os.getpid(), limits.memory_bytes)
        environment = {name: value for name, value in os.environ.items() if name.startswith(_ENVIRONMENT)}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(_SCRIPT), *map(str, arguments)],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                env={**_QUIET, **environment, "VLLM_PRUNE_STARTUP": "0"},
                process_group=0,  # Ctrl-C is for whoever started it, at whose end it ends
            )
        self.usable = False
        """Whether it waits for a command: neither at work nor ended."""
        self._wait_until_ready()

    def _wait_until_ready(self) -> None:
        try:
            self._answer(_START_SECONDS)
            self.usable = True
        except (OSError, EOFError, UnusableVideo) as error:
            self.end()
            raise DecoderUnavailable(
                f"the process that decodes videos does not start (exit status {self._process.returncode}); try "
                f"`{sys.executable} -c 'import cv2'`"
            ) from error

    @property
    def pid(self) -> int:
        """Of the child."""
        return self._process.pid

    def begin(self) -> None:
        """A video's time starts now."""
        self._videos += 1
        self._deadline = time.monotonic() + self._limits.seconds

    def finish(self) -> None:
        """Forget the video; end after the last of its videos, or if one was given up in the middle of a command."""
        try:
            if self.usable:
                self.call("close")
                self.file.forget()
        except UnusableVideo:  # closing it was its end
            return
        if not self.usable or self._videos >= self._limits.videos:
            self.end()

    def call(self, name: str, descriptor: int | None = None, **arguments: Any) -> Any:
        """What the child's `name` returns.

        Args:
            descriptor: Handed to the child.

        Raises:
            UnusableVideo: The child died of the video, took too long, or says what is wrong with it.
        """
        self.usable = False
        try:
            self._connection.send_bytes(json.dumps({"do": name, **arguments}).encode())
            if descriptor is not None:
                socket.send_fds(self._socket, [b"."], [descriptor])
            answer = self._answer(self._limits.silent_seconds)
        except (OSError, EOFError, json.JSONDecodeError) as error:  # it is gone, or writes what it should not
            self.end()
            raise UnusableVideo(f"the file is damaged: decoding it ends the decoder ({self._exit()})") from error
        self.usable = True
        if "error" in answer:
            raise UnusableVideo(answer["error"])
        return answer["result"]

    def _answer(self, silent_seconds: float) -> dict[str, Any]:
        while True:
            left = min(silent_seconds, self._deadline - time.monotonic())
            if not self._connection.poll(max(0.0, left)):
                self.end()
                raise UnusableVideo(
                    f"decoding the file takes too long: more than {self._limits.seconds:g} s, or {silent_seconds:g} s "
                    f"without a frame",
                    "send a shorter or smaller video",
                )
            answer = json.loads(self._connection.recv_bytes(_LARGEST_ANSWER))
            if "alive" not in answer:
                return answer

    def _exit(self) -> str:
        code = self._process.returncode
        return signal.Signals(-code).name if code < 0 else f"exit status {code}"

    def end(self) -> None:
        """Kill it; repeating the call is harmless."""
        self.usable = False
        self._connection.close()
        self._socket.close()
        self.file.close()
        self.memory.close()
        try:
            self._process.wait(timeout=_LAST_SECONDS)  # hung up on, an idle one ends by itself
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
