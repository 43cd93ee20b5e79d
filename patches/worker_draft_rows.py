"""Give a drafter that sees videos their kept rows, on the V2 model runner."""

import functools
from typing import Any

from vllm_prune.patches.base import Patch
from vllm_prune.patches.checks import require_leading, require_signature, require_source

_MODULE = "vllm.v1.worker.gpu.model_states.default"
_TARGET = f"{_MODULE}:DefaultModelState.gather_mm_embeddings"
_MARK = "_vllm_prune_unpacks_draft_rows"


def _state() -> type[Any]:
    from vllm.v1.worker.gpu.model_states.default import DefaultModelState

    return DefaultModelState


def _base() -> type[Any]:
    from vllm.v1.worker.gpu.model_states.interface import ModelState

    return ModelState


def _verify() -> None:
    state, rows = _state(), "input_batch, draft_lookahead"
    require_signature(state.gather_mm_embeddings, "(self, input_batch, draft_lookahead=0)", _TARGET)
    gathers = (f"super().gather_mm_embeddings( {rows} )", "self.mm_pruner.strip(mm_embeds)")
    require_source(state.gather_mm_embeddings, gathers, _TARGET)
    prepare = state.prepare_inputs_embeds
    arguments = ("self", "scheduled_encoder_inputs", "input_batch", "req_states")
    require_leading(prepare, arguments, f"{_MODULE}:DefaultModelState.prepare_inputs_embeds")
    gather = ("input_batch.num_tokens,", "input_batch.num_computed_tokens_np,", "draft_lookahead=draft_lookahead,")
    require_source(_base().gather_mm_embeddings, gather, "ModelState.gather_mm_embeddings")


def _install() -> None:
    state = _state()
    original, prepare, packed = state.gather_mm_embeddings, state.prepare_inputs_embeds, _base().gather_mm_embeddings

    @functools.wraps(prepare)
    def prepare_inputs_embeds(
        self: Any, scheduled_encoder_inputs: Any, input_batch: Any, req_states: Any, *args: Any, **kwargs: Any
    ) -> Any:
        from vllm_prune.serving.worker.draft_rows import remember_requests

        remember_requests(self, req_states)
        return prepare(self, scheduled_encoder_inputs, input_batch, req_states, *args, **kwargs)

    @functools.wraps(original)
    def gather_mm_embeddings(self: Any, input_batch: Any, draft_lookahead: int = 0) -> Any:
        from vllm_prune.serving.worker.draft_rows import gather

        ways = [functools.partial(way, self, input_batch, draft_lookahead) for way in (packed, original)]
        return gather(self, input_batch, draft_lookahead, *ways)

    setattr(gather_mm_embeddings, _MARK, True)
    state.gather_mm_embeddings, state.prepare_inputs_embeds = gather_mm_embeddings, prepare_inputs_embeds


PATCH = Patch(
    name="worker_draft_rows",
    target=_TARGET,
    process="worker",
    trigger=_MODULE,
    why=(
        "For a drafter that sees media (a checkpoint's own MTP layers) the runner cuts their rows out of the encoder "
        "cache by columns, which holds for vLLM's own pruning only: ours are packed, those that a question chooses "
        "from are more than stay, and the runner hands over no prompt to choose by."
    ),
    how=(
        "Wraps the method: for a model that packs rows, they are unpacked by the place of each in its prompt. Wraps "
        "`prepare_inputs_embeds`, too, from which prompts are known. For other models nothing changes."
    ),
    upstream=("https://github.com/vllm-project/vllm/issues/45098",),
    remove_when="vllm>=0.33",
    needed=lambda: True,
    applied=lambda: hasattr(_state().gather_mm_embeddings, _MARK),
    verify=_verify,
    install=_install,
)
