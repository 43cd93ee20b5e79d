"""The training loss: answers, plus auxiliary losses that help colours bind to their attributes.

The auxiliary parts act on merged vision tokens: linear heads name what a token shows, and, with alignment, the
token is pulled towards the text embedding of its object's colour word, so that a question's word can find it by
similarity. Heads are dropped at export.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from .forward import decode, encode_video
from .labels import CLASSES
from .packing import IGNORED
from .scene import COLOUR_NAMES
from .tokenizer import token_id

ALIGNMENT_TEMPERATURE = 0.1
HEADS_WEIGHT = 0.5
ALIGNMENT_WEIGHT = 0.3


class AuxiliaryHeads(nn.Module):
    """One linear classifier per kind of label, on merged vision tokens of width ``width``."""

    def __init__(self, width: int):
        super().__init__()
        self.width = width
        self.heads = nn.ModuleDict({name: nn.Linear(width, classes) for name, classes in CLASSES.items()})

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of ``tokens [M, C]`` against ``labels [M, 4]``; tokens that show nothing count a tenth."""
        total = tokens.new_zeros((), dtype=torch.float32)
        for index, head in enumerate(self.heads.values()):
            target = labels[:, index]
            weight = torch.where(target > 0, 1.0, 0.1)
            loss = F.cross_entropy(head(tokens).float(), target, reduction="none")
            total = total + (loss * weight).sum() / weight.sum()
        return total


def alignment_loss(tokens: Tensor, colour: Tensor, words: Tensor) -> Tensor:
    """Cross-entropy over cosine similarities of ``tokens [M, C]`` with colour words ``[7, C]``; label 0 is ignored."""
    similarity = F.normalize(tokens.float(), dim=-1) @ F.normalize(words.float(), dim=-1).T
    return F.cross_entropy(similarity / ALIGNMENT_TEMPERATURE, colour - 1, ignore_index=-1)


def packed_rows(
    model: PreTrainedModel, video: Tensor, shared_ids: tuple[Tensor, Tensor, Tensor, Tensor], tail_ids: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Embeddings ``[B, S, C]`` of tails ``[B, L]`` behind videos ``[B, pairs, 16, (1 + levels) * C]``, and the levels.

    ``shared_ids`` are head, lead, after and closing of a ``VideoLayout``.
    """
    embed = model.model.language_model.embed_tokens
    head, lead, after, closing = (embed(ids).expand(len(video), *ids.shape, -1) for ids in shared_ids)
    first, *later = video.split(model.config.text_config.hidden_size, dim=-1)
    steps = torch.cat([lead, first, after], dim=2).flatten(1, 2)
    tail = embed(tail_ids)
    behind = closing.shape[1] + tail.shape[1]
    levels = [
        F.pad(F.pad(level, (0, 0, lead.shape[2], after.shape[2])).flatten(1, 2), (0, 0, head.shape[1], behind))
        for level in later
    ]
    return torch.cat([head, steps, closing, tail], dim=1), levels


def tail_logits(
    model: PreTrainedModel,
    video: Tensor,
    shared_ids: tuple[Tensor, Tensor, Tensor, Tensor],
    tail_ids: Tensor,
    mask: Tensor,
    rotary: tuple[Tensor, Tensor],
) -> Tensor:
    """Logits ``[B, L, vocabulary]`` of the tails of ``packed_rows``."""
    embeds, levels = packed_rows(model, video, shared_ids, tail_ids)
    return model.lm_head(decode(model, embeds, levels, mask, rotary)[:, -tail_ids.shape[1] :])


class Objective(nn.Module):
    """Loss of a batch; holds the model and the auxiliary heads. ``align`` pulls tokens towards colour words."""

    def __init__(self, model: PreTrainedModel, align: bool):
        super().__init__()
        self.model = model
        self.align = align
        self.auxiliary = AuxiliaryHeads(model.config.text_config.hidden_size)
        self.colour_words = torch.tensor([token_id(f" {name}") for name in COLOUR_NAMES])

    def forward(
        self,
        patches: Tensor,
        vision_rotary: tuple[Tensor, Tensor],
        shared_ids: tuple[Tensor, Tensor, Tensor, Tensor],
        tail_ids: Tensor,
        targets: Tensor,
        mask: Tensor,
        rotary: tuple[Tensor, Tensor],
        labels: Tensor,
        heads_only: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns (total, answer loss, heads' loss, alignment loss); 0 for what is not asked for.

        With ``heads_only`` the language model does not run.
        """
        video = encode_video(self.model, patches, vision_rotary).unflatten(0, (len(tail_ids), -1))
        answers = torch.zeros(())
        if not heads_only:
            logits = tail_logits(self.model, video, shared_ids, tail_ids, mask, rotary)
            answers = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
        flat, flat_labels = video[..., : self.auxiliary.width].flatten(0, 2), labels.flatten(0, 1)
        heads = self.auxiliary(flat, flat_labels)
        total = answers + HEADS_WEIGHT * heads
        alignment = torch.zeros_like(heads)
        if self.align:
            words = self.model.model.language_model.embed_tokens.weight[self.colour_words]
            alignment = alignment_loss(flat, flat_labels[:, 0], words)
            total = total + ALIGNMENT_WEIGHT * alignment
        return total, answers, heads, alignment
