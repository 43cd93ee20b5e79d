"""The model side of features: hidden states of a step's rows, with what is needed to tell which rows they are.

Runs in the workers of a server that was started with `--runner pooling`. vLLM takes what `forward` returns for the
hidden states of the step's rows, and hands them to the model's pooler. So each row carries there, in further columns,
every layer that the server hands out, and the slot of its medium whose token it is:

    | layer | layer | ... | slot |
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.model_executor.layers.pooler.abstract import Pooler, PoolerOutput
from vllm.model_executor.layers.pooler.tokwise import AllPool
from vllm.tasks import PoolingTask
from vllm.v1.pool.metadata import PoolingMetadata

from vllm_prune.config import PruneConfigError
from vllm_prune.hook import Hooked, hook
from vllm_prune.serving.wire.digits import DIGITS, to_digits
from vllm_prune.serving.wire.features import KEY, served_layers
from vllm_prune.serving.wire.settings import read_settings
from vllm_prune.serving.worker.dense.captured import CapturedLayers
from vllm_prune.serving.worker.model import PruningModelMixin


class FeaturesPooler(Hooked, Pooler):
    """Gives a finished request the rows [L, C + 3] of its prompt at the layer that it asked for, and their slots."""

    def __init__(self, layers: Sequence[int], width: int) -> None:
        """`layers`: of which a row has columns; `width`: C."""
        super().__init__()
        self._all_rows = AllPool()
        self._layers, self._width = list(layers), width

    @hook
    def get_supported_tasks(self) -> Set[PoolingTask]:
        """Token by token only."""
        return {"token_embed"}

    @hook
    def forward(self, hidden_states: torch.Tensor, pooling_metadata: PoolingMetadata) -> PoolerOutput:
        """For each request its rows, or None where its prompt goes on in a later step."""
        prompts = self._all_rows(hidden_states, pooling_metadata)
        return [
            None if rows is None else self._columns(rows, params.extra_kwargs)
            for rows, params in zip(prompts, pooling_metadata.pooling_params, strict=True)
        ]

    def _columns(self, rows: torch.Tensor, asked: dict[str, Any] | None) -> torch.Tensor:
        layer = (asked or {}).get(KEY, {}).get("layer", self._layers[-1])  # vLLM's own dummy requests ask nothing
        first = self._layers.index(layer) * self._width
        return torch.cat((rows[:, first : first + self._width], rows[:, -DIGITS:]), dim=1)


class FeatureRows:
    """Makes the rows of a step."""

    def __init__(self, vllm_config: VllmConfig, language_model: Any) -> None:
        model = vllm_config.model_config
        self._last = model.get_total_num_hidden_layers()
        self.layers = served_layers(read_settings(model.hf_config).feature_layers, self._last)
        self.inner = [layer for layer in self.layers if 0 < layer < self._last]
        if self.inner:
            decoder = language_model.model
            if not hasattr(decoder, "aux_hidden_state_layers"):
                raise PruneConfigError(
                    f"feature_layers={list(self.layers)}: vLLM's {type(decoder).__name__} shows no layer between the "
                    f"first and the last; use 0 and -1"
                )
            # What vLLM has for drafters that read the target's layers (EAGLE-3); compiled models have it, too.
            decoder.aux_hidden_state_layers = tuple(self.inner)
        self._placed: list[tuple[int, torch.Tensor]] = []

    def capture(self) -> CapturedLayers:
        """For the next step, should it have dense prefixes."""
        return CapturedLayers([layer for layer in self.layers if layer < self._last])

    def place(self, slots: Sequence[torch.Tensor | None], media: Any, is_media: torch.Tensor | None) -> None:
        """Remembers which slots the rows of a step's media have.

        Args:
            slots: Of every medium with rows in the step, [n]; None: of an unpruned one, whose order tells.
            media: Their embeddings [n, C].
            is_media: Which batch rows they are, [batch rows] bool.
        """
        self._placed = []
        if not any(own is not None for own in slots) or is_media is None:
            return
        rows = is_media.to("cpu").nonzero().squeeze(1).tolist()
        for own, embeddings in zip(slots, media, strict=True):
            if own is not None:
                self._placed.append((rows[0], own[: len(embeddings)]))
            rows = rows[len(embeddings) :]

    def join(self, hidden: Any, embeds: torch.Tensor | None, captured: CapturedLayers) -> Any:
        """What `forward` returns, [batch rows, layers * C + 3].

        Args:
            hidden: What vLLM's returned, hidden states [batch rows, C], with those of inner layers if there are any.
            embeds: What entered, [batch rows, C].
            captured: What a dense prefix left.
        """
        hidden, inner = hidden if isinstance(hidden, tuple) else (hidden, [])
        found = {self._last: hidden, 0: embeds, **dict(zip(self.inner, inner, strict=False)), **captured.found}
        slots = torch.zeros(len(hidden), dtype=torch.int64, device=hidden.device)
        for row, own in (*self._placed, *captured.slots):
            slots[row : row + len(own)] = own.to(slots.device)
        self._placed = []
        columns = [found[layer][: len(hidden)] for layer in self.layers]
        return torch.cat((*columns, to_digits(slots[:, None]).to(hidden.dtype)), dim=1)


class FeatureRowsMixin(PruningModelMixin):
    """Pruning, and features where the server's runner is vLLM's for pooling."""

    def init_pruning(self, vllm_config: VllmConfig) -> None:
        """Call at the end of the variant's constructor."""
        super().init_pruning(vllm_config)
        self._features: FeatureRows | None = None
        if vllm_config.model_config.runner_type == "pooling":
            self._features = rows = FeatureRows(vllm_config, self.language_model)
            self.pooler = FeaturesPooler(rows.layers, vllm_config.model_config.get_inputs_embeds_size())

    @hook
    def embed_input_ids(
        self,
        input_ids: torch.Tensor,
        multimodal_embeddings: Any = None,
        *,
        is_multimodal: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Embeddings of the step's rows; notes where the rows of its media are."""
        if self._features is not None:
            self._features.place(self._slots, multimodal_embeddings, is_multimodal)
        return super().embed_input_ids(input_ids, multimodal_embeddings, is_multimodal=is_multimodal, **kwargs)

    @hook
    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """vLLM's own; on a server of features the rows that `FeaturesPooler` reads."""
        if self._features is None:
            return super().forward(input_ids, positions, intermediate_tensors, inputs_embeds, **kwargs)
        captured = self._features.capture()
        if self._dense_prefix is not None:
            self._dense_prefix.captured = captured
        hidden = super().forward(input_ids, positions, intermediate_tensors, inputs_embeds, **kwargs)
        return self._features.join(hidden, inputs_embeds, captured)
