"""A whole configuration, checked once."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from vllm_prune.config.checks import MAX_LAYERS, MAX_NAME, require_int, require_params, require_ratio
from vllm_prune.config.errors import PruneConfigError, brief, require_length
from vllm_prune.config.frames import FramesConfig
from vllm_prune.config.image import ImageConfig
from vllm_prune.config.layers import next_without_state, place_layers
from vllm_prune.config.methods import (
    ATTENTION,
    ATTENTION_PARAMS,
    EXPONENTS,
    NO_METHOD,
    QUESTION,
    QUESTION_PARAMS,
    check_attention,
    check_query_free,
    check_question,
)
from vllm_prune.config.stage1 import Stage1Config

# Published for the 28 layers of Qwen2.5-VL-7B: importance is read at layer 10.
_PUBLISHED_LAYER, _PUBLISHED_DEPTH = 10, 28


@dataclass(frozen=True, kw_only=True)
class PruneConfig:
    """How the tokens of a video are merged and dropped; and, where `image` is set, those of images.

    Stage 1, when set, merges first. `method` then chooses which tokens stay: with "attention" the question chooses
    inside the language model at `layers`, with "question" before its first layer; any other name is a query-free method
    of `vllm_prune.methods`; "none" leaves the choice to stage 1 alone, and `keep_ratio`, when given, then takes the
    place of `stage1.cluster_ratio`.
    """

    stage1: Stage1Config | None = None
    method: str = NO_METHOD
    keep_ratio: float | tuple[float, ...] | None = None
    """Fraction of the method's input that it keeps, 0 < x <= 1; one value for each of `layers` if several."""
    target_token_num: int | tuple[int, ...] | None = None
    """Number of tokens that a video keeps at the most, in place of `keep_ratio`."""
    layers: tuple[int, ...] | tuple[float, ...] | None = None
    """Decoder layers after which tokens are dropped ("attention" only): indices from 0, or all of them shares of the
    depth, 0 < x < 1 (0.25 of 28: after the first 7, index 6). None: index 10 of 28, scaled to the model's depth."""
    params: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Further parameters of a query-free method, such as `{"seed": 1}` of "random"."""
    image: ImageConfig | None = None
    """What happens to images, which all other fields say nothing of; None: they stay as they are."""
    frames: FramesConfig | None = None
    """How many frames of a video are sampled; None: as many as vLLM would."""

    def __post_init__(self) -> None:
        if not isinstance(self.method, str):
            raise PruneConfigError(f"method={brief(self.method)}: must be a string")
        require_length("method", self.method, MAX_NAME, "characters")
        object.__setattr__(self, "params", require_params(self.params))
        if self.keep_ratio is not None and self.target_token_num is not None:
            raise PruneConfigError(
                f"keep_ratio={brief(self.keep_ratio)} and target_token_num={brief(self.target_token_num)}: "
                f"give one of the two"
            )
        object.__setattr__(self, "layers", self._checked_layers())
        object.__setattr__(self, "keep_ratio", self._checked_per_layer("keep_ratio", require_ratio))
        object.__setattr__(
            self, "target_token_num", self._checked_per_layer("target_token_num", lambda f, v: require_int(f, v, 1))
        )
        for name, kind in (("image", ImageConfig), ("frames", FramesConfig)):
            if not isinstance(value := getattr(self, name), kind | None):
                raise PruneConfigError(f"{name}={brief(value)}: must be an object, or false")
        self._check_method()
        self._check_floor()

    def _check_floor(self) -> None:
        floor, target = self.stage1.min_tokens if self.stage1 else None, self.target_token_num
        kept = target[-1] if isinstance(target, tuple) else target or 0
        if self.frames is not None and kept > self.frames.tokens:
            raise PruneConfigError(f"target_token_num={kept}: must not be above frames.tokens={self.frames.tokens}")
        if floor is not None and self.method == NO_METHOD and isinstance(target, int) and floor > target:
            raise PruneConfigError(f"stage1.min_tokens={floor!r}: must not be above target_token_num={target!r}")

    def _checked_layers(self) -> tuple[int, ...] | tuple[float, ...] | None:
        if self.layers is None:
            return None
        given = self.layers if isinstance(self.layers, list | tuple) else (self.layers,)
        require_length("layers", given, MAX_LAYERS, "entries")
        if given and all(isinstance(layer, float) and 0 < layer < 1 for layer in given):
            return self._increasing(tuple(given))
        return self._increasing(tuple(require_int("layers", layer, 0) for layer in given))

    def _increasing(self, layers: Any) -> Any:
        if not layers or any(later <= earlier for earlier, later in itertools.pairwise(layers)):
            raise PruneConfigError(
                f"layers={brief(layers)}: must be one or more indices, or shares of the depth, in increasing order"
            )
        return layers

    def _checked_per_layer(self, field: str, check: Any) -> Any:
        value = getattr(self, field)
        if not isinstance(value, list | tuple):
            return value if value is None else check(field, value)
        if self.layers is None or len(value) != len(self.layers):
            raise PruneConfigError(
                f"{field}={brief(value)}: a list needs one value for each of layers={brief(self.layers)}"
            )
        values = tuple(check(field, item) for item in value)
        if field == "target_token_num" and any(b > a for a, b in itertools.pairwise(values)):
            raise PruneConfigError(f"{field}={brief(value)}: must not grow from layer to layer")
        return values

    def _check_method(self) -> None:
        if self.layers is not None and self.method != ATTENTION:
            raise PruneConfigError(f'layers={brief(self.layers)}: only method "attention" prunes at decoder layers')
        if self.method == NO_METHOD:
            if self.params:
                raise PruneConfigError(f"params={brief(self.params)}: needs a method")
            if self.stage1 is None and self.keep_ratio not in (None, 1.0):
                raise PruneConfigError(f"keep_ratio={brief(self.keep_ratio)}: needs stage1 or a method")
            if self.stage1 is None and self.target_token_num is not None:
                raise PruneConfigError(f"target_token_num={brief(self.target_token_num)}: needs stage1 or a method")
        elif self.method == ATTENTION:
            check_attention(self.params, finds_segments=self.finds_segments)
        elif self.method == QUESTION:
            check_question(self.params)
        else:
            check_query_free(self.method, self.params, merged_before=self.stage1 is not None)

    def attention_param(self, name: str) -> str:
        """A parameter of method "attention", or its default."""
        return str(self.params.get(name, ATTENTION_PARAMS[name][0]))

    def question_param(self, name: str) -> str:
        """A parameter of method "question" that has a name for its value, or its default."""
        return str(self.params.get(name, QUESTION_PARAMS[name][0]))

    @property
    def exponent(self) -> float:
        """Of method "question", and of learned relevance inside the decoder."""
        relevance = self.question_param("relevance") if self.method == QUESTION else "learned"
        return float(self.params.get("exponent", EXPONENTS[relevance]))

    @property
    def parts(self) -> tuple[PruneConfig, ...]:
        """The configurations of a video and of an image by itself, of which each may be served or not."""
        videos = self.of_videos
        return (videos,) if self.image is None else (videos, self.image.choice)

    @property
    def of_videos(self) -> PruneConfig:
        """How a video's tokens are pruned: the same without what it says of images and of frames."""
        return dataclasses.replace(self, image=None, frames=None) if self.image or self.frames else self

    @property
    def prunes_images(self) -> bool:
        """Whether tokens of an image may be merged or dropped."""
        return self.image is not None and not self.image.keeps_everything

    @property
    def keeps_everything(self) -> bool:
        """Whether no token of any video is ever merged or dropped."""
        return self.stage1 is None and (self.method == NO_METHOD or self._keeps_its_input)

    @property
    def plans_on_pixels(self) -> bool:
        """Whether still cells are found before the vision encoder."""
        return self.stage1 is not None and self.stage1.where == "processor"

    @property
    def finds_segments(self) -> bool:
        """Whether stage 1 cuts a video into segments, by its features."""
        return self.stage1 is not None and self.stage1.method == "prunevid" and not self.plans_on_pixels

    @property
    def needs_encoder_attention(self) -> bool:
        """Whether the method looks at the attention inside the vision encoder."""
        if self.method in (NO_METHOD, ATTENTION, QUESTION):
            return False
        from vllm_prune.methods import registry  # imported here, so that configurations do without torch

        return getattr(registry.create(self.method, **self.params), "relevance", "unused") == "encoder"

    @property
    def query_aware(self) -> bool:
        """Whether the question decides which tokens stay."""
        return self.chooses_inside or (self.method == QUESTION and not self._keeps_its_input)

    @property
    def chooses_inside(self) -> bool:
        """Whether it does so inside the decoder, whose first layers see all tokens (stages 2 and 3)."""
        return self.method == ATTENTION and not self._keeps_its_input

    @property
    def needs_selector(self) -> bool:
        """Whether learned selectors of the server score the tokens."""
        param = {QUESTION: self.question_param, ATTENTION: self.attention_param}.get(self.method)
        return param is not None and param("relevance") == "learned" and not self._keeps_its_input

    @property
    def _keeps_its_input(self) -> bool:
        """Whether the method keeps all that it is given."""
        ratios = self.keep_ratio if isinstance(self.keep_ratio, tuple) else (self.keep_ratio,)
        return all(ratio == 1.0 for ratio in ratios)

    def resolved_layers(self, depth: int, levels: int = 0, stateful: Collection[int] = ()) -> tuple[int, ...]:
        """The pruning layers in a decoder of `depth` layers, the first `levels` of which add rows of the encoder.

        Those that are `stateful` keep a state of all rows so far in place of keys, by which a question could choose.

        Raises:
            PruneConfigError: One is not below the last layer, is above the last that adds rows, or is stateful.
        """
        first, last = max(levels - 1, 0), depth - 2
        if self.layers is None:
            published = round(depth * _PUBLISHED_LAYER / _PUBLISHED_DEPTH)
            layers: tuple[int, ...] = (next_without_state(min(max(published, first), last), stateful),)
        else:
            layers = place_layers(self.layers, depth, first, stateful)
        if layers[0] < first or layers[-1] > last:
            adding = f", the first {levels} of which add rows of the vision encoder (deepstack)" if first else ""
            raise PruneConfigError(
                f"layers={brief(layers)}: must lie between {first} and {last} for a decoder of {depth} layers{adding}"
            )
        if set(stateful) & set(layers):
            able = [index for index in range(first, last + 1) if index not in stateful]
            raise PruneConfigError(
                f"layers={brief(layers)}: a question chooses behind layers with attention, which in this decoder are "
                f"{', '.join(map(str, able))}; the others keep one state of all tokens so far"
            )
        return layers

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready mapping without the fields left at their defaults; `parse` reads it back."""
        parts = {name: getattr(self, name) for name in ("stage1", "image", "frames")}
        fields: dict[str, Any] = {name: own for name, part in parts.items() if part and (own := part.to_dict())}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in parts or value in (None, NO_METHOD, {}):
                continue
            fields[field.name] = list(value) if isinstance(value, tuple) else value
        return fields

    def to_json(self) -> str:
        """Canonical JSON: equal configurations give equal strings."""
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def parse(cls, value: object, base: PruneConfig | None = None) -> PruneConfig:
        """Reads a preset's name, a JSON object (as text) or a mapping; see `parsing.parse`."""
        from vllm_prune.config.parsing import parse  # which makes instances of this class

        return parse(value, base)
