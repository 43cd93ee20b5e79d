"""The methods stand alone: no vLLM, nothing from the serving side."""

from __future__ import annotations

import subprocess
import sys

import pytest

_REPORT = "; import sys; print(*(m for m in sys.modules if m.partition('.')[0] == 'vllm' or 'vllm_prune.serving' in m))"
_LOAD_ALL = "from vllm_prune.methods import names, create; [create(n) for n in names()]"
_FAKE = "import sys, types; sys.modules['vllm.fake'] = types.ModuleType('vllm.fake')"


def _foreign_modules(statement: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", statement + _REPORT], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_methods_import_no_vllm() -> None:
    assert _foreign_modules(_LOAD_ALL) == []


def test_the_check_can_fail() -> None:
    assert _foreign_modules(f"{_FAKE}; {_LOAD_ALL}") == ["vllm.fake"]


@pytest.mark.parametrize("module", ["vllm_prune.methods", "vllm_prune.methods.registry"])
def test_importing_the_package_loads_no_method(module: str) -> None:
    code = f"import sys, {module}; print('vllm_prune.methods.prunevid' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
