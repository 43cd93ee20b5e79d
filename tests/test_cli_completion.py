"""`vllm-prune completion`, asked by a real bash."""

import shlex
import subprocess
import sys

import pytest

pytest.importorskip("shtab")

ASK = """
source {script}
COMP_WORDS=({words}) COMP_CWORD={last}
_shtab_vllm_prune
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("completion") / "vllm-prune"
    command = [sys.executable, "-m", "vllm_prune.cli.main", "completion", "bash"]
    path.write_text(subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["vllm-prune", "es"], {"estimate"}),
        (["vllm-prune", "bench", ""], {"throughput", "accuracy", "sweep", "methods"}),
        (["vllm-prune", "chat", "--max-t"], {"--max-tokens"}),
        (["vllm-prune", "serve", "m", "--prune-override", "t"], {"tighten"}),
        (["vllm-prune", "serve", "--max-model-l"], {"--max-model-len"}),  # vLLM's own
        (["vllm-prune", "bench", "methods", "--clock", "c"], {"cpu"}),
    ],
)
def test_bash_completes(script, words, offered):
    line = ASK.format(script=script, words=shlex.join(words), last=len(words) - 1)
    found = subprocess.run(["bash", "-c", line], check=True, capture_output=True, text=True, timeout=60)
    assert set(found.stdout.split()) >= offered
