"""Reading configurations: presets, JSON text, mappings, and what a mapping changes of another configuration."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Literal, get_args

from vllm_prune.config.checks import MAX_TEXT, require_bool, require_int, require_known_keys
from vllm_prune.config.errors import PruneConfigError, brief, require_length, shorten
from vllm_prune.config.frames import FramesConfig
from vllm_prune.config.image import ImageConfig
from vllm_prune.config.methods import ATTENTION, NO_METHOD
from vllm_prune.config.presets import PRESETS
from vllm_prune.config.prune_config import PruneConfig
from vllm_prune.config.stage1 import Stage1Config

OverridePolicy = Literal["none", "tighten", "any"]
"""What a request may change: nothing; only to fewer tokens; anything."""

_SAID = 200  # characters of the JSON parser's own message


def parse(value: object, base: PruneConfig | None = None) -> PruneConfig:
    """Reads a preset's name, a JSON object (as text) or a mapping.

    Args:
        value: What to read. A mapping may name a `preset` to start from.
        base: The configuration that a mapping without `preset` changes; by default one that prunes nothing. Its
            `image` and `frames` stay with a preset, too, which says nothing of them.

    Raises:
        PruneConfigError: Unknown preset or key, or a value out of its range.
    """
    if isinstance(value, PruneConfig):
        return value
    if isinstance(value, str):
        require_length("prune", value, MAX_TEXT, "characters")
        if not value.lstrip().startswith("{"):
            base = base or PruneConfig()
            return dataclasses.replace(preset(value), image=base.image, frames=base.frames)
        value = _parse_json(value)
    if not isinstance(value, Mapping):
        raise PruneConfigError(f"prune={brief(value)}: must be a preset's name ({', '.join(PRESETS)}) or an object")
    return _merge(value, base or PruneConfig())


def _parse_json(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # RecursionError: nested too deeply
        raise PruneConfigError(f"prune={brief(text)}: not valid JSON: {shorten(str(error), _SAID)}") from error


_SHORTHANDS = ("preset", "enable_stage1", "enable_pruning", "pruning_layer")
_FIELDS = tuple(field.name for field in dataclasses.fields(PruneConfig))
_IMAGE_FIELDS = tuple(field.name for field in dataclasses.fields(ImageConfig) if field.init)
_AMOUNTS = {"keep_ratio", "target_token_num", "min_tokens", "total"}


def _merge(changes: Mapping[str, Any], base: PruneConfig) -> PruneConfig:
    """Applies `changes` to `base`, or to the preset that they name."""
    require_known_keys("prune", changes, (*_FIELDS, *_SHORTHANDS))
    image, frames = _merge_image(changes, base.image), _merge_frames(changes, base.frames)
    if "preset" in changes:
        base = preset(changes["preset"])
    fields = _merge_choice(changes, {name: getattr(base, name) for name in _FIELDS})
    fields["stage1"] = _merge_stage1(changes, base.stage1)
    fields |= {"image": image, "frames": frames}
    _apply_switches(fields, changes)
    return PruneConfig(**fields)


def _merge_choice(changes: Mapping[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    """`fields` with `changes`, and without what a change makes void."""
    method = fields["method"]
    # Ratio and target exclude each other: the one given replaces the one inherited.
    if changes.get("target_token_num") is not None and "keep_ratio" not in changes:
        fields["keep_ratio"] = None
    if changes.get("keep_ratio") is not None and "target_token_num" not in changes:
        fields["target_token_num"] = None
    if changes.get("method", method) != method:
        fields.update(params={}, layers=None)
        if changes["method"] == NO_METHOD:  # the amounts were the method's
            fields.update(dict.fromkeys(_AMOUNTS & fields.keys()))
    return fields | {name: changes[name] for name in fields if name in changes}


def _merge_image(changes: Mapping[str, Any], base: ImageConfig | None) -> ImageConfig | None:
    value = changes.get("image", base)
    if value is None or value is False or isinstance(value, ImageConfig):
        return value or None
    if not isinstance(value, Mapping):
        raise PruneConfigError(f"image={brief(value)}: must be an object, or false")
    require_known_keys("image", value, _IMAGE_FIELDS)
    inherited = base or ImageConfig()
    image = ImageConfig(**_merge_choice(value, {name: getattr(inherited, name) for name in _IMAGE_FIELDS}))
    return None if image.method == NO_METHOD and image.same_within is None else image


def _merge_frames(changes: Mapping[str, Any], base: FramesConfig | None) -> FramesConfig | None:
    value = changes.get("frames", base)
    if value is None or value is False or isinstance(value, FramesConfig):
        return value or None
    if not isinstance(value, Mapping):
        raise PruneConfigError(f"frames={brief(value)}: must be an object, or false")
    known = tuple(field.name for field in dataclasses.fields(FramesConfig))
    require_known_keys("frames", value, known)
    given = {**(base.to_dict() if base else {}), **value}
    if "tokens" not in given:
        raise PruneConfigError(f"frames={brief(value)}: needs tokens, an integer of 1 or more")
    return FramesConfig(**given)


def _merge_stage1(changes: Mapping[str, Any], base: Stage1Config | None) -> Stage1Config | None:
    enabled = require_bool("enable_stage1", changes.get("enable_stage1", True))
    value = changes.get("stage1", base or ("enable_stage1" in changes))
    if not enabled or value is None or value is False:
        return None
    if value is True:
        return base or Stage1Config()
    if isinstance(value, Stage1Config):
        return value
    if not isinstance(value, Mapping):
        raise PruneConfigError(f"stage1={brief(value)}: must be true, false or an object")
    known = tuple(field.name for field in dataclasses.fields(Stage1Config))
    require_known_keys("stage1", value, known)
    return dataclasses.replace(base or Stage1Config(), **value)


def _apply_switches(fields: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """The source's own names: `enable_pruning` for stages 2 and 3, `pruning_layer` for a single layer."""
    if "enable_pruning" in changes:
        if not require_bool("enable_pruning", changes["enable_pruning"]):
            fields.update(method=NO_METHOD, keep_ratio=None, target_token_num=None, layers=None, params={})
        elif fields["method"] == NO_METHOD:
            fields["method"] = ATTENTION
    if "pruning_layer" in changes:
        fields["layers"] = (require_int("pruning_layer", changes["pruning_layer"], 0),)


def preset(name: object) -> PruneConfig:
    """The preset called `name`."""
    if not isinstance(name, str) or name not in PRESETS:
        raise PruneConfigError(f"preset={brief(name)}: unknown; known presets: {', '.join(PRESETS)}")
    return PRESETS[name]


def check_override_policy(value: object) -> OverridePolicy:
    """Returns `value` if it is a known override policy."""
    if value not in get_args(OverridePolicy):
        raise PruneConfigError(f"override={brief(value)}: must be one of {', '.join(get_args(OverridePolicy))}")
    return value  # type: ignore[return-value]
