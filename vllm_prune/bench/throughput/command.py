"""`vllm-prune bench throughput`: its options, and the plan they make."""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from vllm_prune.bench.clips import real_clips
from vllm_prune.bench.needs import suffixes
from vllm_prune.bench.options import USAGE, not_negative, positive
from vllm_prune.bench.running import Endings, run_planned
from vllm_prune.bench.throughput.configurations import parse_configurations
from vllm_prune.bench.throughput.errors import BenchmarkError
from vllm_prune.bench.throughput.models import RANDOM, resolve_model
from vllm_prune.bench.throughput.named_dims import DIMS
from vllm_prune.bench.throughput.runner import Plan, run_plan
from vllm_prune.bench.throughput.workload import ClipShape
from vllm_prune.cli.secrets import masked
from vllm_prune.embedded import LISTED
from vllm_prune.embedded import clips as sample_clips

DEFAULT_CONFIGS = (
    "stock",
    "evs:0.75",
    'stage1@25%={"stage1": {"cluster_ratio": 0.25}}',
    'uniform@25%={"method": "uniform", "keep_ratio": 0.25}',
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `vllm-prune bench throughput`."""
    parser.add_argument("--model", default=RANDOM, help=f"a model's folder, {LISTED}, or {RANDOM} (default)")
    parser.add_argument("--model-dims", choices=DIMS, default="cpu", help=f"dimensions of --model {RANDOM}")
    parser.add_argument(
        "--configs",
        nargs="+",
        default=DEFAULT_CONFIGS,
        metavar="[NAME=]CONFIG",
        help="servers to compare: stock, evs:RATE (vLLM's own EVS, RATE dropped), mtp:N (stock vLLM, N tokens drafted "
        "by the model's own MTP layers), a preset or a JSON configuration, or mtp:N+CONFIG: one of these, with drafts",
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--clips",
        nargs="+",
        type=Path,
        metavar="VIDEO",
        help="clips to cut requests from (default: three real ones, else the samples)",
    )
    source.add_argument("--random-mm", action="store_true", help="random pixels instead (vLLM's random-mm dataset)")
    parser.add_argument("--frames", type=positive, default=64, help="frames a video (default 64)")
    parser.add_argument("--size", type=_size, default=(336, 224), metavar="WxH", help="of a frame (default 336x224)")
    parser.add_argument("--clients", nargs="+", type=positive, default=[1, 8], help="requests at a time (default 1 8)")
    parser.add_argument(
        "--num-prompts",
        nargs="+",
        type=positive,
        metavar="N",
        help="requests a load, or one number for each of --clients",
    )
    parser.add_argument("--output-len", type=positive, default=16, metavar="TOKENS", help="of an answer (default 16)")
    parser.add_argument("--repeats", type=positive, default=3, help="times that every load is sent (default 3)")
    parser.add_argument(
        "--side-by-side",
        action="store_true",
        help="keep all servers up, if memory allows, and send loads in turn: ratios with less noise than a fresh start "
        "of each server in every repeat gives",
    )
    parser.add_argument(
        "--warmups", type=not_negative, default=1, help="requests before each load, not counted (default 1)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--server-args",
        default="",
        metavar="'ARGS'",
        help="more `vllm serve` options for all servers; they win over ours",
    )
    parser.add_argument("--kv-interval", type=_seconds, default=0.2, metavar="S", help="between looks at the KV cache")
    parser.add_argument(
        "--start-timeout", type=_seconds, default=900.0, metavar="S", help="that a server may take to start"
    )
    parser.add_argument("--run-timeout", type=_seconds, default=3600.0, metavar="S", help="that a load may take")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("bench-results"), metavar="DIR", help="folder of the results"
    )
    parser.add_argument("--name", default="throughput", help="name of the result files, without suffix")
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep clips, logs and raw results here")


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: must be a number of seconds above 0")
    return value


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r}: must be WIDTHxHEIGHT in pixels, as in 336x224")
    return int(width), int(height)


def run(args: argparse.Namespace) -> int:
    """Measure, write the results, and return the exit status."""
    work = args.work or Path(tempfile.mkdtemp(prefix="vllm-prune-bench-"))
    endings = Endings(
        name="throughput",
        interrupted=f"the servers are ended; logs and raw results are in {work}",
        failed=f"logs and raw results are in {work}",
    )
    status = run_planned(partial(make_plan, args, work), run_plan, endings)
    if args.work is None and status in (0, USAGE):
        shutil.rmtree(work)
    if status == 0:
        print(f"results: {args.output / args.name}{suffixes()}")
    return status


def make_plan(args: argparse.Namespace, work: Path) -> Plan:
    """Turn the options into a plan.

    Raises:
        BenchmarkError: an option that cannot be used.
    """
    width, height = args.size
    return Plan(
        command=masked(sys.argv),
        configurations=parse_configurations(args.configs, with_mtp=True),
        shape=ClipShape(frames=args.frames, width=width, height=height),
        clips=_clips(args),
        clients=args.clients,
        num_prompts=_num_prompts(args.num_prompts, args.clients),
        model=resolve_model(args.model, args.model_dims, work.resolve()),
        output_len=args.output_len,
        repeats=args.repeats,
        side_by_side=args.side_by_side,
        warmups=args.warmups,
        seed=args.seed,
        kv_interval_s=args.kv_interval,
        start_timeout_s=args.start_timeout,
        run_timeout_s=args.run_timeout,
        server_arguments=shlex.split(args.server_args),
        output=args.output,
        name=args.name,
        work=work,
    )


def _clips(args: argparse.Namespace) -> list[Path]:
    if args.random_mm:
        return []
    clips = args.clips or _default_clips()
    for clip in clips:
        if not clip.is_file():
            raise BenchmarkError(f"--clips {clip}: no such file")
    return [clip.resolve() for clip in clips]


def _default_clips() -> list[Path]:
    """Real clips where they are installed, else the sample clips that come along."""
    try:
        return list(real_clips().values())
    except FileNotFoundError as error:
        print(f"rendered sample clips are used; {error}", file=sys.stderr, flush=True)
        return [clip.path for clip in sample_clips()]


def _num_prompts(given: Sequence[int] | None, clients: Sequence[int]) -> list[int]:
    """Requests for each number of clients: by default two rounds, and six at least."""
    if given is None:
        return [max(6, 2 * number) for number in clients]
    if len(given) not in (1, len(clients)):
        raise BenchmarkError(
            f"--num-prompts has {len(given)} numbers; give 1, or {len(clients)}: one for each of --clients"
        )
    return list(given) * (len(clients) if len(given) == 1 else 1)
