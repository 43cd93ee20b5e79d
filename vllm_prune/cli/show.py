"""`vllm-prune show VIDEO`: pictures of what is kept, merged and dropped, as PNG, HTML or film."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from vllm_prune.embedded import DEFAULT, LISTED, resolve
from vllm_prune.media.kinds import is_picture

_DEFAULT_PRUNES = ("stage1_only", "default")
_KINDS = (".png", ".html", ".mp4")
_ADDRESSES = ("http://", "https://", "data:")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument("video", help="file, http(s) URL or data URL; also of a picture (PNG, JPEG, GIF, ...)")
    parser.add_argument("-o", "--output", metavar="FILE", help="ends in .png, .html or .mp4")
    parser.add_argument("--facts", action="store_true", help="print what was decided; the picture may be left out then")
    parser.add_argument("--json", action="store_true", help="with --facts: print one JSON object")
    parser.add_argument("--question", help="what to ask; left out of the picture where it decides nothing")
    parser.add_argument("--model", default=DEFAULT, help=f"{LISTED}, a folder or a hub name (default: %(default)s)")
    parser.add_argument(
        "--prune",
        action="append",
        metavar="PRESET|JSON",
        help=f'repeatable; default: {", ".join(_DEFAULT_PRUNES)}; of a picture, what "image" says counts',
    )
    parser.add_argument("--trace", metavar="NPZ", help="draw what a server traced (serve --prune-trace); runs no model")
    parser.add_argument("--trace-video", type=int, default=0, metavar="N", help="which video of the trace, from 0")
    parser.add_argument("--max-tokens", type=int, default=16, help="length of the answer (default: %(default)s)")
    parser.add_argument("--media-io-kwargs", metavar="JSON", help='as for vLLM, such as \'{"video": {"fps": 1}}\'')
    parser.add_argument("--engine", metavar="JSON", help="further arguments of vllm.LLM")
    parser.add_argument("--columns", type=int, default=8, help="PNG: frames in a row (default: %(default)s)")
    parser.add_argument("--steps", metavar="N,N,...", help="PNG: which steps of the grid (default: evenly spread)")
    parser.add_argument("--width", type=int, default=1400, help="PNG: pixels (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Writes the picture; 2 if an argument, the video, the trace or the model cannot be used."""
    try:
        path = _check_output(args)
        check_video(args.video)
        story = _from_trace(args) if args.trace else _from_model(args)
        if path is not None:
            _save(story, path, args)
    except ValueError as error:
        print(f"vllm-prune show: {error}", file=sys.stderr)
        return 2
    _tell(story, args)
    if path is not None:
        print(f"{path} ({path.stat().st_size / 1024:.0f} KiB)", file=sys.stderr if args.json else sys.stdout)
    return 0


def _tell(story: Any, args: argparse.Namespace) -> None:
    from vllm_prune.show.facts import describe, lines

    if args.json:
        print(json.dumps(describe(story), indent=2))
        return
    for panel in story.panels:
        answer = f" | answer: {panel.answer}" if panel.answer is not None else ""
        print(f"{panel.label}: {panel.summary}{answer}")
        if args.facts:
            print("\n".join(f"  {line}" for line in lines(panel)))


def check_video(video: str) -> None:
    """Looks for a local file, before anything is imported that takes seconds.

    Raises:
        ValueError: It is not there.
    """
    if not video.startswith(_ADDRESSES) and not Path(video).is_file():
        raise ValueError(f"video={video!r}: no such file; give a file, an http(s) URL or a data URL")


def _check_output(args: argparse.Namespace) -> Path | None:
    if args.json and not args.facts:
        raise ValueError("json=True: --json is how --facts are printed; give --facts as well")
    if args.output is None:
        if args.facts:
            return None
        raise ValueError("output=None: give -o FILE for a picture, --facts for text, or both")
    path = Path(args.output)
    if path.suffix.lower() not in _KINDS:
        raise ValueError(f"output={args.output!r}: must end in {', '.join(_KINDS)}")
    if not path.parent.is_dir():
        raise ValueError(f"output={args.output!r}: there is no folder {str(path.parent)!r}; make it first")
    return path


def _from_model(args: argparse.Namespace) -> Any:
    from vllm_prune.show.picture import DEFAULT_PRUNES
    from vllm_prune.show.run import run_model

    return run_model(
        args.video,
        args.question,
        args.prune or (DEFAULT_PRUNES if is_picture(args.video) else _DEFAULT_PRUNES),
        model=resolve(args.model),
        max_tokens=at_least_one("max_tokens", args.max_tokens),
        media_io_kwargs=parse_object("media_io_kwargs", args.media_io_kwargs),
        engine=parse_object("engine", args.engine),
    )


def _from_trace(args: argparse.Namespace) -> Any:
    if args.prune:
        raise ValueError(f"prune={args.prune!r}: a trace has its own configuration; leave --prune or --trace out")
    if not Path(args.trace).is_file():
        raise ValueError(f"trace={args.trace!r}: no such file; give one that a server with --prune-trace wrote")
    from vllm_prune.show.media import load_video, to_frames
    from vllm_prune.show.picture import frames_of, load_picture
    from vllm_prune.show.run import make_story
    from vllm_prune.show.story import label_of_trace, make_panel
    from vllm_prune.show.trace_file import read_trace

    videos = read_trace(args.trace)
    if not 0 <= args.trace_video < len(videos):
        raise ValueError(
            f"trace_video={args.trace_video!r}: the trace has {len(videos)} videos; give 0 to that less one"
        )
    video = videos[args.trace_video]
    model = resolve(args.model)
    if is_picture(args.video):
        frames = frames_of(args.video, load_picture(args.video))
    else:
        images, metadata = load_video(args.video, model, parse_object("media_io_kwargs", args.media_io_kwargs))
        frames = to_frames(args.video, images, metadata)
    return make_story(model, frames, args.question, [make_panel(label_of_trace(video), video)])


def _save(story: Any, path: Path, args: argparse.Namespace) -> None:
    kind = path.suffix.lower()
    if kind == ".html":
        from vllm_prune.show.html import save_page

        save_page(story, path)
    elif kind == ".mp4":
        from vllm_prune.show.film import save_film

        save_film(story, path)
    else:
        from vllm_prune.show.sheet import SheetOptions, parse_steps, save_sheet

        columns = at_least_one("columns", args.columns)
        options = SheetOptions(width=args.width, columns=columns, steps=parse_steps(args.steps, story.grid[0]))
        save_sheet(story, path, options)


def parse_object(field: str, text: str | None) -> dict[str, Any]:
    """A JSON object; empty for None."""
    try:
        value = json.loads(text) if text is not None else {}
    except json.JSONDecodeError as error:
        raise ValueError(f"{field}={text!r}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{field}={text!r}: must be a JSON object")
    return value


def at_least_one(field: str, value: int) -> int:
    """`value`, unless it is below 1."""
    if value < 1:
        raise ValueError(f"{field}={value!r}: must be 1 or more")
    return value
