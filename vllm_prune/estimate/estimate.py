"""Tokens, FLOPs and KV memory of one request, without and with pruning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vllm_prune.budget import TokenCounts, plan_counts
from vllm_prune.budget_images import config_of_image, total_share
from vllm_prune.config import ATTENTION, PruneConfig
from vllm_prune.estimate.dims import ModelDims
from vllm_prune.estimate.flops import Flops, decoder_flops, encoder_flops, head_flops, importance_flops
from vllm_prune.estimate.kv import KVNeed, kv_need
from vllm_prune.estimate.text_dims import EstimateError
from vllm_prune.estimate.video import PixelLimits, VideoShape, sampled_video


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked: one video, or images, and some text."""

    video: VideoShape
    text_tokens: int = 64
    """Of the prompt apart from the video: template and question, taken to stand after the video."""
    images: int = 0
    """So many images of the video's height and width in its place."""
    block_size: int = 16
    kv_bytes: int | None = None
    """Bytes of a number in the KV cache; None: as in the model."""

    def __post_init__(self) -> None:
        for name, least in (("text_tokens", 1), ("images", 0), ("block_size", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise EstimateError(f"{name}={value!r}: must be an integer of {least} or more")


@dataclass(frozen=True, kw_only=True)
class PrefillFlops:
    """Where the operations of a prefill go. What is predicted to be faster is the sum of all."""

    encoder: Flops
    dense_prefix: Flops
    """Layers up to the last pruning layer; nothing where the question chooses nothing."""
    importance: Flops
    rest: Flops
    """The other layers and the output head."""

    @property
    def total(self) -> Flops:
        """All of it."""
        return self.encoder + self.dense_prefix + self.importance + self.rest

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        names = ("encoder", "dense_prefix", "importance", "rest", "total")
        return {name: getattr(self, name).to_dict() for name in names}


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one request under one configuration."""

    prompt_tokens: int
    flops: PrefillFlops
    kv: KVNeed

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"prompt_tokens": self.prompt_tokens, "flops": self.flops.to_dict(), "kv": self.kv.to_dict()}


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """One configuration against none."""

    config: PruneConfig
    grid: tuple[int, int, int]
    counts: TokenCounts
    layers: tuple[int, ...]
    """Decoder layers at which the question chooses."""
    before: Cost
    after: Cost
    of_images: bool = False
    frames: int = 0
    """Of the video, with pruning: fewer than without where `config.frames` says so."""
    whole: tuple[int, int, int]
    """The grid without pruning."""

    @property
    def prefill_ratio(self) -> float:
        """Predicted time of a prefill (encoder and decoder) with pruning, as a share of that without.

        It is the ratio of the FLOPs: right where arithmetic is the limit, as in prefills of thousands of tokens; launch
        overhead and stage 1's own time are not in it.
        """
        return self.after.flops.total.total / self.before.flops.total.total

    @property
    def decoder_ratio(self) -> float:
        """The same of the language model alone, as when the encoder's output is cached."""
        before, after = (cost.flops.total.total - cost.flops.encoder.total for cost in (self.before, self.after))
        return after / before

    @property
    def kv_ratio(self) -> float:
        """KV bytes with pruning, as a share of those without."""
        return self.after.kv.bytes / self.before.kv.bytes

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        counts = self.counts
        return {
            "prune": self.config.to_dict(),
            "grid": list(self.grid),
            **({} if self.of_images else {"frames": self.frames}),
            "tokens": {
                "image" if self.of_images else "video": counts.total,
                "stage1": counts.stage1,
                "entering": counts.entering,
                "layers": {str(layer): count for layer, count in zip(self.layers, counts.layers, strict=True)},
                "kept": counts.kept,
                "structure": counts.pinned,
            },
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "predicted_prefill_time_ratio": self.prefill_ratio,
            "predicted_prefill_time_ratio_without_encoder": self.decoder_ratio,
            "kv_ratio": self.kv_ratio,
        }


def estimate(dims: ModelDims, request: Request, config: PruneConfig, limits: PixelLimits | None = None) -> Estimate:
    """What `config` saves on `request`.

    With stage 1 before the encoder (`stage1.where="processor"`) counts follow the pixels, which nobody knows here: they
    are taken as those after the encoder, and the encoder's work as that of a video without still cells.

    Raises:
        EstimateError: The video or the text is out of range.
        PruneConfigError: A pruning layer is beyond the model's depth, or keeps a state in place of keys.
    """
    if request.images:
        return _estimate_images(dims, request, config, limits)
    whole, video = request.video, sampled_video(request.video, dims.vision, config, limits)
    nothing, unpruned = _counts(dims, whole.grid(dims.vision, limits), PruneConfig())
    grid = video.grid(dims.vision, limits)
    counts, encoder = _counts(dims, grid, config)
    layers = _pruning_layers(dims, config)
    return Estimate(
        config=config,
        grid=grid,
        counts=counts,
        layers=layers,
        before=_cost(dims, request, unpruned, nothing, ()),
        after=_cost(dims, request, encoder, counts, layers),
        frames=video.frames,
        whole=whole.grid(dims.vision, limits),
    )


def _counts(dims: ModelDims, grid: tuple[int, int, int], config: PruneConfig) -> tuple[TokenCounts, Flops]:
    """Of a video under `config`, with the encoder's work."""
    num_tokens = grid[0] * grid[1] * grid[2]
    pinned = grid[0] * dims.step_text + dims.video_pins
    return plan_counts(config.of_videos, num_tokens, None, pinned), encoder_flops(dims.vision, grid)


def _estimate_images(dims: ModelDims, request: Request, config: PruneConfig, limits: PixelLimits | None) -> Estimate:
    """To the vision encoder, images of one size are the frames of a video; each is pruned by itself."""
    _, height, width = VideoShape(1, request.video.height, request.video.width).grid(
        dims.vision, limits, of_images=True
    )
    grid = (request.images, height, width)
    sizes = [height * width] * request.images
    choice, own = PruneConfig(), [PruneConfig()] * request.images
    if config.image is not None:
        share = total_share(config.image, sizes)
        choice, own = config.image.choice, [config_of_image(config.image, size, share) for size in sizes]
    layers = _pruning_layers(dims, choice)
    encoder = encoder_flops(dims.vision, grid)
    counts = _together([plan_counts(each, size) for each, size in zip(own, sizes, strict=True)])
    nothing = plan_counts(PruneConfig(), sum(sizes))
    return Estimate(
        config=config,
        grid=grid,
        counts=counts,
        layers=layers if counts.layers else (),
        before=_cost(dims, request, encoder, nothing, ()),
        after=_cost(dims, request, encoder, counts, layers if counts.layers else ()),
        of_images=True,
        whole=grid,
    )


def _together(counts: list[TokenCounts]) -> TokenCounts:
    """Of several media by one configuration."""
    return TokenCounts(
        total=sum(each.total for each in counts),
        encoded=sum(each.encoded for each in counts),
        stage1=sum(each.stage1 for each in counts),
        entering=sum(each.entering for each in counts),
        layers=tuple(map(sum, zip(*(each.layers for each in counts), strict=True))),
        by_question=counts[0].by_question,
    )


def _pruning_layers(dims: ModelDims, config: PruneConfig) -> tuple[int, ...]:
    if config.method != ATTENTION:
        return ()
    linear = dims.text.linear
    return config.resolved_layers(dims.text.layers, dims.vision.levels, linear.indices if linear else ())


def _cost(dims: ModelDims, request: Request, encoder: Flops, counts: TokenCounts, layers: tuple[int, ...]) -> Cost:
    rows = layer_rows(dims.text.layers, request.text_tokens, counts, layers)
    dense = layers[-1] + 1 if layers else 0
    flops = PrefillFlops(
        encoder=encoder,
        dense_prefix=decoder_flops(dims.text, rows[:dense]),
        importance=_importance(dims, request, counts, layers),
        rest=decoder_flops(dims.text, rows[dense:]) + head_flops(dims.text),
    )
    prompt = request.text_tokens + counts.rows
    kv_bytes = request.kv_bytes or dims.dtype_bytes
    return Cost(prompt_tokens=prompt, flops=flops, kv=kv_need(dims.text, kv_bytes, prompt, request.block_size))


def layer_rows(depth: int, text_tokens: int, counts: TokenCounts, layers: tuple[int, ...]) -> list[int]:
    """Rows that each of `depth` decoder layers computes; a pruning layer itself still sees what it prunes.

    >>> layer_rows(5, 10, plan_counts(PruneConfig.parse("default"), 100), (1,))
    [60, 60, 30, 30, 30]
    """
    rows = []
    left = counts.entering
    steps = dict(zip(layers, counts.layers, strict=True))
    for layer in range(depth):
        rows.append(text_tokens + counts.pinned + left)
        left = steps.get(layer, left)
    return rows


def _importance(dims: ModelDims, request: Request, counts: TokenCounts, layers: tuple[int, ...]) -> Flops:
    text, total = request.text_tokens, Flops()
    for tokens in (counts.entering, *counts.layers)[: len(layers)]:
        total += importance_flops(dims.text, text, text + counts.pinned + tokens, tokens)
    return total
