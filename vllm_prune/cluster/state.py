"""What was started on this machine, so that `stop` ends that and nothing else."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from vllm_prune.cluster.errors import ClusterError
from vllm_prune.cluster.folder import create, read, remove
from vllm_prune.cluster.ports import parse_address


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
        """The process, or None if it has ended, and its number is somebody else's by now."""
        try:
            found = psutil.Process(self.pid)
            same = abs(found.create_time() - self.created) < 1 and found.uids().real == os.getuid()
        except (psutil.NoSuchProcess, ValueError):  # a number that no process can have
            return None
        return found if same and runs(found) else None


def runs(process: psutil.Process) -> bool:
    """Whether a process has not ended. One whose end its parent has yet to notice has."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def record(folder: Path, role: str, pid: int, address: str, node_ip: str) -> Started:
    """Note that a process was started.

    Raises:
        ClusterError: The folder is not this user's alone.
    """
    started = Started(role, pid, psutil.Process(pid).create_time(), address, node_ip)
    with create(folder, _name(role)) as file:
        json.dump(asdict(started), file)
    return started


def recall(folder: Path, *roles: str) -> Started | None:
    """The first of the roles that runs.

    Raises:
        ClusterError: The folder is not this user's alone, or a file in it cannot be read.
    """
    for role in roles:
        content = read(folder, _name(role))
        if content is not None:
            started = _parse(content, folder / _name(role))
            if started.process() is not None:
                return started
    return None


def forget(folder: Path, role: str) -> None:
    """Note that a process has ended.

    Raises:
        ClusterError: The folder is not this user's alone.
    """
    remove(folder, _name(role))


def _parse(content: str, file: Path) -> Started:
    try:
        started = Started(**json.loads(content))
        parse_address(started.address)
        return Started(started.role, int(started.pid), float(started.created), started.address, str(started.node_ip))
    except (ValueError, TypeError, AttributeError, ClusterError) as error:
        raise ClusterError(f"{file} does not say what was started: {error}", f"remove it: rm {file}") from error


def _name(role: str) -> str:
    return f"{role}.json"
