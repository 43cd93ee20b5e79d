"""Do the nodes agree with the head: versions, plugin, model. And the table that shows it."""

from collections.abc import Iterator

from vllm_prune.cli.checks.check import Check, fail, ok, warn
from vllm_prune.cluster.facts import PACKAGES
from vllm_prune.cluster.inspect import Node

_GIB = 2**30
_LEAST_SHM = 1 * _GIB
_SETUP = "`bash launch/setup.sh --extras ray`"


def check_nodes(nodes: list[Node], model: str | None = None) -> list[Check]:
    """Every check of every node.

    Args:
        nodes: All nodes, the head first.
        model: The folder that was looked for.
    """
    return [check for node in nodes for check in _check_node(node, nodes[0], model)]


def _check_node(node: Node, head: Node, model: str | None) -> Iterator[Check]:
    name = f"node {node.address}" + (" (head)" if node.head else "")
    if not node.alive:
        yield warn(name, "has left the cluster", f"if it should be in: `bash launch/ray/join.sh` there; see {_LOG}")
        return
    if not node.facts:
        yield fail(name, node.error, f"stop the node (`bash launch/ray/stop.sh`) and join again; see {_LOG}")
        return
    yield _check_packages(name, node, head)
    yield _check_plugin(name, node)
    if model is not None:
        yield from _check_model(name, node, head, model)
    if node.facts["shm_free"] < _LEAST_SHM:
        found = f"{node.facts['shm_free'] / _GIB:.1f} GiB free in /dev/shm"
        yield warn(name, f"{found}; tensor parallelism and Ray's objects use it", "containers: --shm-size=8g or more")


_LOG = "ray.log in its folder"


def _check_packages(name: str, node: Node, head: Node) -> Check:
    own, wanted = _versions(node), _versions(head)
    missing = [package for package, version in own.items() if version is None]
    if missing:
        return fail(name, f"{', '.join(missing)} not installed there", f"run {_SETUP} there, stop and join again")
    if node.address != head.address and not wanted.get("python"):
        return ok(name, "cannot be compared: the head did not answer")
    different = [f"{package} {version}, head: {wanted[package]}" for package, version in own.items()
                 if wanted[package] is not None and version != wanted[package]]  # fmt: skip
    if different:
        return fail(name, "; ".join(different), f"install the head's versions there ({_SETUP}), stop and join again")
    return ok(name, f"{node.facts['host']}: same versions as the head" if not node.head else node.facts["host"])


def _versions(node: Node) -> dict[str, str | None]:
    facts = node.facts or {"packages": dict.fromkeys(PACKAGES), "python": None}
    return {**facts["packages"], "python": facts["python"]}


def _check_plugin(name: str, node: Node) -> Check:
    if not node.facts["plugin"]:
        return fail(name, "vLLM would not find the plugin there", "reinstall vllm-prune there with pip")
    if not node.facts["startup"]:
        remedy = "reinstall vllm-prune there with pip; a copy on PYTHONPATH is not enough"
        return fail(name, "vllm_prune.pth did not run in Ray's workers there", remedy)
    return ok(name, "the plugin is there and starts in Ray's workers")


def _check_model(name: str, node: Node, head: Node, model: str) -> Iterator[Check]:
    found = node.facts["model"]
    wanted = head.facts.get("model")
    if found is None:
        yield ok(name, f"{model} is a hub name, not a folder: each node downloads it")
    elif not found:
        remedy = "copy the folder to the same place on every node, or mount a shared one"
        yield fail(name, f"no {model}/config.json there", remedy)
    elif wanted and found != wanted:
        yield fail(
            name, f"{model} differs from the head's (other files, or other sizes)", "copy the head's folder there"
        )
    else:
        yield ok(name, f"{model} is there, fingerprint {found}")


def table(nodes: list[Node]) -> str:
    """The nodes, one a line, in columns."""
    header = ["node", "host", "CPUs", "GPUs", "python", *PACKAGES, "model"]
    rows = [header, *(_row(node) for node in nodes)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(lines)


def _row(node: Node) -> list[str]:
    name = node.address + (" (head)" if node.head else "")
    resources = [f"{node.resources.get(kind, 0):g}" for kind in ("CPU", "GPU")]
    if not node.facts:
        return [name, "gone" if not node.alive else "silent", *resources, *["-"] * (len(PACKAGES) + 2)]
    versions = [node.facts["packages"][package] or "missing" for package in PACKAGES]
    model = {None: "-", "": "missing"}.get(node.facts["model"], node.facts["model"])
    return [name, node.facts["host"], *resources, node.facts["python"], *versions, str(model)]
