"""The learned selectors of one worker."""

from __future__ import annotations

from collections.abc import Callable

import torch
from vllm.config import VllmConfig

from vllm_prune.selector import Selector
from vllm_prune.serving.wire.selector_file import Place, check_embeddings, load_checked_selectors
from vllm_prune.serving.worker.upload import upload


class Selectors:
    """Loaded, and held against the model."""

    def __init__(self, vllm_config: VllmConfig, embed_text: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Loads those that the settings name.

        Args:
            vllm_config: vLLM's.
            embed_text: Token ids [Q] to embeddings [Q, C].

        Raises:
            PruneConfigError: A file is another one than where the server was started, or is unreadable here.
        """
        self._embed_text, self._device = embed_text, torch.device(vllm_config.device_config.device)
        self._loaded = load_checked_selectors(vllm_config.model_config)
        self.by_place: dict[Place, Selector] = {
            place: loaded.selector.to(self._device) for place, loaded in self._loaded.items()
        }
        """By where they read. The processor refuses requests of servers that have none there."""

    def check_embeddings(self) -> None:
        """Holds them against the embeddings of the model, once these are loaded."""
        for loaded in self._loaded.values():
            check_embeddings(loaded, lambda ids: self._embed_text(upload(ids, self._device)))
