"""vLLM's own command line of `vllm serve`. Imports vLLM, which takes seconds."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def make_parser() -> argparse.ArgumentParser:
    """A parser of `serve MODEL ...`, the subcommand's name included."""
    return _parsers()[0]


def options() -> Sequence[argparse.Action]:
    """The options of `vllm serve`."""
    return _parsers()[1]._actions


def validate(args: argparse.Namespace) -> None:
    """What `vllm serve` looks at between its command line and its configuration.

    Raises:
        ValueError, TypeError: Two options do not go together.
    """
    from vllm.entrypoints.cli.serve import ServeSubcommand

    ServeSubcommand().validate(args)
    if getattr(args, "model_tag", None) is not None:
        args.model = args.model_tag


def _parsers() -> tuple[argparse.ArgumentParser, argparse.ArgumentParser]:
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser(prog="vllm")
    return parser, ServeSubcommand().subparser_init(parser.add_subparsers(dest="subparser"))
