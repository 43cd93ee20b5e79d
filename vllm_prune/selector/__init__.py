"""Learned selectors: small networks that say how relevant each visual token is to a question.

A selector reads the visual tokens and the question's embeddings as they enter a layer of the decoder, and gives every
token a log-relevance; a method then picks tokens by it. It is trained from the decoder's own attention
(`vllm_prune/training`) and lives in a file of its own. Torch and safetensors only: training, serving and evaluation
share it.
"""

from vllm_prune.selector.config import INPUT, SelectorConfig
from vllm_prune.selector.errors import SelectorFileError
from vllm_prune.selector.header import Header, ModelIdentity, read_header
from vllm_prune.selector.model import Selector
from vllm_prune.selector.storage import LoadedSelector, digest, load_selector, write_selector

__all__ = [
    "INPUT",
    "Header",
    "LoadedSelector",
    "ModelIdentity",
    "Selector",
    "SelectorConfig",
    "SelectorFileError",
    "digest",
    "load_selector",
    "read_header",
    "write_selector",
]
