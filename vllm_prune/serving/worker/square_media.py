"""Models whose images and frames are squares of one size, each encoded by itself, before a decoder with plain RoPE."""

from __future__ import annotations

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
from vllm_prune.serving.worker.dense.decoder_view import DecoderView
from vllm_prune.serving.worker.encoder_batches import encoder_batches, frame_groups, in_one_place, prune_each
from vllm_prune.serving.worker.features import FeatureRowsMixin
from vllm_prune.serving.worker.sequential import SequentialView


class SquareMediaMixin(FeatureRowsMixin):
    """Put before `SequentialPositions` and a vLLM model class, which encodes media in its own way."""

    per_item: ClassVar[frozenset[str]] = frozenset({"pixel_values", "image_sizes", "pixel_values_videos"})
    """Fields of the encoder's inputs with one entry for each medium."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        self._encoder_tokens = vllm_config.scheduler_config.max_num_encoder_input_tokens
        self.init_pruning(vllm_config)

    def decoder_view(self) -> DecoderView:
        return SequentialView(self.language_model)

    def layout_of(self, feature: MultiModalFeatureSpec) -> MediumLayout:
        """As the processor said, or, where it decided nothing, as many slots as there are in the prompt."""
        spec = read_spec(feature)
        return (
            spec.prompt_layout
            if spec is not None
            else MediumLayout((1, 1, feature.mm_position.length), rope="sequential")
        )

    @hook
    def embed_multimodal(self, **kwargs: Any) -> Any:
        """Rows for the encoder cache: of media as their configurations say, of others as they are.

        vLLM calls this with media of one modality.
        """
        encoded = [kwargs.pop(name, None) for name in (FIELD, IMAGE_FIELD)]
        for name in (CELLS_FIELD, IMAGE_CELLS_FIELD):
            kwargs.pop(name, None)  # all cells are encoded
        specs = [VideoSpec.decode(spec) for found in encoded if found is not None for spec in found]
        if not specs:
            return super().embed_multimodal(**kwargs)  # type: ignore[misc]
        device = next(self.language_model.parameters()).device
        features = self.notes.encoding(self._encode(kwargs, specs), device)
        return tuple(self.pack_videos(prune_each(self.prune_video, features, specs)))

    def _encode(
        self, inputs: dict[str, Any], specs: list[VideoSpec]
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """Features [N + encoder's pins, C] of every medium, and None, since they are of all cells."""
        for batch in encoder_batches([spec.num_tokens for spec in specs], self._encoder_tokens):
            taken, layout = self.take_items(inputs, batch), specs[batch.start].layout
            if batch.stop - batch.start == 1 and layout.grid[0] > 1 and layout.num_cells > self._encoder_tokens:
                yield self._encode_squares(taken, layout), None
                continue
            for rows in super().embed_multimodal(**taken):  # type: ignore[misc]
                yield rows.flatten(0, -2), None
                del rows  # before the next one is encoded

    def _encode_squares(self, inputs: dict[str, Any], layout: MediumLayout) -> torch.Tensor:
        """Features [N + encoder's pins, C] of one medium of which a call of the encoder takes some squares only."""
        steps, height, width = layout.grid
        cells, embed = height * width, super().embed_multimodal  # type: ignore[misc]

        def encode(frames: slice) -> torch.Tensor:
            (rows,) = embed(**self.take_squares(inputs, frames))
            return rows.flatten(0, -2)

        groups = frame_groups(steps, cells, self._encoder_tokens)
        # Pins behind a group are where the next one begins.
        parts = ((group.start * cells, encode(group)) for group in groups)
        return in_one_place(parts, layout.num_cells + len(layout.encoder_pins))

    def take_items(self, inputs: dict[str, Any], items: slice) -> dict[str, Any]:
        """The encoder's inputs of some consecutive media."""
        return {name: value[items] if name in self.per_item else value for name, value in inputs.items()}

    def take_squares(self, inputs: dict[str, Any], squares: slice) -> dict[str, Any]:
        """The encoder's inputs of some consecutive frames of one video."""
        frames = "pixel_values_videos"
        return inputs | {frames: inputs[frames][0][squares][None]}


class FlatSquaresMixin(SquareMediaMixin):
    """The squares of all media of a call come one after the other, beside their number in each medium."""

    num_squares: ClassVar[tuple[str, ...]] = ("image_num_patches", "video_num_patches")
    """Fields of these numbers."""
    squares: ClassVar[tuple[str, ...]] = (
        "pixel_values_flat",
        "pixel_values_flat_video",
        "pixel_values",
        "pixel_values_videos",
    )

    def take_items(self, inputs: dict[str, Any], items: slice) -> dict[str, Any]:
        taken = dict(inputs)
        for name in (name for name in self.num_squares if name in inputs):
            numbers = [int(number) for number in inputs[name]]
            here = slice(sum(numbers[: items.start]), sum(numbers[: items.stop]))
            taken[name] = inputs[name][items]
            taken |= {pixels: inputs[pixels][here] for pixels in self.squares if pixels in inputs}
        return taken

    def take_squares(self, inputs: dict[str, Any], squares: slice) -> dict[str, Any]:
        """The encoder's inputs of some consecutive frames, or tiles, of one medium."""
        taken = {pixels: inputs[pixels][squares] for pixels in self.squares if pixels in inputs}
        numbers = {name: inputs[name][:1] for name in self.num_squares if name in inputs}
        return (
            inputs
            | taken
            | {name: torch.full_like(number, squares.stop - squares.start) for name, number in numbers.items()}
        )
