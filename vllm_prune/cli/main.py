"""The command `vllm-prune`: finds the subcommand's module and hands over to it.

A subcommand is a module with `add_arguments(parser)` and `run(args) -> int` (the exit status). It is imported only when
it is called, so `vllm-prune --help` needs neither torch nor vLLM.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

from vllm_prune._version import __version__
from vllm_prune.bench.options import FAILED, INTERRUPTED, USAGE
from vllm_prune.cli.checks.remedies import is_absent, set_up
from vllm_prune.cli.closed_pipe import CLOSED_PIPE, drop_output, is_closed
from vllm_prune.cli.secrets import require_clear_values


@dataclass(frozen=True)
class Command:
    """A subcommand: where it is and what it is for."""

    module: str
    summary: str
    passes_on: bool = False  # options it does not know are vLLM's: they are in `args.passed_on`, in order
    needs: str = ""  # a module without which nothing of it can be done; `--help` can


COMMANDS = {
    "serve": Command("vllm_prune.cli.serve", "start an OpenAI-compatible server that prunes videos", passes_on=True),
    "chat": Command("vllm_prune.cli.chat", "ask a running server a question about a video", needs="openai"),
    "show": Command("vllm_prune.cli.show", "picture which of a video's tokens are kept, merged, dropped", needs="vllm"),
    "estimate": Command("vllm_prune.cli.estimate", "foresee tokens, FLOPs and KV memory from a model's config.json"),
    "profile": Command("vllm_prune.cli.profile", "tell where the time of a request goes, stage by stage", needs="vllm"),
    "train-selector": Command(
        "vllm_prune.cli.train_selector", "train a selector of tokens on the model's own attention", needs="transformers"
    ),
    "bench": Command("vllm_prune.cli.bench", "measure what pruning gains, against stock vLLM", needs="vllm"),
    "doctor": Command("vllm_prune.cli.doctor", "check this installation and say how to mend it"),
    "completion": Command("vllm_prune.cli.completion", "print a script by which a shell completes the command line"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `vllm-prune` and return its exit status."""
    chosen = top_level_parser().parse_args(argv)
    try:
        status = _run(chosen.command, chosen.arguments)
        sys.stdout.flush()  # here, where it is known what a closed pipe means
        return status
    except ModuleNotFoundError as error:
        if not error.name or not is_absent(error.name):
            raise
        return _tell(chosen.command, f"needs {error.name}, which is not installed: {set_up()}", FAILED)
    except KeyboardInterrupt:
        return _tell(chosen.command, "interrupted", INTERRUPTED)
    except BrokenPipeError:
        if not is_closed(sys.stdout):
            raise
        drop_output()
        return CLOSED_PIPE


def _tell(name: str, message: str, status: int) -> int:
    print(f"vllm-prune {name}: {message}", file=sys.stderr)
    return status


def _run(name: str, arguments: Sequence[str]) -> int:
    command = COMMANDS[name]
    wants_help = not {"-h", "--help"}.isdisjoint(arguments)
    if command.needs and not wants_help and is_absent(command.needs):
        raise ModuleNotFoundError(name=command.needs)
    try:
        require_clear_values(arguments)  # before argparse repeats them
    except ValueError as error:
        return _tell(name, str(error), USAGE)
    parser, module = make_parser(name)
    if command.passes_on:
        args, unknown = parser.parse_known_args(arguments)
        args.passed_on = unknown
    else:
        args = parser.parse_args(arguments)
    return int(module.run(args))


def make_parser(name: str) -> tuple[argparse.ArgumentParser, ModuleType]:
    """The parser of the subcommand `name`, and its module."""
    command = COMMANDS[name]
    module = importlib.import_module(command.module)
    # Without abbreviations: `--max` must reach vLLM as it is, whatever options of ours begin like it.
    parser = argparse.ArgumentParser(
        prog=f"vllm-prune {name}", description=command.summary, allow_abbrev=not command.passes_on
    )
    module.add_arguments(parser)
    return parser, module


def top_level_parser() -> argparse.ArgumentParser:
    """The parser of what comes before a subcommand's own arguments."""
    summaries = "\n".join(f"  {name:16}{command.summary}" for name, command in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="vllm-prune",
        description="Fewer video tokens for unmodified vLLM.",
        epilog=f"commands:\n{summaries}\n\n`vllm-prune COMMAND --help` tells more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"vllm-prune {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="what to do, see below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="the command's own arguments")
    return parser


if __name__ == "__main__":
    sys.exit(main())
