"""Models whose media come as patches, one medium after the other, with a grid (t, h, w) of patches each."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from vllm.config import VllmConfig
from vllm.multimodal.inputs import MultiModalFeatureSpec

from vllm_prune.hook import hook
from vllm_prune.layout import MediumLayout
from vllm_prune.serving.wire.request_spec import CELLS_FIELD, FIELD, VideoSpec
from vllm_prune.serving.worker.encoder_batches import encoder_batches
from vllm_prune.serving.worker.model import PruningModelMixin
from vllm_prune.serving.worker.partial_encoder import encode_on_all_ranks
from vllm_prune.serving.worker.upload import upload


class PatchMediaMixin(PruningModelMixin):
    """Put before a vLLM model class; needs its `visual` and its methods that parse and encode images and videos."""

    pixels_field: ClassVar[str] = "pixel_values_videos"
    grid_field: ClassVar[str] = "video_grid_thw"
    visual: Any
    use_data_parallel: bool

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        self._encoder_tokens = vllm_config.scheduler_config.max_num_encoder_input_tokens
        self.init_pruning(vllm_config)

    @abstractmethod
    def encode_cells(self, patches: torch.Tensor, grid_thw: tuple[int, int, int], cells: torch.Tensor) -> torch.Tensor:
        """Features [M, W] of some cells of a video.

        Args:
            patches: Those of the cells, [M * merge**2, ...].
            grid_thw: The video's grid in patches.
            cells: Indices of the cells, increasing, [M] on the CPU.
        """

    def layout_of(self, feature: MultiModalFeatureSpec) -> MediumLayout:
        """As the processor said, or, for an image, what follows from its grid."""
        data: Any = feature.data
        if FIELD in data:
            return VideoSpec.decode(data[FIELD].data).layout
        merge = self.visual.spatial_merge_size
        t, h, w = data[f"{feature.modality}_grid_thw"].data.tolist()
        return MediumLayout((t, h // merge, w // merge))

    @hook
    def embed_multimodal(self, **kwargs: Any) -> Any:
        """Rows for the encoder cache: images as they are, videos as their configurations say."""
        specs, cells = kwargs.pop(FIELD, None), kwargs.pop(CELLS_FIELD, None)
        outputs: list[torch.Tensor] = []
        for modality, inputs in self._parse_and_validate_multimodal_inputs(**kwargs).items():  # type: ignore[attr-defined]
            if modality.startswith("image"):
                outputs.extend(self._process_image_input(inputs))  # type: ignore[attr-defined]
            else:
                decoded = None if specs is None else [VideoSpec.decode(spec) for spec in specs]
                outputs.extend(self._embed_videos(kwargs, decoded, cells))
        return tuple(outputs)

    def _embed_videos(self, inputs: dict[str, Any], specs: list[VideoSpec] | None, cells: Any) -> list[torch.Tensor]:
        """Encodes and prunes videos. `cells`: which ones of each are encoded, where stage 1 looked at the pixels."""
        encoded = self.notes.encoding(self._encode_videos(inputs, specs or [], cells), self.visual.device)
        with self._encoder_rows.attention.reading(self.visual, [spec.config for spec in specs or []]):
            left = [
                features if specs is None else self.prune_video(features, specs[i], chosen)
                for i, (features, chosen) in enumerate(encoded)
            ]
        return self.pack_videos(left)

    def _encode_videos(
        self, inputs: dict[str, Any], specs: list[VideoSpec], cells: Any
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """Features [M, W] of every video, and which cells [M] they are of (None: all)."""
        if all(spec.per_frame is None for spec in specs):
            for part in self._in_batches(inputs):
                parsed = self._parse_and_validate_video_input(**part)  # type: ignore[attr-defined]
                yield from ((features, None) for features in self._process_video_input(parsed))  # type: ignore[attr-defined]
            return
        sizes = [spec.counts.encoded * self.visual.spatial_merge_size**2 for spec in specs]
        for spec, patches, grid_thw, chosen in zip(
            specs, inputs[self.pixels_field].split(sizes), inputs[self.grid_field].tolist(), cells, strict=True
        ):
            chosen = torch.arange(spec.num_tokens) if spec.per_frame is None else chosen.long().cpu()
            features = self._encode_part(patches, tuple(grid_thw), chosen)
            yield features, None if spec.per_frame is None else upload(chosen, features.device)

    def _encode_part(self, patches: torch.Tensor, grid_thw: tuple[int, int, int], cells: torch.Tensor) -> torch.Tensor:
        patches = patches.type(self.visual.dtype)
        if self.use_data_parallel:
            return encode_on_all_ranks(self.encode_cells, self.visual, patches, grid_thw, cells)
        return self.encode_cells(patches, grid_thw, cells)

    def _in_batches(self, inputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Videos as vLLM hands them over, in parts that the encoder takes in one call (see `encoder_batches.py`)."""
        if self.pixels_field not in inputs:  # encoded by the client
            yield inputs
            return
        sizes = inputs[self.grid_field].prod(-1).tolist()
        unit = self.visual.spatial_merge_size**2
        patches = inputs[self.pixels_field].split(sizes)
        for batch in encoder_batches([size // unit for size in sizes], self._encoder_tokens):
            part = {name: value[batch] for name, value in inputs.items() if len(value) == len(sizes)}
            yield {**part, self.pixels_field: torch.cat(patches[batch])}
