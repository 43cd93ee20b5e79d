"""Checks before a server is started on a cluster: nodes agree, the devices are there, the port is free."""

import sys

from vllm_prune.cli.checks.check import Check, Status
from vllm_prune.cluster import ports
from vllm_prune.cluster.compare import check_nodes, table
from vllm_prune.cluster.errors import ClusterError
from vllm_prune.cluster.inspect import Node, inspect_cluster


def require_ready(address: str, model: str, host: str, port: int, devices: int, *, cpu: bool | None = None) -> bool:
    """Check all that can be checked before the minutes that loading a model takes.

    Args:
        address: The cluster's HOST:PORT.
        model: Folder or hub name.
        host: Where the HTTP server is to listen.
        port: Where the HTTP server is to listen.
        devices: GPUs, or CPUs of a cluster without any, that are needed at once.
        cpu: Compute on CPUs; default: if the cluster has no GPUs.

    Returns:
        Whether the server computes on CPUs.

    Raises:
        ClusterError: Something is not right; all that is wrong has been printed.
    """
    ports.require_free(host, port, "--port")
    nodes = inspect_cluster(address, model)
    failed = [check for check in check_nodes(nodes, model) if check.status is Status.FAIL]
    if failed:
        print(table(nodes), *map(_line, failed), sep="\n", file=sys.stderr)
        raise ClusterError(f"{len(failed)} of the checks of the nodes failed, see above", "mend them and start again")
    return _require_devices(nodes, devices, cpu)


def _require_devices(nodes: list[Node], devices: int, cpu: bool | None) -> bool:
    counts = {kind: sum(node.resources.get(kind, 0) for node in nodes if node.alive) for kind in ("GPU", "CPU")}
    kind = "CPU" if cpu or (cpu is None and not counts["GPU"]) else "GPU"
    if counts[kind] < devices:
        remedy = "join more nodes (`bash launch/ray/join.sh ADDRESS`), or ask for fewer"
        raise ClusterError(f"{devices} {kind}s are needed at once, the cluster has {counts[kind]:g}", remedy)
    return kind == "CPU"


def _line(check: Check) -> str:
    return f"fail  {check.name}: {check.detail}\n      mend: {check.remedy}"
