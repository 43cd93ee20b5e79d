"""A whole run, with a fake in place of vLLM."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vllm_prune.bench.throughput import client, command, configurations

HERE = Path(__file__).parent
FAKE = (sys.executable, str(HERE / "fake_vllm.py"))
CONFIGS = ["stock", "evs:0.75", 'ours={"stage1": {"cluster_ratio": 0.25}}']
SMALL = ["--model-dims", "smoke", "--random-mm", "--frames", "4", "--size", "56x56", "--kv-interval", "0.02"]

# Runs the command with the fake, as a process of its own: argv[1] is this folder, the rest is the command line.
MAIN = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import test_runner
sys.exit(test_runner.main(sys.argv[1:]))
"""


def main(arguments):
    """`vllm-prune bench throughput` with the fake."""
    configurations.VLLM = configurations.VLLM_PRUNE = client.VLLM = FAKE
    return run_command(arguments)


def run_command(arguments):
    import argparse

    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(arguments))


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """Puts the fake in vLLM's place and returns the log of what is started."""
    for module, name in ((configurations, "VLLM"), (configurations, "VLLM_PRUNE"), (client, "VLLM")):
        monkeypatch.setattr(module, name, FAKE)
    log = tmp_path / "log"
    monkeypatch.setenv("FAKE_LOG", str(log))
    return log


def started(log):
    return [line.split(maxsplit=1)[1] for line in log.read_text().splitlines()]


def pids(log):
    return [int(line.split()[0]) for line in log.read_text().splitlines()]


def running(pid):
    try:
        return (
            Path(f"/proc/{pid}/cmdline").read_bytes() != b"" and "fake_vllm" in Path(f"/proc/{pid}/cmdline").read_text()
        )
    except FileNotFoundError:
        return False


def arguments(tmp_path, *more):
    return [*SMALL, "--configs", *CONFIGS, "-o", str(tmp_path / "out"), *more]


def test_a_run_interleaves_measures_and_writes(fake, tmp_path):
    assert run_command(arguments(tmp_path, "--clients", "1", "8", "--num-prompts", "2", "--repeats", "2")) == 0
    once = [
        "serve stock",
        "bench 1",
        "bench 8",
        "serve stock",
        "bench 1",
        "bench 8",
        "serve pruned",
        "bench 1",
        "bench 8",
    ]
    assert started(fake) == once * 2
    assert not any(running(pid) for pid in pids(fake))
    result = json.loads((tmp_path / "out" / "throughput.json").read_text())
    assert result["complete"]
    assert len(result["runs"]) == 12
    ours = next(entry for entry in result["summary"] if entry["configuration"] == "ours" and entry["clients"] == 8)
    assert ours["metrics"]["prompt_tokens"] == {"mean": 250.0, "standard_error": 0.0, "n": 2}
    assert ours["metrics"]["kv_blocks_peak"]["mean"] == 2  # 2.5% of 100 blocks, rounded to even
    assert ours["ratio_to"]["stock"]["ttft_mean_ms"]["mean"] == 0.25
    assert ours["ratio_to"]["evs:0.75"]["requests_per_s"]["mean"] == 4.0
    report = (tmp_path / "out" / "throughput.md").read_text()
    assert "| `ours` | 250 ± 0 | 25.0 ± 0.0 | 4.000 ± 0.000 | 2 ± 0 |" in report
    assert " | 0.25 ± 0.00 | 4.00 ± 0.00 | 0.20 ± 0.00 |" in report  # to stock: TTFT, requests a second, KV blocks
    assert (tmp_path / "out" / "throughput.png").read_bytes().startswith(b"\x89PNG")


def test_every_server_gets_the_same_options_but_its_own(fake, tmp_path):
    more = ["--clients", "1", "--num-prompts", "1", "--repeats", "1", "--server-args=--enforce-eager"]
    assert run_command(arguments(tmp_path, *more)) == 0
    servers = json.loads((tmp_path / "out" / "throughput.json").read_text())["servers"]
    for server in servers:
        line = server["command"]
        assert line[-1] == "--enforce-eager"
        assert {"--no-enable-prefix-caching", "--mm-processor-cache-gb", "--load-format"} <= set(line)
    assert servers[0]["environment"] == {"VLLM_PLUGINS": ""}
    prune = servers[2]["command"][servers[2]["command"].index("--prune") + 1]
    assert json.loads(prune)["stage1"]["cluster_ratio"] == 0.25
    assert all("--prune" not in server["command"] for server in servers[:2])


@pytest.mark.parametrize(
    ("failure", "message"),
    [("serve", "cannot serve"), ("request", "1 of 2 requests succeeded; ['boom']")],
)
def test_failures_end_the_run_with_a_message(fake, tmp_path, monkeypatch, capsys, failure, message):
    monkeypatch.setenv("FAKE_FAILURE", failure)
    assert run_command(arguments(tmp_path, "--clients", "1", "--num-prompts", "2")) == 1
    assert message in capsys.readouterr().err
    assert not any(running(pid) for pid in pids(fake))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption_leaves_no_process(tmp_path, number):
    log = tmp_path / "log"
    environment = {**os.environ, "FAKE_LOG": str(log), "FAKE_FAILURE": "hang"}
    line = [sys.executable, "-c", MAIN, str(HERE), *arguments(tmp_path)]
    process = subprocess.Popen(line, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (log.exists() and "bench" in log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == command.INTERRUPTED, error
    assert "the servers are ended" in error
    assert len(pids(log)) == 2
    assert not any(running(pid) for pid in pids(log))
