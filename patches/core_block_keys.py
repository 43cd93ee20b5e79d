"""Key the KV blocks of a video whose tokens the question chooses by that question."""

import functools
from typing import Any

from vllm_prune.patches.base import Patch
from vllm_prune.patches.checks import require_leading, require_source

_MODULE = "vllm.v1.core.kv_cache_utils"
_TARGET = f"{_MODULE}:_gen_mm_extra_hash_keys"
_MARK = "_vllm_prune_keys_by_question"


def _module() -> Any:
    from vllm.v1.core import kv_cache_utils

    return kv_cache_utils


def _verify() -> None:
    module = _module()
    require_leading(module._gen_mm_extra_hash_keys, ("request", "start_token_idx", "end_token_idx"), _TARGET)
    call = ("mm_extra_keys, new_start_mm_idx = _gen_mm_extra_hash_keys(",)
    require_source(module.generate_block_hash_extra_keys, call, f"{_MODULE}:generate_block_hash_extra_keys")


def _install() -> None:
    original = _module()._gen_mm_extra_hash_keys

    @functools.wraps(original)
    def _gen_mm_extra_hash_keys(
        request: Any, start_token_idx: int, end_token_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[list[Any], int]:
        from vllm_prune.serving.core.spans import block_keys

        keys, next_mm_idx = original(request, start_token_idx, end_token_idx, *args, **kwargs)
        if request.mm_features:
            keys = keys + block_keys(request, start_token_idx, end_token_idx)
        return keys, next_mm_idx

    setattr(_gen_mm_extra_hash_keys, _MARK, True)
    _module()._gen_mm_extra_hash_keys = _gen_mm_extra_hash_keys


PATCH = Patch(
    name="core_block_keys",
    target=_TARGET,
    process="engine core",
    trigger=_MODULE,
    why=(
        "A block's hash covers the tokens up to its end and the media in it. Which of a video's tokens stay may depend "
        "on a question that follows, so two questions on one video would share blocks that differ."
    ),
    how="Wraps the function that makes the multimodal keys and adds a digest of the dense span to every block in it.",
    upstream=("https://github.com/vllm-project/vllm/issues/45098",),
    remove_when="vllm>=0.33",
    needed=lambda: True,
    applied=lambda: hasattr(_module()._gen_mm_extra_hash_keys, _MARK),
    verify=_verify,
    install=_install,
)
