"""`vllm-prune estimate MODEL`: what a configuration saves, from the model's config.json, before running anything."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

SCENARIOS = ("edge", "cloud", "realtime", "research")
_DEFAULT = ("stage1_only", "default", "aggressive")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument(
        "model", help='"embedded", a folder or file with config.json, or a name on the Hugging Face hub'
    )
    parser.add_argument("--frames", type=int, default=64, help="frames that the model gets (default: %(default)s)")
    parser.add_argument("--size", default="448x448", metavar="WxH", help="of a frame in pixels (default: %(default)s)")
    parser.add_argument(
        "--text-tokens", type=int, default=64, help="of the prompt beside the video (default: %(default)s)"
    )
    parser.add_argument(
        "--prune", action="append", metavar="PRESET|JSON", help=f"repeatable; default: {', '.join(_DEFAULT)}"
    )
    parser.add_argument("--scenario", choices=SCENARIOS, help="propose a configuration for this purpose, with reasons")
    parser.add_argument("--memory", type=float, metavar="GIB", help="of the device, for --scenario (default: read it)")
    parser.add_argument("--block-size", type=int, default=16, help="tokens of a KV block (default: %(default)s)")
    parser.add_argument("--kv-dtype", metavar="NAME", help="type of the KV cache's numbers (default: the model's)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Prints the estimate; 2 if an argument or the model's configuration is wrong."""
    try:
        print(_answer(args))
    except ValueError as error:
        print(f"vllm-prune estimate: {error}", file=sys.stderr)
        return 2
    return 0


def _answer(args: argparse.Namespace) -> str:
    from vllm_prune.config import PruneConfig
    from vllm_prune.estimate.dims import bytes_of, read_dims
    from vllm_prune.estimate.estimate import Request, estimate
    from vllm_prune.estimate.report import table
    from vllm_prune.estimate.video import VideoShape, read_limits

    if args.scenario and args.prune:
        raise ValueError(
            f"scenario={args.scenario!r} and prune={args.prune!r}: give one of the two, as a scenario proposes one"
        )
    dims, limits = read_dims(args.model), read_limits(args.model)
    request = Request(
        video=VideoShape.parse(args.frames, args.size),
        text_tokens=args.text_tokens,
        block_size=args.block_size,
        kv_bytes=bytes_of(args.kv_dtype) if args.kv_dtype else None,
    )
    if args.scenario:
        return _proposal(args, dims, request, limits)
    labels = args.prune or list(_DEFAULT)
    estimates = [estimate(dims, request, PruneConfig.parse(label), limits) for label in labels]
    if args.json:
        return json.dumps([found.to_dict() for found in estimates], indent=2)
    return table(labels, estimates, request)


def _proposal(args: argparse.Namespace, dims: Any, request: Any, limits: Any) -> str:
    from vllm_prune.estimate.device import read_device
    from vllm_prune.estimate.report import table
    from vllm_prune.estimate.scenario import propose

    proposal = propose(args.scenario, dims, request, read_device(args.memory), limits)
    if args.json:
        return json.dumps(proposal.to_dict(), indent=2)
    reasons = "\n".join(f"  - {reason}" for reason in proposal.reasons)
    command = f"vllm-prune serve {args.model} --prune {proposal.preset}"
    return f"{args.scenario}: {command}\n{reasons}\n\n{table([proposal.preset], [proposal.estimate], request)}"
