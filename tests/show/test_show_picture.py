"""A picture in place of a video."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from show_traces import write_trace

from vllm_prune.cli.chat import video_url
from vllm_prune.cli.main import main
from vllm_prune.config import PruneConfig
from vllm_prune.embedded import model_path
from vllm_prune.override import ServerSettings
from vllm_prune.page.plugin import CellsRequest, PageState
from vllm_prune.show.cells import State
from vllm_prune.show.errors import ShowError
from vllm_prune.show.picture import grid_of, load_picture, name_picture_configs
from vllm_prune.show.story import label_of_trace, make_panel
from vllm_prune.show.trace_file import TracedVideo
from vllm_prune.trace_key import file_name

HALF = {"method": "uniform", "keep_ratio": 0.5}


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "page.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (112, 168, 3), dtype=np.uint8)).save(path)
    return path


@pytest.mark.parametrize("ending", ["png", "gif", "avif", "apng"])
def test_the_trace_of_a_picture_is_drawn(picture, tmp_path, capsys, ending):
    """Of an animation, the first frame; `chat` sends what `show` draws as a picture."""
    frames = Image.open(picture), Image.new("RGB", (168, 112))
    moving = tmp_path / f"moving.{ending}"
    frames[0].save(moving, "PNG" if ending == "apng" else ending, save_all=True, append_images=frames[1:])
    assert video_url(str(moving)).startswith(f"data:image/{ending};")
    trace = write_trace(tmp_path / "traces", HALF, (1, 4, 6))
    target = tmp_path / "kept.png"
    assert main(["show", str(moving), "--trace", str(trace), "-o", str(target), "--facts"]) == 0
    said = capsys.readouterr().out
    assert "uniform, 50%: 24 tokens -> 12 after uniform (50%)" in said
    assert "cells: 12 alone, 12 dropped before the model" in said
    assert Image.open(target).width == 1400


def test_the_grid_is_that_of_the_models_own_processor(picture):
    assert grid_of(str(model_path()), load_picture(str(picture))) == (1, 4, 6)


def test_a_line_has_no_grid():
    with pytest.raises(ShowError, match=r"picture of 20000x20 pixels: .*aspect ratio"):
        grid_of(str(model_path()), Image.new("RGB", (20_000, 20)))


def test_what_is_no_picture_is_refused(tmp_path):
    path = tmp_path / "broken.png"
    path.write_bytes(b"no picture")
    with pytest.raises(ShowError, match=r"picture='broken\.png': cannot be decoded: .*give a PNG or JPEG"):
        load_picture(str(path))


def test_configurations_have_to_be_about_images():
    named = name_picture_configs([json.dumps({"image": HALF}), "baseline", json.dumps({"image": HALF})])
    assert list(named) == ["uniform, 50%", "unpruned"]
    with pytest.raises(ShowError, match="prune='default': says nothing of images"):
        name_picture_configs(["default"])


def test_equal_cells_that_were_not_encoded_are_told():
    """Of them a trace has the count alone: what its configuration says is what chose among the others."""
    cells = np.array([0, 1, 2, 4])
    slot = np.array([0, 1, 2, -1, 3, -1])
    video = TracedVideo((1, 2, 3), PruneConfig(), (6, 4), slot, cells, np.arange(4), (), {}, None)
    assert (label_of_trace(video), make_panel("", video).summary) == ("same_within", "6 tokens -> 4 encoded (67%)")
    named = name_picture_configs([json.dumps({"image": {"same_within": 4, **HALF}})])
    assert list(named) == ["same_within 4 + uniform, 50%"]


@pytest.mark.parametrize("keep_ratio", [0.5, 0.25])
def test_the_pages_cells_are_those_of_the_picture(picture, tmp_path, keep_ratio):
    """Only with the configuration by which it was pruned."""
    key, folder = "0" * 32, tmp_path / "traces"
    write_trace(folder, {"method": "uniform", "target_token_num": 12}, (1, 4, 6)).rename(folder / file_name(key))
    settings = ServerSettings(config=PruneConfig(), override="any", trace=str(folder))
    url = f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
    asked = CellsRequest(video=url, prune={"image": {**HALF, "keep_ratio": keep_ratio}}, trace_key=key)
    state = PageState(str(model_path()), settings, None, {})
    if keep_ratio != 0.5:
        with pytest.raises(ShowError, match="not of one picture with this configuration"):
            state.describe_cells(asked)
        return
    told = state.describe_cells(asked)
    assert (told["grid"], told["framesPerStep"], len(told["frames"])) == ([1, 4, 6], 1, 1)
    assert told["panels"][0]["counts"][-1] == ["after uniform", 12]


@pytest.mark.long
def test_a_picture_is_asked_about(picture, tmp_path):
    page = tmp_path / "page.html"
    command = [
        sys.executable,
        "-m",
        "vllm_prune.cli.main",
        "show",
        str(picture),
        "-o",
        str(page),
        "--question",
        "What?",
    ]
    for prune in ({"image": HALF}, {"image": {"method": "attention", "keep_ratio": 0.25}}, {"preset": "baseline"}):
        command += ["--prune", json.dumps(prune)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    data = json.loads(re.search(r'id="data">(.*?)</script>', page.read_text(), re.DOTALL)[1])
    assert (data["grid"], data["framesPerStep"], len(data["frames"])) == ([1, 4, 6], 1, 1)
    half, asked, whole = data["panels"]
    assert [panel["counts"][-1][1] for panel in (half, asked, whole)] == [12, 6, 24]
    assert asked["heat"] is not None
    assert set(base64.b64decode(whole["state"])) == {State.KEPT}
