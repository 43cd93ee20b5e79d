"""Report how many tokens videos and images had before pruning, beside the count of its placeholders."""

import functools
from typing import Any

from vllm_prune.patches.base import Patch
from vllm_prune.patches.checks import require_leading, require_source

_MODULE = "vllm.entrypoints.openai.chat_completion.serving"
_TARGET = f"{_MODULE}:_get_mm_token_counts"
_MARK = "_vllm_prune_reports_counts"


def _module() -> Any:
    from vllm.entrypoints.openai.chat_completion import serving

    return serving


def _verify() -> None:
    function = _module()._get_mm_token_counts
    require_leading(function, ("engine_input",), _TARGET)
    require_source(function, ('engine_input.get("mm_placeholders")',), _TARGET)


def _install() -> None:
    original = _module()._get_mm_token_counts

    @functools.wraps(original)
    def _get_mm_token_counts(engine_input: Any, *args: Any, **kwargs: Any) -> dict[str, int]:
        from vllm_prune.serving.api.headers import tell_prompt
        from vllm_prune.serving.api.prompt_facts import FACTS_KEY

        facts = engine_input.get(FACTS_KEY)
        tell_prompt(facts)
        counts = original(engine_input, *args, **kwargs)
        for modality in facts.modalities if facts else ():
            media = facts.counts(modality)
            counts[f"{modality}_before_pruning"] = sum(medium.total for medium in media)
            if structure := sum(medium.pinned for medium in media):
                counts[modality], counts[f"{modality}_structure"] = sum(medium.kept for medium in media), structure
        return counts

    setattr(_get_mm_token_counts, _MARK, True)
    _module()._get_mm_token_counts = _get_mm_token_counts


PATCH = Patch(
    name="server_usage_counts",
    target=_TARGET,
    process="API server",
    trigger=_MODULE,
    why=(
        "`usage.prompt_tokens_details.multimodal_tokens` counts the placeholders that are left; a client cannot tell "
        "how many tokens its video or image had, nor how many are timestamps, and vLLM has no field for it."
    ),
    how=(
        "Wraps the function that makes the counts and adds `video_before_pruning`, `image_before_pruning` where images "
        "are pruned, and `video_structure` where text stands between the steps of a video, from our processor's "
        "report. What the processor found goes on to the headers (`server_report_headers`)."
    ),
    upstream=("https://github.com/vllm-project/vllm/issues/45098",),
    remove_when="vllm>=0.33",
    needed=lambda: True,
    applied=lambda: hasattr(_module()._get_mm_token_counts, _MARK),
    verify=_verify,
    install=_install,
)
