"""Which architectures have a pruning variant. Importing this imports no model code."""

VARIANTS = {
    "Qwen2_5_VLForConditionalGeneration": (
        "PruneQwen2_5_VLForConditionalGeneration",
        "vllm_prune.serving.families.qwen2_5_vl:PruneQwen2_5_VLForConditionalGeneration",
    ),
}
"""Architecture in a model's config.json -> (name of the variant's architecture, "module:class")."""


def variant_of(architecture: str) -> str:
    """Name of the variant's architecture.

    Raises:
        ValueError: There is none.
    """
    if architecture not in VARIANTS:
        raise ValueError(
            f"architecture {architecture!r} has no pruning variant; supported: {', '.join(sorted(VARIANTS))}"
        )
    return VARIANTS[architecture][0]


def is_variant(architecture: str) -> bool:
    """Whether `architecture` is the name of a pruning variant."""
    return any(architecture == name for name, _ in VARIANTS.values())
