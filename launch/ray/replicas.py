"""Serve a model with pruning by several replicas behind one OpenAI endpoint, on a Ray cluster.

    python launch/ray/replicas.py MODEL --min-replicas 2 --max-replicas 4 --prune default

Requests about the same video go to the same replica; their number follows the load. `--engine` takes arguments of
vLLM's engine as JSON, by their Python names. The program runs until it is interrupted, and ends the replicas then.
"""

import argparse
import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType

from vllm_prune.cluster import state
from vllm_prune.cluster.__main__ import cluster_of, folder_of
from vllm_prune.cluster.auth import authenticated
from vllm_prune.cluster.errors import ClusterError
from vllm_prune.cluster.folder import default_folder
from vllm_prune.cluster.replicas import ReplicaOptions, build_application
from vllm_prune.cluster.serve import require_ready

APPLICATION = "vllm-prune"


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help='folder (the same on every node), hub name, or "embedded"')
    parser.add_argument("--name", default="", help="the model's name in requests (default: MODEL)")
    parser.add_argument("--prune", default="default", metavar="PRESET|JSON", help="as for `vllm-prune serve`")
    parser.add_argument("--prune-override", default="tighten", help="as for `vllm-prune serve`")
    parser.add_argument("--min-replicas", type=int, default=1)
    parser.add_argument("--max-replicas", type=int, default=2)
    parser.add_argument("--target-requests", type=int, default=16, help="unfinished requests a replica, on average")
    parser.add_argument("--max-requests", type=int, default=64, help="unfinished requests a replica takes at the most")
    parser.add_argument("-tp", "--tensor-parallel-size", type=int, default=1, help="GPUs of one replica")
    parser.add_argument("--cpu", action="store_true", default=None, help="compute on CPUs, though there are GPUs")
    parser.add_argument("--engine", type=json.loads, default={}, metavar="JSON", help="vLLM's engine arguments")
    parser.add_argument("--address", help="the cluster's HOST:PORT (default: the one this machine is in)")
    parser.add_argument("--host", default="127.0.0.1", help="where HTTP listens (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="where HTTP listens (default: %(default)s)")
    parser.add_argument("--dir", type=Path, default=default_folder(), dest="folder", help="this node's files")
    return parser.parse_args()


def main() -> int:
    """Check, serve, wait for a signal, and end the replicas."""
    args = parse()
    try:
        address, node_ip = cluster_of(args)
        model = folder_of(args.model)
        devices = args.min_replicas * args.tensor_parallel_size
        cpu = require_ready(address, model, args.host, args.port, devices, cpu=args.cpu)
        options = ReplicaOptions(
            model=model,
            name=args.name or args.model,
            prune=args.prune,
            override=args.prune_override,
            min_replicas=args.min_replicas,
            max_replicas=args.max_replicas,
            target_requests=args.target_requests,
            max_requests=args.max_requests,
            tensor_parallel_size=args.tensor_parallel_size,
            cpu=cpu,
            engine=args.engine,
        )
    except (ClusterError, ValueError) as error:
        remedy = f"\n  mend: {error.remedy}" if isinstance(error, ClusterError) else ""
        print(f"ray replicas: {error}{remedy}", file=sys.stderr)
        return 1
    os.environ.update(authenticated())
    if node_ip:
        state.record(args.folder, "server", os.getpid(), address, node_ip)
    serve_until_interrupted(options, address, args.host, args.port)
    return 0


def serve_until_interrupted(options: ReplicaOptions, address: str, host: str, port: int) -> None:
    """Run the application; SIGINT and SIGTERM end it."""
    import ray
    from ray import serve

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    ray.init(address=address, log_to_driver=False)
    signal.signal(signal.SIGTERM, stop)  # after Ray, which sets a handler of its own
    try:
        serve.start(http_options={"host": host, "port": port})
        serve.run(build_application(options), name=APPLICATION, route_prefix="/")
        print(f"replicas: {options.name} is served at http://{host}:{port}/v1", flush=True)
        signal.pause()
    except KeyboardInterrupt:
        print("replicas: ending them", flush=True)
    finally:
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    sys.exit(main())
