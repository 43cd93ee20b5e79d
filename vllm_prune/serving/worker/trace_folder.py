"""The folder of traces: private, bounded in number and bytes, and never a reason for a request to fail."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from pathlib import Path

from vllm.logger import init_logger

from vllm_prune.trace_limits import TraceLimits

logger = init_logger("vllm.vllm_prune")

_OWN_NAME = re.compile(r"(\d{6,}-[0-9a-f]{16}|asked-[0-9a-f]{32})\.npz")
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_LEFT = 0.9
"""Share of a limit that deleting goes down to, so that the folder is not read for every trace."""


class TraceFolder:
    """Writes files; keeps the folder within its limits, traces of earlier runs and of other writers included."""

    def __init__(self, path: str, limits: TraceLimits) -> None:
        self._path, self._limits = Path(path), limits
        self._files = self._bytes = 0
        """What the folder held when it was last read, and what was written since."""
        self._lost = 0
        self._logged = False
        self._must_read = True
        try:
            self._make()
            self._warn_if_open()
        except OSError as error:
            self._complain(error)

    def write(self, name: str, content: bytes) -> Path | None:
        """The file's path; None where it could not be written, which is logged once and counted."""
        try:
            return self._write(name, content)
        except OSError as error:
            self._lost += 1
            self._complain(error)
            return None

    def take_lost(self) -> int:
        """How many could not be written since the last call."""
        lost, self._lost = self._lost, 0
        return lost

    def _complain(self, error: OSError) -> None:
        if not self._logged:
            self._logged = True
            logger.error(
                "trace=%r: cannot be written: %s; requests go on, and vllm_prune:lost_traces_total counts the traces "
                "that are missing; mend the folder or make room",
                str(self._path),
                error,
            )

    def _make(self) -> None:
        self._path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _warn_if_open(self) -> None:
        """A folder that was there keeps its mode; the files in it are the owner's alone."""
        mode = stat.S_IMODE(self._path.stat().st_mode)
        if mode & _OTHERS:
            logger.warning(
                "trace=%r: the folder was there and keeps its mode %03o, so other users can look into it or change "
                "it; traces themselves are readable by their owner alone; chmod 700 closes it",
                str(self._path),
                mode,
            )

    def _write(self, name: str, content: bytes) -> Path:
        if len(content) > self._limits.bytes:
            raise OSError(errno.EFBIG, f"a trace of {len(content)} bytes, where {self._limits.bytes} are allowed")
        self._make()
        self._make_room(len(content))
        path = self._path / name
        part = self._path / f".{name}.{os.getpid()}"
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
            with open(os.open(part, flags, 0o600), "wb") as file:
                file.write(content)
            part.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink()
            raise
        self._files, self._bytes = self._files + 1, self._bytes + len(content)
        return path

    def _make_room(self, size: int) -> None:
        """Deletes the oldest traces if one more, of `size` bytes, would be too much."""
        if not (self._must_read or self._is_over(self._files + 1, self._bytes + size, 1.0)):
            return
        self._must_read = False
        oldest_first = self._read()
        self._files, self._bytes = len(oldest_first), sum(size for _, size, _ in oldest_first)
        if not self._is_over(self._files + 1, self._bytes + size, 1.0):
            return
        for _, own_size, path in oldest_first:
            if not self._is_over(self._files + 1, self._bytes + size, _LEFT):
                return
            path.unlink(missing_ok=True)
            self._files, self._bytes = self._files - 1, self._bytes - own_size

    def _is_over(self, files: int, bytes: int, share: float) -> bool:
        return files > max(1, self._limits.files * share) or bytes > self._limits.bytes * share

    def _read(self) -> list[tuple[float, int, Path]]:
        """Time, size and path of every trace, the oldest first; whatever else is in the folder is its owner's."""
        found = []
        for entry in os.scandir(self._path):
            if _OWN_NAME.fullmatch(entry.name):
                with contextlib.suppress(FileNotFoundError):  # another writer's, deleted meanwhile
                    status = entry.stat(follow_symlinks=False)
                    found.append((status.st_mtime, status.st_size, Path(entry.path)))
        return sorted(found)
