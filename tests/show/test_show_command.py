"""`vllm-prune show` as it is called, with the embedded model."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from show_traces import write_trace

from vllm_prune.budget import plan_counts
from vllm_prune.cli.main import main
from vllm_prune.config import PruneConfig
from vllm_prune.embedded import clips, model_path
from vllm_prune.show.cells import State
from vllm_prune.show.run import name_configs

CLIP = clips()[0]
GRID = (8, 4, 4)
PRUNES = ["default", "stage1_only", '{"method": "uniform", "keep_ratio": 0.25}', "baseline"]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The data of a page made by running the model, in a process of its own as an engine wants."""
    path = tmp_path_factory.mktemp("show") / "page.html"
    command = [sys.executable, "-m", "vllm_prune.cli.main", "show", str(CLIP.path), "-o", str(path)]
    command += ["--question", CLIP.questions[0].question]
    for prune in PRUNES:
        command += ["--prune", prune]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.DOTALL)
    assert data is not None
    return json.loads(data[1]), done.stdout


def test_every_configuration_is_run_and_counted(page):
    data, printed = page
    assert data["grid"] == list(GRID)
    assert [panel["label"] for panel in data["panels"]] == ["default", "stage1_only", "uniform, 25%", "baseline"]
    for panel, prune in zip(data["panels"], PRUNES, strict=True):
        counts = plan_counts(PruneConfig.parse(prune), GRID[0] * GRID[1] * GRID[2])
        anchor = np.frombuffer(base64.b64decode(panel["anchor"]), np.uint8)
        assert anchor.sum() == counts.kept
        if panel["label"] != "baseline":
            assert panel["counts"][-1][1] == counts.kept
        assert f"answer: {panel['answer']}" in printed


def test_the_unpruned_model_answers_right_and_keeps_all(page):
    baseline = page[0]["panels"][-1]
    assert baseline["answer"] == CLIP.questions[0].answer
    assert set(base64.b64decode(baseline["state"])) == {State.KEPT}


def test_the_question_makes_heat_and_stage_1_makes_segments(page):
    default, stage1, uniform, _ = page[0]["panels"]
    assert default["heat"] is not None
    assert default["segment"] == stage1["segment"]
    assert len(default["segment"]) == GRID[0]
    assert uniform["heat"] is None
    assert uniform["segment"] is None


def test_a_trace_is_drawn_without_a_model(tmp_path, capsys):
    trace = write_trace(tmp_path / "traces", "default", GRID)
    assert main(["show", str(CLIP.path), "--trace", str(trace), "-o", str(tmp_path / "a.png"), "--columns", "4"]) == 0
    assert "128 tokens -> 64 after stage 1 -> 26 after layer 2 (20%)" in capsys.readouterr().out
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_facts_are_printed_without_a_picture(tmp_path, capsys):
    trace = write_trace(tmp_path / "traces", "default", GRID)
    assert main(["show", str(CLIP.path), "--trace", str(trace), "--facts"]) == 0
    text = capsys.readouterr().out
    assert main(["show", str(CLIP.path), "--trace", str(trace), "--facts", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["grid"], facts["frames"], len(facts["seconds_per_step"])) == (list(GRID), 16, GRID[0])
    (found,) = facts["configurations"]
    assert [point["count"] for point in found["tokens"]] == [128, 64, 26]
    assert sum(found["cells"].values()) == 128
    assert sum(found["kept_per_step"]) == 26
    assert f"kept in each step: {' '.join(map(str, found['kept_per_step']))}\n" in text
    assert f"{found['cells']['unasked']} dropped by the question" in text


@pytest.mark.parametrize("arguments", [["nope.mp4", "--facts"], [str(CLIP.path), "--facts", "--trace", "no.npz"]])
def test_a_missing_file_is_told_before_anything_large_is_imported(arguments):
    command = [sys.executable, "-X", "importtime", "-m", "vllm_prune.cli.main", "show", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "no such file" in done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time")}
    assert imported.isdisjoint({"vllm", "torch", "transformers", "cv2"})


def test_equal_configurations_are_run_once():
    assert list(name_configs(["default", '{"preset": "default"}'])) == ["default"]
    assert len(name_configs(['{"method": "random", "params": {"seed": 1}}', '{"method": "random"}'])) == 2


def refuse(capsys, *arguments: str) -> str:
    assert main(["show", *arguments]) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "output=None: give -o FILE for a picture, --facts for text"),
        (["-o", "x.png", "--json"], "give --facts as well"),
        (["-o", "x.gif"], "output='x.gif': must end in .png, .html, .mp4"),
        (["-o", "/no/such/x.png"], "there is no folder '/no/such'"),
        (["-o", "x.png", "--prune", "nope"], "preset='nope': unknown"),
        (["-o", "x.png", "--engine", "[1]"], "engine='[1]': must be a JSON object"),
        (["-o", "x.png", "--media-io-kwargs", "{"], "media_io_kwargs='{': not valid JSON"),
        (["-o", "x.png", "--max-tokens", "0"], "max_tokens=0: must be 1 or more"),
        (["-o", "x.png", "--trace", "no.npz"], "trace='no.npz': no such file"),
        (["-o", "x.png", "--trace", "no.npz", "--prune", "default"], "leave --prune or --trace out"),
        (["-o", "x.png", "--model", "/no/model"], "model='/no/model'"),
    ],
)
def test_a_wrong_argument_is_named(capsys, arguments, message):
    assert message in refuse(capsys, str(CLIP.path), *arguments)


def test_a_model_without_a_variant_is_named(capsys, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    message = refuse(capsys, str(CLIP.path), "-o", "x.png", "--model", str(tmp_path))
    assert f"model={str(tmp_path)!r}" in message
    assert "'LlamaForCausalLM' has no pruning variant; supported" in message


@pytest.mark.parametrize(
    ("content", "remedy"), [(None, "give a file"), (b"", "give a video"), (b"not a video", "convert it: ffmpeg")]
)
def test_a_video_that_cannot_be_decoded_is_named(capsys, tmp_path, content, remedy):
    video = tmp_path / "broken.mp4"
    if content is not None:
        video.write_bytes(content)
    message = refuse(capsys, str(video), "-o", str(tmp_path / "x.png"))
    assert "broken.mp4" in message
    assert remedy in message


def test_a_trace_of_another_video_is_refused(capsys, tmp_path):
    trace = write_trace(tmp_path / "traces", "default", (3, 4, 4))
    message = refuse(capsys, str(CLIP.path), "--trace", str(trace), "-o", str(tmp_path / "x.png"))
    assert "16 frames where the trace has 3 steps" in message
    message = refuse(capsys, str(CLIP.path), "--trace", str(trace), "--trace-video", "1", "-o", str(tmp_path / "x.png"))
    assert "trace_video=1: the trace has 1 videos" in message


def test_the_model_is_the_embedded_one_by_default():
    assert (model_path() / "config.json").is_file()


def test_frames_by_tokens_are_refused(capsys, tmp_path):
    """Before an engine is started: panels stand side by side on the same frames."""
    prune = '{"preset": "default", "frames": {"tokens": 50}}'
    message = refuse(capsys, str(CLIP.path), "--prune", prune, "-o", str(tmp_path / "x.png"))
    assert "leave frames out" in message
