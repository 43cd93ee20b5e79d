"""Where the server's settings live: an attribute of the Hugging Face configuration, set by `--hf-overrides`.

That configuration reaches every process (API server, engine core, workers), the multimodal processor as well as the
model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from vllm_prune.config import PruneConfig, PruneConfigError, check_override_policy
from vllm_prune.override import KEPT, ServerSettings, check_dense_tokens, check_positions_policy
from vllm_prune.serving.wire.features import DEFAULT_LAYERS
from vllm_prune.trace_limits import TraceLimits

HF_CONFIG_KEY = "vllm_prune"
REQUEST_KEY = "prune"
"""Key of a request's `mm_processor_kwargs` that holds its own configuration."""
TRACE_KEY = "prune_trace_key"
"""Under which the processor keeps a request's trace key, apart from the resolved configuration."""
SHARE_KEY = "prune_image_share"
"""Under which the processor keeps what a total over a request's images means for each."""
_KEYS = (
    "config",
    "override",
    "trace",
    "trace_limits",
    "selector",
    "dense_tokens",
    "log",
    "feature_layers",
    "positions",
)
_STEP_LIMITS = "vllm_prune_step_limits"
_HIDDEN_ENCODER = "vllm_prune_hidden_encoder"
_UNDIVIDED_DECODER = "vllm_prune_undivided_decoder"
_SELECTOR_DIGESTS = "vllm_prune_selector_digests"


def read_settings(hf_config: Any) -> ServerSettings:
    """The settings that `hf_overrides` put into `hf_config`; without any, nothing is pruned unless a request asks.

    Raises:
        PruneConfigError: Unknown key or unusable value.
    """
    value = getattr(hf_config, HF_CONFIG_KEY, None)
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise PruneConfigError(f"hf_overrides.{HF_CONFIG_KEY}={value!r}: must be an object with {' and '.join(_KEYS)}")
    for key in value:
        if key not in _KEYS:
            raise PruneConfigError(f"hf_overrides.{HF_CONFIG_KEY}: unknown key {key!r}; known: {', '.join(_KEYS)}")
    config = PruneConfig.parse(value.get("config", {}))
    trace = value.get("trace")
    if trace is not None and not isinstance(trace, str):
        raise PruneConfigError(f"hf_overrides.{HF_CONFIG_KEY}.trace={trace!r}: must be a path")
    limits = _read_limits(value.get("trace_limits", {}))
    log = value.get("log", False)
    if not isinstance(log, bool):
        raise PruneConfigError(f"hf_overrides.{HF_CONFIG_KEY}.log={log!r}: must be true or false")
    override = check_override_policy(value.get("override", "tighten"))
    return ServerSettings(
        config=config,
        override=override,
        trace=trace,
        trace_limits=limits,
        selectors=_read_selectors(value.get("selector", [])),
        dense_tokens=check_dense_tokens(value.get("dense_tokens")),
        positions=check_positions_policy(value.get("positions", KEPT)),
        log=log,
        feature_layers=_read_layers(value.get("feature_layers", list(DEFAULT_LAYERS))),
    )


def _read_selectors(value: Any) -> tuple[str, ...]:
    paths = [value] if isinstance(value, str) else value
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise PruneConfigError(f"hf_overrides.{HF_CONFIG_KEY}.selector={value!r}: must be a path or a list of paths")
    return tuple(paths)


def _read_layers(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not value or not all(type(layer) is int for layer in value):
        raise PruneConfigError(
            f"hf_overrides.{HF_CONFIG_KEY}.feature_layers={value!r}: must be a list of layers, such as [0, -1]"
        )
    return tuple(value)


def _read_limits(value: Any) -> TraceLimits:
    try:
        return TraceLimits(**value)
    except TypeError as error:
        raise PruneConfigError(
            f"hf_overrides.{HF_CONFIG_KEY}.trace_limits={value!r}: must be an object with files and bytes"
        ) from error


def settings_to_hf_override(settings: ServerSettings) -> dict[str, Any]:
    """What `read_settings` reads back, JSON-ready."""
    fields: dict[str, Any] = {"config": settings.config.to_dict(), "override": settings.override}
    if settings.trace is not None:
        fields["trace"] = settings.trace
    if settings.trace_limits != TraceLimits():
        fields["trace_limits"] = dataclasses.asdict(settings.trace_limits)
    if settings.selectors:
        fields["selector"] = list(settings.selectors)
    if settings.dense_tokens is not None:
        fields["dense_tokens"] = settings.dense_tokens
    if settings.positions != KEPT:
        fields["positions"] = settings.positions
    if settings.log:
        fields["log"] = True
    if settings.feature_layers != DEFAULT_LAYERS:
        fields["feature_layers"] = list(settings.feature_layers)
    return {HF_CONFIG_KEY: fields}


class StepLimits(NamedTuple):
    """What fits one step; None where no engine was configured."""

    tokens: int | None
    """Prompt tokens: the scheduler's `max_num_batched_tokens`."""
    dense_tokens: int | None
    """Tokens of dense prefixes under way before the question chooses."""
    several_steps: bool = False
    """Whether a dense prefix may stretch over several steps."""


def write_step_limits(hf_config: Any, limits: StepLimits) -> None:
    """Leaves a step's limits where those who know no scheduler find them: processor and workers."""
    setattr(hf_config, _STEP_LIMITS, tuple(limits))


def read_step_limits(hf_config: Any) -> StepLimits:
    """What `write_step_limits` left there."""
    return StepLimits(*getattr(hf_config, _STEP_LIMITS, (None, None)))


def write_hidden_encoder(hf_config: Any, reason: str) -> None:
    """Leaves why no method can look into the vision encoder ("" if it can) where the processor finds it."""
    setattr(hf_config, _HIDDEN_ENCODER, reason)


def read_hidden_encoder(hf_config: Any) -> str:
    """What `write_hidden_encoder` left there."""
    return getattr(hf_config, _HIDDEN_ENCODER, "")


def write_undivided_decoder(hf_config: Any, reason: str) -> None:
    """Leaves why no question can choose inside the decoder ("" if it can) where processor and workers find it."""
    setattr(hf_config, _UNDIVIDED_DECODER, reason)


def read_undivided_decoder(hf_config: Any) -> str:
    """What `write_undivided_decoder` left there."""
    return getattr(hf_config, _UNDIVIDED_DECODER, "")


def write_selector_digests(hf_config: Any, digests: Mapping[str | int, str]) -> None:
    """Leaves the SHA-256 of learned selectors' files, by where they read, where processor and workers find them."""
    setattr(hf_config, _SELECTOR_DIGESTS, list(digests.items()))  # pairs: JSON would make strings of the layers


def read_selector_digests(hf_config: Any) -> dict[str | int, str]:
    """What `write_selector_digests` left there; nothing where the server has no selector."""
    return dict(getattr(hf_config, _SELECTOR_DIGESTS, ()))
