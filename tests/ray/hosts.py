"""Two hosts on one machine: network namespaces with a cable between them, each with shared memory of its own."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

INTERFACE = "link0"
_HOLD = "mount -t tmpfs -o size=2g tmpfs /dev/shm && echo ready && exec sleep infinity"


@dataclass(frozen=True)
class Host:
    """A network namespace and a mount namespace, held by a process."""

    namespace: str
    ip: str
    holder: int

    @property
    def prefix(self) -> tuple[str, ...]:
        """What a command line begins with to run there, as vLLM needs it on a host whose name says no address."""
        settings = (f"VLLM_HOST_IP={self.ip}", f"GLOO_SOCKET_IFNAME={INTERFACE}")
        return ("nsenter", "--target", str(self.holder), "--net", "--mount", "--", "env", *settings)

    def hide(self, folder: Path) -> None:
        """Lets the host have a folder of its own in this place."""
        _run(*self.prefix, "mount", "-t", "tmpfs", "tmpfs", str(folder))

    def unplug(self) -> None:
        """Cuts its link."""
        _run("ip", "-n", self.namespace, "link", "set", INTERFACE, "down")


def why_not() -> str:
    """Why there can be no hosts here; empty if there can."""
    missing = [tool for tool in ("ip", "unshare", "nsenter") if shutil.which(tool) is None]
    if missing:
        return f"{', '.join(missing)} not installed (iproute2, util-linux)"
    name = f"probe{secrets.token_hex(3)}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode:
        return f"network namespaces are not permitted: {made.stderr.strip()}"
    try:
        link = ["ip", "-n", name, "link", "add", "name", "end0", "type", "veth", "peer", "name", "end1"]
        cable = subprocess.run(link, capture_output=True, text=True)
        mount = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"]
        mounted = subprocess.run(mount, capture_output=True, text=True)
    finally:
        _run("ip", "netns", "del", name)
    return (cable.stderr + mounted.stderr).strip()


@contextlib.contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Two hosts that reach each other and nobody else."""
    names = [f"host{secrets.token_hex(3)}" for _ in range(2)]
    addresses = ["10.213.41.1", "10.213.41.2"]
    holders: list[subprocess.Popen[bytes]] = []
    try:
        for name in names:
            _run("ip", "netns", "add", name)
        ends = ("name", INTERFACE, "netns", names[1])
        _run("ip", "-n", names[0], "link", "add", INTERFACE, "type", "veth", "peer", *ends)
        for name, address in zip(names, addresses, strict=True):
            _run("ip", "-n", name, "address", "add", f"{address}/24", "dev", INTERFACE)
            for link in ("lo", INTERFACE):
                _run("ip", "-n", name, "link", "set", link, "up")
            holders.append(_hold(name))
        first, second = (Host(*host) for host in zip(names, addresses, [h.pid for h in holders], strict=True))
        yield first, second
    finally:
        for holder in holders:
            holder.kill()
            holder.wait()
        for name in names:
            if Path("/run/netns", name).exists():
                _run("ip", "netns", "del", name)


def _hold(namespace: str) -> subprocess.Popen[bytes]:
    """A process in the namespace, with its own /dev/shm by the time this returns."""
    command = ["ip", "netns", "exec", namespace, "unshare", "--mount", "sh", "-c", _HOLD]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"ready\n"
    return holder


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
