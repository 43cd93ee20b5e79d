"""Methods by name, imported when asked for.

A third-party package adds one with an entry point and no import of this package at install time:

    [project.entry-points."vllm_prune.methods"]
    mine = "my_package.mine:Mine"
"""

from __future__ import annotations

import dataclasses
import importlib
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import Any

from vllm_prune.methods.base import Method
from vllm_prune.methods.merge_dropped import MergeDropped

ENTRY_POINT_GROUP = "vllm_prune.methods"

_BUILT_IN = MappingProxyType(
    {
        "dart": "vllm_prune.methods.dart:DART",
        "dpp": "vllm_prune.methods.dpp:DPP",
        "dycoke": "vllm_prune.methods.dycoke:DyCoke",
        "evs": "vllm_prune.methods.evs:EVS",
        "fastvid": "vllm_prune.methods.fastvid:FastVID",
        "fastvid_attention": "vllm_prune.methods.fastvid_attention:FastVIDAttention",
        "flashvid": "vllm_prune.methods.flashvid:FlashVID",
        "framefusion": "vllm_prune.methods.framefusion:FrameFusion",
        "holitom": "vllm_prune.methods.holitom:HoliTom",
        "prumerge": "vllm_prune.methods.prumerge:PruMerge",
        "prunevid": "vllm_prune.methods.prunevid:PruneVid",
        "random": "vllm_prune.methods.random:Random",
        "tome": "vllm_prune.methods.tome:ToMe",
        "topk": "vllm_prune.methods.topk:TopK",
        "uniform": "vllm_prune.methods.uniform:Uniform",
        "vidcom2": "vllm_prune.methods.vidcom2:VidCom2",
        "visionzip": "vllm_prune.methods.visionzip:VisionZip",
    }
)


def names() -> list[str]:
    """All known methods, built-in and third-party, sorted.

    >>> "uniform" in names()
    True
    """
    return sorted(_targets())


def served() -> list[str]:
    """Those of `names` that a configuration can name by themselves.

    >>> "uniform" in served(), "topk" in served()
    (True, False)
    """
    return [name for name in names() if not is_built_in(name) or getattr(load(name), "relevance", "") != "required"]


def create(name: str, /, *, merge_dropped: bool = False, **params: Any) -> Method:
    """The method called `name` with its parameters; ValueError for an unknown name, parameter or value.

    merge_dropped: merge each token the method drops into the kept token it is most like.

    >>> create("random", seed=3)
    Random(seed=3)
    >>> create("random", speed=3)
    Traceback (most recent call last):
    ...
    ValueError: method 'random' has no parameter 'speed'; it has: seed
    """
    kind = load(name)
    allowed = parameters(name)
    unknown = sorted(set(params) - set(allowed))
    if unknown:
        listed = ", ".join(allowed) or "none"
        raise ValueError(f"method {name!r} has no parameter {unknown[0]!r}; it has: {listed}")
    if not isinstance(merge_dropped, bool):
        raise ValueError(f"merge_dropped={merge_dropped!r}; use True or False")
    try:
        method = kind(**params)
    except TypeError as error:
        raise ValueError(f"method {name!r}: {error}") from error
    return MergeDropped(method) if merge_dropped else method


def is_built_in(name: str) -> bool:
    """Whether the method comes with this package."""
    return name in _BUILT_IN


def parameters(name: str) -> dict[str, Any]:
    """Parameter names of a method with their defaults.

    >>> parameters("random")
    {'seed': 0}
    """
    return {field.name: field.default for field in dataclasses.fields(load(name)) if field.init}


def refuses_images(name: str) -> str:
    """Why a method does not take images, "" if it does: its class says so by `media` or `no_images`.

    >>> refuses_images("uniform"), bool(refuses_images("evs"))
    ('', True)
    """
    kind = load(name)
    if "image" in getattr(kind, "media", ("video",)):
        return ""
    return str(getattr(kind, "no_images", "it does not say that it takes images"))


def image_params(name: str) -> dict[str, Any]:
    """Parameters whose defaults are others for images, as a method's class says by `image_params`.

    >>> image_params("prunevid"), image_params("uniform")
    ({'temporal_segment_ratio': 1.0}, {})
    """
    return dict(getattr(load(name), "image_params", {}))


def is_spatial(name: str) -> bool:
    """Whether a method looks at rows and columns, as its class says by `spatial`; no built-in one does.

    >>> is_spatial("prunevid")
    False
    """
    return bool(getattr(load(name), "spatial", False))


def for_images() -> list[str]:
    """The built-in methods that take images, and can be served.

    >>> "dpp" in for_images(), "evs" in for_images()
    (True, False)
    """
    return [name for name in served() if is_built_in(name) and not refuses_images(name)]


def load(name: str) -> Any:
    """The class behind `name`, imported now; ValueError if it is unknown or not a method."""
    # Every request comes by here, and looking for entry points reads the metadata of all installed packages (10 ms).
    target = _BUILT_IN.get(name) or _targets().get(name)
    if target is None:
        raise ValueError(f"unknown method {name!r}; known methods: {', '.join(names())}")
    module, _, attribute = target.partition(":")
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"method {name!r}: cannot load {target!r}: {error}") from error
    if not dataclasses.is_dataclass(kind) or not callable(getattr(kind, "assign", None)):
        raise ValueError(f"method {name!r}: {target!r} must be a dataclass with assign(tokens, budget)")
    return kind


def _targets() -> dict[str, str]:
    """Name -> "module:attribute". A third-party method cannot take a built-in name."""
    third_party = {entry.name: entry.value for entry in entry_points(group=ENTRY_POINT_GROUP)}
    return {**third_party, **_BUILT_IN}
