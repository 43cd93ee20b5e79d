"""What a model family says to the multimodal processor; the worker's side is `worker/patch_media.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from vllm.multimodal.parse import MultiModalDataItems, VideoProcessorItems
from vllm.multimodal.processing import BaseMultiModalProcessor

from vllm_prune.config import ImageConfig, PruneConfig, PruneConfigError, check_parts
from vllm_prune.config.methods import check_has_rows
from vllm_prune.layout import MediumLayout
from vllm_prune.media.errors import UnusableVideo
from vllm_prune.override import CONTIGUOUS, ServerSettings
from vllm_prune.serving.api.embeddings_check import check_embeddings
from vllm_prune.serving.api.encoder_check import check_encoder_is_readable
from vllm_prune.serving.api.frame_groups import GroupingContext
from vllm_prune.serving.api.pixel_plan import PixelFormat
from vllm_prune.serving.api.prompt_facts import PromptFacts, PromptMedium
from vllm_prune.serving.api.turn_format import derive_turn_format
from vllm_prune.serving.wire.decoder_layers import deepstack_levels, pruning_layers
from vllm_prune.serving.wire.request_spec import VideoSpec
from vllm_prune.serving.wire.selector_file import needed_digests
from vllm_prune.serving.wire.settings import read_settings, read_undivided_decoder


class FamilyProcessor(BaseMultiModalProcessor[Any]):
    """Defaults that serve a model whose videos are patches with a grid each, and contiguous in the prompt."""

    video_pixels: ClassVar[str] = "pixel_values_videos"
    """Field of the patches of videos."""
    video_grid: ClassVar[str] = "video_grid_thw"
    """Field of their grids, in patches."""
    image_grid: ClassVar[str] = "image_grid_thw"
    """Field of the grids of images, in patches."""
    image_pixels: ClassVar[str] = "pixel_values"
    """Field of the patches of images."""
    reply_header: ClassVar[str | None] = None
    """What the chat format puts between a question and the reply, where rendering the chat template does not tell."""
    fewest_frames: ClassVar[int] = 1
    """That a video may have; more than 1 where the Hugging Face processor does not fill up the first step."""
    may_renumber: ClassVar[bool] = False
    """Whether positions have one dimension, in which tokens that stay may be numbered anew."""
    plans_on_pixels: ClassVar[bool] = True
    """Whether the model's encoder can leave out cells (`PatchMediaMixin.encode_cells`)."""
    flat_images: ClassVar[str] = ""
    """Why the cells of an image have no rows and columns, where its grid is (1, 1, N)."""

    def layout(self, data: Any, index: int) -> MediumLayout:
        """The video `index` of what the Hugging Face processor made (or the client sent), unpruned."""
        return MediumLayout(self.grid(data, index))

    def step_seconds(self, layout: MediumLayout) -> Sequence[float] | None:
        """When each step of a video's grid begins, in seconds, [t], as the model is told; None where it is not."""
        return None

    def image_parts(self, layout: MediumLayout) -> Sequence[tuple[int, int]]:
        """(h, w) of the pictures, one after the other, whose cells an image has: one, or tiles."""
        t, h, w = layout.grid
        return [(h, w)] * t

    def facts(
        self, config: PruneConfig, media: tuple[PromptMedium, ...], prompt_len: int, processor_s: float
    ) -> PromptFacts:
        """What is known of a processed prompt."""
        return PromptFacts(
            config=config,
            media=media,
            prompt_len=prompt_len,
            processor_s=processor_s,
            turn=self.turn,
            step_seconds=self.step_seconds,
            image_parts=self.image_parts,
        )

    @property
    def pad_id(self) -> int:
        """Token id of a video's placeholders."""
        return self.info.get_tokenizer().get_vocab()[self.info.get_hf_processor().video_token]

    @property
    def image_pad_id(self) -> int:
        """Token id of an image's placeholders."""
        return self.info.get_tokenizer().get_vocab()[self.info.get_hf_processor().image_token]

    def pixel_format(self) -> PixelFormat:
        """How pixels are laid out, for plans on them."""
        return PixelFormat.of(self.info.get_hf_config().vision_config, self.info.get_hf_processor().video_processor)

    def image_format(self) -> PixelFormat:
        """The same of images."""
        return PixelFormat.of(self.info.get_hf_config().vision_config, self.info.get_hf_processor().image_processor)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.info.ctx = self.grouping = GroupingContext.of(self.info.ctx)
        self.settings: ServerSettings = read_settings(self.info.get_hf_config())
        self.merge: int = getattr(self.info.get_hf_config().vision_config, "spatial_merge_size", 1)
        processor = self.info.get_hf_processor()
        self.turn = derive_turn_format(self.info.get_tokenizer(), processor, self.reply_header)
        if self.settings.positions == CONTIGUOUS and not self.may_renumber:
            raise PruneConfigError(
                f"positions={CONTIGUOUS!r}: the positions of this model's media are those of a grid; leave it out"
            )
        self.check_can_serve(self.settings.config)

    def grid(self, data: Any, index: int) -> tuple[int, int, int]:
        """(t, h, w) of a video in cells."""
        t, h, w = data[self.video_grid][index].tolist()
        return t, h // self.merge, w // self.merge

    def check_frames(self, items: MultiModalDataItems) -> None:
        """Refuses videos that the Hugging Face processor cannot take.

        Args:
            items: A request's media, unprocessed.

        Raises:
            UnusableVideo: Names the video, its frames and the remedy.
        """
        videos = items.get("video")
        if not isinstance(videos, VideoProcessorItems):
            return
        for index, video in enumerate(videos.get_all()):
            frames = video[0] if isinstance(video, tuple) else video  # beside metadata
            if frames is not None and len(frames) < self.fewest_frames:
                raise UnusableVideo(
                    f"video {index} has {len(frames)} frame(s), and the model's videos need {self.fewest_frames}",
                    "send a single picture as image_url",
                )

    @property
    def frames_of_step(self) -> int:
        """Frames of a video that share their tokens."""
        return self.info.get_hf_config().vision_config.temporal_patch_size

    def tokens_of_frames(self, width: int, height: int, frames: int, options: Mapping[str, Any]) -> int:
        """Tokens of an unpruned video of so many frames, of so many pixels.

        Args:
            width: Of its frames, as they are in the file.
            height: Likewise.
            frames: A multiple of `frames_of_step`.
            options: The Hugging Face processor's, of the request.
        """
        return self.info.get_num_video_tokens(
            image_width=width,
            image_height=height,
            num_frames=frames,
            image_processor=self.info.get_hf_processor().video_processor,
            mm_kwargs=options,
        )

    def check_embeddings(self, data: Any) -> None:
        """Refuses a request's precomputed embeddings that do not fit the model."""
        model = self.info.ctx.model_config
        width = model.get_hidden_size() * (1 + deepstack_levels(model))
        for field, grid in (("image_embeds", self.image_grid), ("video_embeds", self.video_grid)):
            check_embeddings(data, field, grid, width=width, merge=self.merge)

    def spec(
        self, config: PruneConfig, layout: MediumLayout, per_frame: tuple[int, ...] | None, trace_key: str | None
    ) -> VideoSpec:
        """What was decided about one medium."""
        return VideoSpec(
            config=config,
            layout=layout,
            per_frame=per_frame,
            turn=self.turn,
            trace_key=trace_key,
            selectors=tuple(needed_digests(config, self.info.ctx.model_config)),
            contiguous=self.settings.positions == CONTIGUOUS,
        )

    def check_can_serve(self, config: PruneConfig) -> None:
        """Refuses what this model cannot do."""
        check_parts(config, self._check_part)
        if config.frames is not None:
            longest = self.info.ctx.model_config.max_model_len
            if config.frames.tokens > longest:
                raise PruneConfigError(f"frames.tokens={config.frames.tokens}: must be max_model_len={longest} or less")
        if config.image is not None:
            self._check_images(config.image)

    def _check_images(self, image: ImageConfig) -> None:
        if image.same_within is not None and not self.plans_on_pixels:
            raise PruneConfigError(
                "image.same_within: this model's vision encoder takes whole images only; leave it out"
            )
        if self.flat_images:
            try:
                check_has_rows(image.method, self.flat_images)
            except PruneConfigError as error:
                raise PruneConfigError(f"image.{error}") from error

    def _check_part(self, config: PruneConfig) -> None:
        check_encoder_is_readable(config, self.info.get_hf_config())
        if config.chooses_inside and (undivided := read_undivided_decoder(self.info.get_hf_config())):
            raise PruneConfigError(f"prune.method={config.method!r}: {undivided}")
        if config.query_aware and self.turn is None:
            raise PruneConfigError(
                f"prune.method={config.method!r}: the model's chat template yields no end of a question's turn, so "
                f"where a question ends cannot be told; choose a query-free method, or mend the chat template"
            )
        needed_digests(config, self.info.ctx.model_config)
        if config.chooses_inside:  # checked here, since a worker that raises ends the server
            pruning_layers(config, self.info.ctx.model_config)
        if config.plans_on_pixels and not self.plans_on_pixels:
            raise PruneConfigError(
                'stage1.where="processor": this model\'s vision encoder takes whole frames only; use '
                'stage1.where="encoder"'
            )
