"""The benchmark on the embedded model, with real servers."""

import json
import math
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


def servers(folder):
    """Command lines of the servers that run and were given files of `folder`."""
    listed = subprocess.run(["ps", "-eo", "pid,args", "-ww"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if " serve " in line and str(folder) in line]


BLOCK_SIZE, OUTPUT_LEN = 32, 100
UNIFORM = 'uniform={"method": "uniform", "keep_ratio": 0.25}'


@pytest.mark.parametrize(
    ("configurations", "mode"),
    [
        pytest.param(["stock", UNIFORM], [], id="in turn"),
        pytest.param(["stock", "evs:0.75", UNIFORM], ["--side-by-side"], id="side by side", marks=pytest.mark.long),
    ],
)
def test_stock_evs_and_ours_on_the_embedded_model(tmp_path, configurations, mode):
    command = [sys.executable, "-m", "vllm_prune.cli.main", "bench", "throughput", "--model", "embedded"]
    command += ["--configs", *configurations]
    command += ["--frames", "16", "--size", "112x112", "--clients", "4", "--num-prompts", "8", "--repeats", "1", *mode]
    # Long answers, so that their KV blocks are seen.
    command += ["--output-len", str(OUTPUT_LEN), "--kv-interval", "0.05", "--server-args=--enforce-eager"]
    work = tmp_path / "work"
    command += ["-o", str(tmp_path), "--work", str(work)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "throughput.json").read_text())
    metrics = {(entry["configuration"], entry["clients"]): entry["metrics"] for entry in result["summary"]}
    assert {name for name, _ in metrics} == {name.partition("=")[0] for name in configurations}

    # 16 frames of 112x112 are 128 tokens of video, of which EVS and we keep 32.
    stock, ours = (metrics[name, 4]["prompt_tokens"]["mean"] for name in ("stock", "uniform"))
    assert stock - ours == 96
    if "evs:0.75" in configurations:
        assert metrics["evs:0.75", 4]["prompt_tokens"]["mean"] == ours
    for values in metrics.values():
        # Looked at now and then: the most that was seen is at most what 4 requests hold.
        most = 4 * math.ceil((values["prompt_tokens"]["mean"] + OUTPUT_LEN) / BLOCK_SIZE)
        assert 0 < values["kv_blocks_peak"]["mean"] <= most
        assert all(values[key]["mean"] > 0 for key in ("ttft_mean_ms", "tpot_mean_ms", "requests_per_s"))
    (log,) = (log for log in work.glob("logs/server0*.log") if not log.stem.endswith("c"))  # that of a client
    assert str(work) in log.read_text()  # or the next line would find nothing whatever runs
    assert servers(work) == []
