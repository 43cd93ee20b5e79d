"""`vllm-prune bench accuracy`: its options, and the plan they make."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from vllm_prune.bench.accuracy.asking import Backend
from vllm_prune.bench.accuracy.datasets import CLIPS, LONG, MADE, PAGES, PUBLISHED, draw_samples, load_published
from vllm_prune.bench.accuracy.datasets.records import read_json
from vllm_prune.bench.accuracy.pictures import modality_of
from vllm_prune.bench.accuracy.questions import Question
from vllm_prune.bench.accuracy.runner import Plan, run_plan
from vllm_prune.bench.needs import suffixes
from vllm_prune.bench.options import json_object, not_negative, positive
from vllm_prune.bench.running import Endings, run_planned
from vllm_prune.bench.throughput import provenance
from vllm_prune.bench.throughput.configurations import Configuration, parse_configurations
from vllm_prune.bench.throughput.errors import BenchmarkError
from vllm_prune.bench.throughput.models import EMBEDDED
from vllm_prune.cli.address import api_url
from vllm_prune.cli.secrets import masked
from vllm_prune.embedded import LISTED, NAMES, model_path

DEFAULT_CLIPS = 20
SHORT_ANSWER, LONG_ANSWER = 1, 16
"""Tokens of an answer: the embedded model's are one; others may begin with "The answer is"."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `vllm-prune bench accuracy`."""
    _add_questions(parser.add_argument_group("what is asked"))
    _add_models(parser.add_argument_group("who is asked"))
    group = parser.add_argument_group("the result")
    group.add_argument("-o", "--output", type=Path, default=Path("bench-results"), metavar="DIR", help="its folder")
    group.add_argument("--name", default="accuracy", help="name of the result files, without suffix")
    group.add_argument("--resume", action="store_true", help="go on with the answers that are there")
    group.add_argument("--title", help="default: dataset and model")
    group.add_argument("--notes", type=Path, metavar="FILE", help="Markdown for the report, after its introduction")
    group.add_argument(
        "--ttft", type=Path, metavar="JSON", help="result of `bench throughput`: draws accuracy against TTFT as well"
    )


def _add_questions(group: argparse._ArgumentGroup) -> None:
    add_dataset_arguments(group, required=True)
    group.add_argument(
        "--prune",
        action="append",
        default=[],
        metavar="[NAME=]CONFIG",
        help="what to compare, once for each: stock, evs:RATE (vLLM's own EVS, RATE dropped), a preset or a JSON "
        "configuration; names such as uniform@25%% make lines and columns of budgets",
    )
    group.add_argument(
        "--prune-file", action="append", default=[], type=Path, metavar="JSON", help="more of them: {NAME: CONFIG, ...}"
    )
    group.add_argument("--baseline", metavar="NAME", help="what the others are compared with (default: the first)")


def add_dataset_arguments(group: argparse._ArgumentGroup, *, required: bool) -> None:
    """Add the options that `read_questions` reads."""
    known = ", ".join((*MADE, *PUBLISHED))
    group.add_argument(
        "--dataset", required=required, metavar="NAME|FILE", help=f"{known}, or a .jsonl file of questions"
    )
    group.add_argument("--data", type=Path, default=Path(), metavar="DIR", help="where the dataset lies (default: .)")
    group.add_argument("--skip-missing", action="store_true", help="leave out questions whose file is not there")
    group.add_argument(
        "-n",
        "--n",
        type=positive,
        help=f"questions a sample (default: all); synthetic, long: clips of each kind, pages: pages ({DEFAULT_CLIPS})",
    )
    group.add_argument(
        "--seeds", nargs="+", type=not_negative, default=[0], metavar="SEED", help="a sample each (default 0)"
    )
    group.add_argument(
        "--frames",
        nargs="+",
        type=positive,
        default=[32],
        help="synthetic, long: of a clip (32)",
    )
    group.add_argument(
        "--noise", nargs="+", default=["clean"], help="synthetic, long: clean, noise, flicker, ... (clean)"
    )


def _add_models(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--url", help="a server, as in http://127.0.0.1:8000/v1; default: engines of our own")
    group.add_argument(
        "--model",
        default=None,
        help=f"its folder, or {LISTED} (default: the first); with --url: its name there",
    )
    group.add_argument("--max-frames", type=positive, default=None, help="taken from a video (default 32; not --url)")
    group.add_argument("--max-tokens", type=positive, help="of an answer (default: 1 for synthetic and pages, else 16)")
    group.add_argument("--engine-args", type=json_object, default={}, metavar="JSON", help="more for vllm.LLM")
    group.add_argument("--engines", type=positive, default=1, help="side by side, sharing the CPU's cores (default 1)")
    group.add_argument("--concurrency", type=positive, default=8, help="requests at a time, with --url (default 8)")
    group.add_argument("--api-key", default="EMPTY", help="with --url")
    group.add_argument("--batch", type=positive, default=256, help="requests between two savings (default 256)")


def run(args: argparse.Namespace) -> int:
    """Ask, write the results, and return the exit status."""
    stem = args.output / args.name
    endings = Endings(name="accuracy", interrupted=f"the answers are in {stem}.answers.jsonl: go on with --resume")
    status = run_planned(partial(make_plan, args), run_plan, endings)
    if status == 0:
        print(f"results: {stem}{suffixes()}")
    return status


def make_plan(args: argparse.Namespace) -> Plan:
    """Turn the options into a plan.

    Raises:
        BenchmarkError: An option that cannot be used.
    """
    from vllm_prune.bench.accuracy.plot import read_ttft

    configurations = _configurations(args.prune, args.prune_file)
    questions = read_questions(args)
    backend = _backend(args, sorted({modality_of(question.video) for question in questions}))
    model = args.model or ("the server's model" if args.url else EMBEDDED)
    return Plan(
        command=masked(sys.argv),
        title=args.title or f"{args.dataset}, {model}",
        dataset=args.dataset,
        questions=questions,
        configurations=configurations,
        baseline=_baseline(args.baseline, configurations),
        backend=backend,
        batch=args.batch,
        resume=args.resume,
        output=args.output,
        name=args.name,
        notes=_read_notes(args.notes) if args.notes else "",
        ttft=read_ttft(args.ttft) if args.ttft else {},
    )


def _configurations(given: Sequence[str], files: Sequence[Path]) -> list[Configuration]:
    named = [f"{name}={value}" for path in files for name, value in _read_configurations(path).items()]
    if not given and not named:
        raise BenchmarkError("nothing to compare: give --prune stock, --prune default, ... or --prune-file")
    return parse_configurations([*given, *named], "--prune")


def _read_configurations(path: Path) -> dict[str, str]:
    """Values as --prune takes them, by name."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise BenchmarkError(f"--prune-file {path}: must be an object of names and configurations")
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in content.items()}


def _read_notes(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BenchmarkError(f"--notes {path}: {error}") from error


def read_questions(args: argparse.Namespace) -> list[Question]:
    """What `--dataset` and its companions ask for."""
    if len(set(args.seeds)) < len(args.seeds):
        raise BenchmarkError(f"--seeds {' '.join(map(str, args.seeds))}: each seed once")
    if args.dataset not in MADE:
        return draw_samples(load_published(args.dataset, args.data, skip_missing=args.skip_missing), args.n, args.seeds)
    if args.dataset == PAGES:
        from vllm_prune.bench.accuracy.datasets import pages

        return pages.load(args.n or DEFAULT_CLIPS, args.seeds)
    from vllm_prune.bench.accuracy.datasets import synthetic

    load = synthetic.load_long if args.dataset == LONG else synthetic.load
    return load(args.n or DEFAULT_CLIPS, args.seeds, args.frames, args.noise)


def _baseline(given: str | None, configurations: Sequence[Configuration]) -> str:
    names = [configuration.name for configuration in configurations]
    if given is not None and given not in names:
        raise BenchmarkError(f"--baseline {given}: not among the names of --prune: {', '.join(names)}")
    return given or names[0]


def _backend(args: argparse.Namespace, modalities: Sequence[str]) -> Backend:
    max_tokens = args.max_tokens or (SHORT_ANSWER if args.dataset in MADE else LONG_ANSWER)
    if args.url:
        from vllm_prune.bench.accuracy.endpoint import Endpoint

        try:
            url = api_url(args.url)
        except ValueError as error:
            raise BenchmarkError(str(error)) from error
        return Endpoint(url, args.model, args.concurrency, max_tokens, args.api_key)
    from vllm_prune.bench.accuracy.engine import InProcess

    return InProcess(
        model=find_model(args.model or EMBEDDED),
        name=args.model or EMBEDDED,
        on_cpu=provenance.runs_on_cpu(),
        processes=args.engines,
        arguments=args.engine_args,
        max_frames=args.max_frames or (max(args.frames) if args.dataset in CLIPS else 32),
        max_tokens=max_tokens,
        log_folder=args.output / f"{args.name}.logs",
        modalities=modalities,
    )


def find_model(given: str) -> Path:
    """The folder of the model called `given`."""
    if given in NAMES:
        return model_path(given)
    if not (Path(given) / "config.json").is_file():
        raise BenchmarkError(f"--model {given}: no config.json there; give a model's folder or {LISTED}")
    return Path(given).resolve()
