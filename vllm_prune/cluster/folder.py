"""The folder for what is known of this node: nobody but its user may have put anything into it.

Its default place is in /tmp, where anybody can make a folder of that name first. What is in it decides which processes
are ended and which address is given the cluster's token, so every use checks whose it is.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from vllm_prune.cluster.errors import ClusterError

_LONGEST = 40
"""Characters. Ray makes Unix sockets in its folder, whose paths may have 107, and adds about 65 of its own."""


def default_folder() -> Path:
    """`VLLM_PRUNE_RAY_DIR`, or a folder in /tmp for each user."""
    return Path(os.environ.get("VLLM_PRUNE_RAY_DIR") or f"/tmp/vllm-prune-ray-{os.getuid()}")


def prepare(folder: Path) -> None:
    """Make the folder, for this user only.

    Raises:
        ClusterError: Its path is too long for Ray, or it is not this user's alone.
    """
    if len(str(folder)) > _LONGEST:
        remedy = f"give one of at most {_LONGEST} characters: Ray makes Unix sockets in it"
        raise ClusterError(f"the folder {folder} has a path of {len(str(folder))} characters", remedy)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    with _opened(folder):
        pass


def create(folder: Path, name: str) -> IO[str]:
    """A new file of this user alone in the folder, opened for writing, in the place of whatever had its name.

    Raises:
        ClusterError: The folder is not there, or not this user's alone.
    """
    with _opened(folder) as directory:
        _unlink(name, directory)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.fdopen(os.open(name, flags, 0o600, dir_fd=directory), "w")


def read(folder: Path, name: str) -> str | None:
    """The content of a file in the folder, or None if there is none, or no folder.

    Raises:
        ClusterError: The folder is not this user's alone, or the file is no file of this user.
    """
    if not os.path.lexists(folder):
        return None
    with _opened(folder) as directory:
        try:
            file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _foreign(folder / name, error.strerror or "it cannot be opened") from error
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.getuid():
            os.close(file)
            raise _foreign(folder / name, f"it is no file, or not this user's but user {found.st_uid}'s")
        with os.fdopen(file) as opened:
            return opened.read()


def remove(folder: Path, name: str) -> None:
    """Remove a file from the folder, if it is there.

    Raises:
        ClusterError: The folder is not this user's alone.
    """
    if os.path.lexists(folder):
        with _opened(folder) as directory:
            _unlink(name, directory)


def _unlink(name: str, directory: int) -> None:
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    """A descriptor of the folder, so that what was checked is what is used."""
    try:
        directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        link = " (a symbolic link)" if folder.is_symlink() else ""
        raise _foreign(folder, f"{error.strerror}{link}") from error
    try:
        found = os.fstat(directory)
        if found.st_uid != os.getuid():
            raise _foreign(folder, f"it belongs to user {found.st_uid}")
        if mode := stat.S_IMODE(found.st_mode) & 0o077:
            remedy = f"see what is in it and who put it there, then: chmod 700 {folder}"
            raise ClusterError(f"the folder {folder} is open to other users (mode {mode | 0o700:o})", remedy)
        yield directory
    finally:
        os.close(directory)


def _foreign(path: Path, reason: str) -> ClusterError:
    return ClusterError(f"{path} is not used: {reason}", "give another folder with --dir or VLLM_PRUNE_RAY_DIR")
