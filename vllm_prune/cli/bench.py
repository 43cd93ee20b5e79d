"""`vllm-prune bench`: measure what pruning gains, against stock vLLM.

Like the top level, it imports a benchmark's module only when that benchmark is called.
"""

import argparse
import importlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Benchmark:
    """A benchmark: a module with `add_arguments(parser)` and `run(args) -> int`, and what it is for."""

    module: str
    summary: str


BENCHMARKS = {
    "throughput": Benchmark(
        "vllm_prune.bench.throughput.command",
        "latency, requests a second and KV blocks of servers, stock vLLM beside ours",
    ),
    "accuracy": Benchmark(
        "vllm_prune.bench.accuracy.command",
        "right answers on questions about videos, by configuration and tokens kept",
    ),
    "sweep": Benchmark(
        "vllm_prune.bench.sweep.command",
        "every combination of parameters on a video or a dataset, with the Pareto front",
    ),
    "methods": Benchmark("vllm_prune.cli.bench_methods", "time and accuracy of the pruning methods themselves"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the name of the benchmark and whatever belongs to it."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    summaries = "\n".join(f"  {name:12}{benchmark.summary}" for name, benchmark in BENCHMARKS.items())
    parser.epilog = f"benchmarks:\n{summaries}\n\n`vllm-prune bench NAME --help` tells more."
    parser.add_argument("benchmark", choices=BENCHMARKS, metavar="NAME", help="what to measure, see below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="the benchmark's own arguments")


def run(args: argparse.Namespace) -> int:
    """Run the benchmark that was named and return its exit status."""
    benchmark = BENCHMARKS[args.benchmark]
    module = importlib.import_module(benchmark.module)
    parser = argparse.ArgumentParser(prog=f"vllm-prune bench {args.benchmark}", description=benchmark.summary)
    module.add_arguments(parser)
    return int(module.run(parser.parse_args(args.arguments)))
