"""`vllm-prune serve --dry-run` asks vLLM itself, in a process of its own."""

import os

import pytest

from vllm_prune.cli.main import main
from vllm_prune.cli.serve_check import check_line

SERVE = ["serve", "embedded", "--uds", "/tmp/unused", "--dry-run"]


@pytest.mark.slow
def test_a_line_that_vllm_takes_is_printed(capsys):
    assert main([*SERVE, "--prune", "stage1_only", "--max-model-len", "2048", "-dp", "2"]) == 0
    assert capsys.readouterr().out.startswith("vllm serve ")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--max-model-length", "5"], "unrecognized arguments: --max-model-length 5"),
        (["-pp", "2"], "pipeline_parallel_size=2"),  # refused when the configuration is made
        pytest.param(  # and when the processor is
            ["--max-model-len", "512", "--prune", '{"frames": {"tokens": 1024}}'],
            "frames.tokens=1024: must be max_model_len=512 or less",
            marks=pytest.mark.long,
        ),
    ],
)
def test_what_serve_would_refuse_is_refused(capsys, options, said):
    assert main([*SERVE, *options]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("vllm-prune serve: vLLM refuses this line: ")
    assert said in told.err
    assert told.err.count("\n") == 1


@pytest.mark.slow
def test_a_vllm_that_cannot_be_loaded_is_the_doctors(tmp_path):
    """As where a companion of torch is a build for another one."""
    (tmp_path / "transformers.py").write_text("raise OSError('libcudart.so.13: cannot open shared object file')")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    with pytest.raises(ValueError, match=r"vLLM cannot be loaded: libcudart.*; `vllm-prune doctor` may know why"):
        check_line(["vllm", "serve", "embedded"], {"PYTHONPATH": path})


@pytest.mark.slow
def test_a_refusal_repeats_no_secret():
    with pytest.raises(ValueError, match=r"unrecognized arguments: --none https://\*\*\*@host/") as refused:
        check_line(["vllm", "serve", "m", "--none", "https://me:hush@host/"], {})
    assert "hush" not in str(refused.value)
