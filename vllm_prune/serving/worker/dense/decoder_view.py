"""What a dense prefix asks of a decoder. It calls the decoder's own layers, and knows nothing of what is in them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vllm_prune.config import PruneConfig
from vllm_prune.serving.worker.dense.attention import find_attention, find_states


class DecoderView:
    """A decoder whose layers take and give hidden states with a residual, as most of vLLM's do.

    A family whose decoder does otherwise overrides what differs.
    """

    levels = 0
    """Of the first layers, how many are followed by rows of the vision encoder that are added to the hidden states."""

    def __init__(self, language_model: Any) -> None:
        """`language_model`: vLLM's decoder-only model."""
        self._decoder = language_model.model
        self.layers: list[nn.Module] = list(self._decoder.layers)
        found = {index: find_states(layer) for index, layer in enumerate(self.layers)}
        self.states = {index: states for index, states in found.items() if states is not None}
        """vLLM's Gated DeltaNet of every layer that keeps a state in place of keys and values, by its index."""
        self.attention = {
            index: find_attention(layer, f"layer {index}")
            for index, layer in enumerate(self.layers)
            if index not in self.states
        }
        """vLLM's `Attention` of every other layer, by its index."""

    def pruning_layers(self, config: PruneConfig) -> tuple[int, ...]:
        """The layers behind which `config` drops tokens."""
        return config.resolved_layers(len(self.layers), self.levels, self.states)

    def enter(self, embeds: torch.Tensor) -> torch.Tensor:
        """What goes into the first layer, [n, C], of embeddings [n, C]."""
        return embeds

    def run_layer(
        self, index: int, positions: torch.Tensor, hidden: torch.Tensor, residual: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states [n, C] and residual [n, C] behind a layer; their sum is what the layers made of the rows.

        Args:
            index: Of the layer.
            positions: [3, n].
            hidden: [n, C].
            residual: [n, C]; None before the first layer.
        """
        # By keyword, since layers differ in the order.
        return self.layers[index](positions=positions, hidden_states=hidden, residual=residual)

    def leave(self, hidden: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """The decoder's output [n, C], of what the last layer gave."""
        return self._decoder.norm(hidden, residual)[0]

    def take_level_rows(self, num_rows: int) -> list[torch.Tensor]:
        """For each of `levels`, the rows [num_rows, C] of the step that are added behind its layer; taken once."""
        return []


class DeepstackView(DecoderView):
    """A decoder with deepstack, as vLLM's Qwen3-VL hands it the rows: in buffers of the model around it."""

    def __init__(self, model: Any) -> None:
        """`model`: vLLM's multimodal model."""
        super().__init__(model.language_model)
        self._model = model
        self.levels = model.deepstack_num_level if model.use_deepstack else 0

    def take_level_rows(self, num_rows: int) -> list[torch.Tensor]:
        """Of the buffers, which are empty afterwards, as the model's own `forward` leaves them."""
        found = self._model._get_deepstack_input_embeds(num_rows)
        if found is None:
            return []
        rows = [found[f"deepstack_input_embeds_{level}"].clone() for level in range(self.levels)]
        self._model._clear_deepstack_input_embeds(num_rows)
        return rows
