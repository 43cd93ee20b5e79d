"""How many tokens each image of a request keeps, from its own number and, with a `total`, those of its neighbours."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from vllm_prune.budget import count_steps
from vllm_prune.config import NO_METHOD, ImageConfig, PruneConfig, PruneConfigError

_HALVINGS = 53
"""Of a share between 0 and 1 that a float64 can tell apart."""


def config_of_image(
    image: ImageConfig, num_tokens: int, share: float | None = None, encoded: int | None = None
) -> PruneConfig:
    """The configuration of one image, in which its amounts are numbers of its own.

    Args:
        image: What the request's images are pruned by.
        num_tokens: N, 1 or more.
        share: What `total_share` found for the request.
        encoded: Those of its cells that are, where its pixels were looked at; the method chooses among them.

    >>> image = ImageConfig(method="uniform", keep_ratio=0.25, min_tokens=8)
    >>> [config_of_image(image, n).target_token_num for n in (100, 20)], config_of_image(image, 8).keep_ratio
    ([25, 8], 1.0)
    """
    if image.choice.method == NO_METHOD:
        return image.choice
    steps = _steps(image, num_tokens, share, encoded)
    if steps[-1] == (num_tokens if encoded is None else encoded):
        return dataclasses.replace(image.choice, keep_ratio=1.0, target_token_num=None)
    target = steps if len(steps) > 1 else steps[0]
    return dataclasses.replace(image.choice, keep_ratio=None, target_token_num=target)


def total_share(image: ImageConfig, sizes: Sequence[int]) -> float | None:
    """The largest share of its tokens that every image may keep; None where `total` does not bind.

    So what an image keeps follows from its size and this one number, whatever the order: images of one size keep the
    same. What is left of `total` is less than one token an image.

    Args:
        image: What the images are pruned by.
        sizes: Tokens of every image of a request before pruning.

    Raises:
        PruneConfigError: `total` is below what the images keep at the least.

    >>> image = ImageConfig(method="uniform", total=100)
    >>> share = total_share(image, [64, 64, 256])
    >>> [config_of_image(image, n, share).target_token_num for n in (64, 256)]
    [16, 67]
    """
    if image.total is None or not sizes:
        return None
    least = sum(_steps(image, size, 0.0)[-1] for size in sizes)
    if least > image.total:
        floor = image.min_tokens or 1
        raise PruneConfigError(
            f"image.total={image.total}: the request has {len(sizes)} images, each of which keeps {floor} token(s) or "
            f"all that it has; use {least} or more, or send fewer images"
        )
    if sum(_steps(image, size, None)[-1] for size in sizes) <= image.total:
        return None
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        fits = sum(_steps(image, size, middle)[-1] for size in sizes) <= image.total
        low, high = (middle, high) if fits else (low, middle)
    return low


def _steps(image: ImageConfig, num_tokens: int, share: float | None, encoded: int | None = None) -> tuple[int, ...]:
    """What is left after each pruning layer, or after the only choice."""
    given = num_tokens if encoded is None else encoded
    floor = min(given, image.min_tokens or 1)
    steps = [max(step, floor) for step in count_steps(image.choice, given)]
    if share is not None:
        steps[-1] = min(steps[-1], max(floor, int(num_tokens * share)))
    return tuple(steps)
