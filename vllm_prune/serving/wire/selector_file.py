"""The server's learned selector: one file, read in every process that needs it, and the same in all of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from vllm.config import ModelConfig

from vllm_prune.config import PruneConfigError
from vllm_prune.selector import LoadedSelector, ModelIdentity, SelectorFileError, load_selector
from vllm_prune.serving.wire.architectures import variants
from vllm_prune.serving.wire.settings import read_selector_digest, read_settings, write_selector_digest

OPTION = "--prune-selector"


def check_selector(model_config: ModelConfig) -> None:
    """Reads the file that the settings name, if any, and leaves its digest with the model's configuration.

    Raises:
        PruneConfigError: It cannot be used with this model.
    """
    found = _load(model_config)
    if found is not None:
        write_selector_digest(model_config.hf_config, found.digest)


def load_checked_selector(model_config: ModelConfig) -> LoadedSelector | None:
    """The selector, for a worker.

    Raises:
        PruneConfigError: The file is another one here than where the server was started, or is unreadable here.
    """
    found = _load(model_config)
    if found is None:
        return None
    expected = read_selector_digest(model_config.hf_config)
    if found.digest != expected:
        raise PruneConfigError(
            f"{OPTION} {found.path}: has the SHA-256 {found.digest[:16]}... on this node, and "
            f"{str(expected)[:16]}... where the server was started; put the same file on every node"
        )
    return found


def check_embeddings(found: LoadedSelector, embed_text: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Raises PruneConfigError where token ids [Q] have other embeddings [Q, C] than where the selector was trained.

    Every tensor-parallel rank has to call it.
    """
    try:
        found.check_embeddings(embed_text)
    except SelectorFileError as error:
        raise PruneConfigError(f"{OPTION}: {error}") from error


def _load(model_config: ModelConfig) -> LoadedSelector | None:
    path = read_settings(model_config.hf_config).selector
    if path is None:
        return None
    try:
        return load_selector(path, width=model_config.get_inputs_embeds_size(), model=_identity(model_config))
    except SelectorFileError as error:
        raise PruneConfigError(f"{OPTION}: {error}") from error


def _identity(model_config: ModelConfig) -> ModelIdentity:
    """The served model, by the name that its architecture has without us."""
    text = model_config.hf_text_config
    return ModelIdentity(
        architecture=variants()[model_config.hf_config.architectures[0]][0],
        hidden_size=model_config.get_inputs_embeds_size(),
        num_layers=text.num_hidden_layers,
        vocab_size=text.vocab_size,
        revision=str(getattr(model_config.hf_config, "_commit_hash", None) or ""),
        name=str(model_config.model),
    )
