"""Throughput on video requests; the code is `vllm_prune.bench.throughput`, results are in `benchmarks/results`.

    python -m benchmarks.throughput --help

is `vllm-prune bench throughput --help`.
"""

from vllm_prune.bench.throughput.command import add_arguments as add_arguments
from vllm_prune.bench.throughput.command import run as run
