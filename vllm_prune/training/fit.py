"""Training of a selector on the teacher's files, on a CPU or one GPU.

Each step draws its clips from a generator of its own, so that a training that goes on from a checkpoint is the one that
was never interrupted.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vllm_prune.methods.base import full_grid
from vllm_prune.selector import Selector, SelectorConfig
from vllm_prune.training.errors import TrainingError
from vllm_prune.training.losses import distillation_loss, top_recall, total
from vllm_prune.training.teacher import Lesson, read_lesson

_WARM_UP, _LAST_RATE = 50, 0.02  # steps; share of the learning rate
_TELL_EVERY, _SAVE_EVERY = 50, 50
_LESSONS_IN_MEMORY = 2048
_LARGEST_LESSON = 1 << 18  # numbers of a video kept in memory: those of long videos are read anew


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """All that the weights depend on beside the lessons."""

    config: SelectorConfig
    steps: int = 600
    clips: int = 6
    """A step's."""
    learning_rate: float = 1e-3
    weight_decay: float = 0.02
    seed: int = 0


@dataclass
class Fit:
    """A trained selector and how it went."""

    selector: Selector
    history: list[dict[str, float]] = field(default_factory=list)
    """Means of the last steps: step, kl, bce, recall (validation; now and then)."""
    seconds: float = 0.0


def fit(
    training: Sequence[Path],
    validation: Sequence[Path],
    settings: FitSettings,
    folder: Path,
    device: str,
    tell: Callable[[str], None],
) -> Fit:
    """Train, going on from the checkpoint in `folder` that is of the same settings and lessons, if there is one."""
    torch.manual_seed(settings.seed)
    selector = Selector(settings.config).to(device)
    optimizer = torch.optim.AdamW(selector.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    identity = json.dumps([asdict(settings), [path.name for path in training], [path.name for path in validation]])
    done = Fit(selector)
    checkpoint = folder / f"checkpoint-{hashlib.sha256(identity.encode()).hexdigest()[:24]}.pt"
    first = _resume(checkpoint, done, optimizer, tell)
    recent: list[tuple[float, float]] = []
    begun = time.monotonic() - done.seconds
    for step in range(first, settings.steps):
        recent.append(_step(selector, optimizer, training, settings, step, device))
        done.seconds = time.monotonic() - begun
        number = step + 1
        if number % _TELL_EVERY == 0 or number == settings.steps:
            done.history.append(_note(selector, recent, validation, number, device))
            recent = []
            left = done.seconds / number * (settings.steps - number)
            facts = ", ".join(f"{name} {value:.3f}" for name, value in done.history[-1].items() if name != "step")
            tell(f"training: step {number} of {settings.steps}, {facts}, {done.seconds:.0f} s, {left:.0f} s left")
        if number % _SAVE_EVERY == 0 or number == settings.steps:
            _save(checkpoint, done, optimizer, number)
    selector.eval().cpu()
    return done


def score_lesson(selector: Selector, lesson: Lesson, device: str) -> Tensor:
    """Scores [Q, N] of all questions of a video."""
    text = torch.nn.utils.rnn.pad_sequence(lesson.text, batch_first=True).to(device)
    lengths = torch.tensor([len(rows) for rows in lesson.text], device=device)
    mask = torch.arange(text.shape[1], device=device) < lengths[:, None]
    places = full_grid(lesson.grid, device)
    return selector(lesson.video[None].to(device), text, mask, places, lesson.grid)


@torch.no_grad()
def validate(selector: Selector, lessons: Sequence[Path], device: str) -> float:
    """Mean share of the teacher's top tokens that the selector finds."""
    found: list[float] = []
    for path in lessons:
        lesson = _read(path)
        found += top_recall(score_lesson(selector, lesson, device), lesson.importance.to(device))
    return float(np.mean(found))


def _step(
    selector: Selector,
    optimizer: torch.optim.Optimizer,
    training: Sequence[Path],
    settings: FitSettings,
    step: int,
    device: str,
) -> tuple[float, float]:
    """One update; its losses."""
    rate = min((step + 1) / _WARM_UP, _LAST_RATE + (1 - _LAST_RATE) * (1 - step / settings.steps))
    for group in optimizer.param_groups:
        group["lr"] = settings.learning_rate * rate
    drawn = np.random.default_rng([settings.seed, step]).integers(len(training), size=settings.clips)
    optimizer.zero_grad()
    losses = []
    for index in drawn:
        lesson = _read(training[index])
        divergence, top = distillation_loss(score_lesson(selector, lesson, device), lesson.importance.to(device))
        (total(divergence, top) / settings.clips).backward()
        losses.append((divergence.item(), top.item()))
    torch.nn.utils.clip_grad_norm_(selector.parameters(), 1.0)
    optimizer.step()
    divergence_mean, top_mean = np.mean(losses, 0).tolist()
    if not np.isfinite(divergence_mean + top_mean):
        raise TrainingError(f"step {step + 1}: the loss is not a number; give a smaller --learning-rate")
    return divergence_mean, top_mean


def _note(
    selector: Selector, recent: Sequence[tuple[float, float]], validation: Sequence[Path], step: int, device: str
) -> dict[str, float]:
    divergence, top = np.mean(recent, 0).tolist()
    recall = validate(selector, validation, device)
    return {"step": step, "kl": round(divergence, 5), "bce": round(top, 5), "recall": round(recall, 5)}


@lru_cache(maxsize=_LESSONS_IN_MEMORY)
def _small_lesson(path: Path) -> Lesson:
    return read_lesson(path)


def _read(path: Path) -> Lesson:
    return _small_lesson(path) if path.stat().st_size < 4 * _LARGEST_LESSON else read_lesson(path)


def _save(path: Path, done: Fit, optimizer: torch.optim.Optimizer, step: int) -> None:
    state: dict[str, Any] = {
        "step": step,
        "selector": done.selector.state_dict(),
        "optimizer": optimizer.state_dict(),
        "history": done.history,
        "seconds": done.seconds,
    }
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def _resume(path: Path, done: Fit, optimizer: torch.optim.Optimizer, tell: Callable[[str], None]) -> int:
    """The step to begin with."""
    if not path.exists():
        return 0
    try:
        state = torch.load(path, weights_only=True)
        done.selector.load_state_dict(state["selector"])
        optimizer.load_state_dict(state["optimizer"])
        done.history[:], done.seconds = state["history"], state["seconds"]
    except Exception as error:  # whatever torch finds in a damaged file
        raise TrainingError(f"{path}: a checkpoint that cannot be read ({error}); remove it to begin anew") from error
    tell(f"training: goes on from step {state['step']} of {path}")
    return int(state["step"])
