"""`vllm-prune train-selector MODEL`: a selector, distilled from the model's own attention."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_prune.bench.options import FAILED, USAGE, not_negative, positive, signals_as_interrupt
from vllm_prune.embedded import LISTED, resolve

if TYPE_CHECKING:
    from vllm_prune.training.command import Training
    from vllm_prune.training.sources import Item


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument("model", help=f"{LISTED}, a folder, or a name on the Hugging Face hub")
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--videos", type=Path, metavar="DIR", help="train on all videos below this folder")
    data.add_argument(
        "--dataset", metavar="NAME|FILE", help='"synthetic", a published dataset or a .jsonl file, as of bench accuracy'
    )
    parser.add_argument("--data", type=Path, default=Path(), metavar="DIR", help="where the dataset or its videos lie")
    parser.add_argument("--questions", type=Path, metavar="FILE", help="with --videos: questions to ask, one a line")
    parser.add_argument("--clips", type=positive, default=560, help="synthetic clips (default: %(default)s)")
    parser.add_argument("--leave-out", nargs="+", default=[], metavar="TYPE", help="types of questions not to train on")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="ends in .safetensors")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="of the teacher's outputs (default: FILE.cache)")
    parser.add_argument("--kind", choices=("match", "joint"), default="match", help="(default: %(default)s)")
    parser.add_argument("--hidden", type=positive, default=96, help="channels of the selector (default: %(default)s)")
    parser.add_argument("--steps", type=positive, default=600, help="(default: %(default)s)")
    parser.add_argument(
        "--answer-steps", type=not_negative, default=0, help="then train on the answers, by soft masks (default: 0)"
    )
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="(default: %(default)s)")
    parser.add_argument("--seed", type=not_negative, default=0, help="(default: %(default)s)")
    parser.add_argument("--max-frames", type=positive, default=64, help="of a video (default: %(default)s)")
    parser.add_argument("--teacher-layer", type=not_negative, help="whose attention to learn (default: as in serving)")
    parser.add_argument(
        "--layer", type=not_negative, help="read this layer's output instead of what enters layer 0, to choose there"
    )
    parser.add_argument("--devices", nargs="+", metavar="DEVICE", help="of torch (default: all GPUs, else cpu)")
    parser.add_argument("--dtype", help="of the teacher, of torch (default: float32 on a CPU, else the model's)")


def run(args: argparse.Namespace) -> int:
    """Trains; 2 if an argument, the data or the model cannot be used, 1 if a file cannot be read or written."""
    from vllm_prune.bench.throughput.errors import BenchmarkError

    try:
        training = _training(args)
        from vllm_prune.training.command import train

        with signals_as_interrupt():
            train(training)
    except (ValueError, BenchmarkError) as error:
        print(f"vllm-prune train-selector: {error}", file=sys.stderr)
        return USAGE
    except OSError as error:  # of the disk, or of a model's files
        print(f"vllm-prune train-selector: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        cache = _cache(args)
        print(f"vllm-prune train-selector: interrupted; the same command goes on from {cache}", file=sys.stderr)
        raise
    return 0


def _training(args: argparse.Namespace) -> Training:
    """What is to be done; ValueError for arguments that cannot be used."""
    if args.output.suffix != ".safetensors":
        raise ValueError(f"output={str(args.output)!r}: must end in .safetensors")
    if not 0 < args.learning_rate < 1:
        raise ValueError(f"learning_rate={args.learning_rate}; must be above 0 and below 1")
    from vllm_prune.selector import INPUT, SelectorConfig
    from vllm_prune.training.command import Training
    from vllm_prune.training.teacher import Teaching

    SelectorConfig(kind=args.kind, width=1, hidden=args.hidden)  # before hours of teaching
    folder = resolve(args.model)
    place = INPUT if args.layer is None else args.layer
    layer = _teacher_layer(folder, args.teacher_layer, args.layer)
    items, data = _items(args)
    teaching = Teaching(
        model=folder, name=args.model, layer=layer, place=place, max_frames=args.max_frames, dtype=_dtype(args.dtype)
    )
    return Training(
        items=items,
        data=data,
        teaching=teaching,
        kind=args.kind,
        hidden=args.hidden,
        steps=args.steps,
        learning_rate=args.learning_rate,
        answer_steps=args.answer_steps,
        seed=args.seed,
        output=args.output,
        cache=_cache(args),
        devices=_devices(args.devices),
    )


def _cache(args: argparse.Namespace) -> Path:
    cache: Path = args.cache or args.output.with_suffix(".cache")
    return cache


def _teacher_layer(folder: str, wanted: int | None, place: int | None) -> int:
    """The layer whose attention is learnt: by default the one that serving asks."""
    from vllm_prune.config import PruneConfig
    from vllm_prune.hub import read_config_fields

    try:
        fields = read_config_fields(folder)
    except OSError as error:
        raise ValueError(f"model={folder!r}: {error}") from error
    depth = (fields.get("text_config") or fields).get("num_hidden_layers")
    if not isinstance(depth, int):
        raise ValueError(f"model={folder!r}: no config.json with num_hidden_layers; give a folder or a hub name")
    if wanted is not None and wanted >= depth:
        raise ValueError(f"teacher_layer={wanted}; the model has layers 0 to {depth - 1}")
    levels = len((fields.get("vision_config") or {}).get("deepstack_visual_indexes") or ())
    first, last = max(levels - 1, 0), depth - 2
    if place is not None and not first <= place <= last:
        raise ValueError(f"layer={place}; tokens can be dropped behind layers {first} to {last} of the model")
    if wanted is not None:
        return wanted
    return place if place is not None else PruneConfig.parse("default").resolved_layers(depth, levels)[0]


def _items(args: argparse.Namespace) -> tuple[list[Item], str]:
    """Videos with questions, and what they are, in words."""
    from vllm_prune.training import sources

    if args.videos is None:
        if args.questions is not None:
            raise ValueError(f"questions={str(args.questions)!r}: a dataset has its own; give --videos")
        without = f" without {', '.join(args.leave_out)}" if args.leave_out else ""
        items = sources.dataset(args.dataset, args.data, args.clips, args.leave_out)
        return items, f"`{args.dataset}`{without}"
    if args.leave_out:
        raise ValueError(f"leave_out={args.leave_out}: videos of a folder have no types of questions; give --dataset")
    questions = sources.GENERIC if args.questions is None else _lines(args.questions)
    items = sources.folder(args.videos, questions)
    return items, f"{len(items)} video files of a folder, {len(questions)} questions about each"


def _lines(path: Path) -> tuple[str, ...]:
    try:
        lines = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"questions={str(path)!r}: {error}") from error
    if not lines:
        raise ValueError(f"questions={str(path)!r}: no line in it")
    return lines


def _devices(wanted: list[str] | None) -> list[str]:
    import torch

    if wanted is None:
        return [f"cuda:{index}" for index in range(torch.cuda.device_count())] or ["cpu"]
    for device in wanted:
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"devices={device!r}: {str(error).splitlines()[0]}") from error
    return wanted


def _dtype(name: str | None) -> str | None:
    known = ("float32", "bfloat16", "float16")
    if name is not None and name not in known:
        raise ValueError(f"dtype={name!r}; use one of {', '.join(known)}")
    return name
