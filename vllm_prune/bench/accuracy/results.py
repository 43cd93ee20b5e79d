"""The result of a run as one JSON document."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from vllm_prune.bench.accuracy.asking import Answer, identity
from vllm_prune.bench.accuracy.pictures import IMAGE, VIDEO, modality_of
from vllm_prune.bench.accuracy.questions import Question
from vllm_prune.bench.accuracy.scores import Asked, Difference, Score, difference, score
from vllm_prune.bench.json_file import rounded, write_json
from vllm_prune.bench.throughput.configurations import Configuration


class Results:
    """All answers of a complete run.

    Args:
        settings: Command, machine, model, dataset; JSON-ready.
        configurations: In the order of the tables.
        baseline: Name of the one that the others are compared with.
        questions: All that were asked.
        answers: Answer by question key, for each configuration's name.
    """

    def __init__(
        self,
        settings: dict[str, Any],
        configurations: Sequence[Configuration],
        baseline: str,
        questions: Sequence[Question],
        answers: Mapping[str, Mapping[str, Answer]],
    ) -> None:
        self.settings, self.configurations, self.baseline = settings, configurations, baseline
        self.questions, self._answers = questions, answers

    @property
    def names(self) -> list[str]:
        """Names of the configurations."""
        return [configuration.name for configuration in self.configurations]

    @cached_property
    def categories(self) -> list[str]:
        """Kinds of questions, in the order of their first appearance."""
        return list(dict.fromkeys(question.category for question in self.questions))

    @cached_property
    def subsets(self) -> list[str]:
        """Kinds of videos or pictures, in the order of their first appearance."""
        return list(dict.fromkeys(question.subset for question in self.questions))

    @cached_property
    def media(self) -> str:
        """What the questions are about: "video", "picture", or both."""
        names = {VIDEO: "video", IMAGE: "picture"}
        return " and ".join(sorted({names[modality_of(question.video)] for question in self.questions}, reverse=True))

    @cached_property
    def scores(self) -> dict[str, Score]:
        """Of every configuration, on all questions."""
        return {name: score(self._asked(name)) for name in self.names}

    @cached_property
    def differences(self) -> dict[str, Difference]:
        """Of every configuration but the baseline, on all questions."""
        return {name: self._difference(name) for name in self.names if name != self.baseline}

    @cached_property
    def by_category(self) -> dict[str, dict[str, Score]]:
        """Score by category, for each configuration."""
        return self._scores_by(self.categories, lambda question: question.category)

    @cached_property
    def by_subset(self) -> dict[str, dict[str, Score]]:
        """Score by subset, for each configuration."""
        return self._scores_by(self.subsets, lambda question: question.subset)

    @cached_property
    def differences_by_subset(self) -> dict[str, dict[str, Difference]]:
        """Difference by subset, for each configuration but the baseline."""
        return {
            name: {subset: self._difference(name, lambda q, s=subset: q.subset == s) for subset in self.subsets}  # type: ignore[misc]
            for name in self.differences
        }

    def share_kept(self, name: str) -> float | None:
        """Video tokens of a configuration by those of the baseline; None where a server does not tell them."""
        tokens, before = self.scores[name].video_tokens, self.scores[self.baseline].video_tokens
        return tokens / before if tokens is not None and before else None

    def _asked(self, name: str, wanted: Callable[[Question], bool] = lambda _: True) -> Asked:
        answers = self._answers[name]
        return [(question, answers[question.key]) for question in self.questions if wanted(question)]

    def _difference(self, name: str, wanted: Callable[[Question], bool] = lambda _: True) -> Difference:
        return difference(self._asked(name, wanted), self._answers[self.baseline])

    def _scores_by(self, groups: Sequence[str], group_of: Callable[[Question], str]) -> dict[str, dict[str, Score]]:
        return {
            name: {group: score(self._asked(name, lambda q, g=group: group_of(q) == g)) for group in groups}  # type: ignore[misc]
            for name in self.names
        }

    def to_dict(self) -> dict[str, Any]:
        """The whole document, JSON-ready."""
        return {
            "schema": 1,
            **self.settings,
            "baseline": self.baseline,
            "configurations": [self._entry(configuration) for configuration in self.configurations],
        }

    def _entry(self, configuration: Configuration) -> dict[str, Any]:
        name = configuration.name
        return {
            "name": name,
            "configuration": identity(configuration),
            "share_kept": self.share_kept(name),
            **_plain(self.scores[name]),
            "difference": None if name == self.baseline else _plain(self.differences[name]),
            "by_category": {key: _plain(value) for key, value in self.by_category[name].items()},
            "by_subset": {key: _plain(value) for key, value in self.by_subset[name].items()},
            "difference_by_subset": {
                key: _plain(value) for key, value in self.differences_by_subset.get(name, {}).items()
            },
        }

    def write(self, path: Path) -> None:
        """Write the document, replacing an earlier one in one step."""
        write_json(path, self.to_dict())


def _plain(value: Score | Difference) -> dict[str, Any]:
    return {key: rounded(entry) for key, entry in dataclasses.asdict(value).items()}
