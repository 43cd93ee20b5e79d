"""How good a selector is, on the videos kept out of training."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from vllm_prune.budget import count_kept
from vllm_prune.selector import Selector
from vllm_prune.training.backbone import Backbone
from vllm_prune.training.choosing import first_token, top
from vllm_prune.training.reading import read
from vllm_prune.training.sources import Item
from vllm_prune.training.teacher import Teaching, load_backbone

RATIOS = (0.25, 0.12, 0.06, 0.03)
UNPRUNED, FREE, BY_SCORE, BY_BOTH = "all tokens", "DPP, no question", "selector, top-k", "selector, DPP"
_MOST_CLIPS = 40
_TELL_EVERY = 10

Rights = dict[tuple[str, float], list[bool]]
"""Whether each question was answered rightly, by what chose and by share of tokens."""


@torch.no_grad()
def score_answers(
    selector: Selector, items: Sequence[Item], teaching: Teaching, device: str, tell: Callable[[str], None]
) -> Rights:
    """Answers of the model from tokens chosen where the selector reads, for items with known answers; {} without."""
    known = [item for item in items if all(item.answers)][:_MOST_CLIPS]
    if not known:
        return {}
    backbone = load_backbone(teaching, device)
    selector = selector.to(device)
    rights: Rights = {}
    for number, item in enumerate(known, 1):
        _score_item(backbone, selector, item, teaching, rights)
        if number % _TELL_EVERY == 0 or number == len(known):
            tell(f"accuracy: {number} of {len(known)} videos")
    selector.cpu()
    return rights


def _score_item(backbone: Backbone, selector: Selector, item: Item, teaching: Teaching, rights: Rights) -> None:
    clip = backbone.encode(item.video.frames(teaching.max_frames))
    asked = [backbone.ask(question) for question in item.questions]
    truth = torch.tensor([first_token(backbone, answer) for answer in item.answers], device=backbone.device)
    count = len(clip.features)
    reading = read(backbone, clip, asked, teaching.place)
    scores = reading.score(selector)

    def note(name: str, ratio: float, kept: list[torch.Tensor]) -> None:
        found = reading.answer(backbone, kept) == truth
        rights.setdefault((name, ratio), []).extend(found.tolist())

    note(UNPRUNED, 1.0, [torch.arange(count, device=backbone.device)] * len(asked))
    for ratio in RATIOS:
        budget = count_kept(count, ratio)
        # Before the question nothing depends on it: the video is the same to all.
        note(FREE, ratio, [reading.choose_diverse(0, budget, None)] * len(asked))
        note(BY_SCORE, ratio, [top(each, budget) for each in scores])
        note(BY_BOTH, ratio, [reading.choose_diverse(i, budget, each) for i, each in enumerate(scores)])


def percent(rights: Sequence[bool]) -> tuple[float, float]:
    """Mean and its standard error, in percent.

    >>> percent([True, True, False, True])
    (75.0, 25.0)
    """
    values = np.asarray(rights, dtype=float) * 100
    error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return round(float(values.mean()), 1), round(float(error), 1)
