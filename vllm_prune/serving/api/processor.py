"""Multimodal processor: the budget is decided here, before the scheduler sees the request.

Runs in the API server process. A request's `mm_processor_kwargs["prune"]` is resolved against the server's settings
once, in `apply`; from there on the key holds the resolved configuration as canonical JSON, so that it is part of the
media hash.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import BatchFeature
from vllm.inputs import MultiModalInput
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItem, MultiModalKwargsItems
from vllm.multimodal.processing import PromptReplacement, PromptUpdate
from vllm.multimodal.processing.context import TimingContext
from vllm.multimodal.processing.inputs import ProcessorInputs
from vllm.multimodal.processing.processor import MultiModalProcessingResult

from vllm_prune.config import PruneConfig, PruneConfigError
from vllm_prune.hook import Hooked, hook
from vllm_prune.methods.still_cells import StillPlan
from vllm_prune.override import CONTIGUOUS
from vllm_prune.serving.api.aspect_ratio import told_with_its_size
from vllm_prune.serving.api.encoder_check import check_encoder_runs
from vllm_prune.serving.api.frame_limit import limit_frames
from vllm_prune.serving.api.image_specs import ImageSpecs
from vllm_prune.serving.api.length_check import check_length
from vllm_prune.serving.api.metrics import observe_refusal
from vllm_prune.serving.api.missing_places import told_as_a_mistake_of_the_client
from vllm_prune.serving.api.pixel_plan import config_for, encoded_cells
from vllm_prune.serving.api.position_check import check_positions, check_table, last_position
from vllm_prune.serving.api.prompt_facts import FACTS_KEY, PromptMedium
from vllm_prune.serving.api.prompt_media import MediumPlaceholders, chosen_inside, layouts_of, media_of, videos_seen
from vllm_prune.serving.api.prune_inputs import (
    ImageShares,
    ProfilingInputs,
    PruneInputs,
    fields_of,
    request_config,
    without_prune,
)
from vllm_prune.serving.api.sent_media import KnownItem
from vllm_prune.serving.api.span_check import check_spans
from vllm_prune.serving.api.video_pixels import keep_planned, whole_videos, with_values
from vllm_prune.serving.wire.positions import read_position_table
from vllm_prune.serving.wire.request_spec import CELLS_FIELD, FIELD, VideoSpec
from vllm_prune.serving.wire.settings import REQUEST_KEY, SHARE_KEY, TRACE_KEY, read_step_limits

_PLACES = "vllm_prune_places"
"""Attribute of a request under way: by modality, the placeholders of its media that a configuration is about."""


def _without_plans(config: PruneConfig) -> PruneConfig:
    """For dummy media, which are still and flat: what they have to show is the cost of some that are not."""
    stage1, image = config.stage1, config.image
    if stage1 is not None:
        stage1 = stage1.after_encoder()
    if image is not None:
        image = dataclasses.replace(image, same_within=None)
    return dataclasses.replace(config, stage1=stage1, image=image, frames=None)


class PruningProcessorMixin(Hooked, ImageSpecs):
    """Put before a model's own processor class; a family says what `FamilyProcessor` asks."""

    @hook
    def get_dummy_inputs(self, *args: Any, **kwargs: Any) -> ProcessorInputs:
        """vLLM's dummy request, marked as such."""
        inputs = super().get_dummy_inputs(*args, **kwargs)
        return ProfilingInputs(inputs.prompt, inputs.mm_data_items)

    @hook
    def apply(self, inputs: ProcessorInputs, timing_ctx: TimingContext) -> MultiModalInput:
        """Resolves the request's configuration, processes, and adds the report."""
        begin = time.perf_counter()
        try:
            self.check_frames(inputs.mm_data_items)
            with told_with_its_size(inputs.mm_data_items), told_as_a_mistake_of_the_client():
                inputs = self._with_resolved_config(inputs)
                processed = super().apply(inputs, timing_ctx)
            places = getattr(inputs, _PLACES, {})
            media = media_of(processed, places, videos_seen(inputs.mm_data_items, places, self.frames_of_step))
            if places and not isinstance(inputs, ProfilingInputs):
                self._check_prompt(inputs, processed, media, places)
        except PruneConfigError as error:
            observe_refusal(error)
            raise
        if places:
            config, length = request_config(inputs.hf_processor_mm_kwargs), len(processed["prompt_token_ids"])
            processed[FACTS_KEY] = self.facts(config, media, length, time.perf_counter() - begin)
        return processed

    def _check_prompt(
        self, inputs: ProcessorInputs, processed: MultiModalInput, media: tuple[PromptMedium, ...], places: Any
    ) -> None:
        """Refuses what depends on the prompt as a whole."""
        counts = [medium.counts for medium in media if medium.counts is not None]
        model = self.info.ctx.model_config
        check_length(len(processed["prompt_token_ids"]), counts, model.max_model_len)
        check_positions(layouts_of(places), model.max_model_len, last_position(model.hf_text_config))
        left_out = sum(each.positions_left_out(self.settings.positions == CONTIGUOUS) for each in counts)
        check_table(len(processed["prompt_token_ids"]), left_out, read_position_table(self.info.get_hf_config()))
        chosen = chosen_inside(media, request_config(inputs.hf_processor_mm_kwargs))
        if chosen:
            assert self.turn is not None  # `check_can_serve` sees to it
            limits = read_step_limits(self.info.get_hf_config())
            check_spans(processed["prompt_token_ids"], chosen, self.turn, limits)

    def resolve(self, requested: object | None) -> PruneConfig:
        """The configuration of a request that asks for `requested` (None: nothing of its own).

        Raises:
            PruneConfigError: The value is wrong, or more than the server allows or the model can do.
        """
        config = self.settings.resolve(requested)
        self.check_can_serve(config)
        return config

    def _with_resolved_config(self, inputs: ProcessorInputs) -> ProcessorInputs:
        requested = inputs.hf_processor_mm_kwargs.get(REQUEST_KEY)
        config, trace_key = self.resolve(requested), self.settings.trace_key(requested)
        if isinstance(inputs, ProfilingInputs):
            config = _without_plans(config)
        plain = without_prune(inputs.hf_processor_mm_kwargs)
        kwargs = dict(plain)
        items = limit_frames(self, inputs.mm_data_items, config, plain)
        if not config.keeps_everything or config.prunes_images or config.frames is not None:
            kwargs[REQUEST_KEY] = config.to_json()
            if trace_key is not None:
                kwargs[TRACE_KEY] = trace_key
            if config.image is not None and not isinstance(inputs, ProfilingInputs):
                kwargs |= self.image_shares(config.image, inputs.mm_data_items, plain)
        kind = ProfilingInputs if isinstance(inputs, ProfilingInputs) else PruneInputs
        return kind(**{**fields_of(inputs), "hf_processor_mm_kwargs": kwargs, "mm_data_items": items})

    @hook
    def _cached_apply_hf_processor(
        self, inputs: ProcessorInputs, timing_ctx: TimingContext
    ) -> MultiModalProcessingResult:
        result = super()._cached_apply_hf_processor(inputs, timing_ctx)
        for modality, items in result.kwargs.items():
            for i, item in enumerate(items):
                if isinstance(item, KnownItem):
                    item.process = functools.partial(self._process_again, inputs, modality, i)
        for modality, items in result.prompt_updates.items():
            contents = [updates[0].content for updates in items]
            places = [content for content in contents if isinstance(content, MediumPlaceholders)]
            if places:
                setattr(inputs, _PLACES, {**getattr(inputs, _PLACES, {}), modality: places})
        return result

    def _process_again(
        self, inputs: ProcessorInputs, modality: str, index: int
    ) -> tuple[MultiModalKwargsItem, Sequence[Any]]:
        """One medium of a request, with its prompt updates, without a cache."""
        result = self._apply_hf_processor(inputs, TimingContext(enabled=False))
        return result.kwargs[modality][index], result.prompt_updates[modality][index]

    @hook
    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, Any]) -> BatchFeature:
        """vLLM's way without our keys, then what is decided about every video."""
        with self.grouping.taking_videos() as videos:
            data = super()._apply_hf_processor_main(mm_items, without_prune(hf_kwargs))
        self.check_embeddings(data)
        if self.video_grid in data:
            config = config_for(data, request_config(hf_kwargs).of_videos, self.video_pixels)
            check_encoder_runs(config, self.video_pixels in data)
            plans: Sequence[StillPlan | None] = [None] * len(data[self.video_grid])
            if config.plans_on_pixels:
                videos = videos or whole_videos(data[self.video_pixels], data[self.video_grid])
                plans, data[self.video_pixels] = keep_planned(videos, config, self.pixel_format())
            elif videos:
                data[self.video_pixels] = with_values(data[self.video_pixels], videos)
            trace_key: Any = hf_kwargs.get(TRACE_KEY)
            frames = [None if plan is None else tuple(plan.per_frame) for plan in plans]
            specs = [self.spec(config, self.layout(data, i), each, trace_key) for i, each in enumerate(frames)]
            data[FIELD] = [spec.encode() for spec in specs]
            data[CELLS_FIELD] = [encoded_cells(plan and plan.encoded) for plan in plans]
        self.add_image_specs(data, hf_kwargs)
        return data

    @hook
    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        fields = super()._get_mm_fields_config(hf_inputs, without_prune(hf_processor_mm_kwargs))
        own = {name: MultiModalFieldConfig.batched("video", keep_on_cpu=True) for name in (FIELD, CELLS_FIELD)}
        own |= self.image_fields(hf_inputs)
        if request_config(hf_processor_mm_kwargs).plans_on_pixels and FIELD in hf_inputs:
            counts = [VideoSpec.decode(spec).counts.encoded for spec in hf_inputs[FIELD]]
            sizes = torch.tensor(counts) * self.merge**2
            own[self.video_pixels] = MultiModalFieldConfig.flat_from_sizes("video", sizes)
        return {**fields, **own}

    @hook
    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, Any], out_mm_kwargs: MultiModalKwargsItems
    ) -> Sequence[PromptUpdate]:
        updates = super()._get_prompt_updates(mm_items, without_prune(hf_processor_mm_kwargs), out_mm_kwargs)
        shares = hf_processor_mm_kwargs.get(SHARE_KEY)
        pads = {"video": self.pad_id}
        if request_config(hf_processor_mm_kwargs).prunes_images:
            pads["image"] = self.image_pad_id
        return [
            self._pruned_update(update, out_mm_kwargs, pads[update.modality], shares)
            if update.modality in pads
            else update
            for update in updates
        ]

    def _pruned_update(
        self, update: PromptUpdate, items: MultiModalKwargsItems, pad_id: int, shares: ImageShares | None
    ) -> PromptUpdate:
        """The same replacement of a medium's placeholder, by as many tokens as the budget allows.

        A video that keeps everything is written as vLLM writes it, text between its steps included. (Not left to vLLM,
        which would count for its own pruning: a rate above 0 turns on the hooks that we share.)
        """
        assert isinstance(update, PromptReplacement)
        modality = update.modality

        def placeholders(item_idx: int) -> MediumPlaceholders:
            item = items[modality][item_idx]
            spec = self._checked_spec(item) if modality == "video" else self.checked_image_spec(item, shares)
            if not spec.keeps_all:
                return MediumPlaceholders([pad_id] * spec.counts.rows, None, spec.counts, layout=spec.layout)
            is_embed = (lambda full: torch.tensor(full) == pad_id) if spec.layout.text else None
            return MediumPlaceholders(spec.layout.prompt(pad_id), is_embed, spec.counts, layout=spec.layout)

        return dataclasses.replace(update, replacement=placeholders)

    def _checked_spec(self, video: Any) -> VideoSpec:
        """What was decided about one processed video; refuses more than the server allows."""
        spec = VideoSpec.decode(video[FIELD].data)
        if not spec.config.keeps_everything:
            self.settings.check_counts(spec.config, spec.num_tokens, spec.per_frame)
        return spec
