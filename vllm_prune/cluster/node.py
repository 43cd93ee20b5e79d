"""Start and stop a node of a Ray cluster on this machine, in a process that is known and can be ended."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from vllm_prune.cluster import folder as own_folder
from vllm_prune.cluster import ports, state
from vllm_prune.cluster.auth import authenticated
from vllm_prune.cluster.errors import ClusterError

LOOPBACK = "127.0.0.2"
"""This machine only. Ray puts the machine's own address in the place of 127.0.0.1, but not of this one."""

SECOND_LOOPBACK = "127.0.0.3"
"""For a second node on this machine."""

_CLIENT_PORT = 10001  # Ray's own default
_START_TIMEOUT_S = 90
_STOP_TIMEOUT_S = 60
_DRAIN_S = 5
"""How long a node that is to end waits for work on it: `stop` has ended the server before."""
_STARTED = "Ray runtime started"


@dataclass(frozen=True)
class NodeOptions:
    """How to start a node.

    Attributes:
        folder: Where its files go; Ray's own temporary files as well.
        node_ip: Its address in the cluster.
        port: The head's port.
        head: The head's HOST:PORT for a node that joins; None for the head.
        others: Further options of `ray start`.
    """

    folder: Path
    node_ip: str
    port: int = 6379
    head: str | None = None
    others: list[str] = field(default_factory=list)

    @property
    def address(self) -> str:
        """The cluster's HOST:PORT."""
        return self.head or f"{self.node_ip}:{self.port}"


def start(options: NodeOptions) -> state.Started:
    """Start the node and wait until it is one.

    Raises:
        ClusterError: One runs already, a port is taken, the head does not answer, or Ray did not start.
    """
    own_folder.prepare(options.folder)
    if running := state.recall(options.folder, "head", "worker"):
        remedy = "stop it with `bash launch/ray/stop.sh`, or give another folder with --dir"
        raise ClusterError(f"this machine is already a {running.role} of the cluster at {running.address}", remedy)
    if options.head is None:
        ports.require_free("0.0.0.0", options.port, "--port")  # Ray listens on all interfaces
        if "--ray-client-server-port" not in " ".join(options.others):
            ports.require_free(options.node_ip, _CLIENT_PORT, "--ray-client-server-port PORT")
    else:
        ports.require_reachable(options.head)
    process, log = _launch(options)
    try:
        _wait(process, log, options)
        role = "worker" if options.head else "head"
        return state.record(options.folder, role, process.pid, options.address, options.node_ip)
    except BaseException:  # Ctrl-C among them: `stop` ends what is recorded, and this is not
        _end(_family(process.pid))
        raise


def _launch(options: NodeOptions) -> tuple["subprocess.Popen[bytes]", Path]:
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
    command += ["--node-ip-address", options.node_ip, "--temp-dir", str(options.folder / "ray"), "--log-color", "false"]
    if options.head:
        command += ["--address", options.head]
    else:
        command += ["--head", "--port", str(options.port)]
    log = options.folder / "ray.log"
    # A node that joins must have the head's token; only a head may make one.
    environment = authenticated(create=options.head is None)
    environment.setdefault("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", str(_DRAIN_S))
    with own_folder.create(options.folder, log.name) as output:
        process = subprocess.Popen(
            [*command, *options.others],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    return process, log


def _wait(process: "subprocess.Popen[bytes]", log: Path, options: NodeOptions) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while _STARTED not in log.read_text():
        if process.poll() is not None:
            raise _explain(log.read_text(), options)
        if time.monotonic() > deadline:
            raise ClusterError(f"Ray did not start within {_START_TIMEOUT_S} s", f"see {log}")
        time.sleep(0.2)


def _explain(output: str, options: NodeOptions) -> ClusterError:
    """What `ray start` died of."""
    lines = [line for line in output.splitlines() if line.strip()]
    for line in lines:
        if "ersion mismatch" in line:
            after = " ".join(part.strip() for part in lines[lines.index(line) :])[:500]
            return ClusterError(after, f"install the head's versions here: pip install, or run {_SETUP} there and here")
    text = "\n".join(lines[-8:])
    if "Authentication" in output or "InvalidAuthToken" in output:
        remedy = "copy the head's ~/.ray/auth_token to this machine, or put its content into RAY_AUTH_TOKEN"
        return ClusterError(f"{options.address} did not accept this machine's token", remedy)
    return ClusterError(f"Ray did not start:\n{text}", f"see {options.folder / 'ray.log'} and {options.folder / 'ray'}")


_SETUP = "`bash launch/setup.sh --extras ray`"


def stop(folder: Path) -> list[str]:
    """End the server and the node that were started from this folder, with all they started.

    Returns:
        What was ended; empty if nothing ran.

    Raises:
        ClusterError: The folder is not this user's alone.
    """
    ended = []
    for role in ("server", "worker", "head"):
        if started := state.recall(folder, role):
            _end(_family(started.pid))
            ended.append(f"{role} of {started.address} (process {started.pid})")
        state.forget(folder, role)
    return ended


def _family(pid: int) -> list[psutil.Process]:
    """A process and all that it and its children started."""
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _end(family: list[psutil.Process]) -> None:
    """Ask the first to end, which ends the others in order; then end whoever is left."""
    _signal(family[:1], signal.SIGTERM)
    _left_after(family[:1], _STOP_TIMEOUT_S)
    # Those below die with their parent, a moment later.
    left = _left_after(family, 5)
    _signal(left, signal.SIGKILL)
    _left_after(left, 10)


def _left_after(processes: list[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    """Wait for processes to end, and say which have not."""
    deadline = time.monotonic() + timeout_s
    while (left := [process for process in processes if state.runs(process)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def _signal(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue
