"""The result of a benchmark as one JSON document."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm_prune.bench.json_file import write_json
from vllm_prune.bench.throughput.aggregate import Estimate, Run, estimate, ratio, values_by_repeat
from vllm_prune.bench.throughput.configurations import Configuration
from vllm_prune.bench.throughput.metrics import METRICS


@dataclass(kw_only=True)
class Results:
    """What has been measured so far, and with what."""

    settings: dict[str, Any]  # command, machine, model, workload
    configurations: Sequence[Configuration]
    clients: Sequence[int]
    commands: dict[str, list[str]] = field(default_factory=dict)  # of each server
    runs: list[Run] = field(default_factory=list)
    details: list[dict[str, Any]] = field(default_factory=list)  # of each run, in the same order
    complete: bool = False

    def names(self) -> list[str]:
        """Configurations that have been measured, in the order given."""
        measured = {run.configuration for run in self.runs}
        return [configuration.name for configuration in self.configurations if configuration.name in measured]

    def references(self) -> list[str]:
        """Configurations that the others are compared with: stock vLLM, and its own EVS."""
        measured = self.names()
        return [c.name for c in self.configurations if c.is_reference and c.name in measured]

    def estimate(self, name: str, clients: int, key: str) -> Estimate | None:
        """Mean and standard error of one metric; None where nothing has been measured."""
        values = list(values_by_repeat(self.runs, name, clients, key).values())
        return estimate(values) if values else None

    def ratio(self, name: str, reference: str, clients: int, key: str) -> Estimate | None:
        """Mean of the ratios to `reference`, repeat by repeat."""
        return ratio(self.runs, name, reference, clients, key)

    def to_dict(self) -> dict[str, Any]:
        """The whole document, JSON-ready."""
        return {
            "schema": 1,
            "complete": self.complete,
            **self.settings,
            "servers": [
                {"name": c.name, "given": c.given, "environment": c.environment, "command": self.commands.get(c.name)}
                for c in self.configurations
            ],
            "summary": [self._summary(name, clients) for name in self.names() for clients in self.clients],
            "runs": [
                {**dataclasses.asdict(run), **detail} for run, detail in zip(self.runs, self.details, strict=True)
            ],
        }

    def _summary(self, name: str, clients: int) -> dict[str, Any]:
        return {
            "configuration": name,
            "clients": clients,
            "metrics": {metric.key: _plain(self.estimate(name, clients, metric.key)) for metric in METRICS},
            "ratio_to": {
                reference: {metric.key: _plain(self.ratio(name, reference, clients, metric.key)) for metric in METRICS}
                for reference in self.references()
                if reference != name
            },
        }

    def write(self, path: Path) -> None:
        """Write the document, replacing an earlier one in one step."""
        write_json(path, self.to_dict())


def _plain(value: Estimate | None) -> dict[str, Any] | None:
    return dataclasses.asdict(value) if value else None
