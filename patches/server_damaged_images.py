"""Answer a picture, or embeddings of one, whose decoder fails in its own way as one that cannot be loaded."""

import functools
from typing import Any

from vllm_prune.patches.base import Patch
from vllm_prune.patches.checks import require_leading, require_source

_MODULE = "vllm.multimodal.media.image"
_TARGET = f"{_MODULE}:ImageMediaIO.load_bytes"
_MARK = "_vllm_prune_knows_decoders"


def _image_io() -> type[Any]:
    from vllm.multimodal.media.image import ImageMediaIO

    return ImageMediaIO


def _embedding_io() -> type[Any]:
    from vllm.multimodal.media.image import ImageEmbeddingMediaIO

    return ImageEmbeddingMediaIO


def _verify() -> None:
    function = _image_io().load_bytes
    require_leading(function, ("self", "data"), _TARGET)
    require_leading(_embedding_io().load_bytes, ("self", "data"), f"{_MODULE}:ImageEmbeddingMediaIO.load_bytes")
    require_source(function, ("except (OSError, Image.UnidentifiedImageError", "raise ValueError("), _TARGET)


def _install() -> None:
    for loader, what in ((_embedding_io(), "image embeddings"), (_image_io(), "image")):
        loader.load_bytes = _explained(loader.load_bytes, what)


def _explained(original: Any, what: str) -> Any:
    @functools.wraps(original)
    def load_bytes(self: Any, data: bytes) -> Any:
        try:
            return original(self, data)
        except (ValueError, MemoryError):
            raise
        except Exception as error:  # decoders raise what they like; all of it is about the file
            reason = str(error).partition("\n")[0]  # PyTorch goes on with advice for the server's owner
            raise ValueError(f"Failed to load {what}: {reason or type(error).__name__}") from error

    setattr(load_bytes, _MARK, True)
    return load_bytes


PATCH = Patch(
    name="server_damaged_images",
    target=_TARGET,
    process="API server",
    trigger=_MODULE,
    why=(
        "vLLM knows two of the errors that Pillow's decoders raise. Others (`SyntaxError` of PNG and AVIF, "
        "`RuntimeError` of AVIF, `DecompressionBombError` of any file that says it is too large) end in HTTP 500, and "
        "so do all that PyTorch raises about embeddings."
    ),
    how=(
        "Wraps the method, and `ImageEmbeddingMediaIO.load_bytes`: whatever a decoder raises becomes the "
        "ValueError that vLLM raises for those two (HTTP 4xx)."
    ),
    upstream=("https://github.com/vllm-project/vllm/issues/21254",),
    remove_when="vllm>=0.33",
    needed=lambda: True,
    applied=lambda: hasattr(_image_io().load_bytes, _MARK),
    verify=_verify,
    install=_install,
)
