"""vLLM engine arguments that turn a model into its pruning variant; the model's files stay untouched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vllm_prune import embedded
from vllm_prune.config import OverridePolicy, PruneConfig, check_override_policy
from vllm_prune.hub import read_config_fields
from vllm_prune.override import KEPT, ServerSettings, check_dense_tokens, check_positions_policy
from vllm_prune.serving.wire.architectures import variant_of
from vllm_prune.serving.wire.features import DEFAULT_LAYERS
from vllm_prune.serving.wire.settings import settings_to_hf_override
from vllm_prune.trace_limits import TraceLimits


def engine_args(
    model: str,
    config: PruneConfig | str | dict[str, Any],
    *,
    override: OverridePolicy = "tighten",
    trace: str | None = None,
    trace_limits: TraceLimits | None = None,
    log: bool = False,
    selector: str | Sequence[str] | None = None,
    dense_tokens: int | None = None,
    feature_layers: Sequence[int] = DEFAULT_LAYERS,
    positions: str = KEPT,
    **others: Any,
) -> dict[str, Any]:
    """Keyword arguments for `vllm.LLM`.

    Args:
        model: Folder or hub name.
        config: Configuration, preset's name, or what `PruneConfig.parse` reads.
        override: What a request may change by `mm_processor_kwargs={"prune": ...}`.
        trace: Folder for a trace of what was decided about every video (see `serving/worker/trace.py`).
        trace_limits: What that folder may hold; the oldest traces make room.
        log: Whether every request with videos is described in the log.
        selector: File of a learned selector (see `vllm_prune/selector`), or files of several that read at different
            places; the embedded models have one each, for method "question".
        dense_tokens: Most tokens that dense prefixes may have at once, for method "attention"; they take memory of
            their own. By default twice vLLM's `max_num_batched_tokens`.
        feature_layers: Layers that are handed out with `runner="pooling"` (docs/features.md): 0 is what enters the
            first, -1 what leaves the last.
        positions: Of the tokens that stay, in a decoder with plain RoPE (LLaVA, InternVL): "kept", those of the
            unpruned prompt; or "contiguous", one after the other where no question chooses.
        others: Any further argument of `vllm.LLM`; a dictionary of `hf_overrides` is merged.

    Raises:
        ValueError: The configuration is wrong, or the model's architecture has no variant.
    """
    given = others.pop("hf_overrides", None) or {}
    if not isinstance(given, dict):
        raise ValueError(f"hf_overrides={given!r}: must be a dictionary, as the variant is added to it")
    return {
        "model": model,
        "hf_overrides": {
            **given,
            **hf_overrides(
                model, config, override, trace, log, trace_limits, selector, dense_tokens, feature_layers, positions
            ),
        },
        **others,
    }


def hf_overrides(
    model: str,
    config: PruneConfig | str | dict[str, Any],
    override: str,
    trace: str | None = None,
    log: bool = False,
    trace_limits: TraceLimits | None = None,
    selector: str | Sequence[str] | None = None,
    dense_tokens: int | None = None,
    feature_layers: Sequence[int] = DEFAULT_LAYERS,
    positions: str = KEPT,
) -> dict[str, Any]:
    """The `hf_overrides` that select the variant of `model` and carry its settings."""
    policy = check_override_policy(override)
    limits = trace_limits or TraceLimits()
    parsed = PruneConfig.parse(config)
    found = selector or shipped_selector(model) or ()
    selectors = (found,) if isinstance(found, str) else tuple(found)
    settings = ServerSettings(
        config=parsed,
        override=policy,
        trace=trace,
        trace_limits=limits,
        selectors=selectors,
        dense_tokens=check_dense_tokens(dense_tokens),
        positions=check_positions_policy(positions),
        log=log,
        feature_layers=tuple(feature_layers),
    )
    return {"architectures": [variant_of(read_architecture(model))], **settings_to_hf_override(settings)}


def shipped_selector(model: str) -> str | None:
    """File of the learned selector that comes along with `model`: the embedded models have one each."""
    found = embedded.selector_of(Path(model))
    return str(found) if found else None


def read_architecture(model: str) -> str:
    """The architecture that the model's config.json names.

    Raises:
        ValueError: There is no such file, or it names none.
    """
    try:
        fields = read_config_fields(model)
    except OSError as error:
        raise ValueError(f"model={model!r}: no readable config.json there: {error}") from error
    if not fields:
        raise ValueError(f"model={model!r}: no readable config.json there")
    architectures = fields.get("architectures") or []
    if not architectures:
        raise ValueError(f"model={model!r}: its config.json names no architecture")
    return architectures[0]
