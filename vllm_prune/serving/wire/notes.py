"""What only a worker knows of a step, and its way to the API server.

    worker           `StepRecorder` collects while the model runs; `StepNotes` travels as an attribute of vLLM's
                     `ModelRunnerOutput`, whatever the executor (they all hand that object over whole)
    engine core      `core/report.py` finds out which requests the notes are about: `RequestNotes`, as JSON in the
                     `trace_headers` of the request's next `EngineCoreOutput`, which otherwise only tracing reads
    API server       `api/request_reports.py` adds them to the request's report

Rank 0's output is the one that vLLM's scheduler gets to see, so rank 0's notes are.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from vllm_prune.serving.wire.clock import Stopwatch

ATTRIBUTE = "prune_notes"
"""Of vLLM's `ModelRunnerOutput`."""
HEADER = "vllm-prune"
"""Key among the `trace_headers` of vLLM's `EngineCoreOutput`."""


@dataclass(frozen=True)
class EncodedMedium:
    """An image or a video that was encoded in the step."""

    encoder_s: float
    """Its part of the vision encoder's time."""
    merge_s: float
    """Stage 1 and query-free selection."""


@dataclass(frozen=True)
class DenseRequestNote:
    """A request whose question chose tokens in the step."""

    row: int
    """Its first row in the batch."""
    seconds: float
    """The whole step's dense prefix, which all such requests of the step share."""
    attention: list[list[int]]
    """For every medium and pruning layer: layer, heads, rows of the question, tokens it chose from."""


@dataclass(frozen=True)
class StepNotes:
    """All of a step."""

    encoded: list[EncodedMedium]
    """In the order in which the scheduler named the media."""
    dense: list[DenseRequestNote]
    failures: list[tuple[int, str]]
    """A row of every failed medium that a request used, and what happened to it."""
    choices: list[tuple[int, float]] = field(default_factory=list)
    """A row of every medium that a question chose tokens of before the first layer, and the seconds that it took."""
    lost_traces: int = 0
    """Traces that could not be written."""


@dataclass
class _Encoding:
    """A medium under way."""

    size: int
    """Features that the encoder made of it."""
    encoder: list[Stopwatch]
    """Of the call that it was part of, shared with the call's other media."""
    total: list[int]
    """Sizes of the call's media, likewise."""
    merge: Stopwatch | None = None

    def note(self) -> EncodedMedium:
        seconds = sum(watch.seconds for watch in self.encoder) * self.size / max(1, sum(self.total))
        return EncodedMedium(seconds, 0.0 if self.merge is None else self.merge.seconds)


class StepRecorder:
    """Collects the notes of one step."""

    def __init__(self) -> None:
        self._encodings: list[_Encoding] = []
        self._dense: list[tuple[int, Stopwatch, list[list[int]]]] = []
        self._failures: list[tuple[int, str]] = []
        self._choices: list[tuple[int, Stopwatch]] = []
        self.lost_traces = 0

    def __bool__(self) -> bool:
        return bool(self._encodings or self._dense or self._failures or self._choices or self.lost_traces)

    def encoding(
        self, features: Iterator[tuple[torch.Tensor, torch.Tensor | None]], device: torch.device
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """Passes on what one call of the encoder makes of its media, one after the other, and times it."""
        watches: list[Stopwatch] = []
        sizes: list[int] = []
        while True:
            watches.append(Stopwatch(device))
            item = next(features, None)
            watches[-1].stop()
            if item is None:
                return
            sizes.append(len(item[0]))
            self._encodings.append(_Encoding(len(item[0]), watches, sizes))
            yield item
            del item  # before the next one is encoded

    @contextmanager
    def merging(self, device: torch.device) -> Iterator[None]:
        """Times what happens to the medium that was encoded last."""
        watch = Stopwatch(device)
        yield
        watch.stop()
        if self._encodings:
            self._encodings[-1].merge = watch

    @contextmanager
    def dense_prefix(
        self, device: torch.device, attention: Callable[[], Mapping[int, list[list[int]]]]
    ) -> Iterator[None]:
        """Times dense prefixes. `attention` tells for the first row of every request what `DenseRequestNote` has."""
        watch = Stopwatch(device)
        yield
        watch.stop()
        self._dense += [(row, watch, shapes) for row, shapes in attention().items()]

    def chosen(self, row: int, watch: Stopwatch) -> None:
        """Notes that a question chose tokens of the medium at batch row `row`, and for how long."""
        self._choices.append((row, watch))

    def failed(self, row: int, message: str) -> None:
        """Notes that the request at batch row `row` uses a medium that could not be pruned."""
        self._failures.append((row, message))

    def finish(self) -> StepNotes:
        """The notes; waits for the device if the step is still under way."""
        dense = [DenseRequestNote(row, watch.seconds, shapes) for row, watch, shapes in self._dense]
        choices = [(row, watch.seconds) for row, watch in self._choices]
        encoded = [encoding.note() for encoding in self._encodings]
        return StepNotes(encoded, dense, self._failures, choices, self.lost_traces)


@dataclass
class RequestNotes:
    """What happened to one request in the workers since the API server last heard of it."""

    encoded: dict[int, EncodedMedium] = field(default_factory=dict)
    """By the medium's number in the prompt; those missing were found in a cache."""
    dense_s: float = 0.0
    choice_s: float = 0.0
    """Of choices before the first layer."""
    attention: list[list[int]] = field(default_factory=list)
    """As in `DenseRequestNote`."""
    failure: str = ""
    """Why the request ends here, if it does."""
    lost_traces: int = 0
    """Traces that could not be written, of this request and of others in its steps."""

    def to_headers(self, headers: Mapping[str, str] | None) -> dict[str, str]:
        """`headers` with these notes."""
        return {**(headers or {}), HEADER: json.dumps(dataclasses.asdict(self))}

    @classmethod
    def from_headers(cls, headers: Mapping[str, str] | None) -> RequestNotes | None:
        """The notes in `headers`, if there are any."""
        if not headers or HEADER not in headers:
            return None
        fields: dict[str, Any] = json.loads(headers[HEADER])
        fields["encoded"] = {int(index): EncodedMedium(**medium) for index, medium in fields["encoded"].items()}
        return cls(**fields)
