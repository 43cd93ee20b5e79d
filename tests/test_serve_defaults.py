"""What `vllm-prune serve` adds to `vllm serve` on some GPUs, for configurations in which the question chooses."""

from __future__ import annotations

import shlex
import sys
from types import ModuleType

import pytest

from vllm_prune.cli.main import main
from vllm_prune.cli.serve_defaults import added_options
from vllm_prune.gpus import Gpu, list_gpus

GIB = 1 << 30
A100 = Gpu("NVIDIA A100-SXM4-80GB", 80 * GIB, (8, 0))
L40S = Gpu("NVIDIA L40S", 45 * GIB, (8, 9))
H100 = Gpu("NVIDIA H100 80GB HBM3", 80 * GIB, (9, 0))
H200 = Gpu("NVIDIA H200", 140 * GIB, (9, 0))
RTX_5090 = Gpu("NVIDIA GeForce RTX 5090", 31 * GIB, (12, 0))
B200 = Gpu("NVIDIA B200", 179 * GIB, (10, 0))
STEP = ("--max-num-batched-tokens", "8192")
BACKEND = ("--attention-backend", "FLASH_ATTN")


@pytest.mark.parametrize(
    ("gpus", "expected"),
    [([], []), ([A100], [STEP]), ([L40S, L40S], [STEP]), ([H100], []), ([H100, L40S], [STEP]), ([B200], [BACKEND])],
    ids=["CPU", "A100", "two L40S", "H100", "mixed", "B200"],
)
def test_by_gpu(gpus, expected):
    assert [(option.name, option.value) for option in added_options(True, [], gpus)] == expected
    assert added_options(False, [], gpus) == []


@pytest.mark.parametrize("gpu", [A100, L40S, H100, H200, B200, RTX_5090], ids=lambda gpu: gpu.name)
def test_options_are_added_exactly_where_vllms_own_choice_would_not_do(gpu, monkeypatch):
    """vLLM is asked what it takes on this GPU: tokens of a step, and the first backend that it tries."""
    # Kernels, which a build for CPUs lacks and the choice does not use.
    monkeypatch.setitem(sys.modules, "vllm._C_stable_libtorch", ModuleType("vllm._C_stable_libtorch"))
    from vllm.engine import arg_utils
    from vllm.platforms.cuda import _get_backend_priorities
    from vllm.platforms.interface import DeviceCapability
    from vllm.usage.usage_lib import UsageContext

    from vllm_prune.serving.worker.dense.prefix import SUPPORTED_BACKENDS

    monkeypatch.setattr(arg_utils.current_platform, "get_device_total_memory", lambda *_: gpu.memory, raising=False)
    monkeypatch.setattr(arg_utils.current_platform, "get_device_name", lambda *_: gpu.name, raising=False)
    monkeypatch.setattr(arg_utils.current_platform, "is_cpu", lambda: False, raising=False)
    step_tokens = arg_utils.EngineArgs.get_batch_defaults(1)[0][UsageContext.OPENAI_API_SERVER]
    first, *others = _get_backend_priorities(False, DeviceCapability(*gpu.capability))

    added = {option.name: option.value for option in added_options(True, [], [gpu])}
    assert (STEP[0] in added) == (step_tokens < int(STEP[1]))
    assert (BACKEND[0] in added) == (first.name not in SUPPORTED_BACKENDS)
    assert added.get(BACKEND[0], first.name) in {name.name for name in (first, *others)} & set(SUPPORTED_BACKENDS)


@pytest.mark.parametrize(
    ("gpu", "given"),
    [
        (A100, ["--max-num-batched-tokens", "4096"]),
        (A100, ["--max-num-batched-tokens=4096"]),
        (A100, ["--max_num_batched_tokens", "4096"]),
        (A100, ["--config", "server.yaml"]),
        (B200, ["--attention-backend", "TRITON_ATTN"]),
        (B200, ["--attention-config.backend=TRITON_ATTN"]),
        (B200, ["-ac", '{"backend": "TRITON_ATTN"}']),
    ],
)
def test_what_the_user_gave_stays(gpu, given):
    assert added_options(True, given, [gpu]) == []


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """Makes `nvidia-smi` print lines."""

    def install(*lines: str) -> None:
        script = tmp_path / "nvidia-smi"
        script.write_text(f"#!/bin/sh\nprintf '%s\\n' {shlex.join(lines)}\n")
        script.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    return install


def test_gpus_are_read_from_the_driver(driver):
    driver("81920, 8.0, NVIDIA A100-SXM4-80GB", "183359, 10.0, NVIDIA B200")
    assert list_gpus() == [A100, Gpu("NVIDIA B200", 183359 << 20, (10, 0))]
    driver("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.")
    assert list_gpus() == []


def test_serve_says_what_it_adds_and_why(driver, capsys):
    driver("81920, 8.0, NVIDIA A100-SXM4-80GB")
    assert main(["serve", "embedded", "--prune", "default", "--dry-run"]) == 0
    printed = capsys.readouterr()
    line = shlex.split(printed.out)
    assert line[line.index(STEP[0]) + 1] == STEP[1]
    assert "added --max-num-batched-tokens 8192: a video of more tokens than a step takes several" in printed.err
    assert main(["serve", "embedded", "--prune", "stage1_only", "--dry-run"]) == 0
    assert STEP[0] not in capsys.readouterr().out
