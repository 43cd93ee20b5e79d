"""`vllm-prune profile` as it is called, with the embedded model."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from PIL import Image

from vllm_prune.cli.main import main
from vllm_prune.config import PruneConfig
from vllm_prune.embedded import clips
from vllm_prune.profile import stages
from vllm_prune.profile.measure import Profile, RequestProfile, room_for

CLIP = clips()[0]
BY_TOKENS = '{"preset": "stage1_only", "frames": {"tokens": 2000}}'
"""More tokens than the video and an answer."""
PRUNES = ["baseline", "default", "stage1_only", BY_TOKENS]


@pytest.fixture(scope="module")
def profile(tmp_path_factory):
    """The document, in a process of its own as an engine wants."""
    folder = tmp_path_factory.mktemp("profile")
    command = [sys.executable, "-m", "vllm_prune.cli.main", "profile", "--video", str(CLIP.path), "-o", str(folder)]
    command += ["--repeats", "2", *(word for prune in PRUNES for word in ("--prune", prune))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    with Image.open(folder / "profile.png") as picture:
        assert picture.width > 1000
    assert "What was reused" in (folder / "profile.md").read_text()
    return {entry["name"]: entry for entry in json.loads((folder / "profile.json").read_text())["configurations"]}


def test_the_stages_sum_to_the_whole(profile):
    for entry in profile.values():
        for which in ("first_question", "second_question"):
            times = [stage["ms"] for stage in entry[which]["stages"].values()]
            assert min(times) >= 0
            assert sum(times) == pytest.approx(entry[which]["total_ms"], rel=1e-3)
            assert sum(stage["share"] for stage in entry[which]["stages"].values()) == pytest.approx(1, abs=0.01)


def test_every_stage_is_seen_where_it_runs(profile):
    calls = {
        name: {stage: entry["first_question"]["stages"][stage]["calls"] for stage in stages.STAGES}
        for name, entry in profile.items()
    }
    for own in calls.values():
        assert own[stages.DECODE_VIDEO] == own[stages.PREPROCESS] == own[stages.ENCODER] == own[stages.PREFILL] == 1
    assert calls["baseline"][stages.STAGE1] == calls["baseline"][stages.DENSE] == 0
    assert calls["stage1_only"][stages.STAGE1] == 2  # merged, then packed
    assert calls["stage1_only"][stages.DENSE] == 0
    assert calls["default"][stages.DENSE] == 3  # layers 0 to 2
    assert calls["default"][stages.CHOICE] == calls["default"][stages.COMPACT] == 1
    answered = profile["default"]["first_question"]["answer_tokens"]
    assert calls["default"][stages.DECODE] == answered - 1
    assert calls["default"][stages.HEAD] == answered


def test_an_engine_has_room_for_what_frames_by_tokens_may_keep(profile):
    (found,) = (entry for entry in profile.values() if entry["configuration"].get("frames"))
    assert found["first_question"]["frames"] == {"seen": CLIP.frames, "of": CLIP.frames}
    assert found["first_question"]["video_tokens"] == profile["stage1_only"]["first_question"]["video_tokens"]
    asked = PruneConfig.parse({"preset": "default", "frames": {"tokens": 512, "max": 2048}})
    length = 120 // 2 * 16
    assert room_for("embedded", (120, 112, 112), 600, [PruneConfig()]).prompt == length + 1024
    # 320 frames keep 512 of their 2,560 tokens; half of them enter the first layers.
    room = room_for("embedded", (120, 112, 112), 600, [asked])
    assert room.prompt == length + 1024
    assert room.before_choice * 7 / 8 >= 1280


def test_the_second_question_reuses(profile):
    for name, entry in profile.items():
        assert entry["reuse"]["encoder_runs_saved"] == 1
        assert entry["second_question"]["stages"][stages.ENCODER]["calls"] == 0
        assert entry["first_question"]["cached_tokens"] == 0
        # Which tokens stay depends on the question where it chooses: then only the encoder's work is shared.
        assert (entry["reuse"]["prompt_tokens_from_prefix_cache"] > 0) == (name != "default")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--repeats", "0"], "repeats=0"),
        (["--prune", "nope"], "preset='nope'"),
        (["--video", "no.mp4"], "no.mp4"),
        (["/no/model"], "model='/no/model'"),
        (["--engine", "["], "engine='['"),
    ],
)
def test_a_wrong_argument_is_named(capsys, arguments, message):
    assert main(["profile", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_an_interrupted_profile_reports_the_configurations_that_are_done(monkeypatch, capsys, tmp_path):
    """The profiler without an engine: it is interrupted in its second configuration."""
    seconds, calls = dict.fromkeys(stages.STAGES, 0.5), dict.fromkeys(stages.STAGES, 1)
    request = RequestProfile(
        seconds=seconds, calls=calls, total=sum(seconds.values()), prompt_tokens=9, video_tokens=5, structure=0,
        cached_tokens=0, answer_tokens=1, answer="red",
    )  # fmt: skip

    class Interrupted:
        frames = (16, 112, 112)

        def __init__(self, *_, **__):
            pass

        def profile(self, label, config, *_):
            if label == "default":
                raise KeyboardInterrupt
            return Profile(label=label, config=config, first=[request], second=[request])

    monkeypatch.setattr("vllm_prune.profile.measure.Profiler", Interrupted)
    assert main(["profile", "--json", "-o", str(tmp_path)]) == 130
    told = capsys.readouterr()
    assert "vllm-prune profile: interrupted; measured before: baseline\n" in told.err
    printed = json.loads(told.out)
    assert [found["name"] for found in printed["configurations"]] == ["baseline"]
    assert json.loads((tmp_path / "profile.json").read_text()) == printed
