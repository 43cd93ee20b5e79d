"""`vllm-prune estimate MODEL`: what a configuration saves, from the model's config.json, before running anything."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from vllm_prune.embedded import LISTED, resolve

SCENARIOS = ("edge", "cloud", "realtime", "research")
_DEFAULT = ("stage1_only", "default", "aggressive")
_DEFAULT_IMAGES = (
    '{"image": {"method": "dpp", "keep_ratio": 0.5}}',
    '{"image": {"method": "dpp", "keep_ratio": 0.25}}',
    '{"image": {"method": "attention", "keep_ratio": 0.25}}',
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument("model", help=f"{LISTED}, a folder or file with config.json, or a name on the Hugging Face hub")
    parser.add_argument("--frames", type=int, default=64, help="frames that the model gets (default: %(default)s)")
    parser.add_argument("--size", default="448x448", metavar="WxH", help="of a frame in pixels (default: %(default)s)")
    parser.add_argument("--images", type=int, default=0, metavar="N", help="so many images of --size, and no video")
    parser.add_argument(
        "--text-tokens", type=int, default=64, help="of the prompt beside the video (default: %(default)s)"
    )
    parser.add_argument(
        "--prune", action="append", metavar="PRESET|JSON", help=f"repeatable; default: {', '.join(_DEFAULT)}"
    )
    parser.add_argument("--scenario", choices=SCENARIOS, help="propose a configuration for this purpose, with reasons")
    parser.add_argument("--memory", type=float, metavar="GIB", help="of the device (default: read it)")
    parser.add_argument("--block-size", type=int, default=16, help="tokens of a KV block (default: %(default)s)")
    parser.add_argument("--kv-dtype", metavar="NAME", help="type of the KV cache's numbers (default: the model's)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--calibrate", type=Path, metavar="FILE", help="time unpruned requests of this model's sizes here, into FILE"
    )
    parser.add_argument("--speed", type=Path, metavar="FILE", help="predict times by what --calibrate wrote")


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
    from vllm_prune.estimate.device import kv_space, read_device
    from vllm_prune.estimate.dims import bytes_of, read_dims
    from vllm_prune.estimate.estimate import Request, estimate
    from vllm_prune.estimate.report import OnDevice, table
    from vllm_prune.estimate.speed import load_speed
    from vllm_prune.estimate.video import VideoShape, read_limits

    if args.scenario and args.prune:
        raise ValueError(
            f"scenario={args.scenario!r} and prune={args.prune!r}: give one of the two, as a scenario proposes one"
        )
    if args.images and (args.scenario or args.calibrate):
        raise ValueError(f"images={args.images!r}: --scenario and --calibrate know videos only; leave one of them out")
    dims, limits = read_dims(args.model), read_limits(args.model, of_images=args.images > 0)
    request = Request(
        video=VideoShape.parse(args.frames, args.size),
        text_tokens=args.text_tokens,
        images=args.images,
        block_size=args.block_size,
        kv_bytes=bytes_of(args.kv_dtype) if args.kv_dtype else None,
    )
    speed = _calibrate(args, dims, request, limits) if args.calibrate else args.speed and load_speed(args.speed)
    if args.scenario:
        return _proposal(args, dims, request, limits)
    labels = args.prune or list(_DEFAULT_IMAGES if args.images else _DEFAULT)
    estimates = [estimate(dims, request, PruneConfig.parse(label), limits) for label in labels]
    device = read_device(args.memory)
    place = OnDevice(device=device, kv_space=kv_space(device, dims.parameters * dims.dtype_bytes), speed=speed)
    if args.json:
        times = [{} if speed is None else {"predicted_ttft_ratio": speed.ttft_ratio(found)} for found in estimates]
        found = [{**found.to_dict(), **more} for found, more in zip(estimates, times, strict=True)]
        return json.dumps(found, indent=2)
    return table(labels, estimates, request, place)


def _calibrate(args: argparse.Namespace, dims: Any, request: Any, limits: Any) -> Any:
    """Times unpruned requests on this machine, and keeps what they say."""
    from vllm_prune.bench.throughput.provenance import describe
    from vllm_prune.estimate.calibrate import Meter, calibrate
    from vllm_prune.estimate.speed import save_speed

    if not args.calibrate.parent.is_dir():
        raise ValueError(f"calibrate={str(args.calibrate)!r}: there is no folder {str(args.calibrate.parent)!r}")
    t, h, w = request.video.grid(dims.vision, limits)
    speed, _ = calibrate(Meter(resolve(args.model), t * h * w), dims, limits, request.video)
    save_speed(args.calibrate, speed, {"model": args.model, **describe()})
    return speed


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
