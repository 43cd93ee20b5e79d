"""The images' part of a configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vllm_prune.config.checks import require_int
from vllm_prune.config.errors import PruneConfigError, brief
from vllm_prune.config.methods import NO_METHOD, check_known_for_images, check_takes_images, image_params

if TYPE_CHECKING:
    from vllm_prune.config.prune_config import PruneConfig

MAX_SAME_WITHIN = 32
"""More than that and text of a pale grey is as good as paper."""
_AMOUNTS = ("keep_ratio", "target_token_num", "min_tokens", "total")


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """How the tokens of images are merged and dropped; each image by itself, but for `total`."""

    method: str = NO_METHOD
    """One that takes images."""
    keep_ratio: float | tuple[float, ...] | None = None
    """As for videos, of each image; where no amount is given, 0.4."""
    target_token_num: int | tuple[int, ...] | None = None
    """Number of tokens that an image keeps at the most, in place of `keep_ratio`."""
    min_tokens: int | None = None
    """Tokens that an image keeps at the least; one that has no more than these stays whole."""
    total: int | None = None
    """Tokens that all images of a request keep together at the most, shared by size."""
    layers: tuple[int, ...] | tuple[float, ...] | None = None
    """As for videos."""
    params: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """As for videos."""
    same_within: int | None = None
    """Cells whose pixels differ by at most so many grey levels from what their neighbour shows are not encoded (see
    `methods/same_cells.py`); the method then chooses among the others. None: all cells are encoded."""

    choice: PruneConfig = dataclasses.field(init=False, repr=False, compare=False)
    """How one image is pruned, regardless of `min_tokens` and `total`."""

    def __post_init__(self) -> None:
        for name in ("min_tokens", "total"):
            if getattr(self, name) is not None:
                require_int(f"image.{name}", getattr(self, name), 1)
        self._check_same_within()
        given = [name for name in _AMOUNTS if getattr(self, name) is not None]
        if self.method == NO_METHOD and given:
            raise PruneConfigError(f"image.{given[0]}={brief(getattr(self, given[0]))}: needs image.method")
        choice = self._checked_choice()
        for name in ("keep_ratio", "target_token_num", "layers", "params"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, getattr(choice, name))
        params = {**image_params(choice.method), **choice.params}
        object.__setattr__(self, "choice", dataclasses.replace(choice, params=params))
        self._check_floor()

    def _checked_choice(self) -> PruneConfig:
        from vllm_prune.config.prune_config import PruneConfig  # which has a field of this class

        fields = {
            name: getattr(self, name) for name in ("method", "keep_ratio", "target_token_num", "layers", "params")
        }
        if self.total is not None and self.keep_ratio is None and self.target_token_num is None:
            fields["target_token_num"] = self.total
        try:
            if self.method != NO_METHOD:  # torch is not imported without a method
                check_known_for_images(self.method)
            choice = PruneConfig(**fields)
            check_takes_images(choice.method, some_cells=self.same_within is not None)
        except PruneConfigError as error:
            raise PruneConfigError(f"image.{error}") from error
        return choice

    def _check_same_within(self) -> None:
        if self.same_within is None:
            return
        if require_int("image.same_within", self.same_within, 0) > MAX_SAME_WITHIN:
            raise PruneConfigError(
                f"image.same_within={self.same_within}: must be {MAX_SAME_WITHIN} or less, in grey levels of 0 to 255"
            )

    def _check_floor(self) -> None:
        targets = self.target_token_num if isinstance(self.target_token_num, tuple) else (self.target_token_num,)
        limits = [limit for limit in (*targets, self.total) if limit is not None]
        if self.min_tokens is not None and limits and self.min_tokens > min(limits):
            raise PruneConfigError(
                f"image.min_tokens={self.min_tokens}: must not be above target_token_num or total ({min(limits)})"
            )

    @property
    def keeps_everything(self) -> bool:
        """Whether no token of any image is ever merged or dropped."""
        return self.choice.keeps_everything and self.total is None and self.same_within is None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready mapping without the fields left at their defaults."""
        fields: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.init and value not in (None, NO_METHOD, {}):
                fields[field.name] = list(value) if isinstance(value, tuple) else value
        return fields


def check_parts(config: PruneConfig, check: Callable[[PruneConfig], object]) -> None:
    """Calls `check` with the configuration of a video by itself, then of an image.

    Raises:
        PruneConfigError: As `check` says it; of an image with the name of its field.
    """
    check(config.of_videos)
    if config.image is None:
        return
    try:
        check(config.image.choice)
    except PruneConfigError as error:
        raise PruneConfigError(f"image.{str(error).removeprefix('prune.')}") from error
