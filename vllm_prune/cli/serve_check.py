"""Whether vLLM would take a `vllm serve` line: its own parser, configuration and multimodal processor, without weights.

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
_REFUSED, _NOT_LOADED = 1, 3  # statuses of the process; argparse's is 2


def check_line(command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Lets vLLM read `command` (`vllm serve ...`) and make configuration and processor, plugins and patches included.

    Raises:
        ValueError: vLLM refuses it, cannot be loaded, or does not come to an end.
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
        if done.returncode == _NOT_LOADED:
            raise ValueError(f"vLLM cannot be loaded: {said}; `vllm-prune doctor` may know why")
        raise ValueError(f"vLLM refuses this line: {said}")


def _last_line(output: str) -> str:
    lines = output.strip().splitlines()
    return lines[-1].removeprefix("vllm serve: error: ").removeprefix("vllm: error: ") if lines else "(no message)"


def _load() -> None:
    """Imports all of vLLM that `_check` needs."""
    from vllm.engine.arg_utils import AsyncEngineArgs  # noqa: F401
    from vllm.multimodal import MULTIMODAL_REGISTRY  # noqa: F401
    from vllm.usage.usage_lib import UsageContext  # noqa: F401

    from vllm_prune.cli.vllm_serve import make_parser

    make_parser()


def _check(words: list[str]) -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.multimodal import MULTIMODAL_REGISTRY
    from vllm.usage.usage_lib import UsageContext

    from vllm_prune.cli.vllm_serve import make_parser, validate

    args = make_parser().parse_args(words)
    validate(args)
    config = AsyncEngineArgs.from_cli_args(args).create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
    if config.model_config.is_multimodal_model:  # a model's own refusals come with its processor
        MULTIMODAL_REGISTRY.create_processor(config.model_config)


def _message(error: Exception) -> str:
    r"""In one line; a validation error of pydantic's without its frame.

    >>> _message(ValueError("first\nsecond"))
    'first second'
    """
    details = getattr(error, "errors", None)
    found = [str(detail.get("msg", "")) for detail in details()] if callable(details) else [str(error)]
    messages = [message.removeprefix("Value error, ") for message in found]
    return " ".join("; ".join(messages).split()) or type(error).__name__


def _main(result: Path, words: list[str]) -> int:
    status = _NOT_LOADED
    try:
        _load()
        status = _REFUSED
        _check(words)
    except Exception as error:  # whatever it is, vLLM would not start
        result.write_text(json.dumps(_message(error)))
        return status
    return 0


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1]), sys.argv[2:]))
