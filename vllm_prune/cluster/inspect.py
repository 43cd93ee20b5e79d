"""Ask every node of a cluster what it has: `python -m vllm_prune.cluster.inspect HOST:PORT [MODEL]` prints it as JSON.

A process of its own, since connecting to a cluster whose head hangs cannot be ended otherwise.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

from vllm_prune.cluster import facts, ports
from vllm_prune.cluster.auth import authenticated
from vllm_prune.cluster.errors import ClusterError

_TIMEOUT_S = 60
_NODE_TIMEOUT_S = 40
_MARK = "vllm-prune inspected: "


@dataclass(frozen=True)
class Node:
    """One node of a cluster.

    Attributes:
        address: Its IP address in the cluster.
        head: Whether it is the head.
        alive: Whether it still belongs to the cluster.
        resources: What Ray may give out there: `CPU`, `GPU`, `memory` in bytes.
        facts: What `facts.node_facts` found; empty if the node is gone or did not answer.
        error: Why there are no facts.
    """

    address: str
    head: bool
    alive: bool
    resources: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    error: str = ""


def inspect_cluster(address: str, model: str | None = None) -> list[Node]:
    """All nodes, the head first.

    Args:
        address: The cluster's HOST:PORT.
        model: Folder to look for on every node.

    Raises:
        ClusterError: The cluster cannot be reached or joined from here, within a minute.
    """
    ports.require_reachable(address)
    command = [sys.executable, "-m", "vllm_prune.cluster.inspect", address, *([model] if model else [])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, env=authenticated())
    except subprocess.TimeoutExpired:
        remedy = "see whether the head hangs (`bash launch/ray/stop.sh` there, then start it and the others again)"
        raise ClusterError(
            f"the cluster at {address} took a connection, but no work in {_TIMEOUT_S} s", remedy
        ) from None
    for line in done.stdout.splitlines():
        if line.startswith(_MARK):
            found = [Node(**node) for node in json.loads(line.removeprefix(_MARK))]
            return sorted(found, key=lambda node: (not node.head, not node.alive, node.address))
    raise _explain(address, done.stderr)


def _explain(address: str, output: str) -> ClusterError:
    lines = [line for line in output.splitlines() if line.strip()]
    for number, line in enumerate(lines):
        if "ersion mismatch" in line:
            remedy = "install the head's versions of Ray and Python here (`bash launch/setup.sh --extras ray`)"
            return ClusterError(" ".join(part.strip() for part in lines[number : number + 5]), remedy)
    if "AuthenticationError" in output or "InvalidAuthToken" in output:
        remedy = "copy the head's ~/.ray/auth_token to this machine, or put its content into RAY_AUTH_TOKEN"
        return ClusterError(f"the cluster at {address} did not accept this machine's token", remedy)
    remedy = (
        f"run this on a node of the cluster; if this is one, see what its Ray says (`ray status --address {address}`)"
    )
    return ClusterError(f"cannot work in the cluster at {address}: {lines[-1] if lines else 'no message'}", remedy)


def _gather(address: str, model: str | None) -> list[dict[str, Any]]:
    import ray
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(facts)
    ray.init(address=address, log_to_driver=False, configure_logging=False)
    nodes = ray.nodes()
    asked = {node["NodeID"]: _ask(node["NodeID"], model) for node in nodes if node["Alive"]}
    ray.wait(list(asked.values()), num_returns=len(asked), timeout=_NODE_TIMEOUT_S)
    return [_describe(node, asked.get(node["NodeID"])) for node in nodes]


def _ask(node_id: str, model: str | None) -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    strategy = NodeAffinitySchedulingStrategy(node_id=node_id, soft=False)
    task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=strategy)(facts.node_facts)
    return task.remote(model)


def _describe(node: dict[str, Any], answer: Any) -> dict[str, Any]:
    import ray

    described: dict[str, Any] = {
        "address": node["NodeManagerAddress"],
        "head": "node:__internal_head__" in node["Resources"] or node.get("IsHeadNode", False),
        "alive": node["Alive"],
        "resources": {name: node["Resources"].get(name, 0.0) for name in ("CPU", "GPU", "memory")},
    }
    if answer is None:
        return {**described, "error": "has left the cluster"}
    try:
        return {**described, "facts": ray.get(answer, timeout=0.1)}
    except Exception as error:  # one broken node must not hide the others
        reason = str(error).strip().splitlines() or [type(error).__name__]
        return {**described, "error": f"did not answer: {reason[-1]}"}


if __name__ == "__main__":
    report = json.dumps(_gather(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None))
    print(f"{_MARK}{report}", flush=True)
    os._exit(0)  # at once: the orderly way can wait for a node that has gone
