"""The result as Markdown: what was compared, two tables for each number of clients, and where it was measured."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from vllm_prune.bench.throughput.metrics import ACCEPTED, BY_KEY
from vllm_prune.bench.throughput.results import Results

MAIN = ("prompt_tokens", "ttft_mean_ms", "requests_per_s", "kv_blocks_peak")
DETAIL = tuple(f"{kind}_{statistic}_ms" for kind in ("ttft", "tpot", "itl") for statistic in ("mean", "median", "p99"))
RATIOS = {"ttft_mean_ms": "TTFT", "requests_per_s": "req/s", "kv_blocks_peak": "KV blocks"}


def markdown(results: Results) -> str:
    """The whole report."""
    parts = ["# Throughput on video requests", _introduction(results)]
    for clients in results.clients:
        if results.runs:
            parts += [f"## {clients} client(s)", _main_table(results, clients)]
            parts += ["<details><summary>All latencies</summary>", _detail_table(results, clients), "</details>"]
    parts += ["## How it was measured", _provenance(results)]
    return "\n\n".join(parts) + "\n"


def _introduction(results: Results) -> str:
    repeats = max((run.repeat for run in results.runs), default=-1) + 1
    side_by_side = results.settings["workload"]["side_by_side"]
    servers = "all servers up, loads in turn" if side_by_side else "a repeat starts every server anew, one by one"
    state = "" if results.complete else " **The run was cut short; repeats may differ in number.**"
    return (
        f"Mean ± standard error over {repeats} repeat(s); {servers}. "
        "Ratios are taken within a repeat. TTFT, TPOT and ITL: time to the first token, per further token, between "
        f"tokens. KV blocks: the most seen held at once.{state}"
    )


def _main_table(results: Results, clients: int) -> str:
    references = results.references()
    columns = (*MAIN, ACCEPTED) if any(ACCEPTED in run.values for run in results.runs) else MAIN
    header = ["server", *(BY_KEY[key].title for key in columns)]
    header += [f"{short} ÷ {reference}" for reference in references for short in RATIOS.values()]
    rows = [
        [f"`{name}`", *_estimates(results, name, clients, columns), *_ratios(results, name, clients, references)]
        for name in results.names()
    ]
    return table(header, rows)


def _detail_table(results: Results, clients: int) -> str:
    header = ["server", *(BY_KEY[key].title for key in DETAIL)]
    return table(header, [[f"`{name}`", *_estimates(results, name, clients, DETAIL)] for name in results.names()])


def _estimates(results: Results, name: str, clients: int, keys: Sequence[str]) -> list[str]:
    found = ((key, results.estimate(name, clients, key)) for key in keys)
    none = {ACCEPTED: "no drafts"}
    return [value.text(BY_KEY[key].digits) if value else none.get(key, "not measured") for key, value in found]


def _ratios(results: Results, name: str, clients: int, references: Sequence[str]) -> list[str]:
    cells = []
    for reference in references:
        for key in RATIOS:
            value = results.ratio(name, reference, clients, key)
            cells.append("1" if name == reference else value.text(2) if value else "not measured")
    return cells


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    rule = [":--", *("--:" for _ in header[1:])]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *rows))


def _provenance(results: Results) -> str:
    settings = results.settings
    machine = settings["machine"]
    gpus = f"; GPUs: {', '.join(machine['gpus'])}" if machine["gpus"] else "; no GPU"
    lines = [
        f"- Command: `{settings['command']}`",
        f"- When: {settings['started']}",
        f"- Machine: {machine['cpu_cores']} cores of {machine['cpu']}, {machine['memory_gib']} GiB{gpus}; load average "
        f"before the run {machine['load_average_at_start']}",
        f"- Versions: {', '.join(f'{name} {version}' for name, version in settings['versions'].items())}",
        f"- Commit: {settings['commit'] or 'not a git checkout'}; SHA-256 of the code {settings['source_sha256'][:16]}",
        f"- Model: {settings['model']['description']}",
        f"- Requests: {settings['workload']['description']}",
        "- Caches: prefix cache and multimodal processor cache off, so that every request is decoded, preprocessed, "
        "encoded and prefilled anew.",
        "- Servers:",
        *(f"  - `{name}`: `{shlex.join(command)}`" for name, command in results.commands.items()),
    ]
    return "\n".join(lines)
