"""What is asked, and what comes back: shared by the two ways of asking."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from vllm_prune.bench.accuracy.parsing import judge
from vllm_prune.bench.accuracy.questions import Question
from vllm_prune.bench.throughput.configurations import STOCK, Configuration
from vllm_prune.config import PruneConfig


def identity(configuration: Configuration) -> str:
    """What is measured, whatever it is called: `stock`, `evs:RATE` or the canonical JSON of a pruning configuration."""
    if configuration.config is not None:
        return configuration.config.to_json()
    return STOCK if configuration.evs_rate is None else f"evs:{configuration.evs_rate}"


def request_config(config: PruneConfig, question: Question) -> dict[str, Any]:
    """What a request's `prune` key holds: all of the configuration, whatever the server's own is.

    Method "random" without a seed draws anew for every video or picture: one draw for all of them would make its
    accuracy that of one pattern of tokens, and too certain.
    """
    # Without a preset to start from, a server takes what is left out from its own configuration.
    fields = {"preset": "baseline", "image": False, **config.to_dict()}
    for part in (fields, fields["image"]):
        if part and part.get("method") == "random" and "seed" not in part.get("params", {}):
            part["params"] = {**part.get("params", {}), "seed": _seed_of(question.video.key)}
    return fields


def _seed_of(key: str) -> int:
    import hashlib

    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big")


@dataclass(frozen=True)
class Task:
    """A question under a configuration."""

    configuration: Configuration
    question: Question


@dataclass(frozen=True)
class Reply:
    """What a model said, and the tokens it took."""

    said: str
    prompt_tokens: int
    video_tokens: int | None
    """Those of the video or picture in the prompt, after pruning; None where the server does not tell."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A reply, judged."""

    configuration: str
    """`identity` of the configuration."""
    question: str
    """`key` of the question."""
    text: str
    """The question, for readers and to notice a dataset that has changed."""
    expected: str
    said: str
    predicted: str | None
    right: bool
    prompt_tokens: int
    video_tokens: int | None


def to_answer(task: Task, reply: Reply) -> Answer:
    """The answer in `reply` to `task`."""
    predicted, right = judge(task.question, reply.said)
    return Answer(
        configuration=identity(task.configuration),
        question=task.question.key,
        text=task.question.text,
        expected=task.question.answer,
        said=reply.said,
        predicted=predicted,
        right=right,
        prompt_tokens=reply.prompt_tokens,
        video_tokens=reply.video_tokens,
    )


class Asker(Protocol):
    """A model that is ready to be asked."""

    def ask(self, batches: Iterable[Sequence[Task]]) -> Iterator[list[Answer]]:
        """Answers, in any order, as they come."""


class Backend(Protocol):
    """A way to ask: which tasks can share a model, and how to start it."""

    def groups(self, configurations: Sequence[Configuration]) -> list[list[Configuration]]:
        """The configurations that one `Asker` can serve, group by group."""

    def open(self, group: Sequence[Configuration]) -> AbstractContextManager[Asker]:
        """Start what serves `group`, and end it on leaving."""

    def describe(self) -> dict[str, Any]:
        """The model and its options, as far as answers depend on them."""


def make_batches(tasks: Iterable[Task], size: int) -> list[list[Task]]:
    """Tasks in batches of about `size`, all those on one video together, so that caches serve them."""
    by_video: dict[str, list[Task]] = {}
    for task in tasks:
        by_video.setdefault(task.question.video.key, []).append(task)
    batches: list[list[Task]] = []
    for group in by_video.values():
        if not batches or len(batches[-1]) >= size:
            batches.append([])
        batches[-1] += group
    return batches
