"""What was started on this machine, so that `stop` ends that and nothing else."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from vllm_prune.cluster.errors import ClusterError

_LONGEST_FOLDER = 40
"""Characters. Ray makes Unix sockets in its folder, whose paths may have 107, and adds about 65 of its own."""


@dataclass(frozen=True)
class Started:
    """A process that was started here.

    Attributes:
        role: "head", "worker" or "server".
        pid: Its number.
        created: When it began, in seconds since 1970: numbers are used again.
        address: The cluster's HOST:PORT.
        node_ip: This node's address in the cluster.
    """

    role: str
    pid: int
    created: float
    address: str
    node_ip: str

    def process(self) -> psutil.Process | None:
        """The process, or None if it has ended."""
        try:
            found = psutil.Process(self.pid)
            same = abs(found.create_time() - self.created) < 1
        except psutil.NoSuchProcess:
            return None
        return found if same and runs(found) else None


def runs(process: psutil.Process) -> bool:
    """Whether a process has not ended. One whose end its parent has yet to notice has."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def default_folder() -> Path:
    """The folder for what is known of this node: `VLLM_PRUNE_RAY_DIR`, or one in /tmp for each user."""
    return Path(os.environ.get("VLLM_PRUNE_RAY_DIR") or f"/tmp/vllm-prune-ray-{os.getuid()}")


def prepare(folder: Path) -> None:
    """Make the folder, for this user only.

    Raises:
        ClusterError: Its path is too long for Ray, or it is somebody else's.
    """
    if len(str(folder)) > _LONGEST_FOLDER:
        remedy = f"give one of at most {_LONGEST_FOLDER} characters: Ray makes Unix sockets in it"
        raise ClusterError(f"the folder {folder} has a path of {len(str(folder))} characters", remedy)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise ClusterError(f"the folder {folder} belongs to another user", "give another one with --dir")


def record(folder: Path, role: str, pid: int, address: str, node_ip: str) -> Started:
    """Note that a process was started."""
    started = Started(role, pid, psutil.Process(pid).create_time(), address, node_ip)
    _file(folder, role).write_text(json.dumps(asdict(started)))
    return started


def recall(folder: Path, *roles: str) -> Started | None:
    """The first of the roles that runs."""
    for role in roles:
        file = _file(folder, role)
        if file.is_file():
            started = Started(**json.loads(file.read_text()))
            if started.process() is not None:
                return started
    return None


def forget(folder: Path, role: str) -> None:
    """Note that a process has ended."""
    _file(folder, role).unlink(missing_ok=True)


def _file(folder: Path, role: str) -> Path:
    return folder / f"{role}.json"
