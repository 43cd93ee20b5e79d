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
from vllm.multimodal.processing import PromptReplacement, PromptUpdate, PromptUpdateDetails
from vllm.multimodal.processing.context import TimingContext
from vllm.multimodal.processing.inputs import ProcessorInputs
from vllm.multimodal.processing.processor import MultiModalProcessingResult

from vllm_prune.budget import TokenCounts
from vllm_prune.config import PruneConfig, PruneConfigError
from vllm_prune.hook import Hooked, hook
from vllm_prune.layout import MediumLayout
from vllm_prune.methods.still_cells import StillPlan
from vllm_prune.serving.api.encoder_check import check_encoder_runs
from vllm_prune.serving.api.family import FamilyProcessor
from vllm_prune.serving.api.length_check import check_length
from vllm_prune.serving.api.metrics import observe_refusal
from vllm_prune.serving.api.missing_places import told_as_a_mistake_of_the_client
from vllm_prune.serving.api.pixel_plan import config_for, keep_encoded, plan_video
from vllm_prune.serving.api.prune_inputs import ProfilingInputs, PruneInputs, fields_of, without_prune
from vllm_prune.serving.api.report import FACTS_KEY, PromptFacts
from vllm_prune.serving.api.sent_media import KnownItem
from vllm_prune.serving.api.span_check import check_spans
from vllm_prune.serving.wire.decoder_layers import pruning_layers
from vllm_prune.serving.wire.request_spec import CELLS_FIELD, FIELD, VideoSpec
from vllm_prune.serving.wire.settings import REQUEST_KEY, TRACE_KEY, read_max_step_tokens, read_selector_digest

REPORT_KEY = "prune_report"
"""Key of the processed input under which the API server finds the `TokenCounts` of the request's videos."""


@dataclasses.dataclass
class VideoPlaceholders(PromptUpdateDetails):
    """The placeholders of one video, with the counts they come from (kept in vLLM's processor cache with them)."""

    counts: TokenCounts | None = None


def _encoded_cells(plan: StillPlan | None) -> torch.Tensor:
    """Indices [M] (int32) of the cells that are encoded; empty where nobody looked at the pixels."""
    if plan is None:
        return torch.empty(0, dtype=torch.int32)
    return plan.encoded.flatten().nonzero().squeeze(1).to(torch.int32)


class PruningProcessorMixin(Hooked, FamilyProcessor):
    """Put before a model's own processor class; a family says what `FamilyProcessor` asks."""

    @hook
    def get_dummy_inputs(self, *args: Any, **kwargs: Any) -> ProcessorInputs:
        """vLLM's dummy request, marked as such."""
        inputs = super().get_dummy_inputs(*args, **kwargs)
        return ProfilingInputs(inputs.prompt, inputs.mm_data_items)

    @hook
    def apply(self, inputs: ProcessorInputs, timing_ctx: TimingContext) -> MultiModalInput:
        """Resolves the request's configuration, processes, and adds the report of token counts."""
        begin = time.perf_counter()
        try:
            self.check_frames(inputs.mm_data_items)
            inputs = self._with_resolved_config(inputs)
            with told_as_a_mistake_of_the_client():
                processed = super().apply(inputs, timing_ctx)
            counts = getattr(inputs, REPORT_KEY, ())
            if counts and not isinstance(inputs, ProfilingInputs):
                self._check_prompt(inputs, processed, counts)
        except PruneConfigError as error:
            observe_refusal(error)
            raise
        if counts:
            processed[REPORT_KEY] = counts
            processed[FACTS_KEY] = PromptFacts(
                config=self._config(inputs.hf_processor_mm_kwargs),
                counts=counts,
                ranges=tuple((video.offset, video.length) for video in processed["mm_placeholders"]["video"]),
                prompt_len=len(processed["prompt_token_ids"]),
                processor_s=time.perf_counter() - begin,
            )
        return processed

    def _check_prompt(
        self, inputs: ProcessorInputs, processed: MultiModalInput, counts: tuple[TokenCounts, ...]
    ) -> None:
        """Refuses what depends on the prompt as a whole."""
        check_length(len(processed["prompt_token_ids"]), counts, self.info.ctx.model_config.max_model_len)
        if self._config(inputs.hf_processor_mm_kwargs).chooses_inside:
            limit = read_max_step_tokens(self.info.get_hf_config())
            assert self.turn is not None  # `check_can_serve` sees to it
            check_spans(processed, counts, self.turn, limit)

    def resolve(self, requested: object | None) -> PruneConfig:
        """The configuration of a request that asks for `requested` (None: nothing of its own).

        Raises:
            PruneConfigError: The value is wrong, or more than the server allows or the model can do.
        """
        config = self.settings.resolve(requested)
        self.check_can_serve(config)
        if config.chooses_inside:  # checked here, since a worker that raises ends the server
            pruning_layers(config, self.info.ctx.model_config)
        return config

    def _with_resolved_config(self, inputs: ProcessorInputs) -> ProcessorInputs:
        requested = inputs.hf_processor_mm_kwargs.get(REQUEST_KEY)
        config, trace_key = self.resolve(requested), self.settings.trace_key(requested)
        if config.stage1 is not None and isinstance(inputs, ProfilingInputs):
            # The dummy video is still, and what it has to show is the cost of one that is not.
            config = dataclasses.replace(config, stage1=config.stage1.after_encoder())
        kwargs = without_prune(inputs.hf_processor_mm_kwargs)
        if not config.keeps_everything:
            kwargs[REQUEST_KEY] = config.to_json()
            if trace_key is not None:
                kwargs[TRACE_KEY] = trace_key
        kind = ProfilingInputs if isinstance(inputs, ProfilingInputs) else PruneInputs
        return kind(**{**fields_of(inputs), "hf_processor_mm_kwargs": kwargs})

    @hook
    def _cached_apply_hf_processor(
        self, inputs: ProcessorInputs, timing_ctx: TimingContext
    ) -> MultiModalProcessingResult:
        result = super()._cached_apply_hf_processor(inputs, timing_ctx)
        for modality, items in result.kwargs.items():
            for i, item in enumerate(items):
                if isinstance(item, KnownItem):
                    item.process = functools.partial(self._process_again, inputs, modality, i)
        contents = [updates[0].content for updates in result.prompt_updates.get("video", ())]
        counts = tuple(content.counts for content in contents if isinstance(content, VideoPlaceholders))
        setattr(inputs, REPORT_KEY, counts)
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
        data = super()._apply_hf_processor_main(mm_items, without_prune(hf_kwargs))
        if self.video_grid in data:
            config = config_for(data, self._config(hf_kwargs), self.video_pixels)
            check_encoder_runs(config, self.video_pixels in data)
            plans = (
                self._plan_on_pixels(config, data) if config.plans_on_pixels else [None] * len(data[self.video_grid])
            )
            trace_key: Any = hf_kwargs.get(TRACE_KEY)
            specs = [self._spec(config, self.layout(data, i), plan, trace_key) for i, plan in enumerate(plans)]
            data[FIELD] = [spec.encode() for spec in specs]
            data[CELLS_FIELD] = [_encoded_cells(plan) for plan in plans]
        return data

    def _plan_on_pixels(self, config: PruneConfig, data: BatchFeature) -> list[StillPlan | None]:
        """Plans every video and leaves only the patches of its encoded cells in `data`."""
        pixels, patches = self.pixel_format(), data[self.video_pixels]
        plans: list[StillPlan | None] = []
        kept: list[torch.Tensor] = []
        for i, own in enumerate(patches.split(data[self.video_grid].prod(-1).tolist())):
            plan = plan_video(own, self.grid(data, i), config, pixels)
            plans.append(plan)
            kept.append(keep_encoded(own, plan, pixels.merge))
        data[self.video_pixels] = kept[0] if len(kept) == 1 else torch.cat(kept)
        return plans

    def _spec(
        self, config: PruneConfig, layout: MediumLayout, plan: StillPlan | None, trace_key: str | None
    ) -> VideoSpec:
        per_frame = None if plan is None else tuple(plan.per_frame)
        selector = read_selector_digest(self.info.get_hf_config()) if config.needs_selector else None
        return VideoSpec(
            config=config,
            layout=layout,
            per_frame=per_frame,
            turn=self.turn,
            trace_key=trace_key,
            selector=selector,
        )

    @hook
    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        fields = super()._get_mm_fields_config(hf_inputs, without_prune(hf_processor_mm_kwargs))
        own = {name: MultiModalFieldConfig.batched("video", keep_on_cpu=True) for name in (FIELD, CELLS_FIELD)}
        if self._config(hf_processor_mm_kwargs).plans_on_pixels and FIELD in hf_inputs:
            counts = [VideoSpec.decode(spec).counts.encoded for spec in hf_inputs[FIELD]]
            sizes = torch.tensor(counts) * self.merge**2
            own[self.video_pixels] = MultiModalFieldConfig.flat_from_sizes("video", sizes)
        return {**fields, **own}

    @hook
    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, Any], out_mm_kwargs: MultiModalKwargsItems
    ) -> Sequence[PromptUpdate]:
        updates = super()._get_prompt_updates(mm_items, without_prune(hf_processor_mm_kwargs), out_mm_kwargs)
        return [
            self._pruned_update(update, out_mm_kwargs) if update.modality == "video" else update for update in updates
        ]

    def _config(self, hf_processor_mm_kwargs: Mapping[str, Any]) -> PruneConfig:
        resolved = hf_processor_mm_kwargs.get(REQUEST_KEY)
        return PruneConfig() if resolved is None else PruneConfig.parse(resolved)

    def _pruned_update(self, update: PromptUpdate, items: MultiModalKwargsItems) -> PromptUpdate:
        """The same replacement of the video's placeholder, by as many tokens as the budget allows.

        A video that keeps everything is written as vLLM writes it, text between its steps included. (Not left to vLLM,
        which would count for its own pruning: a rate above 0 turns on the hooks that we share.)
        """
        assert isinstance(update, PromptReplacement)
        pad_id = self.pad_id

        def placeholders(item_idx: int) -> VideoPlaceholders:
            spec = self._checked_spec(items["video"][item_idx])
            if not spec.keeps_all:
                return VideoPlaceholders(full=[pad_id] * spec.counts.rows, counts=spec.counts)
            is_embed = (lambda full: torch.tensor(full) == pad_id) if spec.layout.text else None
            return VideoPlaceholders(spec.layout.prompt(pad_id), is_embed, spec.counts)

        return dataclasses.replace(update, replacement=placeholders)

    def _checked_spec(self, video: Any) -> VideoSpec:
        """What was decided about one processed video; refuses more than the server allows."""
        spec = VideoSpec.decode(video[FIELD].data)
        if not spec.config.keeps_everything:
            self.settings.check_counts(spec.config, spec.num_tokens, spec.per_frame)
        return spec
