"""From videos to a selector file with its card: the whole of `vllm-prune train-selector`."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vllm_prune.bench.throughput.provenance import describe as describe_place
from vllm_prune.bench.throughput.provenance import describe_lines
from vllm_prune.selector import Header, SelectorConfig, write_selector
from vllm_prune.training.card import write_card
from vllm_prune.training.end_to_end import refine
from vllm_prune.training.fit import Fit, FitSettings, fit, validate
from vllm_prune.training.losses import top_mass
from vllm_prune.training.scoring import score_answers
from vllm_prune.training.sources import Item
from vllm_prune.training.teacher import Teaching, paths, read_lesson, read_probes, teach

_ANSWER_RATE = 0.3  # of the learning rate


@dataclass(frozen=True, kw_only=True)
class Training:
    """One call of the command."""

    items: Sequence[Item]
    data: str
    """Where they are from, in words."""
    teaching: Teaching
    kind: str
    hidden: int
    steps: int
    learning_rate: float
    answer_steps: int
    """Of training on the answers, after the teacher's."""
    seed: int
    output: Path
    cache: Path
    devices: Sequence[str]


def train(wanted: Training) -> None:
    """Train, write the file, its card and the log of the losses; go on where an earlier call was interrupted."""
    wanted.output.parent.mkdir(parents=True, exist_ok=True)  # what cannot be written is to fail now, not at the end
    started = time.monotonic()
    skipped = teach(wanted.items, wanted.cache, wanted.teaching, wanted.devices, tell)
    teacher_seconds = time.monotonic() - started
    used = [item for item in wanted.items if item.video.key not in skipped]
    validating = [item for item in used if item.validates] or used[:1]
    learning = [item for item in used if item not in validating] or used
    to_learn, to_validate = (paths(part, wanted.cache, wanted.teaching, skipped) for part in (learning, validating))
    identity, probes = read_probes(wanted.cache, wanted.teaching)
    config = SelectorConfig(kind=wanted.kind, width=identity.hidden_size, hidden=wanted.hidden)  # type: ignore[arg-type]
    settings = FitSettings(config=config, steps=wanted.steps, learning_rate=wanted.learning_rate, seed=wanted.seed)
    done = fit(to_learn, to_validate, settings, wanted.cache, wanted.devices[0], tell)
    answered = _refine(wanted, done, learning) if wanted.answer_steps else []
    facts = _facts(wanted, done, learning, validating, to_validate)
    header = Header(config=config, model=identity, place=wanted.teaching.place, training=facts)
    digest = write_selector(wanted.output, done.selector, header, probes)
    tell(f"wrote {wanted.output} ({wanted.output.stat().st_size / 1024:.0f} KiB)")
    rights = score_answers(done.selector, validating, wanted.teaching, wanted.devices[0], tell)
    run = {
        "skipped": skipped,
        "teacher_seconds": round(teacher_seconds, 1),
        "fit_seconds": round(done.seconds, 1),
        "history": [*done.history, *answered],
        "place": describe_lines(describe_place()),
    }
    write_card(wanted.output, header, digest, rights, run)
    tell(f"wrote {wanted.output.with_suffix('.md')} and {wanted.output.with_suffix('.json')}")


def _refine(wanted: Training, done: Fit, learning: Sequence[Item]) -> list[dict[str, float]]:
    """Train on the answers, with a smaller learning rate."""
    rate = wanted.learning_rate * _ANSWER_RATE
    device = wanted.devices[0]
    return refine(done.selector, learning, wanted.teaching, wanted.answer_steps, rate, wanted.seed, device, tell)


def tell(line: str) -> None:
    """A line of progress."""
    print(line, file=sys.stderr, flush=True)


def _facts(
    wanted: Training, done: Fit, learning: Sequence[Item], validating: Sequence[Item], lessons: Sequence[Path]
) -> dict[str, Any]:
    """What the file says of its training: nothing that differs between two runs of the same command."""
    masses = [mass for path in lessons for mass in top_mass(read_lesson(path).importance)]
    last = done.history[-1]
    return {
        "command": _command(),
        "data": wanted.data,
        "videos": len(learning),
        "questions": sum(len(item.questions) for item in learning),
        "validation_videos": len(validating),
        "parameters": sum(parameter.numel() for parameter in done.selector.parameters()),
        "teacher_layer": wanted.teaching.layer,
        "top_mass": round(float(np.mean(masses)), 3),
        "steps": wanted.steps,
        "answer_steps": wanted.answer_steps,
        "seed": wanted.seed,
        **{name: round(last[name], 3) for name in ("kl", "bce")},
        "recall": round(validate(done.selector, lessons, "cpu"), 3),
    }


def _command() -> str:
    from vllm_prune.cli.secrets import masked

    return shlex.join(["vllm-prune", *masked(sys.argv)[1:]])
