"""`vllm-prune completion SHELL`: a script that lets the shell complete subcommands, options and their values.

It is made once, of the parsers themselves, so completing starts no Python. Where vLLM is installed, `serve` has vLLM's
options too.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from vllm_prune.cli.checks.remedies import is_absent

SHELLS = ("bash", "zsh", "fish", "tcsh")
_FILES = ("FILE", "NPZ", "NAME|FILE")
_FOLDERS = ("DIR", "FOLDER")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `vllm-prune completion`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = (
        "bash: vllm-prune completion bash > ~/.local/share/bash-completion/completions/vllm-prune\n"
        "zsh:  vllm-prune completion zsh > DIR/_vllm-prune, DIR being one of $fpath\n"
        "fish: vllm-prune completion fish > ~/.config/fish/completions/vllm-prune.fish"
    )
    parser.add_argument("shell", choices=SHELLS, help="whose script to print")


def run(args: argparse.Namespace) -> int:
    """Prints the script."""
    import shtab

    print(shtab.complete(whole_parser(), args.shell))
    return 0


def whole_parser() -> argparse.ArgumentParser:
    """The parser of every subcommand and benchmark at once, which the command itself never makes."""
    from vllm_prune.cli.bench import BENCHMARKS
    from vllm_prune.cli.main import COMMANDS

    parser = argparse.ArgumentParser(prog="vllm-prune")
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers()
    for name, command in COMMANDS.items():
        part = commands.add_parser(name, help=command.summary)
        if name == "bench":
            benchmarks = part.add_subparsers()
            for benchmark, found in BENCHMARKS.items():
                _fill(benchmarks.add_parser(benchmark, help=found.summary), importlib.import_module(found.module))
        else:
            _fill(part, importlib.import_module(command.module))
        if command.passes_on and not is_absent("vllm"):
            _add_vllm_options(part)
    return parser


def _fill(parser: argparse.ArgumentParser, module: ModuleType) -> None:
    module.add_arguments(parser)
    _complete_paths(parser._actions)


def _complete_paths(actions: Iterable[argparse.Action]) -> None:
    """Tells shtab which values are files and folders."""
    import shtab

    for action in actions:
        if action.metavar in _FOLDERS:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif action.metavar in _FILES or action.type is Path or action.dest in ("video", "model"):
            action.complete = shtab.FILE  # type: ignore[attr-defined]


def _add_vllm_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `vllm serve` that the parser has not."""
    from vllm_prune.cli.vllm_serve import options

    for action in options():
        names = [name for name in action.option_strings if name not in parser._option_string_actions]
        if names and action.nargs == 0:
            parser.add_argument(*names, action="store_true")
        elif names:
            choices = None if action.choices is None else [str(choice) for choice in action.choices]
            parser.add_argument(*names, choices=choices)
