"""The file of a selector: safetensors, with a header that says what it was trained for.

Nothing of a file is trusted: its size is bounded, its tensors must be exactly those that its configuration asks for,
and what is read once is what is checked, loaded and digested.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor

from vllm_prune.selector.config import INPUT
from vllm_prune.selector.errors import SelectorFileError
from vllm_prune.selector.header import Header, ModelIdentity, parse, read_bytes
from vllm_prune.selector.model import Selector

NUM_PROBES = 16
_LEAST_COSINE = 0.99  # quantised tables, and those of a light fine-tuning, are above; another model's are near 0
_PROBE_IDS, _PROBE_ROWS = "probe.ids", "probe.rows"


@dataclass(frozen=True)
class LoadedSelector:
    """A selector and where it came from."""

    path: str
    selector: Selector
    header: Header
    digest: str
    """SHA-256 of the file."""
    probe_ids: Tensor
    """[P] int64 token ids."""
    probe_rows: Tensor
    """[P, C] float32: their embeddings in the model of the training."""

    def check_embeddings(self, embed: Callable[[Tensor], Tensor]) -> None:
        """Raise SelectorFileError unless the served model embeds the probes as the model of the training does.

        embed: [P] int64 ids -> [P, C]. Called once; with a table split among ranks, every rank has to call it.
        """
        rows = embed(self.probe_ids).detach().float().cpu()
        if rows.shape != self.probe_rows.shape:
            shapes = f"{tuple(rows.shape)} of the model, {tuple(self.probe_rows.shape)} where it was trained"
            raise SelectorFileError(self.path, f"embeddings of probe tokens: {shapes}")
        cosine = torch.nn.functional.cosine_similarity(rows, self.probe_rows, dim=1)
        # A row of zeros (padding) has no direction.
        cosine = cosine.where(self.probe_rows.any(1), (~rows.any(1)).float())
        if not bool((cosine >= _LEAST_COSINE).all()):
            least = float(cosine.nan_to_num(-1).min())
            raise SelectorFileError(
                self.path,
                f"trained for another model ({self.header.model.name}): the embedding of a probe token has cosine "
                f"{least:.3f} to the one of the training; must be {_LEAST_COSINE} or more",
            )


def probe_ids(vocab_size: int) -> Tensor:
    """[P] int64, spread over the vocabulary.

    >>> probe_ids(33).tolist()[:4]
    [0, 2, 4, 6]
    """
    count = min(NUM_PROBES, vocab_size)
    return torch.arange(count) * (vocab_size // count)


def write_selector(path: str | Path, selector: Selector, header: Header, probes: Tensor) -> str:
    """Write the file, whole or not at all; its SHA-256.

    Args:
        path: Replaced if it exists.
        selector: Weights are stored as float32.
        header: With the selector's own configuration.
        probes: [P, C] the model's embeddings of `probe_ids`.
    """
    ids = probe_ids(header.model.vocab_size)
    tensors = {name: value.detach().float().cpu().contiguous() for name, value in selector.state_dict().items()}
    tensors |= {_PROBE_IDS: ids, _PROBE_ROWS: probes.detach().float().cpu().contiguous()}
    bare = safetensors.save(tensors)
    payload = bare[8 + int.from_bytes(bare[:8], "little") :]
    data = safetensors.save(tensors, header.to_metadata(hashlib.sha256(payload).hexdigest()))
    partial = Path(f"{path}.{os.getpid()}.partial")
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return hashlib.sha256(data).hexdigest()


def load_selector(
    path: str | Path, *, width: int, model: ModelIdentity | None = None, place: str | int | None = INPUT
) -> LoadedSelector:
    """The selector in a file, in float32 on the CPU, for inference.

    Args:
        path: The file.
        width: C of the model that is served.
        model: What is served; None leaves it unchecked.
        place: Where the selector is to read; None: wherever it does.

    Raises:
        SelectorFileError: Unreadable, truncated, not a selector, of another version; made for another width, model or
            place; tensors missing or of other shapes; NaN or Inf among the weights.
    """
    data = read_bytes(path)
    header, payload, body = parse(path, data)
    if header.config.width != width:
        raise SelectorFileError(path, f"width={header.config.width}; the model's hidden size is {width}")
    if place is not None and header.place != place:
        raise SelectorFileError(path, f"place={header.place!r}; it is to read at {place!r}")
    if model is not None and (difference := header.model.difference(model)):
        raise SelectorFileError(path, difference)
    tensors = _tensors(path, data)
    if hashlib.sha256(body).hexdigest() != payload:
        raise SelectorFileError(path, "its tensors are not those that were written: truncated or changed")
    ids, rows = _take_probes(path, tensors, header)
    selector = _build(path, tensors, header)
    return LoadedSelector(str(path), selector, header, hashlib.sha256(data).hexdigest(), ids, rows)


def digest(path: str | Path) -> str:
    """SHA-256 of a selector file, as of `LoadedSelector`."""
    return hashlib.sha256(read_bytes(path)).hexdigest()


def _tensors(path: str | Path, data: bytes) -> dict[str, Tensor]:
    try:
        return safetensors.load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise SelectorFileError(path, f"its tensors cannot be read: {error}") from error


def _take_probes(path: str | Path, tensors: dict[str, Tensor], header: Header) -> tuple[Tensor, Tensor]:
    ids, rows = tensors.pop(_PROBE_IDS, None), tensors.pop(_PROBE_ROWS, None)
    wanted = probe_ids(header.model.vocab_size)
    if ids is None or rows is None or ids.dtype != torch.int64 or not torch.equal(ids, wanted):
        raise SelectorFileError(path, f"{_PROBE_IDS} and {_PROBE_ROWS} are missing or damaged")
    if rows.shape != (len(ids), header.model.hidden_size) or rows.dtype != torch.float32:
        raise SelectorFileError(path, f"{_PROBE_ROWS}: {rows.dtype} {tuple(rows.shape)}")
    return ids, rows


def _build(path: str | Path, tensors: dict[str, Tensor], header: Header) -> Selector:
    """The network, with exactly these weights."""
    with torch.device("meta"):
        selector = Selector(header.config)
    expected = selector.state_dict()
    if odd := sorted(set(expected) ^ set(tensors)):
        state = "missing" if odd[0] in expected else "not one of a selector"
        raise SelectorFileError(path, f"tensor {odd[0]!r} is {state}")
    for name, tensor in sorted(tensors.items()):
        wanted = expected[name].shape
        if tensor.shape != wanted or tensor.dtype != torch.float32:
            shapes = f"{tensor.dtype} {tuple(tensor.shape)}; must be torch.float32 {tuple(wanted)}"
            raise SelectorFileError(path, f"tensor {name!r}: {shapes}")
        if not bool(tensor.isfinite().all()):
            raise SelectorFileError(path, f"tensor {name!r} holds NaN or Inf")
    selector.load_state_dict(tensors, assign=True)
    return selector.eval().requires_grad_(False)
