"""Report a beam search as the one request that it is."""

import functools
from typing import Any

from vllm_prune.patches.base import Patch
from vllm_prune.patches.checks import require_leading, require_source

_MODULE = "vllm.entrypoints.generate.beam_search.online"
_TARGET = f"{_MODULE}:BeamSearchOnlineMixin.beam_search"
_MARK = "_vllm_prune_reports_searches"


def _mixin() -> type[Any]:
    from vllm.entrypoints.generate.beam_search.online import BeamSearchOnlineMixin

    return BeamSearchOnlineMixin


def _verify() -> None:
    search = _mixin().beam_search
    require_leading(search, ("self", "prompt", "request_id", "params"), _TARGET)
    steps = ("asyncio.create_task(", "self.engine_client.generate(", "beam.get_prompt()")
    require_source(search, steps, _TARGET)


def _install() -> None:
    beam_search = _mixin().beam_search

    @functools.wraps(beam_search)
    def search(self: Any, prompt: Any, request_id: str, *args: Any, **kwargs: Any) -> Any:
        from vllm_prune.serving.api.beams import report_search

        outputs = beam_search(self, prompt, request_id, *args, **kwargs)
        return report_search(self.engine_client.vllm_config, prompt, request_id, outputs)

    setattr(search, _MARK, True)
    _mixin().beam_search = search


PATCH = Patch(
    name="server_beam_reports",
    target=_TARGET,
    process="API server",
    trigger=_MODULE,
    why=(
        "A beam search asks the engine once for every beam and token, with prompts that it makes anew; what the "
        "multimodal processor knew of the request is in none of them."
    ),
    how="Wraps the search: its steps share the report of its prompt, which its output carries as `prune`.",
    upstream=("https://github.com/vllm-project/vllm/issues/45098",),
    remove_when="vllm>=0.33",
    needed=lambda: True,
    applied=lambda: hasattr(_mixin().beam_search, _MARK),
    verify=_verify,
    install=_install,
)
