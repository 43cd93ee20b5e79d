"""Training on the model's answers: the mask is soft while it learns and hard when it serves.

The frozen model reads all tokens, each as much as the selector lets it: attention weights to a visual token are
multiplied by its mask and normalised again, behind the place where the selector reads. The masks of a video sum to the
budget; their temperature falls, so that they end near 0 and 1.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vllm_prune.budget import count_kept
from vllm_prune.selector import INPUT, Selector
from vllm_prune.training.backbone import Backbone
from vllm_prune.training.choosing import first_token
from vllm_prune.training.errors import TrainingError
from vllm_prune.training.fit import score_lesson
from vllm_prune.training.losses import distillation_loss, total
from vllm_prune.training.sources import Item
from vllm_prune.training.teacher import Lesson, Teaching, load_backbone

_RATIOS = (0.25, 0.12, 0.06)
_FIRST_TEMPERATURE, _LAST_TEMPERATURE = 1.0, 0.1
_TEACHER_WEIGHT = 0.2
_QUESTIONS_A_CLIP, _CLIPS_A_STEP = 4, 3
_HALVINGS = 40
_TELL_EVERY = 20
_CLIPS_IN_MEMORY = 512


@dataclass(frozen=True)
class _Prompts:
    """The questions about one video as they enter the layer behind the selector."""

    lesson: Lesson
    rows: Tensor
    """[Q, S, C], padded behind the end; [Q, S, (1 + L) * C] where the selector reads what enters layer 0."""
    positions: Tensor
    """[3, Q, S]."""
    last: Tensor
    """[Q] index of each one's last row."""
    cells: Tensor
    """[N] rows of the video's tokens."""
    truth: Tensor
    """[Q] first token of the right answer."""


def refine(
    selector: Selector,
    items: Sequence[Item],
    teaching: Teaching,
    steps: int,
    learning_rate: float,
    seed: int,
    device: str,
    tell: Callable[[str], None],
) -> list[dict[str, float]]:
    """Go on training `selector`, in place; means of the last steps: step, answer (cross entropy), right (share)."""
    known = [item for item in items if all(item.answers)]
    if not known:
        raise TrainingError("answer_steps: no video has questions with answers; give a --dataset that has them")
    backbone = load_backbone(teaching, device)
    prompts = lru_cache(maxsize=_CLIPS_IN_MEMORY)(lambda index: _prompts(backbone, known[index], teaching))
    selector.to(device).train().requires_grad_(True)
    optimizer = torch.optim.AdamW(selector.parameters(), lr=learning_rate)
    history: list[dict[str, float]] = []
    recent: list[tuple[float, float]] = []
    begun = time.monotonic()
    for step in range(steps):
        rng = np.random.default_rng([seed, 1, step])
        temperature = _FIRST_TEMPERATURE * (_LAST_TEMPERATURE / _FIRST_TEMPERATURE) ** (step / steps)
        optimizer.zero_grad()
        for index in rng.integers(len(known), size=_CLIPS_A_STEP):
            loss, found = _loss(backbone, selector, prompts(int(index)), temperature, teaching, rng)
            (loss / _CLIPS_A_STEP).backward()
            recent.append(found)
        torch.nn.utils.clip_grad_norm_(selector.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % _TELL_EVERY == 0 or step + 1 == steps:
            answer, right = np.mean(recent, 0).tolist()
            recent = []
            history.append({"step": step + 1, "answer": round(answer, 5), "right": round(right, 5)})
            spent = time.monotonic() - begun
            tell(f"answers: step {step + 1} of {steps}, loss {answer:.3f}, right {right:.3f}, {spent:.0f} s")
    selector.eval().cpu()
    return history


def soft_mask(scores: Tensor, count: int, temperature: float) -> Tensor:
    """[Q, N] in 0..1, each row of sum `count`, higher for higher `scores` [Q, N]; differentiable.

    The threshold moves with the scores: raising all of them changes nothing.

    >>> soft_mask(torch.tensor([[0.0, 1.0, 5.0, 9.0]]), 2, 0.1).round(decimals=2).tolist()
    [[0.0, 0.0, 1.0, 1.0]]
    """
    fixed = scores.detach()
    low, high = fixed.amin(-1, keepdim=True) - 20 * temperature, fixed.amax(-1, keepdim=True) + 20 * temperature
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        over = ((fixed - middle) / temperature).sigmoid().sum(-1, keepdim=True) > count
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    soft = ((fixed - middle) / temperature).sigmoid()
    slope = soft * (1 - soft)
    moved = (slope * (scores - fixed)).sum(-1, keepdim=True) / slope.sum(-1, keepdim=True).clamp_min(1e-9)
    return ((scores - middle - moved) / temperature).sigmoid()


def _loss(
    backbone: Backbone,
    selector: Selector,
    prompts: _Prompts,
    temperature: float,
    teaching: Teaching,
    rng: np.random.Generator,
) -> tuple[Tensor, tuple[float, float]]:
    """Loss of one video; cross entropy of its answers, and the share of right ones."""
    lesson = prompts.lesson
    scores = score_lesson(selector, lesson, str(backbone.device))
    count = count_kept(scores.shape[1], float(rng.choice(_RATIOS)))
    mask = soft_mask(scores, count, temperature)
    batch, length = prompts.rows.shape[:2]
    seen = mask.new_zeros(batch, length)
    seen[:, prompts.cells] = mask.clamp_min(1e-6).log()
    causal = torch.full((length, length), torch.finfo(torch.float32).min, device=mask.device).triu(1)
    bias = (causal + seen[:, None, None]).to(backbone.dtype)
    first = 0 if teaching.place == INPUT else int(teaching.place) + 1
    layers = range(first, len(backbone.language.layers))
    hidden = backbone.run(prompts.rows, prompts.positions, layers, mask=bias)
    last = hidden[torch.arange(batch, device=mask.device), prompts.last]
    logits = backbone.model.lm_head(backbone.language.norm(last)).float()
    answer = F.cross_entropy(logits, prompts.truth)
    taught = total(*distillation_loss(scores, lesson.importance.to(mask.device)))
    right = (logits.argmax(-1) == prompts.truth).float().mean().item()
    return answer + _TEACHER_WEIGHT * taught, (answer.item(), right)


@torch.no_grad()
def _prompts(backbone: Backbone, item: Item, teaching: Teaching) -> _Prompts:
    clip = backbone.encode(item.video.frames(teaching.max_frames))
    asked = [backbone.ask(question) for question in item.questions[:_QUESTIONS_A_CLIP]]
    taught = backbone.see(clip, asked, teaching.layer)
    if teaching.place == INPUT:
        video, text = clip.features, [backbone.embed(each.question) for each in asked]
        rows = [backbone.rows(clip, each) for each in asked]
    else:
        inside = backbone.see(clip, asked, int(teaching.place))
        video = inside[0].medium[clip.cells]
        text = [state.tail[each.rows] for state, each in zip(inside, asked, strict=True)]
        rows = [torch.cat([state.head, state.medium, state.tail]) for state in inside]
    positions = [backbone.positions(clip, each).T for each in asked]
    importance = torch.stack([each.importance for each in taught])
    truth = [first_token(backbone, answer) for answer in item.answers[:_QUESTIONS_A_CLIP]]
    return _Prompts(
        lesson=Lesson(video.float(), [each.float() for each in text], importance, clip.grid),
        rows=torch.nn.utils.rnn.pad_sequence(rows, batch_first=True),
        positions=torch.nn.utils.rnn.pad_sequence(positions, batch_first=True).permute(2, 0, 1),
        last=torch.tensor([len(each) - 1 for each in rows], device=backbone.device),
        cells=len(asked[0].head) + clip.cells,
        truth=torch.tensor(truth, device=backbone.device),
    )
