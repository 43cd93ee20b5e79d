"""A picture in place of a video: one frame, which the model gets as an image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from vllm_prune.config import NO_METHOD, ImageConfig, PruneConfig
from vllm_prune.show.errors import ShowError
from vllm_prune.show.media import locate, shorten
from vllm_prune.show.story import Frames, label_of

DEFAULT_PRUNES = (
    '{"image": {"method": "dpp", "keep_ratio": 0.25}}',
    '{"image": {"method": "attention", "keep_ratio": 0.25}}',
)
DEFAULT_QUESTION = "What is in the picture?"


def load_picture(medium: str) -> Image.Image:
    """As vLLM's server loads it.

    Raises:
        ShowError: There is no such file, or it cannot be decoded.
    """
    from vllm.multimodal.media.connector import MediaConnector

    url, folder = locate(medium)
    try:
        fetched = MediaConnector(allowed_local_media_path=folder).fetch_image(url)
    except Exception as error:  # decoders raise what they like; all of it is about the file
        raise ShowError(f"picture={shorten(medium)!r}: cannot be decoded: {error}; give a PNG or JPEG") from error
    picture: Image.Image = getattr(fetched, "media", fetched)
    return picture.convert("RGB")


def frames_of(medium: str, picture: Image.Image) -> Frames:
    """The picture as the only frame."""
    return Frames(np.asarray(picture)[None], np.zeros(1), shorten(medium), is_picture=True)


def grid_of(model: str, picture: Image.Image) -> tuple[int, int, int]:
    """(1, rows, columns) in tokens, by the model's own image processor.

    Raises:
        ShowError: The processor does not take the picture.
    """
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(model)
    try:
        t, h, w = processor(images=[picture], return_tensors="pt")["image_grid_thw"][0].tolist()
    except ValueError as error:
        raise ShowError(f"picture of {picture.width}x{picture.height} pixels: {error}") from error
    return t, h // processor.merge_size, w // processor.merge_size


def name_picture_configs(prunes: Sequence[str]) -> dict[str, PruneConfig]:
    """The configurations by a label each, without repetitions.

    Raises:
        ShowError: One says nothing of images.

    >>> list(name_picture_configs(DEFAULT_PRUNES))
    ['dpp, 25%', 'attention, 25%']
    >>> list(name_picture_configs(['{"image": {"same_within": 0}}', '{"image": {"same_within": 0, "method": "dpp"}}']))
    ['same_within 0', 'same_within 0 + dpp']
    """
    named: dict[str, PruneConfig] = {}
    for prune in prunes:
        config = PruneConfig.parse(prune)
        if config.image is None and not config.keeps_everything:
            raise ShowError(
                f'prune={prune!r}: says nothing of images; give an object with "image", such as {DEFAULT_PRUNES[0]}'
            )
        label = "unpruned" if config.image is None else _label(config.image)
        if config not in named.values():
            named[config.to_json() if label in named else label] = config
    return named


def _label(image: ImageConfig) -> str:
    parts = [] if image.same_within is None else [f"same_within {image.same_within}"]
    if image.method != NO_METHOD or not parts:
        parts.append(label_of(image.choice))
    return " + ".join(parts)
