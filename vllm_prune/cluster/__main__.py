"""`python -m vllm_prune.cluster head|join|serve|stop`, which the scripts in launch/ray/ call."""

import argparse
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from vllm_prune.bench.options import INTERRUPTED, signals_as_interrupt
from vllm_prune.cluster import node, ports, state
from vllm_prune.cluster.auth import authenticated, token_file
from vllm_prune.cluster.errors import ClusterError
from vllm_prune.cluster.facts import is_folder
from vllm_prune.cluster.folder import default_folder
from vllm_prune.embedded import LISTED, resolve


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status is 1 if a check failed, 130 after Ctrl-C."""
    args, others = _parser().parse_known_args(arguments)
    args.others = [other for other in others if other != "--"]
    try:
        if importlib.util.find_spec("ray") is None:
            raise ClusterError("Ray is not installed in this environment", "bash launch/setup.sh --extras ray")
        with signals_as_interrupt():
            return int(args.run(args))
    except ClusterError as error:
        print(f"ray {args.command}: {error}\n  mend: {error.remedy}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"ray {args.command}: interrupted", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m vllm_prune.cluster", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)

    head = commands.add_parser("head", help="start a cluster here", allow_abbrev=False)
    head.add_argument("--node-ip", default=node.LOOPBACK, help="this machine's address in the cluster (default: "
                      "%(default)s, for nodes on this machine only)")  # fmt: skip
    head.add_argument("--port", type=int, default=6379, help="the cluster's port (default: %(default)s)")
    head.set_defaults(run=_head)

    join = commands.add_parser("join", help="make this machine a worker of a cluster", allow_abbrev=False)
    join.add_argument("address", help="HOST:PORT that head printed")
    join.add_argument("--node-ip", help="this machine's address there (default: the one that reaches the head)")
    join.set_defaults(run=_join)

    serve = commands.add_parser("serve", help="serve a model over the cluster's GPUs", allow_abbrev=False)
    serve.add_argument("model", help=f"folder (the same on every node), hub name, or {LISTED}")
    serve.add_argument("--address", help="the cluster's HOST:PORT (default: the one this machine is in)")
    serve.add_argument("-tp", "--tensor-parallel-size", type=int, default=1, dest="devices", metavar="N")
    serve.add_argument("--host", default="127.0.0.1", help="where HTTP listens (default: %(default)s)")
    serve.add_argument("--port", type=int, default=8000, help="where HTTP listens (default: %(default)s)")
    serve.set_defaults(run=_serve)

    stop = commands.add_parser("stop", help="end what these commands started on this machine", allow_abbrev=False)
    stop.set_defaults(run=_stop)
    for command in (head, join, serve, stop):
        command.add_argument("--dir", type=Path, default=default_folder(), dest="folder",
                             help="folder for this node's files (default: %(default)s)")  # fmt: skip
    return parser


def _head(args: argparse.Namespace) -> int:
    options = node.NodeOptions(args.folder, _own_address(args.node_ip), args.port, None, args.others)
    started = node.start(options)
    print(f"head: started at {started.address}, its files are in {args.folder}")
    if not options.node_ip.startswith("127."):
        print(f"  on every other machine: copy {token_file()} there, then: bash launch/ray/join.sh {started.address}")
    print(f"  then: bash launch/ray/serve.sh MODEL -tp N; bash launch/ray/stop.sh ends it\n{_hint(started.address)}")
    return 0


def _join(args: argparse.Namespace) -> int:
    reached_from = ports.require_reachable(args.address)
    if not args.node_ip and reached_from.startswith("127."):
        args.node_ip = node.SECOND_LOOPBACK
    options = node.NodeOptions(args.folder, _own_address(args.node_ip or reached_from), 0, args.address, args.others)
    started = node.start(options)
    try:
        _require_agreement(started)
    except ClusterError:
        node.stop(args.folder)
        raise
    print(
        f"join: this machine is {started.node_ip} in the cluster at {args.address}; bash launch/ray/stop.sh leaves it"
    )
    return 0


def _require_agreement(started: state.Started) -> None:
    """Check that the node that has just joined agrees with the head."""
    from vllm_prune.cli.checks.check import Status
    from vllm_prune.cluster.compare import check_nodes
    from vllm_prune.cluster.inspect import inspect_cluster

    nodes = inspect_cluster(started.address)
    own = [check for check in check_nodes(nodes) if check.name == f"node {started.node_ip}"]
    for check in own:
        if check.status is Status.FAIL:
            raise ClusterError(f"this machine and the head do not agree: {check.detail}", check.remedy)


def _serve(args: argparse.Namespace) -> int:
    from vllm_prune.cluster.serve import require_ready

    address, node_ip = cluster_of(args)
    model = folder_of(args.model)
    require_ready(address, model, args.host, args.port, args.devices)
    command = [sys.executable, "-m", "vllm_prune.cli.main", "serve", model, "--host", args.host]
    command += ["--port", str(args.port), "--tensor-parallel-size", str(args.devices)]
    command += ["--distributed-executor-backend", "ray", *args.others]
    environment = {**authenticated(), "RAY_ADDRESS": address}
    if node_ip:
        environment.setdefault("VLLM_HOST_IP", node_ip)
        state.record(args.folder, "server", os.getpid(), address, node_ip)
    os.execve(sys.executable, command, environment)


def _stop(args: argparse.Namespace) -> int:
    ended = node.stop(args.folder)
    print("\n".join(f"stop: ended the {what}" for what in ended) or f"stop: nothing of {args.folder} is running")
    return 0


def cluster_of(args: argparse.Namespace) -> tuple[str, str]:
    """The cluster's address, and this machine's in it ("" if it was not started by these commands).

    Raises:
        ClusterError: There is none, or the folder that would name it is not this user's alone: the cluster's token is
            sent to that address.
    """
    own = state.recall(args.folder, "head", "worker")
    address = args.address or (own.address if own else os.environ.get("RAY_ADDRESS"))
    if not address:
        remedy = "start one with `bash launch/ray/head.sh`, or give --address HOST:PORT"
        raise ClusterError("this machine is in no cluster", remedy)
    return address, own.node_ip if own and own.address == address else ""


def _own_address(address: str) -> str:
    if address in ("127.0.0.1", "localhost", "::1"):
        remedy = f"give {node.LOOPBACK} for this machine only, or an address that the other machines reach"
        raise ClusterError(f"{address}: Ray would put this machine's outer address in its place", remedy)
    return address


def folder_of(model: str) -> str:
    """The folder of a model as every node has to have it, or its hub name."""
    model = resolve(model)
    return str(Path(model).expanduser().resolve()) if is_folder(model) else model


def _hint(address: str) -> str:
    return f"  for programs of your own: export RAY_AUTH_MODE=token RAY_ADDRESS={address}"


if __name__ == "__main__":
    sys.exit(main())
