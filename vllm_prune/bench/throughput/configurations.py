"""The servers that are compared: stock vLLM, with its EVS, and vllm-prune with a configuration; both also with MTP."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from vllm_prune.bench.throughput.errors import BenchmarkError
from vllm_prune.config import PruneConfig, PruneConfigError

STOCK = "stock"
_EVS = re.compile(r"evs:(?P<rate>.+)")
_MTP = re.compile(r"mtp:(?P<drafts>[^+]+)(?:\+(?P<config>.+))?", re.DOTALL)
_NAMED = re.compile(r"(?P<name>[\w.+@%-]+)=(?P<value>.+)", re.DOTALL)

VLLM = (sys.executable, "-m", "vllm.entrypoints.cli.main")
_NO_PLUGIN = {"VLLM_PLUGINS": ""}  # what a user has without vllm-prune
VLLM_PRUNE = (sys.executable, "-m", "vllm_prune.cli.main")


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """One server: how it is called in the tables and how it is started."""

    name: str
    given: str  # as on the command line
    program: tuple[str, ...]
    arguments: tuple[str, ...] = ()  # besides those that all servers share
    environment: dict[str, str] = field(default_factory=dict)
    is_reference: bool = False  # without vllm-prune's pruning: the others are compared with it
    config: PruneConfig | None = None  # of vllm-prune; None for vLLM's own servers
    evs_rate: float | None = None  # share of tokens that vLLM's EVS drops; None where it is off

    def serve_command(self, model: str, shared: Sequence[str]) -> list[str]:
        """The command that starts this server on `model`, with the options `shared` by all servers."""
        return [*self.program, "serve", model, *self.arguments, *shared]


def parse_configurations(
    given: Sequence[str], option: str = "--configs", *, with_mtp: bool = False
) -> list[Configuration]:
    """Read `stock`, `evs:RATE`, a preset's name or a JSON object, each optionally as `NAME=...`.

    Args:
        given: The values.
        option: The command line's name for them, for messages.
        with_mtp: Whether `mtp:N` is one of them, or `mtp:N+` before a preset's name or a JSON object, which changes
            speed but no answer.

    Raises:
        BenchmarkError: a value that cannot be used, or a name that comes twice.
    """
    configurations = [_parse(item, option, with_mtp) for item in given]
    names = [configuration.name for configuration in configurations]
    for name in names:
        if names.count(name) > 1:
            raise BenchmarkError(f"{option}: {name!r} comes {names.count(name)} times; name one of them: NAME={name}")
    return configurations


def _parse(given: str, option: str, with_mtp: bool) -> Configuration:
    named = _NAMED.fullmatch(given)
    name, value = (named["name"], named["value"]) if named else (given, given)
    if value == STOCK:
        return Configuration(name=name, given=given, program=VLLM, environment=_NO_PLUGIN, is_reference=True)
    if evs := _EVS.fullmatch(value):
        rate = _pruning_rate(evs["rate"], option)
        arguments = ("--video-pruning-rate", str(rate))
        return Configuration(
            name=name, given=given, program=VLLM, arguments=arguments, evs_rate=rate, is_reference=True
        )
    drafting: tuple[str, ...] = ()
    if with_mtp and (mtp := _MTP.fullmatch(value)):
        drafts = {"method": "mtp", "num_speculative_tokens": _drafts(mtp["drafts"], option)}
        drafting = ("--speculative-config", json.dumps(drafts))
        if mtp["config"] is None:
            return Configuration(
                name=name, given=given, program=VLLM, arguments=drafting, environment=_NO_PLUGIN, is_reference=True
            )
        value = mtp["config"]
    try:
        config = PruneConfig.parse(value)
    except PruneConfigError as error:
        others = f"{STOCK}, evs:RATE" + (", mtp:N, mtp:N+CONFIG" if with_mtp else "")
        raise BenchmarkError(f"{option} {value!r}: {error}; besides these: {others}") from error
    return Configuration(
        name=name if named or drafting else _short_name(value),
        given=given,
        program=VLLM_PRUNE,
        arguments=("--prune", config.to_json(), *drafting),
        config=config,
    )


def _pruning_rate(text: str, option: str) -> float:
    """The share of tokens that EVS drops."""
    try:
        rate = float(text)
    except ValueError:
        rate = -1.0
    if not 0 < rate < 1:
        raise BenchmarkError(f"{option} evs:{text}: the rate must be a number above 0 and below 1, as in evs:0.75")
    return rate


def _drafts(text: str, option: str) -> int:
    """How many tokens are drafted for each that is sampled."""
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise BenchmarkError(f"{option} mtp:{text}: the number of drafted tokens must be 1 or more, as in mtp:2")
    return int(text)


def _short_name(value: str) -> str:
    """A preset's own name; for JSON, its content without quotes and braces."""
    return re.sub(r'["{}\s]', "", value) if value.lstrip().startswith("{") else value
