"""How each medium of a prompt is pruned: a video by what is said of videos, an image by what is said of images."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

from transformers import PreTrainedModel

from vllm_prune.config import NO_METHOD, ImageConfig, PruneConfig

from .pixels import new_cells
from .prompt import Medium, Prompt
from .squares import encode_square, has_squares


def own_configs(model: PreTrainedModel, prompt: Prompt, config: PruneConfig) -> list[PruneConfig]:
    """One for each medium, in which the amounts of an image are numbers of its own."""
    image, videos = config.image, dataclasses.replace(config, image=None)
    sizes = [_size(model, medium, image) for medium in prompt.media if medium.kind == "image"]
    if image is None:
        return [videos if medium.kind == "video" else PruneConfig() for medium in prompt.media]
    kept = iter(image_targets(image, sizes))
    return [videos if medium.kind == "video" else _image_config(image, next(kept)) for medium in prompt.media]


def looks_at_pixels(medium: Medium, side: int, image: ImageConfig | None) -> bool:
    """Whether cells of a medium that are as their neighbours are left out."""
    if medium.kind != "image" or image is None or image.same_within is None:
        return False
    if image.total:
        raise NotImplementedError("the oracle has equal cells without a total only")
    _, h, w = medium.grid_thw
    return h * w // side**2 > (image.min_tokens or 0)


def _size(model: PreTrainedModel, medium: Medium, image: ImageConfig | None) -> int:
    """Tokens that a method chooses from."""
    if has_squares(model):
        return encode_square(model, medium).num_tokens
    side = model.config.vision_config.spatial_merge_size
    if image is not None and image.same_within is not None and looks_at_pixels(medium, side, image):
        return len(new_cells(medium, side, image.same_within))
    t, h, w = medium.grid_thw
    return t * h * w // side**2


def _image_config(image: ImageConfig, kept: list[int]) -> PruneConfig:
    if image.method == NO_METHOD:
        return PruneConfig()
    target = kept if image.layers is not None and len(image.layers) > 1 else kept[0]
    one_frame_each = {"temporal_segment_ratio": 1.0} if image.method == "prunevid" else {}
    params = {**one_frame_each, **image.params}
    return PruneConfig(method=image.method, layers=image.layers, params=params, target_token_num=target)


def image_targets(image: ImageConfig, sizes: list[int]) -> list[list[int]]:
    """What every image of these sizes keeps after each pruning layer.

    >>> image_targets(ImageConfig(method="uniform", total=9), [10, 20, 2])
    [[2], [5], [1]]
    """
    each = [_by_itself(image, size) for size in sizes]
    if image.total is None or sum(steps[-1] for steps in each) <= image.total:
        return each
    floors = [min(size, image.min_tokens or 1) for size in sizes]

    def shared(share: Fraction) -> list[int]:
        parts = [max(floor, int(share * size)) for floor, size in zip(floors, sizes, strict=True)]
        return [min(steps[-1], part) for steps, part in zip(each, parts, strict=True)]

    shares = {Fraction(count, size) for size in sizes for count in range(size + 1)}
    best = max(share for share in shares if sum(shared(share)) <= image.total)
    return [[*steps[:-1], last] for steps, last in zip(each, shared(best), strict=True)]


def _by_itself(image: ImageConfig, size: int) -> list[int]:
    count = len(image.layers or [0])
    if image.target_token_num is not None:
        targets = image.target_token_num
        wanted = list(targets) if isinstance(targets, tuple) else [targets] * count
    elif image.keep_ratio is None and image.total is not None:
        wanted = [image.total] * count
    else:
        ratios = image.keep_ratio if image.keep_ratio is not None else 0.4
        wanted, left = [], size
        for ratio in ratios if isinstance(ratios, tuple) else [ratios] * count:
            left = max(1, int(left * ratio + 0.5))
            wanted.append(left)
    return [min(size, max(number, image.min_tokens or 1)) for number in wanted]
