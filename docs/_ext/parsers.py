"""The parsers of the command line's commands, for the page that lists their options."""

import argparse
import importlib

from vllm_prune.cli.bench import BENCHMARKS
from vllm_prune.cli.main import COMMANDS

_MODULES = COMMANDS | {f"bench {name}": benchmark for name, benchmark in BENCHMARKS.items()}


def commands() -> argparse.ArgumentParser:
    """One parser with all commands and benchmarks, each as `vllm-prune NAME --help` has it."""
    parser = argparse.ArgumentParser(prog="vllm-prune", add_help=False)
    children = parser.add_subparsers()
    for name, command in _MODULES.items():
        if name != "bench":
            child = children.add_parser(name, help=command.summary, description=command.summary)
            importlib.import_module(command.module).add_arguments(child)
    return parser
