"""What the multimodal processor decides about images, each by itself but for a total over those of a request."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import BatchFeature
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import ImageProcessorItems, MultiModalDataItems

from vllm_prune.budget_images import config_of_image, total_share
from vllm_prune.config import ImageConfig, PruneConfigError
from vllm_prune.layout import MediumLayout
from vllm_prune.serving.api.encoder_check import check_encoder_runs
from vllm_prune.serving.api.family import FamilyProcessor
from vllm_prune.serving.api.pixel_plan import encoded_cells, keep_cells, plan_image
from vllm_prune.serving.api.prune_inputs import ImageShares, request_config
from vllm_prune.serving.wire.request_spec import IMAGE_CELLS_FIELD, IMAGE_FIELD, VideoSpec
from vllm_prune.serving.wire.settings import SHARE_KEY, TRACE_KEY


class ImageSpecs(FamilyProcessor):
    """The part of the processor that knows images; a family may override `image_layout` and `image_sizes`."""

    def image_layout(self, data: Any, index: int) -> MediumLayout:
        """The image `index`, likewise."""
        t, h, w = data[self.image_grid][index].tolist()
        return MediumLayout((t, h // self.merge, w // self.merge))

    def image_sizes(self, items: MultiModalDataItems, kwargs: Mapping[str, Any]) -> list[int]:
        """Tokens of each image of a request before pruning.

        Args:
            items: A request's media, unprocessed.
            kwargs: Of the Hugging Face processor.

        Raises:
            PruneConfigError: An image is named by its uuid alone.
        """
        images = items.get("image")
        if images is None:
            return []
        if not isinstance(images, ImageProcessorItems):  # encoded by the client
            return [int(images.get(i)[self.image_grid].prod()) // self.merge**2 for i in range(len(images))]
        if any(image is None for image in images.get_all()):
            raise PruneConfigError(
                "image.total: an image that is named by its uuid alone has no size to share it by; send the image, or "
                "leave image.total out"
            )
        processor = self.info.get_image_processor(**kwargs)
        sizes = [images.get_image_size(i) for i in range(len(images))]
        return [
            self.info.get_num_image_tokens(
                image_width=size.width, image_height=size.height, image_processor=processor, mm_kwargs=kwargs
            )
            for size in sizes
        ]

    def image_shares(
        self, image: ImageConfig, items: MultiModalDataItems, kwargs: Mapping[str, Any]
    ) -> dict[str, ImageShares]:
        """What a `total` of the request, or of the server, means for its images; nothing where there is none."""
        own = self.settings.config.image
        if image.total is None and (own is None or own.total is None):
            return {}
        sizes = self.image_sizes(items, kwargs)
        if not sizes:
            return {}
        asked = total_share(image, sizes)
        allowed = None if own is None else total_share(own, sizes)
        own_configs = [config_of_image(image, size, asked).to_json() for size in sizes]
        if image.same_within is not None:  # what follows for an image depends on all of it, then
            own_configs = [json.dumps([image.to_dict(), asked, size], sort_keys=True) for size in sizes]
        return {SHARE_KEY: ImageShares(asked, allowed, own_configs)}

    def add_image_specs(self, data: BatchFeature, hf_kwargs: Mapping[str, Any]) -> None:
        """Writes what is decided about every image into `data`, which the Hugging Face processor made of a request."""
        image = request_config(hf_kwargs).image
        if self.image_grid in data and image is not None and not image.keeps_everything:
            check_encoder_runs(image.choice, self.image_pixels in data)
            layouts = [self.image_layout(data, i) for i in range(len(data[self.image_grid]))]
            plans = self._plan_images(image, layouts, data)
            specs = [self._image_spec(image, *each, hf_kwargs) for each in zip(layouts, plans, strict=True)]
            data[IMAGE_FIELD] = [spec.encode() for spec in specs]
            data[IMAGE_CELLS_FIELD] = [encoded_cells(plan) for plan in plans]

    def _plan_images(
        self, image: ImageConfig, layouts: Sequence[MediumLayout], data: BatchFeature
    ) -> list[torch.Tensor | None]:
        """Which cells [N] of each image are encoded (None: all); only their patches are left in `data`."""
        if image.same_within is None:
            return [None] * len(layouts)
        if self.image_pixels not in data:
            raise PruneConfigError(
                "image.same_within: needs pixels, and this request brings precomputed embeddings; send the image "
                "itself, or leave image.same_within out"
            )
        pixels, patches = self.image_format(), data[self.image_pixels]
        plans: list[torch.Tensor | None] = []
        kept: list[torch.Tensor] = []
        for own, layout in zip(patches.split(data[self.image_grid].prod(-1).tolist()), layouts, strict=True):
            small = layout.num_cells <= (image.min_tokens or 0)
            plan = None if small else plan_image(own, layout.grid, image.same_within, pixels)
            plans.append(plan)
            kept.append(own if plan is None else keep_cells(own, plan, pixels.merge))
        data[self.image_pixels] = kept[0] if len(kept) == 1 else torch.cat(kept)
        return plans

    def _image_spec(
        self, image: ImageConfig, layout: MediumLayout, plan: torch.Tensor | None, hf_kwargs: Mapping[str, Any]
    ) -> VideoSpec:
        shares: ImageShares | None = hf_kwargs.get(SHARE_KEY)
        encoded = None if plan is None else int(plan.sum())
        config = config_of_image(image, layout.num_cells, shares and shares.asked, encoded)
        return self.spec(config, layout, None if encoded is None else (encoded,), hf_kwargs.get(TRACE_KEY))

    def image_fields(self, hf_inputs: BatchFeature) -> dict[str, MultiModalFieldConfig]:
        """How vLLM tells the fields of one image from those of the next."""
        names = (IMAGE_FIELD, IMAGE_CELLS_FIELD)
        fields = {name: MultiModalFieldConfig.batched("image", keep_on_cpu=True) for name in names}
        specs = [VideoSpec.decode(spec) for spec in hf_inputs.get(IMAGE_FIELD, ())]
        if any(spec.per_frame is not None for spec in specs):
            sizes = torch.tensor([spec.counts.encoded for spec in specs]) * self.merge**2
            fields[self.image_pixels] = MultiModalFieldConfig.flat_from_sizes("image", sizes)
        return fields

    def checked_image_spec(self, image: Any, shares: ImageShares | None) -> VideoSpec:
        """What was decided about one processed image; refuses more than the server allows."""
        spec = VideoSpec.decode(image[IMAGE_FIELD].data)
        self.settings.check_image(spec.config, spec.num_tokens, shares and shares.allowed, spec.per_frame)
        return spec
