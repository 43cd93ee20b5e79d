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
from vllm_prune.serving.wire.request_spec import (
    CELLS_FIELD,
    FIELD,
    IMAGE_CELLS_FIELD,
    IMAGE_FIELD,
    VideoSpec,
    read_spec,
)
from vllm_prune.serving.worker.encoder_batches import encoder_batches, frame_groups, in_one_place, prune_each
from vllm_prune.serving.worker.features import FeatureRowsMixin
from vllm_prune.serving.worker.partial_encoder import encode_on_all_ranks, split_frames
from vllm_prune.serving.worker.upload import upload


class PatchMediaMixin(FeatureRowsMixin):
    """Put before a vLLM model class; needs its `visual` and its methods that parse and encode images and videos."""

    pixels_field: ClassVar[str] = "pixel_values_videos"
    grid_field: ClassVar[str] = "video_grid_thw"
    image_pixels_field: ClassVar[str] = "pixel_values"
    image_grid_field: ClassVar[str] = "image_grid_thw"
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
        """As the processor said, or, for an image that it decided nothing about, what follows from its grid."""
        spec = read_spec(feature)
        if spec is not None:
            return spec.layout
        data: Any = feature.data
        merge = self.visual.spatial_merge_size
        t, h, w = data[f"{feature.modality}_grid_thw"].data.tolist()
        return MediumLayout((t, h // merge, w // merge))

    @hook
    def embed_multimodal(self, **kwargs: Any) -> Any:
        """Rows for the encoder cache: of media as their configurations say, of images without one as they are."""
        specs, cells = kwargs.pop(FIELD, None), kwargs.pop(CELLS_FIELD, None)
        image_specs, image_cells = kwargs.pop(IMAGE_FIELD, None), kwargs.pop(IMAGE_CELLS_FIELD, None)
        outputs: list[torch.Tensor] = []
        for modality, inputs in self._parse_and_validate_multimodal_inputs(**kwargs).items():  # type: ignore[attr-defined]
            if modality.startswith("image"):
                decoded = _decode(image_specs)
                encoded = self._encode_images(kwargs, inputs, decoded, image_cells)
            else:
                decoded = _decode(specs)
                encoded = self._encode_videos(kwargs, decoded, cells)
            outputs.extend(self._prune_encoded(encoded, decoded))
        return tuple(outputs)

    def _prune_encoded(
        self, features: Iterator[tuple[torch.Tensor, torch.Tensor | None]], specs: list[VideoSpec]
    ) -> list[torch.Tensor]:
        """Prunes media while they are encoded; those without specifications stay as they are."""
        encoded = self.notes.encoding(features, self.visual.device)
        with self._encoder_rows.attention.reading(self.visual, [spec.config for spec in specs]):
            left = prune_each(self.prune_video, encoded, specs)
        return self.pack_videos(left)

    def _encode_images(
        self, inputs: dict[str, Any], parsed: Any, specs: list[VideoSpec], cells: Any
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """Features [M, W] of every image, and which cells [M] they are of (None: all).

        `parsed`: by vLLM, which encodes images that nobody prunes in its own way.
        """
        if any(spec.per_frame is not None for spec in specs):
            yield from self._encode_planned(
                inputs[self.image_pixels_field], inputs[self.image_grid_field], specs, cells
            )
            return
        parts = (
            self._parse_and_validate_image_input(**part)  # type: ignore[attr-defined]
            for part in self._in_batches(inputs, self.image_pixels_field, self.image_grid_field)
        )
        for part in parts if specs else [parsed]:
            yield from ((features, None) for features in self._process_image_input(part))  # type: ignore[attr-defined]

    def _encode_videos(
        self, inputs: dict[str, Any], specs: list[VideoSpec], cells: Any
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """Features [M, W] of every video, and which cells [M] they are of (None: all)."""
        if all(spec.per_frame is None for spec in specs):
            for part in self._in_batches(inputs, self.pixels_field, self.grid_field):
                yield from ((features, None) for features in self._encode_whole(part))
            return
        yield from self._encode_planned(inputs[self.pixels_field], inputs[self.grid_field], specs, cells)

    def _encode_whole(self, part: dict[str, Any]) -> Iterator[torch.Tensor]:
        """Features [N, W] of every video of one call of the encoder; of one that is too long, of several."""
        (t, h, w), *others = part[self.grid_field].tolist()
        unit, pixels = self.visual.spatial_merge_size**2, part.get(self.pixels_field)
        if others or pixels is None or t * h * w // unit <= self._encoder_tokens:
            yield from self._process_video_input(self._parse_and_validate_video_input(**part))  # type: ignore[attr-defined]
            return

        def encode(frames: slice) -> torch.Tensor:
            grid = part[self.grid_field].new_tensor([[frames.stop - frames.start, h, w]])
            patches = pixels[frames.start * h * w : frames.stop * h * w]
            given = {**part, self.pixels_field: patches, self.grid_field: grid}
            (features,) = self._process_video_input(self._parse_and_validate_video_input(**given))  # type: ignore[attr-defined]
            return features

        cells = h * w // unit
        groups = frame_groups(t, cells, self._encoder_tokens)
        yield in_one_place(((group.start * cells, encode(group)) for group in groups), t * cells)

    def _encode_planned(
        self, pixels: torch.Tensor, grids: torch.Tensor, specs: list[VideoSpec], cells: Any
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """The same of media of which some have cells that are not encoded: one medium after the other."""
        sizes = [spec.counts.encoded * self.visual.spatial_merge_size**2 for spec in specs]
        for spec, patches, grid_thw, chosen in zip(specs, pixels.split(sizes), grids.tolist(), cells, strict=True):
            chosen = torch.arange(spec.num_tokens) if spec.per_frame is None else chosen.long().cpu()
            # Under no name: while the next medium is encoded the features of this one are not held.
            yield (
                self._encode_cells_of(patches, tuple(grid_thw), chosen),
                None if spec.per_frame is None else upload(chosen, self.visual.device),
            )

    def _encode_cells_of(
        self, patches: torch.Tensor, grid_thw: tuple[int, int, int], cells: torch.Tensor
    ) -> torch.Tensor:
        """Features [M, W] of some cells of a video, in as many calls of the encoder as they take."""
        if len(cells) <= self._encoder_tokens:
            return self._encode_part(patches, grid_thw, cells)
        unit, count = self.visual.spatial_merge_size**2, -(-len(cells) // self._encoder_tokens)

        def encode() -> Iterator[tuple[int, torch.Tensor]]:
            first = 0
            for part in split_frames(grid_thw, cells, unit, count):
                last = first + len(part.cells)
                yield first, self._encode_part(patches[first * unit : last * unit], grid_thw, part.cells)
                first = last

        return in_one_place(encode(), len(cells))

    def _encode_part(self, patches: torch.Tensor, grid_thw: tuple[int, int, int], cells: torch.Tensor) -> torch.Tensor:
        patches = patches.type(self.visual.dtype)
        if self.use_data_parallel:
            return encode_on_all_ranks(self.encode_cells, self.visual, patches, grid_thw, cells)
        return self.encode_cells(patches, grid_thw, cells)

    def _in_batches(self, inputs: dict[str, Any], pixels: str, grids: str) -> Iterator[dict[str, Any]]:
        """Media as vLLM hands them over, in parts that the encoder takes in one call (see `encoder_batches.py`)."""
        if pixels not in inputs:  # encoded by the client
            yield inputs
            return
        sizes = inputs[grids].prod(-1).tolist()
        unit = self.visual.spatial_merge_size**2
        patches = inputs[pixels].split(sizes)
        for batch in encoder_batches([size // unit for size in sizes], self._encoder_tokens):
            part = {name: value[batch] for name, value in inputs.items() if len(value) == len(sizes)}
            # A long video is not copied.
            yield {**part, pixels: patches[batch.start] if batch.stop - batch.start == 1 else torch.cat(patches[batch])}


def _decode(specs: Any) -> list[VideoSpec]:
    """`specs`: as vLLM hands them over, a tensor or a list of tensors; None where the processor decided nothing."""
    return [] if specs is None else [VideoSpec.decode(spec) for spec in specs]
