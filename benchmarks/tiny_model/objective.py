"""The training loss: answers, plus auxiliary losses without which colours never bind to their attributes.

The auxiliary parts act on merged vision tokens: linear heads name what a token shows, and the token is pulled towards
the text embedding of its object's colour word, so that a question's word can find it by similarity. Heads are dropped
at export.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen2_5_VLForConditionalGeneration

from .forward import decode, encode_video
from .labels import CLASSES
from .packing import HEAD_TEXT, IGNORED, vision_end_id
from .scene import COLOUR_NAMES
from .tokenizer import encode, token_id

ALIGNMENT_TEMPERATURE = 0.1
HEADS_WEIGHT = 0.5
ALIGNMENT_WEIGHT = 0.3


class AuxiliaryHeads(nn.Module):
    """One linear classifier per kind of label, on merged vision tokens of width ``width``."""

    def __init__(self, width: int):
        super().__init__()
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


HEAD_IDS = torch.tensor(encode(HEAD_TEXT))
AFTER_IDS = torch.tensor([vision_end_id()])


def tail_logits(
    model: Qwen2_5_VLForConditionalGeneration,
    video: Tensor,
    tail_ids: Tensor,
    mask: Tensor,
    rotary: tuple[Tensor, Tensor],
) -> Tensor:
    """Logits ``[B, TAIL_LENGTH, vocabulary]`` given vision tokens ``video [B, N, C]``."""
    embed = model.model.language_model.embed_tokens
    batch = video.shape[0]
    head = embed(HEAD_IDS).expand(batch, -1, -1)
    after = embed(AFTER_IDS).expand(batch, -1, -1)
    hidden = decode(model, torch.cat([head, video, after, embed(tail_ids)], dim=1), mask, rotary)
    return model.lm_head(hidden[:, -tail_ids.shape[1] :])


class Objective(nn.Module):
    """Loss of a batch; holds the model and the auxiliary heads."""

    def __init__(self, model: Qwen2_5_VLForConditionalGeneration):
        super().__init__()
        self.model = model
        self.auxiliary = AuxiliaryHeads(model.config.text_config.hidden_size)
        self.colour_words = torch.tensor([token_id(f" {name}") for name in COLOUR_NAMES])

    def forward(
        self,
        patches: Tensor,
        vision_rotary: tuple[Tensor, Tensor],
        tail_ids: Tensor,
        targets: Tensor,
        mask: Tensor,
        rotary: tuple[Tensor, Tensor],
        labels: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns (total, answer loss, heads' loss, alignment loss)."""
        tokens = encode_video(self.model, patches, vision_rotary)
        video = tokens.view(tail_ids.shape[0], -1, tokens.shape[-1])
        logits = tail_logits(self.model, video, tail_ids, mask, rotary)
        answers = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
        flat, flat_labels = video.flatten(0, 1), labels.flatten(0, 1)
        heads = self.auxiliary(flat, flat_labels)
        words = self.model.model.language_model.embed_tokens.weight[self.colour_words]
        alignment = alignment_loss(flat, flat_labels[:, 0], words)
        return answers + HEADS_WEIGHT * heads + ALIGNMENT_WEIGHT * alignment, answers, heads, alignment
