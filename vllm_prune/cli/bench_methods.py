"""`vllm-prune bench methods`: time and memory of the pruning methods themselves."""

from vllm_prune.bench.methods.command import add_arguments as add_arguments
from vllm_prune.bench.methods.command import run as run
