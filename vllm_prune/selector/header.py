"""What a selector file says of itself, read without its weights."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from vllm_prune.selector.config import INPUT, SelectorConfig
from vllm_prune.selector.errors import SelectorFileError

FORMAT, VERSION = "vllm-prune selector", 1
_KEY = "selector"
_LARGEST_FILE = 256 << 20  # bytes; `joint` of 512 channels for a 7B model takes 30 MB
_LARGEST_HEADER = 1 << 20
_LENGTH_BYTES = 8  # of the header's length, at the start of a safetensors file


@dataclass(frozen=True, kw_only=True)
class ModelIdentity:
    """The model that a selector was trained for; what tells it from another of the same width."""

    architecture: str
    """First of `architectures` in config.json."""
    hidden_size: int
    num_layers: int
    """Of the decoder."""
    vocab_size: int
    revision: str = ""
    """Commit on the hub; "" if the model came from a folder."""
    name: str = ""
    """As training was called with it; told, never compared."""

    def difference(self, served: ModelIdentity) -> str:
        """What differs in the model to be served, in words; "" if nothing does."""
        for name in ("architecture", "hidden_size", "num_layers", "vocab_size"):
            trained, given = getattr(self, name), getattr(served, name)
            if trained != given:
                return f"{name}={given!r} of the model, {trained!r} where it was trained ({self.name})"
        if self.revision and served.revision and self.revision != served.revision:
            return f"revision={served.revision!r} of the model, {self.revision!r} where it was trained ({self.name})"
        return ""


@dataclass(frozen=True, kw_only=True)
class Header:
    """Everything but the weights."""

    config: SelectorConfig
    model: ModelIdentity
    place: str | int = INPUT
    """Where it reads: INPUT, or the index of the layer whose output it reads."""
    training: dict[str, Any] = field(default_factory=dict)
    """Facts for people: data, steps, losses, recall. Nothing depends on them."""

    def to_metadata(self, payload: str) -> dict[str, str]:
        """What a safetensors file carries; `payload` is the SHA-256 of its tensors' bytes.

        One entry, as safetensors writes several in any order, and the same selector is to give the same file.
        """
        facts = {"format": FORMAT, "version": VERSION, "payload": payload, **asdict(self)}
        return {_KEY: json.dumps(facts)}


def read_header(path: str | Path) -> Header:
    """The header of a file; SelectorFileError for one that is unreadable, damaged, or of another format."""
    return parse(path, read_bytes(path))[0]


def read_bytes(path: str | Path) -> bytes:
    """The whole file, a regular one of bounded size."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise SelectorFileError(path, "not a regular file")
            data = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise SelectorFileError(path, f"cannot be read: {error.strerror or error}") from error
    if not 0 < len(data) <= _LARGEST_FILE:
        raise SelectorFileError(path, f"{facts.st_size} bytes; use a file of 1 to {_LARGEST_FILE}")
    return data


def parse(path: str | Path, data: bytes) -> tuple[Header, str, bytes]:
    """Header, declared digest of the tensors, and their bytes."""
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    end = _LENGTH_BYTES + length
    if len(data) < _LENGTH_BYTES or not 0 < length <= _LARGEST_HEADER or end > len(data):
        raise SelectorFileError(path, "not a safetensors file, or one cut off in its header")
    try:
        metadata = json.loads(data[_LENGTH_BYTES:end]).get("__metadata__")
        facts = json.loads(metadata[_KEY])
        if facts["format"] != FORMAT:
            raise ValueError(facts["format"])
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise SelectorFileError(path, f"not a safetensors file with a selector: {error!r:.200}") from error
    if facts.get("version") != VERSION:
        raise SelectorFileError(path, f"version={facts.get('version')!r}; this release reads {VERSION}")
    try:
        return _header(facts), str(facts.get("payload")), data[end:]
    except (ValueError, TypeError) as error:
        raise SelectorFileError(path, f"its metadata is damaged: {error}") from error


def _header(facts: dict[str, Any]) -> Header:
    place, training = facts.get("place"), facts.get("training")
    if place != INPUT and (type(place) is not int or not 0 <= place < 1024):
        raise ValueError(f'place={place!r}; use "{INPUT}" or the index of a layer')
    if not isinstance(training, dict):
        raise ValueError(f"training={training!r}; use an object")
    config, model = SelectorConfig.from_dict(facts.get("config")), _identity(facts.get("model"))
    if model.hidden_size != config.width:
        raise ValueError(f"hidden_size={model.hidden_size} of the model, width={config.width} of the selector")
    return Header(config=config, model=model, place=place, training=training)


def _identity(values: Any) -> ModelIdentity:
    kinds = {item.name: int if item.type == "int" else str for item in fields(ModelIdentity)}
    if not isinstance(values, dict) or set(values) != set(kinds):
        raise ValueError(f"model={values!r}; use exactly the fields {', '.join(kinds)}")
    for name, kind in kinds.items():
        if type(values[name]) is not kind:
            raise ValueError(f"model: {name}={values[name]!r}; use {kind.__name__}")
        if kind is int and not 0 < values[name] < 1 << 31:
            raise ValueError(f"model: {name}={values[name]}; use 1 to {(1 << 31) - 1}")
    return ModelIdentity(**values)
