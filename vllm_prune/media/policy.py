"""Which formats a server takes: safe ones by default, others where its operator lets them in."""

from __future__ import annotations

import os
from collections.abc import Mapping

from vllm_prune.media.containers import CONTAINERS, Container, Kind, identify
from vllm_prune.media.errors import UnusableVideo, convert_line

VARIABLE = "VLLM_PRUNE_CONTAINERS"
"""The environment variable in which `vllm-prune serve` hands its option to the server's processes."""
ALL = "all"

DEFAULT = tuple(name for name, container in CONTAINERS.items() if container.default)
"""Names of the formats that every server takes."""
OPTIONAL = tuple(
    name for name, container in CONTAINERS.items() if container.kind is Kind.VIDEO and not container.default
)
"""Names of those that an operator may let in."""
_LEADING_SHOWN = 8  # bytes


def parse_containers(text: str) -> frozenset[str]:
    """The formats beyond the default ones that an operator names, separated by commas; `all`: every one there is.

    Raises:
        ValueError: One is unknown, or is taken by nobody.

    >>> sorted(parse_containers("avi, ogg"))
    ['avi', 'ogg']
    """
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in (ALL, *OPTIONAL, *DEFAULT):
            raise ValueError(
                f"--prune-containers {name!r}: no video format that can be let in; use {', '.join((*OPTIONAL, ALL))} "
                f"(taken in any case: {', '.join(DEFAULT)})"
            )
    return frozenset(OPTIONAL if ALL in names else names)


def let_in(environment: Mapping[str, str] = os.environ) -> frozenset[str]:
    """What this process's operator lets in beyond the default formats."""
    return parse_containers(environment.get(VARIABLE, ""))


def check_container(data: bytes, extra: frozenset[str] = frozenset()) -> Container:
    """The format of a file, if a server that lets in `extra` takes it.

    Raises:
        UnusableVideo: It does not; says what the file is and how to convert it.
    """
    if not data:
        raise UnusableVideo("the file is empty")
    container = identify(data)
    if container.default or container.name in extra:
        return container
    raise _REFUSALS[container.kind](container, data)


def _other_video(container: Container, data: bytes) -> UnusableVideo:
    remedy = (
        f"{convert_line()}; or let it in, by `vllm-prune serve --prune-containers {container.name}` or, for other "
        f"commands, {VARIABLE}={container.name}"
    )
    return UnusableVideo(f"the file is {container.label}, which is not let in", remedy)


def _picture(container: Container, data: bytes) -> UnusableVideo:
    return UnusableVideo(f"the file is a {container.label} picture", "send it as image_url")


def _sound(container: Container, data: bytes) -> UnusableVideo:
    return UnusableVideo(f"the file is sound ({container.label}) without pictures", "send a video file such as mp4")


def _references(container: Container, data: bytes) -> UnusableVideo:
    return UnusableVideo(
        f"the file is a text that names other files ({container.label}), which no server opens",
        "send the video itself: ffmpeg -i INPUT -c copy OUTPUT.mp4",
    )


def _unknown(container: Container, data: bytes) -> UnusableVideo:
    shown = data[:_LEADING_SHOWN].hex(" ")
    return UnusableVideo(
        f"the file is in no known video format (it begins with {shown})", f"if it is a video, {convert_line()}"
    )


_REFUSALS = {
    Kind.VIDEO: _other_video,
    Kind.PICTURE: _picture,
    Kind.SOUND: _sound,
    Kind.REFERENCES: _references,
    Kind.UNKNOWN: _unknown,
}
