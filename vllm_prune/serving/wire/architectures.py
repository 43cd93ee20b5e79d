"""Which model families there are. Importing this imports no model code.

A third-party package adds one with an entry point, whose name is the architecture in a model's config.json:

    [project.entry-points."vllm_prune.families"]
    MyForConditionalGeneration = "my_package.my_family:PruneMyForConditionalGeneration"
"""

from __future__ import annotations

import functools
from importlib.metadata import entry_points

ENTRY_POINT_GROUP = "vllm_prune.families"

_ROOM = "vllm_prune.serving.families"
_BUILT_IN = {
    "InternVLChatModel": f"{_ROOM}.internvl_chat:PruneInternVLChatModel",
    "InternVLForConditionalGeneration": f"{_ROOM}.internvl:PruneInternVLForConditionalGeneration",
    "LlavaForConditionalGeneration": f"{_ROOM}.llava:PruneLlavaForConditionalGeneration",
    "LlavaNextForConditionalGeneration": f"{_ROOM}.llava_next:PruneLlavaNextForConditionalGeneration",
    "LlavaNextVideoForConditionalGeneration": f"{_ROOM}.llava_next_video:PruneLlavaNextVideoForConditionalGeneration",
    "LlavaOnevisionForConditionalGeneration": f"{_ROOM}.llava_onevision:PruneLlavaOnevisionForConditionalGeneration",
    "Qwen2VLForConditionalGeneration": f"{_ROOM}.qwen2_vl:PruneQwen2VLForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration": f"{_ROOM}.qwen2_5_vl:PruneQwen2_5_VLForConditionalGeneration",
    "Qwen3VLForConditionalGeneration": f"{_ROOM}.qwen3_vl:PruneQwen3VLForConditionalGeneration",
    "Qwen3VLMoeForConditionalGeneration": f"{_ROOM}.qwen3_vl:PruneQwen3VLMoeForConditionalGeneration",
    "Qwen3_5ForConditionalGeneration": f"{_ROOM}.qwen3_5:PruneQwen3_5ForConditionalGeneration",
    "Qwen3_5MoeForConditionalGeneration": f"{_ROOM}.qwen3_5:PruneQwen3_5MoeForConditionalGeneration",
}

STEP_TEXT = {
    "Qwen3VLForConditionalGeneration": 9,
    "Qwen3VLMoeForConditionalGeneration": 9,
    "Qwen3_5ForConditionalGeneration": 9,
    "Qwen3_5MoeForConditionalGeneration": 9,
    "InternVLChatModel": 7,
    "InternVLForConditionalGeneration": 7,
}
"""Tokens of text around each step of a video, on average: `<12.5 seconds>` is 6 to 8 of Qwen's, and two marks;
`Frame12: ` is about 5, and two."""

VIDEO_PINS = {"LlavaOnevisionForConditionalGeneration": 1}
"""Rows that the vision encoder adds behind a video."""


@functools.cache
def families() -> dict[str, str]:
    """Architecture in a model's config.json -> "module:class" of its variant, known to vLLM by the class's name."""
    others = {point.name: point.value for point in entry_points(group=ENTRY_POINT_GROUP)}
    return others | _BUILT_IN


def variants() -> dict[str, tuple[str, str]]:
    """Name of a variant's architecture -> (architecture that it is of, "module:class")."""
    return {path.partition(":")[2]: (architecture, path) for architecture, path in families().items()}


def variant_of(architecture: str) -> str:
    """Name of the variant's architecture.

    Raises:
        ValueError: There is none.
    """
    if architecture not in families():
        raise ValueError(
            f"architecture {architecture!r} has no pruning variant; supported: {', '.join(sorted(families()))}"
        )
    return families()[architecture].partition(":")[2]


def is_variant(architecture: str) -> bool:
    """Whether `architecture` is the name of a pruning variant."""
    return architecture in variants()
