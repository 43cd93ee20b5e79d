"""The run itself: start servers, send every load to each, end them; again for every repeat."""

from __future__ import annotations

import contextlib
import datetime
import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_prune.bench.needs import draw_if_possible
from vllm_prune.bench.throughput import plot, processes, provenance, report
from vllm_prune.bench.throughput.aggregate import Run
from vllm_prune.bench.throughput.client import Load, send
from vllm_prune.bench.throughput.configurations import Configuration
from vllm_prune.bench.throughput.kv_sampler import KvSampler
from vllm_prune.bench.throughput.metrics import read_metrics
from vllm_prune.bench.throughput.models import Model
from vllm_prune.bench.throughput.progress import Progress
from vllm_prune.bench.throughput.results import Results
from vllm_prune.bench.throughput.shared_options import SharedOptions
from vllm_prune.bench.throughput.workload import ClipShape, prepare_clips, random_pixels
from vllm_prune.cli.secrets import masked


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that a run is told."""

    command: Sequence[str]
    model: Model
    configurations: Sequence[Configuration]
    clips: Sequence[Path]  # empty: random pixels
    shape: ClipShape
    clients: Sequence[int]
    num_prompts: Sequence[int]  # one for each of `clients`
    output_len: int  # tokens
    repeats: int
    side_by_side: bool  # all servers up at once, loads in turn; else each is started anew in every repeat
    warmups: int
    seed: int
    kv_interval_s: float
    start_timeout_s: float
    run_timeout_s: float
    server_arguments: Sequence[str]
    output: Path  # folder
    name: str  # of the result files, without suffix
    work: Path  # folder for clips, logs and raw results

    def shown(self, words: Sequence[str]) -> list[str]:
        """A command as results have it: without secrets, and with WORK for the folder of this run."""
        return [word.replace(str(self.work.resolve()), "WORK") for word in masked(words)]

    def steps(self) -> int:
        """Steps of the progress bar."""
        prepared = max(self.num_prompts) if self.clips else 0
        starts = 1 if self.side_by_side else self.repeats
        return prepared + (starts + self.repeats * len(self.clients)) * len(self.configurations)


def run_plan(plan: Plan) -> Results:
    """Measure everything and write JSON, Markdown and PNG; what is measured is written even if the run is cut short."""
    plan.output.mkdir(parents=True, exist_ok=True)
    results = Results(settings=_settings(plan), configurations=plan.configurations, clients=plan.clients)
    try:
        with Progress(plan.steps()) as progress:
            _Runner(plan, results, progress).run()
        results.complete = True
    finally:
        if results.runs:
            write_results(results, plan.output / plan.name)
    return results


def write_results(results: Results, stem: Path) -> None:
    """Write `stem` with the suffixes .json, .md and, where matplotlib is installed, .png."""
    results.write(stem.with_name(f"{stem.name}.json"))
    stem.with_name(f"{stem.name}.md").write_text(report.markdown(results), encoding="utf-8")
    draw_if_possible(plot.draw, results, stem.with_name(f"{stem.name}.png"))


def _settings(plan: Plan) -> dict[str, Any]:
    source = ", ".join(path.name for path in plan.clips)
    pixels = f"windows of {source}" if plan.clips else "random pixels (vLLM's random-mm)"
    counts = ", ".join(f"{n} at {c} client(s)" for c, n in zip(plan.clients, plan.num_prompts, strict=True))
    shape = plan.shape
    return {
        "title": f"{plan.model.name}, {shape.frames} frames of {shape.width}x{shape.height}",
        "command": shlex.join(plan.command),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **provenance.describe(),
        "model": {"path": plan.shown([str(plan.model.path)])[0], "description": plan.model.description},
        "workload": {
            "description": f"{shape.frames} frames of {shape.width}x{shape.height}, {pixels}; "
            f"{plan.output_len} output tokens; requests a load: {counts}; {plan.warmups} warm-up(s) before each",
            "frames": shape.frames,
            "width": shape.width,
            "height": shape.height,
            "output_len": plan.output_len,
            "num_prompts": dict(zip(plan.clients, plan.num_prompts, strict=True)),
            "seed": plan.seed,
            "side_by_side": plan.side_by_side,
            "kv_interval_s": plan.kv_interval_s,
        },
    }


class _Runner:
    """State of a run: what is fixed, what is measured, what is shown."""

    def __init__(self, plan: Plan, results: Results, progress: Progress) -> None:
        self._plan = plan
        self._results = results
        self._progress = progress
        self._media_folder = (plan.work / "clips").resolve()
        self._shared = SharedOptions(
            model=plan.model.path,
            dummy_weights=plan.model.dummy_weights,
            media_folder=self._media_folder,
            on_cpu=provenance.runs_on_cpu(),
            extra_arguments=plan.server_arguments,
        )

    def run(self) -> None:
        dataset = self._prepare()
        if self._plan.side_by_side:
            self._run_side_by_side(dataset)
            return
        # A B C, A B C: drift of the machine hits all configurations alike.
        for repeat in range(self._plan.repeats):
            for configuration in self._plan.configurations:
                with self._serving(configuration, f"-{repeat}") as port:
                    self._measure_loads(configuration, repeat, dataset, port)

    def _run_side_by_side(self, dataset: Sequence[str]) -> None:
        """A B C, C B A, A B C: neighbours find the machine most alike, and no one is always first."""
        with contextlib.ExitStack() as stack:
            servers = [(c, stack.enter_context(self._serving(c))) for c in self._plan.configurations]
            for repeat in range(self._plan.repeats):
                for configuration, port in servers if repeat % 2 == 0 else reversed(servers):
                    self._measure_loads(configuration, repeat, dataset, port)

    def _prepare(self) -> list[str]:
        plan = self._plan
        self._media_folder.mkdir(parents=True, exist_ok=True)
        if not plan.clips:
            return random_pixels(plan.shape)
        self._progress.begin("cutting clips")
        return prepare_clips(
            plan.clips, max(plan.num_prompts), plan.shape, self._media_folder, plan.seed, self._progress.finish
        )

    @contextlib.contextmanager
    def _serving(self, configuration: Configuration, log_suffix: str = "") -> Iterator[int]:
        """A running server of `configuration`; yields its port."""
        plan, port = self._plan, processes.free_port()
        command = configuration.serve_command(str(plan.model.path), self._shared.arguments(port))
        self._results.commands.setdefault(configuration.name, plan.shown(command))
        environment = {**self._shared.environment(), **configuration.environment}
        log = plan.work / "logs" / f"{_file_name(plan, configuration)}{log_suffix}.log"
        self._progress.begin(f"{configuration.name}: starting")
        with processes.process_group(command, environment, log) as server:
            processes.wait_until_healthy(server, port, log, plan.start_timeout_s, self._progress.tick)
            self._progress.finish()
            yield port

    def _measure_loads(self, configuration: Configuration, repeat: int, dataset: Sequence[str], port: int) -> None:
        plan = self._plan
        for clients, num_prompts in zip(plan.clients, plan.num_prompts, strict=True):
            load = Load(
                dataset_arguments=dataset,
                clients=clients,
                num_prompts=num_prompts,
                output_len=plan.output_len,
                warmups=plan.warmups,
                seed=plan.seed + repeat,
            )
            self._measure_load(configuration, repeat, load, port)

    def _measure_load(self, configuration: Configuration, repeat: int, load: Load, port: int) -> None:
        plan = self._plan
        stem = f"{_file_name(plan, configuration)}-{repeat}-{load.clients}c"
        result, log = (plan.work / "raw" / f"{stem}.json").resolve(), plan.work / "logs" / f"{stem}.log"
        result.parent.mkdir(parents=True, exist_ok=True)
        result.unlink(missing_ok=True)
        command = load.command(port, str(plan.model.path), result)
        self._progress.begin(f"repeat {repeat + 1}, {configuration.name}: {load.clients} client(s)")
        with KvSampler(port, plan.kv_interval_s) as sampler:
            measured = send(command, load.num_prompts, result, log, plan.run_timeout_s, self._progress.tick)
        values = read_metrics(measured, sampler.peak)
        self._results.runs.append(
            Run(configuration=configuration.name, clients=load.clients, repeat=repeat, values=values)
        )
        self._results.details.append(
            {
                "kv_samples": sampler.samples,
                "block_size": sampler.block_size,
                "duration_s": measured["duration"],
                "ttfts_s": measured["ttfts"],
                "load_average": round(os.getloadavg()[0], 2),  # well above our own processes: others were running, too
                "client_command": plan.shown(command),
            }
        )
        self._results.write(plan.output / f"{plan.name}.json")
        self._progress.finish()
        self._progress.write(
            f"repeat {repeat + 1}, {configuration.name}, {load.clients} client(s): "
            f"TTFT {values['ttft_mean_ms']:.0f} ms, {values['requests_per_s']:.3f} req/s, "
            f"{values['prompt_tokens']:.0f} prompt tokens, {sampler.peak or 'no'} KV blocks seen held"
        )


def _file_name(plan: Plan, configuration: Configuration) -> str:
    """A name for files: configurations may hold any character."""
    return f"server{plan.configurations.index(configuration)}"
