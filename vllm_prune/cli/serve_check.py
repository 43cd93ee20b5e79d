"""Whether vLLM would take a `vllm serve` line: its own parser and its own configuration, without weights or devices.

In a process of its own (`python -m vllm_prune.cli.serve_check FILE serve MODEL ...`), as vLLM logs, and ends the
process at a wrong option.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from vllm_prune.cli.secrets import masked

_TIMEOUT_S = 300


def check_line(command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Lets vLLM read `command` (`vllm serve ...`) and make its configuration, plugins and patches included.

    Raises:
        ValueError: vLLM refuses it, or does not come to an end.
    """
    with tempfile.TemporaryDirectory(prefix="vllm-prune-") as folder:
        result = Path(folder, "refusal.json")
        check = [sys.executable, "-m", "vllm_prune.cli.serve_check", str(result), *command[1:]]
        quiet = {"VLLM_LOGGING_LEVEL": "ERROR", "COLUMNS": "1000"}
        try:
            done = subprocess.run(
                check, capture_output=True, text=True, timeout=_TIMEOUT_S, env={**os.environ, **environment, **quiet}
            )
        except subprocess.TimeoutExpired as error:
            raise ValueError(f"vLLM made no configuration of this line within {_TIMEOUT_S} s") from error
        refusal = json.loads(result.read_text()) if result.exists() else None
    if done.returncode != 0:
        said = " ".join(masked((refusal or _last_line(done.stderr)).split(" ")))
        raise ValueError(f"vLLM refuses this line: {said}")


def _last_line(output: str) -> str:
    lines = output.strip().splitlines()
    return lines[-1].removeprefix("vllm serve: error: ").removeprefix("vllm: error: ") if lines else "(no message)"


def _check(words: list[str]) -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext

    from vllm_prune.cli.vllm_serve import make_parser, validate

    args = make_parser().parse_args(words)
    validate(args)
    AsyncEngineArgs.from_cli_args(args).create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)


def _message(error: Exception) -> str:
    r"""In one line; a validation error of pydantic's without its frame.

    >>> _message(ValueError("first\nsecond"))
    'first second'
    """
    details = getattr(error, "errors", None)
    found = [str(detail.get("msg", "")) for detail in details()] if callable(details) else [str(error)]
    messages = [message.removeprefix("Value error, ") for message in found]
    return " ".join("; ".join(messages).split()) or type(error).__name__


if __name__ == "__main__":
    try:
        _check(sys.argv[2:])
    except Exception as error:  # whatever it is, vLLM would not start
        Path(sys.argv[1]).write_text(json.dumps(_message(error)))
        sys.exit(1)
