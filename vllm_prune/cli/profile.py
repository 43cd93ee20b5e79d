"""`vllm-prune profile [MODEL]`: where the time of a request goes, and what a second question reuses."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_prune.bench.options import INTERRUPTED, USAGE
from vllm_prune.embedded import DEFAULT, LISTED, clip_path, resolve

if TYPE_CHECKING:
    from vllm_prune.profile.measure import Profile

_DEFAULT_PRUNES = ("baseline", "default")
_DEFAULT_CLIP = "10_64frames_clean"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument(
        "model", nargs="?", default=DEFAULT, help=f"{LISTED}, a folder or a hub name (default: %(default)s)"
    )
    parser.add_argument("--video", help="file, http(s) URL or data URL (default: a clip of the embedded model's)")
    parser.add_argument("--question", default="What happens in the video?", help="the first one")
    parser.add_argument("--next-question", default="What changes, and when?", help="the one about the same video")
    parser.add_argument(
        "--prune", action="append", metavar="PRESET|JSON", help=f"repeatable; default: {', '.join(_DEFAULT_PRUNES)}"
    )
    parser.add_argument("--repeats", type=int, default=5, help="of both questions (default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=16, help="length of the answer (default: %(default)s)")
    parser.add_argument("--media-io-kwargs", metavar="JSON", help='as for vLLM, such as \'{"video": {"fps": 1}}\'')
    parser.add_argument("--engine", metavar="JSON", help="further arguments of vllm.LLM")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="also writes JSON, Markdown and PNG there")
    parser.add_argument("--name", default="profile", help="of these files, without suffix (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def run(args: argparse.Namespace) -> int:
    """Prints the profile; 2 if an argument, the video or the model cannot be used."""
    try:
        return _profile(args)
    except ValueError as error:
        print(f"vllm-prune profile: {error}", file=sys.stderr)
        return USAGE


def _profile(args: argparse.Namespace) -> int:
    from vllm_prune.bench.needs import announce_pictures
    from vllm_prune.bench.throughput import provenance
    from vllm_prune.cli.show import at_least_one, check_video, parse_object

    repeats, max_tokens = at_least_one("repeats", args.repeats), at_least_one("max_tokens", args.max_tokens)
    engine, media = parse_object("engine", args.engine), parse_object("media_io_kwargs", args.media_io_kwargs)
    video = args.video or _sample()
    check_video(video)
    from vllm_prune.profile.measure import Profiler
    from vllm_prune.show.run import check_model, name_configs

    if args.output is not None:
        announce_pictures()
    configs = name_configs(args.prune or _DEFAULT_PRUNES)
    model = resolve(args.model)
    check_model(model)
    place = provenance.describe()  # before the run, as the load average is that of others
    profiler = Profiler(
        model,
        video,
        max_tokens=max_tokens,
        media_io_kwargs=media,
        engine=engine,
        configs=list(configs.values()),
    )
    questions = (args.question, args.next_question)
    profiles: list[Profile] = []
    status = 0
    try:
        for label, config in configs.items():
            profiles.append(profiler.profile(label, config, questions, repeats))
    except KeyboardInterrupt:
        if not profiles:
            raise
        measured = ", ".join(profile.label for profile in profiles)
        print(f"vllm-prune profile: interrupted; measured before: {measured}", file=sys.stderr)
        status = INTERRUPTED
    _report(args, profiles, profiler.frames, place)
    return status


def _report(
    args: argparse.Namespace, profiles: Sequence[Profile], size: Sequence[int], place: Mapping[str, Any]
) -> None:
    """Prints what was measured, and writes it where `--output` says."""
    from vllm_prune.bench.needs import draw_if_possible, suffixes
    from vllm_prune.bench.throughput.provenance import describe_lines
    from vllm_prune.cli.secrets import masked
    from vllm_prune.profile import plot, report

    frames, height, width = (int(number) for number in size)
    introduction = (
        f"`{args.model}`, {frames} frames of {width}x{height}, one request at a time in one process, without compiled "
        f"code; means over {args.repeats} repeats, each with a video that no cache knows. The stages do not overlap "
        "and sum to the whole."
    )
    command = shlex.join(masked(sys.argv))
    text = report.markdown(profiles, introduction, [f"Command: `{command}`", *describe_lines(place)])
    document = {
        "schema": 1,
        "command": command,
        "model": args.model,
        **place,
        "frames": [frames, height, width],
        "questions": (args.question, args.next_question),
        "configurations": report.describe(profiles),
    }
    print(json.dumps(document, indent=1) if args.json else text)
    if args.output is None:
        return
    args.output.mkdir(parents=True, exist_ok=True)
    stem = args.output / args.name
    stem.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    stem.with_suffix(".md").write_text(text, encoding="utf-8")
    draw_if_possible(
        plot.draw, profiles, stem.with_suffix(".png"), f"{args.model}, {frames} frames of {width}x{height}"
    )
    print(f"{stem}{suffixes()}", file=sys.stderr if args.json else sys.stdout)


def _sample() -> str:
    return str(clip_path(_DEFAULT_CLIP))
