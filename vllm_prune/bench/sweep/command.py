"""`vllm-prune bench sweep`: its options, and the plan they make."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

from vllm_prune.bench.accuracy.command import (
    LONG_ANSWER,
    SHORT_ANSWER,
    add_dataset_arguments,
    find_model,
    read_questions,
)
from vllm_prune.bench.accuracy.datasets import SYNTHETIC
from vllm_prune.bench.accuracy.engine import InProcess
from vllm_prune.bench.accuracy.questions import Question, video_of
from vllm_prune.bench.accuracy.videos import FileVideo
from vllm_prune.bench.needs import suffixes
from vllm_prune.bench.options import json_object, positive
from vllm_prune.bench.running import Endings, run_planned
from vllm_prune.bench.sweep.points import Axes, make_configurations
from vllm_prune.bench.sweep.probe import Probe
from vllm_prune.bench.sweep.runner import SweepPlan, run_sweep
from vllm_prune.bench.throughput import provenance
from vllm_prune.bench.throughput.errors import BenchmarkError
from vllm_prune.bench.throughput.models import EMBEDDED
from vllm_prune.cli.secrets import masked
from vllm_prune.embedded import LISTED

DEFAULT_QUESTION = "What happens in the video?"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `vllm-prune bench sweep`."""
    group = parser.add_argument_group("what is asked")
    group.add_argument("video", nargs="?", type=Path, help="a video file; default: one of --dataset")
    group.add_argument("--question", help="about VIDEO")
    add_dataset_arguments(group, required=False)
    _add_axes(parser.add_argument_group("the grid; every combination is tried"))
    group = parser.add_argument_group("who is asked")
    group.add_argument("--model", default=EMBEDDED, help=f"its folder, or {LISTED} (default: {EMBEDDED})")
    group.add_argument("--max-frames", type=positive, default=None, help="taken from a video (default 32)")
    group.add_argument("--max-tokens", type=positive, help=f"of an answer (default: {LONG_ANSWER}; synthetic: 1)")
    group.add_argument("--engine-args", type=json_object, default={}, metavar="JSON", help="more for vllm.LLM")
    group.add_argument("--batch", type=positive, default=256, help="dataset: requests between two savings (256)")
    group = parser.add_argument_group("the result")
    group.add_argument("--repeats", type=positive, default=3, help="timings of every point (default 3)")
    group.add_argument("-o", "--output", type=Path, default=Path("bench-results"), metavar="DIR", help="its folder")
    group.add_argument("--name", default="sweep", help="name of the result files, without suffix")
    group.add_argument("--resume", action="store_true", help="go on with what is there")
    group.add_argument("--title", help="default: video or dataset, and model")


def _add_axes(group: argparse._ArgumentGroup) -> None:
    def add(option: str, default: list[Any], kind: Any, text: str) -> None:
        shown = " ".join("none" if value is None else str(value) for value in default)
        group.add_argument(
            option, nargs="+", type=kind, default=default, metavar="X", help=f"{text} (default: {shown})"
        )

    add("--tau", [0.7, 0.8, 0.9], float, "similarity above which a cell is static")
    add("--cluster-ratio", [0.3, 0.5, 0.7], float, "tokens left by merging")
    add("--segment-ratio", [0.25, 0.5], float, "temporal segments for each frame")
    add("--keep-ratio", [None, 0.4], _or_none(float), "tokens kept by the question; none: stage 1 alone")
    add("--layer", [None], _or_none(int), "after which decoder layer the question chooses; none: the default one")


def _or_none(kind: Any) -> Any:
    def parse(text: str) -> Any:
        return None if text == "none" else kind(text)

    parse.__name__ = kind.__name__
    return parse


def run(args: argparse.Namespace) -> int:
    """Measure, write the results, and return the exit status."""
    stem = args.output / args.name
    endings = Endings(name="sweep", interrupted=f"what is known is in {stem}.*.jsonl: go on with --resume")
    status = run_planned(partial(make_plan, args), run_sweep, endings)
    if status == 0:
        print(f"results: {stem}{suffixes()}")
    return status


def make_plan(args: argparse.Namespace) -> SweepPlan:
    """Turn the options into a plan.

    Raises:
        BenchmarkError: An option that cannot be used.
    """
    from vllm_prune.estimate import read_dims

    if args.video is None and args.dataset is None:
        raise BenchmarkError("nothing to ask: give a VIDEO with --question, or --dataset")
    model = find_model(args.model)
    questions = read_questions(args) if args.dataset else []
    for question in questions:
        video_of(question, "bench sweep")
    probed = _probed(args, questions)
    axes = Axes(
        tau=args.tau,
        cluster_ratio=args.cluster_ratio,
        temporal_segment_ratio=args.segment_ratio,
        keep_ratio=args.keep_ratio,
        layer=args.layer,
    )
    points = axes.points()
    max_frames = args.max_frames or (max(args.frames) if args.dataset == SYNTHETIC else 32)
    max_tokens = args.max_tokens or (SHORT_ANSWER if args.dataset == SYNTHETIC else LONG_ANSWER)
    on_cpu = provenance.runs_on_cpu()
    backend = InProcess(
        model=model,
        name=args.model,
        on_cpu=on_cpu,
        processes=1,
        arguments=args.engine_args,
        max_frames=max_frames,
        max_tokens=max_tokens,
        log_folder=args.output / f"{args.name}.logs",
    )
    return SweepPlan(
        command=masked(sys.argv),
        title=args.title or f"{args.dataset or args.video.name}, {args.model}",
        points=points,
        configurations=make_configurations(points, read_dims(str(model)).text.layers),
        probed=probed,
        questions=questions,
        backend=backend,
        open_probe=lambda: Probe(
            model, probed, max_frames=max_frames, max_tokens=max_tokens, on_cpu=on_cpu, arguments=args.engine_args
        ),
        settings={
            "dataset": args.dataset,
            "probed_video": probed.video.key,
            "probed_question": probed.prompt(),
            **backend.describe(),
        },
        repeats=args.repeats,
        batch=args.batch,
        resume=args.resume,
        output=args.output,
        name=args.name,
    )


def _probed(args: argparse.Namespace, questions: list[Question]) -> Question:
    """The question that every point is timed with."""
    if args.video is None:
        if args.question is not None:
            raise BenchmarkError(f"--question {args.question!r}: give the VIDEO that it is about")
        # Of clips whose length is known, one of the longest: its times tell most.
        return max(questions, key=lambda question: getattr(question.video, "num_frames", 0))
    if not args.video.is_file():
        raise BenchmarkError(f"{args.video}: no such file; give a video")
    return Question(key="probe", video=FileVideo(args.video), text=args.question or DEFAULT_QUESTION, answer="?")
