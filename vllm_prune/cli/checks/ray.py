"""Checks of a Ray cluster, on every node of it."""

import importlib.util

from vllm_prune.cli.checks.check import Check, fail, ok
from vllm_prune.cli.checks.remedies import set_up


def check_ray_cluster(address: str, model: str | None = None) -> tuple[list[Check], str]:
    """Look at every node.

    Args:
        address: The head's HOST:PORT.
        model: A folder that every node has to have.

    Returns:
        The checks, and a table of the nodes, "" if they could not be asked.
    """
    if importlib.util.find_spec("ray") is None:
        return [fail("Ray", "not installed", set_up("ray"))], ""
    from vllm_prune.cluster.compare import check_nodes, table
    from vllm_prune.cluster.errors import ClusterError
    from vllm_prune.cluster.inspect import inspect_cluster

    try:
        nodes = inspect_cluster(address, model)
    except ClusterError as error:
        return [fail("Ray cluster", str(error), error.remedy)], ""
    alive = sum(node.alive for node in nodes)
    return [ok("Ray cluster", f"{address} answers, {alive} nodes"), *check_nodes(nodes, model)], table(nodes)
