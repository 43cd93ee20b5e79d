"""Values that a client may send as `prune`: right ones, nearly right ones, and whatever else JSON can hold."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from vllm_prune.config import ATTENTION, ATTENTION_PARAMS, NO_METHOD, PRESETS, QUESTION
from vllm_prune.config.methods import QUESTION_PARAMS
from vllm_prune.methods import registry

METHODS = (*registry.names(), ATTENTION, QUESTION, NO_METHOD)
TEXTS = ("", "\x00", "\ud800", "\u4e2d\U0001f600", "NaN", "../../etc", "x" * 100_000, "{" * 100, "true", "auto")
INTEGERS = (0, 1, -1, 7, 2**31, 2**53 + 1, 2**63, 2**64, 10**30, 10**4000, -(10**30))
FLOATS = (0.0, -0.0, 0.5, 1.0, 1.5, 1e-320, 1e308, float("nan"), float("inf"), float("-inf"))
LARGE: tuple[Any, ...] = ([0] * 200_000, list(range(200)), [{}] * 500, {str(i): i for i in range(1000)})
DEPTHS = (10, 100, 400)


class Draw:
    """Draws from `rng`; the same seed draws the same values."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._one_of = rng.choice

    def prune(self) -> Any:
        """A value of `prune`."""
        if self._rng.random() < 0.05:
            return self._one_of([*PRESETS, self.junk()])
        method = self._mostly(lambda: self._one_of(METHODS))
        fields: dict[str, Callable[[], Any]] = {
            "stage1": lambda: self._mostly(lambda: self._one_of([True, False, False, None, self._stage1()])),
            "method": lambda: method,
            "keep_ratio": lambda: self._mostly(self._amount),
            "params": lambda: self._mostly(lambda: self._params(method)),
        }
        rare: dict[str, Callable[[], Any]] = {
            "target_token_num": lambda: self._mostly(lambda: self._rng.randint(1, 40)),
            "layers": lambda: self._mostly(lambda: sorted(self._rng.sample(range(6), self._rng.randint(1, 3)))),
            "preset": lambda: self._mostly(lambda: self._one_of([*PRESETS])),
            "enable_stage1": lambda: self._mostly(lambda: self._one_of([True, False])),
            "enable_pruning": lambda: self._mostly(lambda: self._one_of([True, False])),
            "pruning_layer": lambda: self._mostly(lambda: self._rng.randint(0, 5)),
            "image": lambda: self._mostly(lambda: self._one_of([False, None, self._image()])),
            "frames": lambda: self._mostly(lambda: self._one_of([False, None, {"tokens": self._rng.randint(1, 400)}])),
            str(self._text()): self.junk,
        }
        value = {name: draw() for name, draw in fields.items() if self._rng.random() < 0.7}
        if self._rng.random() < 0.3:
            name = self._one_of([*rare])
            value[name] = rare[name]()
        return value

    def junk(self, depth: int = 0) -> Any:
        """Anything."""
        kind = self._rng.randint(0, 7 if depth < 2 else 3)
        if kind == 4:
            return [self.junk(depth + 1) for _ in range(self._rng.randint(0, 3))]
        if kind == 5:
            return {self._text(): self.junk(depth + 1) for _ in range(self._rng.randint(0, 3))}
        if kind == 6:
            return self._one_of(LARGE)
        if kind == 7:
            return _nest(self._one_of(DEPTHS))
        return self._one_of([self._one_of(INTEGERS), self._one_of(FLOATS), self._text(), None, True, False])

    def _mostly(self, draw: Callable[[], Any]) -> Any:
        """What `draw` draws, and anything in one case of twelve: whole objects of such values are often right."""
        return self.junk() if self._rng.random() < 1 / 12 else draw()

    def _text(self) -> str:
        return self._one_of([*TEXTS, "".join(chr(self._rng.randint(0, 0x2FFF)) for _ in range(5))])

    def _amount(self) -> Any:
        return self._one_of([1, 0.25, self._rng.random(), [0.5, self._rng.random()]])

    def _stage1(self) -> dict[str, Any]:
        fields: dict[str, Callable[[], Any]] = {
            "tau": self._amount,
            "cluster_ratio": self._amount,
            "temporal_segment_ratio": self._amount,
            "where": lambda: self._one_of(["encoder", "processor"]),
            "still": lambda: self._one_of(["runs", "segments", "previous"]),
            "method": lambda: self._one_of(["prunevid", "framefusion", "dycoke", "tome"]),
            "max_tokens": lambda: self._rng.randint(1, 40),
            "min_tokens": lambda: self._rng.randint(1, 40),
            "without_pixels": lambda: self._one_of(["refuse", "encoder"]),
        }
        chosen = self._rng.sample([*fields], self._rng.randint(0, 3))
        return {name: self._mostly(fields[name]) for name in chosen}

    def _image(self) -> dict[str, Any]:
        method = self._mostly(lambda: self._one_of(METHODS))
        fields: dict[str, Callable[[], Any]] = {
            "method": lambda: method,
            "keep_ratio": lambda: self._mostly(self._amount),
            "target_token_num": lambda: self._mostly(lambda: self._rng.randint(1, 40)),
            "min_tokens": lambda: self._mostly(lambda: self._rng.randint(1, 9)),
            "total": lambda: self._mostly(lambda: self._rng.randint(1, 90)),
            "layers": lambda: self._mostly(lambda: self._rng.randint(0, 5)),
            "params": lambda: self._mostly(lambda: self._params(method)),
        }
        chosen = self._rng.sample([*fields], self._rng.randint(0, 3))
        return {name: draw() for name, draw in fields.items() if name == "method" or name in chosen}

    def _params(self, method: Any) -> Any:
        """Parameters of `method`, by the types of its defaults."""
        if method == ATTENTION:
            chosen = {name: self._one_of(values) for name, values in ATTENTION_PARAMS.items()}
        elif method == QUESTION:
            chosen = {name: self._one_of(values) for name, values in QUESTION_PARAMS.items()}
            chosen["exponent"] = self._one_of([0, 1.5, *FLOATS])
        elif method in METHODS and method != NO_METHOD:
            chosen = {name: self._like(default) for name, default in registry.parameters(method).items()}
            chosen["merge_dropped"] = self._one_of([True, False])
            if "mode" in chosen:
                chosen["mode"] = self._one_of(["auto", "exact", "greedy", "lowrank"])
        else:
            return self.junk()
        return {name: self._mostly(lambda v=value: v) for name, value in chosen.items() if self._rng.random() < 0.4}

    def _like(self, default: Any) -> Any:
        if isinstance(default, bool):
            return self._one_of([True, False])
        if isinstance(default, int):
            return self._one_of([default, self._rng.randint(0, 3000), self._one_of(INTEGERS)])
        return self._one_of([default, self._rng.random(), self._one_of(FLOATS)])


def _nest(depth: int) -> Any:
    value: Any = 0
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value
