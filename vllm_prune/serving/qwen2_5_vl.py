"""All that is specific to Qwen2.5-VL: where its grids, rates and features are found."""

from __future__ import annotations

from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.model_executor.models.qwen2_5_vl import (
    Qwen2_5_VLDummyInputsBuilder,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLMultiModalProcessor,
    Qwen2_5_VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from vllm_prune.serving.model import PruningModelMixin
from vllm_prune.serving.processor import PruningProcessorMixin, without_prune
from vllm_prune.serving.request_spec import FIELD, VideoSpec


class PruneQwen2_5_VLProcessingInfo(Qwen2_5_VLProcessingInfo):
    """Keeps our own key away from the Hugging Face processor's constructor."""

    def get_hf_processor(self, **kwargs: object) -> Any:
        return super().get_hf_processor(**without_prune(kwargs))


class PruneQwen2_5_VLProcessor(PruningProcessorMixin, Qwen2_5_VLMultiModalProcessor):
    """Qwen2.5-VL's processor with as many video placeholders as the budget allows."""

    turn_end = "<|im_end|>"
    reply_header = "\n<|im_start|>assistant\n"


@MULTIMODAL_REGISTRY.register_processor(
    PruneQwen2_5_VLProcessor, info=PruneQwen2_5_VLProcessingInfo, dummy_inputs=Qwen2_5_VLDummyInputsBuilder
)
class PruneQwen2_5_VLForConditionalGeneration(PruningModelMixin, Qwen2_5_VLForConditionalGeneration):
    """Qwen2.5-VL whose videos may have fewer rows than their grids have tokens."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.init_pruning(vllm_config, (self.config.image_token_id, self.config.video_token_id))

    def embed_multimodal(self, **kwargs: object) -> Any:
        """Rows for the encoder cache: images as they are, videos as their configurations say."""
        specs = kwargs.pop(FIELD, None)
        outputs: list[torch.Tensor] = []
        for modality, inputs in self._parse_and_validate_multimodal_inputs(**kwargs).items():
            if modality == "image":
                outputs.extend(self._process_image_input(inputs))
            else:
                outputs.extend(self._embed_videos(inputs, specs))
        return tuple(outputs)

    def _embed_videos(self, inputs: Any, specs: Any) -> list[torch.Tensor]:
        """Encodes and prunes videos. `specs`: bytes of the videos' configurations, or None where nothing is pruned."""
        features = self._process_video_input(inputs)
        grids = inputs["video_grid_thw"].tolist()
        if specs is None:
            return list(features)
        seconds = inputs["second_per_grid_ts"]
        merge = self.config.vision_config.spatial_merge_size
        tokens_per_second = getattr(self.config.vision_config, "tokens_per_second", 1.0)
        rows = []
        for i, (t, h, w) in enumerate(grids):
            t_factor = tokens_per_second * (1.0 if seconds is None else float(seconds[i]))
            rows.append(
                self.prune_video(features[i], (t, h // merge, w // merge), t_factor, VideoSpec.decode(specs[i]).config)
            )
        return rows
