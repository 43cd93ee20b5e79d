"""A checkpoint's own draft layer, as Qwen3.5 has it ("MTP"): written to a micro model, and run by hand."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5DecoderLayer, Qwen3_5RMSNorm

from .micro_model import randomize

_FILE, _PREFIX = "mtp.safetensors", "mtp."


class DraftLayer(nn.Module):
    """Drafts the token after next of each row from its hidden state and the next token's embedding."""

    def __init__(self, config: Any) -> None:
        """`config`: of the decoder."""
        super().__init__()
        own = copy.deepcopy(config)
        own.layer_types, own._attn_implementation = ["full_attention"], "eager"
        width, eps = own.hidden_size, own.rms_norm_eps
        self.fc = nn.Linear(2 * width, width, bias=False)
        self.layers = nn.ModuleList([Qwen3_5DecoderLayer(own, 0)])
        self.norm, self.pre_fc_norm_hidden, self.pre_fc_norm_embedding = (
            Qwen3_5RMSNorm(width, eps=eps) for _ in range(3)
        )

    @torch.no_grad()
    def run(self, model: PreTrainedModel, embeds: Tensor, hidden: Tensor, positions: Tensor) -> Tensor:
        """Normed rows [R, C], of which `model`'s head makes logits.

        Args:
            model: The target.
            embeds: Of the token after each row, [R, C].
            hidden: Of each row, after the target's last norm, [R, C].
            positions: Of each row, [3, R].
        """
        joined = torch.cat((self.pre_fc_norm_embedding(embeds), self.pre_fc_norm_hidden(hidden)), dim=1)
        rows = self.fc(joined)[None]
        hides = torch.full((len(embeds), len(embeds)), -torch.inf).triu(1)
        turned = model.model.language_model.rotary_emb(rows, positions[:, None])
        (rows,) = self.layers[0](rows, attention_mask=hides[None, None], position_embeddings=turned)
        return self.norm(rows)


def add_draft_layer(folder: Path, seed: int = 1) -> Path:
    """Gives the Qwen3.5 in `folder` a random one, and returns `folder`."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config["text_config"]["mtp_num_hidden_layers"] = 1
    file.write_text(json.dumps(config))
    layer = DraftLayer(AutoConfig.from_pretrained(folder).text_config)
    randomize(layer, seed)
    save_file({_PREFIX + name: weight for name, weight in layer.state_dict().items()}, folder / _FILE)
    return folder


def load_draft_layer(folder: Path) -> DraftLayer:
    """What `add_draft_layer` wrote."""
    layer = DraftLayer(AutoConfig.from_pretrained(folder).text_config)
    weights = load_file(folder / _FILE)
    layer.load_state_dict({name.removeprefix(_PREFIX): weight for name, weight in weights.items()})
    return layer.eval()
