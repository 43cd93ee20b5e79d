"""What `vllm-prune serve` adds to `vllm serve` on some GPUs, for configurations in which the question chooses."""

from __future__ import annotations

import shlex

import pytest

from vllm_prune.cli.main import main
from vllm_prune.cli.serve_defaults import added_options
from vllm_prune.gpus import Gpu, list_gpus

GIB = 1 << 30
A100 = Gpu("NVIDIA A100-SXM4-80GB", 80 * GIB, (8, 0))
L40S = Gpu("NVIDIA L40S", 45 * GIB, (8, 9))
H100 = Gpu("NVIDIA H100 80GB HBM3", 80 * GIB, (9, 0))
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
    assert "added --max-num-batched-tokens 8192: a video and its question must fit one step" in printed.err
    assert main(["serve", "embedded", "--prune", "stage1_only", "--dry-run"]) == 0
    assert STEP[0] not in capsys.readouterr().out
