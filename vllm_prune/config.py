"""What to prune: presets, parsing and validation, with no model and no vLLM.

A configuration comes from three places, each of which accepts a preset's name, a JSON object or a mapping: the server's
`--prune` flag, `PruneConfig.parse` in Python, and the `prune` key of a request's `mm_processor_kwargs`.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, get_args

OverridePolicy = Literal["none", "tighten", "any"]
"""What a request may change: nothing; only to fewer tokens; anything."""

NO_METHOD = "none"
ATTENTION = "attention"
DEFAULT_KEEP_RATIO = 0.4
"""PruneVid's published share of tokens that stage 2 keeps."""

ATTENTION_PARAMS: Mapping[str, tuple[str, ...]] = {
    "text": ("max", "mean", "last"),
    "heads": ("max", "mean"),
    "selector": ("topk", "dpp"),
    "quota": ("global", "segment"),
}
"""Parameters of method "attention" with their values, the default first.

text, heads: how weights are reduced over the text's positions, then over heads.
selector: the most important tokens; or a conditional DPP per frame, with importance as relevance and hidden states as
features.
quota: tokens compete within the whole video; or, after stage 1, within the static and the dynamic part of each segment,
which share the budget by size.
"""

# Published for the 28 layers of Qwen2.5-VL-7B: importance is read at layer 10.
_PUBLISHED_LAYER, _PUBLISHED_DEPTH = 10, 28


_SHOWN = 200  # characters of a value in an error message


class PruneConfigError(ValueError):
    """A configuration that cannot be used; the message names field, value and remedy."""


def _require_ratio(field: str, value: object) -> float:
    """Returns `value` as a float in (0, 1]."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PruneConfigError(f"{field}={value!r}: must be a number above 0 and at most 1")
    if not 0 < value <= 1:  # NaN is not, either
        raise PruneConfigError(f"{field}={value!r}: must be above 0 and at most 1")
    return float(value)


def _require_int(field: str, value: object, minimum: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise PruneConfigError(f"{field}={value!r}: must be an integer of {minimum} or more")
    if value < minimum:
        raise PruneConfigError(f"{field}={value!r}: must be {minimum} or more")
    return value


def _require_bool(field: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise PruneConfigError(f"{field}={value!r}: must be true or false")
    return value


def _require_choice(field: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise PruneConfigError(f"{field}={value!r}: must be one of {', '.join(choices)}")


def _require_known_keys(where: str, given: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key in given:
        if key not in known:
            raise PruneConfigError(f"{where}: unknown key {key!r}; known keys: {', '.join(known)}")


@dataclass(frozen=True, kw_only=True)
class Stage1Config:
    """PruneVid's spatial-temporal merging (ACL 2025, section 3.2)."""

    tau: float = 0.8
    """Mean pairwise cosine similarity above which a cell of a segment is static; published range 0.7-0.9."""
    cluster_ratio: float = 0.5
    """Fraction of the tokens that merging leaves; published range 0.3-0.8."""
    temporal_segment_ratio: float = 0.25
    """Temporal segments per frame of the token grid; published range 0.1-0.5."""

    where: Literal["encoder", "processor"] = "encoder"
    """After the vision encoder, on its features; or before it, on pixels, so that still cells are never encoded."""
    still: Literal["runs", "segments"] = "runs"
    """Before the encoder, a cell is compared with its last encoded version; or with its first one in the segment."""
    max_tokens: int | None = None
    """Before the encoder, where the count follows the content: tokens that stage 1 leaves at the most."""
    min_tokens: int | None = None
    """Likewise, at the least (or all of the video's)."""
    without_pixels: Literal["refuse", "encoder"] = "refuse"
    """A video that comes as precomputed embeddings, which no plan on pixels can be made for: the request is refused; or
    the video is merged by its features."""

    def __post_init__(self) -> None:
        for name in ("tau", "cluster_ratio", "temporal_segment_ratio"):
            object.__setattr__(self, name, _require_ratio(f"stage1.{name}", getattr(self, name)))
        _require_choice("stage1.where", self.where, ("encoder", "processor"))
        _require_choice("stage1.still", self.still, ("runs", "segments"))
        _require_choice("stage1.without_pixels", self.without_pixels, ("refuse", "encoder"))
        for name in ("max_tokens", "min_tokens"):
            if getattr(self, name) is not None:
                _require_int(f"stage1.{name}", getattr(self, name), 1)
        self._check_limits()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready mapping: what is published, and what differs from its default."""
        fields: dict[str, Any] = self.merging()
        for field in dataclasses.fields(self):
            if field.name not in fields and getattr(self, field.name) != field.default:
                fields[field.name] = getattr(self, field.name)
        return fields

    def merging(self) -> dict[str, Any]:
        """Parameters of the method "prunevid", which does it on features."""
        names = ("tau", "cluster_ratio", "temporal_segment_ratio")
        return {name: getattr(self, name) for name in names}

    def after_encoder(self) -> Stage1Config:
        """The same merging on the encoder's features."""
        return dataclasses.replace(self, where="encoder", max_tokens=None, min_tokens=None, without_pixels="refuse")

    def _check_limits(self) -> None:
        if self.where == "encoder":
            for name in ("max_tokens", "min_tokens"):
                if getattr(self, name) is not None:
                    raise PruneConfigError(f'stage1.{name}={getattr(self, name)!r}: needs stage1.where="processor"')
        elif self.tau == 1:
            raise PruneConfigError('stage1.tau=1.0: must be below 1 with stage1.where="processor"')
        self._check_without_pixels()
        if self.max_tokens is not None and self.min_tokens is not None and self.min_tokens > self.max_tokens:
            raise PruneConfigError(
                f"stage1.min_tokens={self.min_tokens!r}: must not be above stage1.max_tokens={self.max_tokens!r}"
            )

    def _check_without_pixels(self) -> None:
        if self.without_pixels == "refuse":
            return
        if self.where == "encoder":
            raise PruneConfigError('stage1.without_pixels="encoder": needs stage1.where="processor"')
        if self.max_tokens is not None or self.min_tokens is not None:
            raise PruneConfigError(
                'stage1.without_pixels="encoder": merging by features knows no stage1.max_tokens or stage1.min_tokens; '
                "give target_token_num or keep_ratio"
            )


@dataclass(frozen=True, kw_only=True)
class PruneConfig:
    """How the tokens of a video are merged and dropped.

    Stage 1, when set, merges first. `method` then chooses which tokens stay: "attention" lets the question choose
    inside the language model at `layers`; any other name is a query-free method of `vllm_prune.methods`; "none" leaves
    the choice to stage 1 alone, and `keep_ratio`, when given, then takes the place of `stage1.cluster_ratio`.
    """

    stage1: Stage1Config | None = None
    method: str = NO_METHOD
    keep_ratio: float | tuple[float, ...] | None = None
    """Fraction of the method's input that it keeps, 0 < x <= 1; one value for each of `layers` if several."""
    target_token_num: int | tuple[int, ...] | None = None
    """Number of tokens that a video keeps at the most, in place of `keep_ratio`."""
    layers: tuple[int, ...] | None = None
    """Decoder layers after which tokens are dropped ("attention" only); None: 10 of 28, scaled to the model's depth."""
    params: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Further parameters of a query-free method, such as `{"seed": 1}` of "random"."""

    def __post_init__(self) -> None:
        if not isinstance(self.method, str):
            raise PruneConfigError(f"method={self.method!r}: must be a string")
        if not isinstance(self.params, Mapping):
            raise PruneConfigError(f"params={self.params!r}: must be an object")
        object.__setattr__(self, "params", dict(self.params))
        if self.keep_ratio is not None and self.target_token_num is not None:
            raise PruneConfigError(
                f"keep_ratio={self.keep_ratio!r} and target_token_num={self.target_token_num!r}: give one of the two"
            )
        object.__setattr__(self, "layers", self._checked_layers())
        object.__setattr__(self, "keep_ratio", self._checked_per_layer("keep_ratio", _require_ratio))
        object.__setattr__(
            self, "target_token_num", self._checked_per_layer("target_token_num", lambda f, v: _require_int(f, v, 1))
        )
        self._check_method()
        self._check_floor()

    def _check_floor(self) -> None:
        floor = self.stage1.min_tokens if self.stage1 else None
        target = self.target_token_num
        if floor is not None and self.method == NO_METHOD and isinstance(target, int) and floor > target:
            raise PruneConfigError(f"stage1.min_tokens={floor!r}: must not be above target_token_num={target!r}")

    def _checked_layers(self) -> tuple[int, ...] | None:
        if self.layers is None:
            return None
        given = self.layers if isinstance(self.layers, list | tuple) else (self.layers,)
        layers = tuple(_require_int("layers", layer, 0) for layer in given)
        if not layers or any(later <= earlier for earlier, later in itertools.pairwise(layers)):
            raise PruneConfigError(f"layers={list(layers)!r}: must be one or more layer indices in increasing order")
        return layers

    def _checked_per_layer(self, field: str, check: Any) -> Any:
        value = getattr(self, field)
        if not isinstance(value, list | tuple):
            return value if value is None else check(field, value)
        if self.layers is None or len(value) != len(self.layers):
            raise PruneConfigError(
                f"{field}={list(value)!r}: a list needs one value for each of layers={self.layers!r}"
            )
        values = tuple(check(field, item) for item in value)
        if field == "target_token_num" and any(b > a for a, b in itertools.pairwise(values)):
            raise PruneConfigError(f"{field}={list(value)!r}: must not grow from layer to layer")
        return values

    def _check_method(self) -> None:
        if self.layers is not None and self.method != ATTENTION:
            raise PruneConfigError(f'layers={list(self.layers)!r}: only method "attention" prunes at decoder layers')
        if self.method == NO_METHOD:
            if self.params:
                raise PruneConfigError(f"params={self.params!r}: needs a method")
            if self.stage1 is None and self.keep_ratio not in (None, 1.0):
                raise PruneConfigError(f"keep_ratio={self.keep_ratio!r}: needs stage1 or a method that chooses tokens")
            if self.stage1 is None and self.target_token_num is not None:
                raise PruneConfigError(f"target_token_num={self.target_token_num!r}: needs stage1 or a method")
        elif self.method == ATTENTION:
            self._check_attention()
        else:
            self._check_query_free()

    def _check_attention(self) -> None:
        _require_known_keys('params of method "attention"', self.params, tuple(ATTENTION_PARAMS))
        for name, value in self.params.items():
            if value not in ATTENTION_PARAMS[name]:
                raise PruneConfigError(f"params.{name}={value!r}: must be one of {', '.join(ATTENTION_PARAMS[name])}")
        if self.attention_param("quota") == "segment" and (self.stage1 is None or self.plans_on_pixels):
            raise PruneConfigError(
                'params.quota="segment": needs stage1 with where="encoder", which finds the segments'
            )
        if self.attention_param("quota") == "segment" and self.attention_param("selector") == "dpp":
            raise PruneConfigError(
                'params.quota="segment": the selector "dpp" shares the budget among frames by itself'
            )

    def attention_param(self, name: str) -> str:
        """A parameter of method "attention", or its default."""
        return str(self.params.get(name, ATTENTION_PARAMS[name][0]))

    def _check_query_free(self) -> None:
        # Imported here so that a configuration without a method does not import torch.
        from vllm_prune.methods import registry

        try:
            registry.create(self.method, **self.params)
        except (TypeError, ValueError) as error:
            known = (*registry.names(), ATTENTION, NO_METHOD)
            if self.method not in known:
                raise PruneConfigError(f"method={self.method!r}: unknown; known: {', '.join(known)}") from error
            raise PruneConfigError(f"method={self.method!r}: {error}") from error
        if getattr(registry.load(self.method), "relevance", "unused") == "required":
            raise PruneConfigError(
                f'method={self.method!r}: needs relevance to the question, which only method "attention" has; use that'
            )

    @property
    def keeps_everything(self) -> bool:
        """Whether no token of any video is ever merged or dropped."""
        return self.stage1 is None and (self.method == NO_METHOD or self._keeps_its_input)

    @property
    def plans_on_pixels(self) -> bool:
        """Whether still cells are found before the vision encoder."""
        return self.stage1 is not None and self.stage1.where == "processor"

    @property
    def query_aware(self) -> bool:
        """Whether the question decides which tokens stay (stages 2 and 3)."""
        return self.method == ATTENTION and not self._keeps_its_input

    @property
    def _keeps_its_input(self) -> bool:
        """Whether the method keeps all that it is given."""
        ratios = self.keep_ratio if isinstance(self.keep_ratio, tuple) else (self.keep_ratio,)
        return all(ratio == 1.0 for ratio in ratios)

    def resolved_layers(self, depth: int) -> tuple[int, ...]:
        """The pruning layers in a decoder of `depth` layers; raises where one is not below the last layer."""
        layers = self.layers
        if layers is None:
            layers = (min(round(depth * _PUBLISHED_LAYER / _PUBLISHED_DEPTH), depth - 2),)
        if layers[-1] > depth - 2:
            raise PruneConfigError(
                f"layers={list(layers)!r}: must lie between 0 and {depth - 2} for a decoder of {depth} layers"
            )
        return layers

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready mapping without the fields left at their defaults; `parse` reads it back."""
        fields: dict[str, Any] = {"stage1": self.stage1.to_dict()} if self.stage1 else {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "stage1" or value in (None, NO_METHOD, {}):
                continue
            fields[field.name] = list(value) if isinstance(value, tuple) else value
        return fields

    def to_json(self) -> str:
        """Canonical JSON: equal configurations give equal strings."""
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def parse(cls, value: object, base: PruneConfig | None = None) -> PruneConfig:
        """Reads a preset's name, a JSON object (as text) or a mapping.

        Args:
            value: What to read. A mapping may name a `preset` to start from.
            base: The configuration that a mapping without `preset` changes; by default one that prunes nothing.

        Raises:
            PruneConfigError: Unknown preset or key, or a value out of its range.
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, str):
            if not value.lstrip().startswith("{"):
                return preset(value)
            value = _parse_json(value)
        if not isinstance(value, Mapping):
            raise PruneConfigError(f"prune={brief(value)}: must be a preset's name ({', '.join(PRESETS)}) or an object")
        return _merge(value, base or cls())


def brief(value: object) -> str:
    """`value` for an error message, which must not repeat whatever a client sends at full length."""
    shown = repr(value)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."


def _parse_json(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # RecursionError: nested too deeply
        raise PruneConfigError(f"prune={brief(text)}: not valid JSON: {error}") from error


_SHORTHANDS = ("preset", "enable_stage1", "enable_pruning", "pruning_layer")
_FIELDS = tuple(field.name for field in dataclasses.fields(PruneConfig))


def _merge(changes: Mapping[str, Any], base: PruneConfig) -> PruneConfig:
    """Applies `changes` to `base`, or to the preset that they name."""
    _require_known_keys("prune", changes, (*_FIELDS, *_SHORTHANDS))
    if "preset" in changes:
        base = preset(changes["preset"])
    fields = {name: getattr(base, name) for name in _FIELDS}
    # Ratio and target exclude each other: the one given replaces the one inherited.
    if changes.get("target_token_num") is not None and "keep_ratio" not in changes:
        fields["keep_ratio"] = None
    if changes.get("keep_ratio") is not None and "target_token_num" not in changes:
        fields["target_token_num"] = None
    if changes.get("method", base.method) != base.method:
        fields.update(params={}, layers=None)
        if changes["method"] == NO_METHOD:  # the amounts were the method's
            fields.update(keep_ratio=None, target_token_num=None)
    fields.update({name: changes[name] for name in _FIELDS if name in changes})
    fields["stage1"] = _merge_stage1(changes, base.stage1)
    _apply_switches(fields, changes)
    return PruneConfig(**fields)


def _merge_stage1(changes: Mapping[str, Any], base: Stage1Config | None) -> Stage1Config | None:
    enabled = _require_bool("enable_stage1", changes.get("enable_stage1", True))
    value = changes.get("stage1", base or ("enable_stage1" in changes))
    if not enabled or value is None or value is False:
        return None
    if value is True:
        return base or Stage1Config()
    if isinstance(value, Stage1Config):
        return value
    if not isinstance(value, Mapping):
        raise PruneConfigError(f"stage1={value!r}: must be true, false or an object")
    known = tuple(field.name for field in dataclasses.fields(Stage1Config))
    _require_known_keys("stage1", value, known)
    return dataclasses.replace(base or Stage1Config(), **value)


def _apply_switches(fields: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """The source's own names: `enable_pruning` for stages 2 and 3, `pruning_layer` for a single layer."""
    if "enable_pruning" in changes:
        if not _require_bool("enable_pruning", changes["enable_pruning"]):
            fields.update(method=NO_METHOD, keep_ratio=None, target_token_num=None, layers=None, params={})
        elif fields["method"] == NO_METHOD:
            fields["method"] = ATTENTION
    if "pruning_layer" in changes:
        fields["layers"] = (_require_int("pruning_layer", changes["pruning_layer"], 0),)


def _stages(tau: float, cluster_ratio: float, temporal_segment_ratio: float, keep_ratio: float) -> PruneConfig:
    stage1 = Stage1Config(tau=tau, cluster_ratio=cluster_ratio, temporal_segment_ratio=temporal_segment_ratio)
    return PruneConfig(stage1=stage1, method=ATTENTION, keep_ratio=keep_ratio)


PRESETS: Mapping[str, PruneConfig] = MappingProxyType(
    {
        "baseline": PruneConfig(),
        "stage1_only": PruneConfig(stage1=Stage1Config()),
        "stage2_only": PruneConfig(method=ATTENTION, keep_ratio=DEFAULT_KEEP_RATIO),
        "default": _stages(0.8, 0.5, 0.25, 0.4),
        "conservative": _stages(0.9, 0.8, 0.5, 0.6),
        "aggressive": _stages(0.7, 0.3, 0.25, 0.3),
    }
)


def preset(name: object) -> PruneConfig:
    """The preset called `name`."""
    if not isinstance(name, str) or name not in PRESETS:
        raise PruneConfigError(f"preset={brief(name)}: unknown; known presets: {', '.join(PRESETS)}")
    return PRESETS[name]


def check_override_policy(value: object) -> OverridePolicy:
    """Returns `value` if it is a known override policy."""
    if value not in get_args(OverridePolicy):
        raise PruneConfigError(f"override={value!r}: must be one of {', '.join(get_args(OverridePolicy))}")
    return value  # type: ignore[return-value]
