"""Behind which layers of a served decoder tokens are dropped: the same for every process."""

from __future__ import annotations

from vllm.config import ModelConfig

from vllm_prune.config import PruneConfig


def pruning_layers(config: PruneConfig, model_config: ModelConfig) -> tuple[int, ...]:
    """The layers that `config` names in the model's decoder.

    Raises:
        PruneConfigError: One is where the decoder still adds rows of the vision encoder, is not below its last, or
            keeps a state.
    """
    depth, levels = model_config.get_total_num_hidden_layers(), deepstack_levels(model_config)
    return config.resolved_layers(depth, levels, stateful_layers(model_config))


def deepstack_levels(model_config: ModelConfig) -> int:
    """Of the decoder's first layers, how many are followed by rows of the vision encoder."""
    vision = getattr(model_config.hf_config, "vision_config", None)
    return len(getattr(vision, "deepstack_visual_indexes", None) or ())


def stateful_layers(model_config: ModelConfig) -> tuple[int, ...]:
    """Layers of the decoder that keep one state of all tokens so far, as Gated DeltaNet does."""
    kinds = getattr(model_config.hf_text_config, "layer_types", None) or ()
    return tuple(index for index, kind in enumerate(kinds) if kind == "linear_attention")
