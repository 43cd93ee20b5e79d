"""Checks and completes vLLM's configuration for a pruning variant, before any weight is loaded.

vLLM calls these hooks by architecture (`MODELS_CONFIG_MAP`), in the process that builds the configuration.
"""

from __future__ import annotations

import sys

from vllm.config import ModelConfig, VllmConfig
from vllm.model_executor.models.config import VerifyAndUpdateConfig

from vllm_prune.config import PruneConfig, PruneConfigError, check_parts
from vllm_prune.hook import Hooked, hook
from vllm_prune.override import ServerSettings
from vllm_prune.serving.combinations import check_features, check_pruning
from vllm_prune.serving.refusals import check_requested, hidden_encoder, undivided_decoder
from vllm_prune.serving.wire.decoder_layers import pruning_layers
from vllm_prune.serving.wire.positions import ask_for_positions, write_position_table
from vllm_prune.serving.wire.selector_file import check_inside_selectors, check_selectors, needed_digests
from vllm_prune.serving.wire.settings import (
    REQUEST_KEY,
    StepLimits,
    read_settings,
    write_hidden_encoder,
    write_step_limits,
    write_undivided_decoder,
)
from vllm_prune.serving.wire.video_options import check_video_options

_PRUNING_ENABLED = 0.5
"""Any rate above 0 makes vLLM's runners strip extra columns and recompute positions; how much is ours to say."""
_DENSE_STEPS = 2
"""Of tokens that a dense prefix holds before the question chooses, as many steps' budgets fit by default."""


class PruneConfigHook(Hooked, VerifyAndUpdateConfig):
    """The hook of every variant."""

    @staticmethod
    @hook
    def verify_and_update_model_config(model_config: ModelConfig) -> None:
        """Reads the settings, so that a mistake ends the start here, and turns on vLLM's pruning hooks."""
        settings = read_settings(model_config.hf_config)
        mm_config = model_config.get_multimodal_config()
        if REQUEST_KEY in (mm_config.mm_processor_kwargs or {}):
            raise PruneConfigError(
                f"mm_processor_kwargs.{REQUEST_KEY}: is for requests; use --prune for the whole server"
            )
        if mm_config.video_pruning_rate:
            raise PruneConfigError(
                f"video_pruning_rate={mm_config.video_pruning_rate}: selects vLLM's own pruning, which cannot be "
                f"combined with a pruning variant; leave it out"
            )
        if settings.config.frames is not None:
            check_video_options((mm_config.media_io_kwargs or {}).get("video") or {})
        if settings.may_prune:
            mm_config.video_pruning_rate = _PRUNING_ENABLED
        if not model_config.uses_mrope:
            ask_for_positions(model_config.hf_config)
        check_selectors(model_config)

    @staticmethod
    @hook
    def verify_and_update_config(vllm_config: VllmConfig) -> None:
        """Refuses what pruning would make silently wrong, and features that there are not."""
        check_features(vllm_config)
        if not vllm_config.model_config.get_multimodal_config().is_multimodal_pruning_enabled():
            return
        settings = read_settings(vllm_config.model_config.hf_config)
        undivided, hidden = undivided_decoder(vllm_config), hidden_encoder(vllm_config)
        check_parts(settings.config, lambda part: _check_decoder_and_encoder(part, undivided, hidden))
        check_inside_selectors(vllm_config.model_config, undivided)
        write_undivided_decoder(vllm_config.model_config.hf_config, undivided)
        write_hidden_encoder(vllm_config.model_config.hf_config, hidden)
        check_pruning(vllm_config, settings)
        if settings.may_query and not undivided:
            check_requested(vllm_config)
            check_parts(settings.config, lambda part: pruning_layers(part, vllm_config.model_config))
        check_parts(settings.config, lambda part: needed_digests(part, vllm_config.model_config))
        scheduler = vllm_config.scheduler_config
        max_step_tokens = min(scheduler.max_num_batched_tokens, scheduler.max_num_scheduled_tokens or sys.maxsize)
        model = vllm_config.model_config
        in_parts = (
            scheduler.enable_chunked_prefill
            and not scheduler.disable_chunked_mm_input
            and model.runner_type != "pooling"  # which hands out hidden states of every row that a step has
            and not model.is_hybrid  # whose states go on from row to row through all layers
        )
        limits = StepLimits(max_step_tokens, _max_dense_tokens(settings, max_step_tokens), in_parts)
        write_step_limits(model.hf_config, limits)
        if settings.may_query and not undivided:
            # A video waits there with all its tokens before the choice; one that never fits would wait for ever.
            scheduler.encoder_cache_size = max(scheduler.encoder_cache_size, limits.dense_tokens or 0)
        write_position_table(model.hf_config, model.hf_text_config, model.max_model_len)


def _check_decoder_and_encoder(part: PruneConfig, undivided: str, hidden: str) -> None:
    """Refuses a method that looks where it cannot, for the reasons that are given."""
    if undivided and part.chooses_inside:
        raise PruneConfigError(f"method={part.method!r}: {undivided}")
    if hidden and part.needs_encoder_attention:
        raise PruneConfigError(f"method={part.method!r}: {hidden}")


def _max_dense_tokens(settings: ServerSettings, max_step_tokens: int) -> int:
    if settings.dense_tokens is None:
        return _DENSE_STEPS * max_step_tokens
    if settings.dense_tokens < max_step_tokens:
        raise PruneConfigError(
            f"dense_tokens={settings.dense_tokens}: is below a step's own tokens, {max_step_tokens}; start the server "
            f"with --prune-dense-tokens {max_step_tokens} or more, or a smaller --max-num-batched-tokens"
        )
    return settings.dense_tokens


def hook_behind(base: type[VerifyAndUpdateConfig] | None) -> type[VerifyAndUpdateConfig]:
    """`PruneConfigHook` after the hook that vLLM has for the architecture itself, if it has one."""
    if base is None:
        return PruneConfigHook
    first = base

    class Chained(PruneConfigHook):
        @staticmethod
        @hook
        def verify_and_update_model_config(model_config: ModelConfig) -> None:
            first.verify_and_update_model_config(model_config)
            PruneConfigHook.verify_and_update_model_config(model_config)

        @staticmethod
        @hook
        def verify_and_update_config(vllm_config: VllmConfig) -> None:
            first.verify_and_update_config(vllm_config)
            PruneConfigHook.verify_and_update_config(vllm_config)

    return Chained
