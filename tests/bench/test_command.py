"""The command line."""

import argparse
import subprocess
import sys

import pytest

from vllm_prune.bench.clips import CLIP_NAMES
from vllm_prune.bench.throughput import command
from vllm_prune.bench.throughput.errors import BenchmarkError
from vllm_prune.cli import bench


def plan(tmp_path, *arguments):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.make_plan(parser.parse_args(["--model-dims", "smoke", *arguments]), tmp_path)


def test_defaults_compare_four_servers_on_real_clips(tmp_path):
    made = plan(tmp_path)
    assert [configuration.name for configuration in made.configurations] == [
        "stock",
        "evs:0.75",
        "stage1@25%",
        "uniform@25%",
    ]
    assert [path.name for path in made.clips] == list(CLIP_NAMES)
    assert (made.clients, made.num_prompts) == ([1, 8], [6, 16])


def test_results_repeat_no_key(tmp_path, monkeypatch):
    words = ["vllm-prune", "bench", "throughput", "--server-args", "--api-key hush --port 1"]
    monkeypatch.setattr("sys.argv", words)
    made = plan(tmp_path, *words[3:])
    assert made.server_arguments == ["--api-key", "hush", "--port", "1"]
    assert "hush" not in " ".join(made.command)
    assert "--port 1" in " ".join(made.command)


def test_results_name_no_folder_of_the_machine(tmp_path):
    made = plan(tmp_path)
    server = made.configurations[0].serve_command(str(made.model.path), ["--api-key", "hush"])
    assert str(tmp_path) in " ".join(server)
    assert made.shown(server)[-3:] == ["WORK/model-smoke", "--api-key", "***"]


def test_random_pixels_need_no_clips(tmp_path):
    made = plan(tmp_path, "--random-mm", "--size", "56x112", "--frames", "8")
    assert made.clips == []
    assert (made.shape.width, made.shape.height, made.shape.frames) == (56, 112, 8)


def test_one_number_of_prompts_holds_for_all_clients(tmp_path):
    assert plan(tmp_path, "--num-prompts", "5").num_prompts == [5, 5]
    assert plan(tmp_path, "--num-prompts", "5", "9").num_prompts == [5, 9]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-prompts", "1", "2", "3"], "--num-prompts has 3 numbers"),
        (["--clips", "/nowhere.mp4"], r"--clips /nowhere\.mp4: no such file"),
        (["--configs", "evs:2"], "evs:2"),
        (["--frames", "1"], "frames=1"),
    ],
)
def test_mistakes_are_named(tmp_path, arguments, message):
    with pytest.raises(BenchmarkError, match=message):
        plan(tmp_path, *arguments)


@pytest.mark.parametrize(
    "arguments", [["--size", "336"], ["--size", "axb"], ["--clients", "0"], ["--repeats", "-1"], ["--kv-interval", "0"]]
)
def test_malformed_options_are_refused(tmp_path, arguments, capsys):
    with pytest.raises(SystemExit):
        plan(tmp_path, *arguments)
    assert "must be" in capsys.readouterr().err


def test_bench_imports_only_the_benchmark_named():
    code = (
        "import argparse, sys\nfrom vllm_prune.cli import bench\n"
        "parser = argparse.ArgumentParser()\nbench.add_arguments(parser)\n"
        "parser.parse_args(['throughput', '--repeats', '2'])\n"
        "print('heavy:', sorted({'torch', 'vllm', 'numpy', 'cv2', 'vllm_prune.cli.bench_methods'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "heavy: []" in output.stdout, output.stderr


def test_bench_hands_over(monkeypatch):
    seen = {}
    monkeypatch.setattr(command, "run", lambda args: seen.update(vars(args)) or 3)
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    assert bench.run(parser.parse_args(["throughput", "--repeats", "2"])) == 3
    assert seen["repeats"] == 2


def test_bench_help_names_every_benchmark(capsys):
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    output = capsys.readouterr().out
    assert all(benchmark.summary in output for benchmark in bench.BENCHMARKS.values())
