"""The server's learned selectors: files, read in every process that needs them, and the same in all of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from vllm.config import ModelConfig

from vllm_prune.config import ATTENTION, QUESTION, PruneConfig, PruneConfigError
from vllm_prune.selector import INPUT, LoadedSelector, ModelIdentity, SelectorFileError, load_selector
from vllm_prune.serving.wire.architectures import variants
from vllm_prune.serving.wire.decoder_layers import pruning_layers
from vllm_prune.serving.wire.settings import read_selector_digests, read_settings, write_selector_digests

OPTION = "--prune-selector"

Place = str | int
"""Where a selector reads: INPUT, or the index of the layer whose output it reads."""


def check_selectors(model_config: ModelConfig) -> None:
    """Reads the files that the settings name, and leaves their digests with the model's configuration.

    Raises:
        PruneConfigError: One cannot be used with this model, reads where nothing can be chosen, or where another does.
    """
    found = _load(model_config)
    for place, loaded in found.items():
        _check_place(place, loaded.path, model_config)
    if found:
        write_selector_digests(model_config.hf_config, {place: loaded.digest for place, loaded in found.items()})


def _check_place(place: Place, path: str, model_config: ModelConfig) -> None:
    if place == INPUT:
        return
    try:
        pruning_layers(PruneConfig(method=ATTENTION, layers=(int(place),)), model_config)
    except PruneConfigError as error:
        raise PruneConfigError(
            f"{OPTION}: {path} reads {_describe(place)}, behind which no token can be dropped: {error}"
        ) from error


def check_inside_selectors(model_config: ModelConfig, undivided: str) -> None:
    """Raises PruneConfigError for one that reads inside a decoder that is `undivided` for the reason given."""
    inside = [place for place in read_selector_digests(model_config.hf_config) if place != INPUT]
    if undivided and inside:
        raise PruneConfigError(f"{OPTION}: one reads {_describe(inside[0])}: {undivided}")


def load_checked_selectors(model_config: ModelConfig) -> dict[Place, LoadedSelector]:
    """The selectors by where they read, for a worker.

    Raises:
        PruneConfigError: A file is another one here than where the server was started, or is unreadable here.
    """
    found = _load(model_config)
    expected = read_selector_digests(model_config.hf_config)
    for place, loaded in found.items():
        if loaded.digest != expected.get(place):
            raise PruneConfigError(
                f"{OPTION} {loaded.path}: has the SHA-256 {loaded.digest[:16]}... on this node, and "
                f"{str(expected.get(place))[:16]}... where the server was started; put the same file on every node"
            )
    return found


def needed_digests(config: PruneConfig, model_config: ModelConfig) -> list[str]:
    """SHA-256 of the files that `config` chooses by, in the order of its choices.

    Raises:
        PruneConfigError: The server has no selector that reads where one is needed.
    """
    if not config.needs_selector:
        return []
    digests = read_selector_digests(model_config.hf_config)
    inside = config.method != QUESTION
    places: tuple[Place, ...] = pruning_layers(config, model_config) if inside else (INPUT,)
    for place in places:
        if place not in digests:
            raise PruneConfigError(_missing(place, list(digests)))
    return [digests[place] for place in places]


def _missing(place: Place, given: list[Place]) -> str:
    option, otherwise = ("", '"relevance": "text"')
    if place != INPUT:
        option, otherwise = f" --layer {place}", 'other layers, or "relevance": "attention"'
    has = " and ".join(f"one that reads {_describe(other)}" for other in given) or "no selector"
    return (
        f'params.relevance="learned": needs a selector that reads {_describe(place)}, and this server has {has}; start '
        f"it with {OPTION} FILE, which `vllm-prune train-selector{option}` makes, or give {otherwise}"
    )


def _describe(place: Place) -> str:
    return "what enters layer 0" if place == INPUT else f"the output of layer {place}"


def check_embeddings(found: LoadedSelector, embed_text: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Raises PruneConfigError where token ids [Q] have other embeddings [Q, C] than where the selector was trained.

    Every tensor-parallel rank has to call it.
    """
    try:
        found.check_embeddings(embed_text)
    except SelectorFileError as error:
        raise PruneConfigError(f"{OPTION}: {error}") from error


def _load(model_config: ModelConfig) -> dict[Place, LoadedSelector]:
    found: dict[Place, LoadedSelector] = {}
    for path in read_settings(model_config.hf_config).selectors:
        try:
            loaded = load_selector(
                path, width=model_config.get_inputs_embeds_size(), model=_identity(model_config), place=None
            )
        except SelectorFileError as error:
            raise PruneConfigError(f"{OPTION}: {error}") from error
        place = loaded.header.place
        if place in found:
            raise PruneConfigError(
                f"{OPTION}: {found[place].path} and {path} both read {_describe(place)}; give one of the two"
            )
        found[place] = loaded
    return found


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
