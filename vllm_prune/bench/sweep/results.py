"""The result of a sweep as one JSON document."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vllm_prune.bench.accuracy.scores import Score
from vllm_prune.bench.json_file import rounded, write_json
from vllm_prune.bench.sweep.pareto import front
from vllm_prune.bench.sweep.points import UNPRUNED, Point


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One point, or the unpruned model."""

    name: str
    point: Point | None
    video_tokens: float
    """Mean over the dataset's questions, or of the one question."""
    prompt_tokens: float
    ttft_ms: float
    """Median over repeats, of the one question: from decoded frames to the first token."""
    answer: str
    """To the one question."""
    agrees: bool
    """Whether that is the unpruned model's answer."""
    log_probability: float
    """That the point gives to the unpruned model's answer."""
    accuracy: float | None
    standard_error: float | None


class SweepResults:
    """All of a complete run.

    Args:
        settings: Command, machine, model, question; JSON-ready.
        points: In the order of the grid.
        answers: By name: what `Probe.answer` and `Probe.log_probability` gave.
        seconds: By name: times to the first token.
        scores: By name, on the dataset; empty without one.
    """

    def __init__(
        self,
        settings: dict[str, Any],
        points: Sequence[Point],
        answers: Mapping[str, Mapping[str, Any]],
        seconds: Mapping[str, Sequence[float]],
        scores: Mapping[str, Score],
    ) -> None:
        self.settings = settings
        self._answers, self._seconds, self._scores = answers, seconds, scores
        self.unpruned = self._measured(UNPRUNED, None)
        self.points = [self._measured(point.name, point) for point in points]

    def _measured(self, name: str, point: Point | None) -> Measured:
        answer, score = self._answers[name], self._scores.get(name)
        video = score.video_tokens if score is not None and score.video_tokens is not None else answer["video_tokens"]
        return Measured(
            name=name,
            point=point,
            video_tokens=video,
            prompt_tokens=score.prompt_tokens if score is not None else answer["prompt_tokens"],
            ttft_ms=1000 * statistics.median(self._seconds[name]),
            answer=answer["text"],
            agrees=answer["text"] == self._answers[UNPRUNED]["text"],
            log_probability=answer["log_probability"],
            accuracy=None if score is None else score.accuracy.mean,
            standard_error=None if score is None else score.accuracy.standard_error,
        )

    @property
    def has_accuracy(self) -> bool:
        """Whether a dataset was asked; else the log-probability of the unpruned answer tells the quality."""
        return bool(self._scores)

    def quality(self, measured: Measured) -> float:
        """The larger the better."""
        return measured.accuracy if measured.accuracy is not None else measured.log_probability

    @cached_property
    def front_by_tokens(self) -> set[str]:
        """Names of the points that none beats in tokens and quality."""
        return self._front([measured.video_tokens for measured in self.points])

    @cached_property
    def front_by_ttft(self) -> set[str]:
        """Names of the points that none beats in time to the first token and quality."""
        return self._front([measured.ttft_ms for measured in self.points])

    def _front(self, costs: Sequence[float]) -> set[str]:
        best = front(costs, [self.quality(measured) for measured in self.points])
        return {measured.name for measured, is_best in zip(self.points, best, strict=True) if is_best}

    def to_dict(self) -> dict[str, Any]:
        """The whole document, JSON-ready."""
        return {
            "schema": 1,
            **self.settings,
            "quality": "accuracy" if self.has_accuracy else "log_probability",
            "unpruned": self._entry(self.unpruned),
            "points": [self._entry(measured) for measured in self.points],
        }

    def _entry(self, measured: Measured) -> dict[str, Any]:
        fields = {key: rounded(value) for key, value in dataclasses.asdict(measured).items() if key != "point"}
        fields["share_kept"] = rounded(measured.video_tokens / self.unpruned.video_tokens)
        fields["ttft_ratio"] = rounded(measured.ttft_ms / self.unpruned.ttft_ms)
        if measured.point is None:
            return fields
        return {
            **dataclasses.asdict(measured.point),
            "configuration": measured.point.config.to_dict(),
            **fields,
            "on_front_by_tokens": measured.name in self.front_by_tokens,
            "on_front_by_ttft": measured.name in self.front_by_ttft,
        }

    def write(self, path: Path) -> None:
        """Writes the document, replacing an earlier one in one step."""
        write_json(path, self.to_dict())
