"""All that is specific to Qwen2.5-VL: where its grids, rates and features are found."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.model_executor.models.qwen2_5_vl import (
    Qwen2_5_VLDummyInputsBuilder,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLMultiModalProcessor,
    Qwen2_5_VLProcessingInfo,
    Qwen2_5_VLVideoPixelInputs,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from vllm_prune.hook import Hooked, hook
from vllm_prune.serving.api.processor import PruningProcessorMixin
from vllm_prune.serving.api.prune_inputs import without_prune
from vllm_prune.serving.wire.request_spec import CELLS_FIELD, FIELD, VideoSpec
from vllm_prune.serving.worker.encoder_batches import encoder_batches
from vllm_prune.serving.worker.model import PruningModelMixin
from vllm_prune.serving.worker.partial_encoder import encode_cells, encode_on_all_ranks


class PruneQwen2_5_VLProcessingInfo(Hooked, Qwen2_5_VLProcessingInfo):
    """Keeps our own key away from the Hugging Face processor's constructor."""

    @hook
    def get_hf_processor(self, **kwargs: object) -> Any:
        return super().get_hf_processor(**without_prune(kwargs))


class PruneQwen2_5_VLProcessor(PruningProcessorMixin, Qwen2_5_VLMultiModalProcessor):
    """Qwen2.5-VL's processor with as many video placeholders as the budget allows."""

    reply_header = "<|im_end|>\n<|im_start|>assistant\n"


@MULTIMODAL_REGISTRY.register_processor(
    PruneQwen2_5_VLProcessor, info=PruneQwen2_5_VLProcessingInfo, dummy_inputs=Qwen2_5_VLDummyInputsBuilder
)
class PruneQwen2_5_VLForConditionalGeneration(PruningModelMixin, Qwen2_5_VLForConditionalGeneration):
    """Qwen2.5-VL whose videos may have fewer rows than their grids have tokens."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self._encoder_tokens = vllm_config.scheduler_config.max_num_encoder_input_tokens
        self.init_pruning(vllm_config)

    @hook
    def embed_multimodal(self, **kwargs: object) -> Any:
        """Rows for the encoder cache: images as they are, videos as their configurations say."""
        specs: Any = kwargs.pop(FIELD, None)
        cells: Any = kwargs.pop(CELLS_FIELD, None)
        outputs: list[torch.Tensor] = []
        for modality, inputs in self._parse_and_validate_multimodal_inputs(**kwargs).items():
            if modality == "image":
                outputs.extend(self._process_image_input(inputs))
            elif specs is None:
                encoded = self.notes.encoding(self._encode_videos(inputs, [], None), self.visual.device)
                outputs.extend(features for features, _ in encoded)
            else:
                outputs.extend(self._embed_videos(inputs, [VideoSpec.decode(spec) for spec in specs], cells))
        return tuple(outputs)

    def _embed_videos(self, inputs: Any, specs: list[VideoSpec], cells: Any) -> list[torch.Tensor]:
        """Encodes and prunes videos. `cells`: which ones of each are encoded, where stage 1 looked at the pixels."""
        seconds = inputs["second_per_grid_ts"]
        merge = self.config.vision_config.spatial_merge_size
        tokens_per_second = getattr(self.config.vision_config, "tokens_per_second", 1.0)
        rows = []
        encoded = self.notes.encoding(self._encode_videos(inputs, specs, cells), self.visual.device)
        for i, (features, chosen) in enumerate(encoded):
            t, h, w = inputs["video_grid_thw"][i].tolist()
            t_factor = tokens_per_second * (1.0 if seconds is None else float(seconds[i]))
            rows.append(self.prune_video(features, (t, h // merge, w // merge), t_factor, specs[i], chosen))
        return rows

    def _in_batches(self, inputs: Any) -> Iterator[Any]:
        """Videos as vLLM parsed them, in parts that the encoder takes in one call (see `worker/encoder_batches.py`)."""
        if inputs["type"] != "pixel_values_videos":  # encoded by the client
            yield inputs
            return
        grids, seconds = inputs["video_grid_thw"], inputs["second_per_grid_ts"]
        sizes = grids.prod(-1).tolist()
        patches = inputs["pixel_values_videos"].split(sizes)
        for batch in encoder_batches([size // self.visual.spatial_merge_unit for size in sizes], self._encoder_tokens):
            yield Qwen2_5_VLVideoPixelInputs(
                type="pixel_values_videos",
                pixel_values_videos=torch.cat(patches[batch]),
                video_grid_thw=grids[batch],
                second_per_grid_ts=None if seconds is None else seconds[batch],
            )

    def _encode_videos(
        self, inputs: Any, specs: list[VideoSpec], cells: Any
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """Features [M, C] of every video, and which cells [M] they are of (None: all)."""
        if all(spec.per_frame is None for spec in specs):
            for part in self._in_batches(inputs):
                yield from ((features, None) for features in self._process_video_input(part))
            return
        encode = encode_on_all_ranks if self.use_data_parallel else encode_cells
        sizes = [spec.counts.encoded * self.visual.spatial_merge_unit for spec in specs]
        for spec, patches, grid_thw, chosen in zip(
            specs, inputs["pixel_values_videos"].split(sizes), inputs["video_grid_thw"].tolist(), cells, strict=True
        ):
            chosen = torch.arange(spec.num_tokens) if spec.per_frame is None else chosen.long().cpu()
            features = encode(self.visual, patches.type(self.visual.dtype), grid_thw, chosen)
            yield features, None if spec.per_frame is None else chosen.to(features.device)
