"""How many frames fit a number of tokens, and what a configuration may say of it."""

from __future__ import annotations

import random

import pytest

from vllm_prune.budget import count_most, plan_counts
from vllm_prune.config import PRESETS, FramesConfig, PruneConfig, PruneConfigError
from vllm_prune.frames import most_steps
from vllm_prune.override import ServerSettings


def test_the_largest_number_that_fits_is_found():
    rng = random.Random(0)
    for _ in range(500):
        pixels, most = rng.randint(1, 3000), rng.randint(0, 80)
        config = PruneConfig.parse({"method": "uniform", "keep_ratio": rng.uniform(0.01, 1)})
        tokens = rng.randint(1, 400)

        def cells(steps, pixels=pixels):
            return max(1, min(16, int((pixels / steps) ** 0.5)) ** 2)

        def fits(steps, size, config=config, tokens=tokens):
            return plan_counts(config, steps * size).kept <= tokens

        tried = [steps for steps in range(1, most + 1) if fits(steps, cells(steps))]
        assert most_steps(cells, fits, most) == max(tried, default=0)


def test_no_plan_on_pixels_keeps_more_than_is_counted_with():
    rng = random.Random(1)
    for _ in range(500):
        frames, cells = rng.randint(1, 12), rng.randint(1, 40)
        stage1 = {"where": "processor", "cluster_ratio": rng.choice([0.1, 0.5, 1.0])}
        stage1 |= rng.choice([{}, {"min_tokens": rng.randint(1, 200)}, {"max_tokens": rng.randint(1, 200)}])
        config = PruneConfig.parse({"stage1": stage1, **rng.choice([{}, {"method": "dpp", "keep_ratio": 0.3}])})
        per_frame = [cells, *(rng.randint(0, cells) for _ in range(frames - 1))]
        most = count_most(config, frames * cells, frames)
        found = plan_counts(config, frames * cells, per_frame)
        assert found.kept <= most.kept
        assert found.entering <= most.entering


BAD = [
    (0, "frames.tokens=0: must be 1 or more"),
    (-5, "frames.tokens=-5: must be 1 or more"),
    ("4096", "frames.tokens='4096': must be an integer of 1 or more"),
    (float("nan"), "frames.tokens=nan: must be an integer of 1 or more"),
    (4096.0, "frames.tokens=4096.0: must be an integer of 1 or more"),
    (True, "frames.tokens=True: must be an integer of 1 or more"),
    (2**31, "frames.tokens=2147483648: must be 2147483647 or less"),
    (None, "frames.tokens=None: must be an integer of 1 or more"),
]


@pytest.mark.parametrize(("tokens", "said"), BAD, ids=str)
def test_a_number_of_tokens_that_is_none_is_refused(tokens, said):
    with pytest.raises(PruneConfigError) as refused:
        PruneConfig.parse({"frames": {"tokens": tokens}})
    assert str(refused.value) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (4096, "frames=4096: must be an object, or false"),
        ({}, "frames={}: needs tokens"),
        ({"max": 64}, "frames={'max': 64}: needs tokens"),
        ({"tokens": 9, "max": 1}, "frames.max=1: must be 2 or more"),
        ({"tokens": 9, "max": 65537}, "frames.max=65537: must be 65536 or less"),
        ({"tokens": 9, "fps": 2}, "frames: unknown key 'fps'; known keys: tokens, max"),
    ],
    ids=str,
)
def test_what_says_nothing_of_frames_is_refused(value, said):
    with pytest.raises(PruneConfigError) as refused:
        PruneConfig.parse({"frames": value})
    assert str(refused.value).startswith(said)


def test_a_target_above_the_tokens_is_refused():
    with pytest.raises(PruneConfigError, match=r"target_token_num=90: must not be above frames\.tokens=80"):
        PruneConfig.parse({"method": "dpp", "target_token_num": 90, "frames": {"tokens": 80}})


def test_frames_stay_with_a_preset_and_are_no_part_of_what_a_video_is_pruned_by():
    server = PruneConfig.parse({"preset": "default", "frames": {"tokens": 4096, "max": 2048}})
    assert server.frames == FramesConfig(tokens=4096, max=2048)
    assert server.of_videos == PRESETS["default"]
    assert PruneConfig.parse("aggressive", server).frames == server.frames
    assert PruneConfig.parse({"preset": "aggressive"}, server).frames == server.frames
    assert PruneConfig.parse({"frames": {"tokens": 100}}, server).frames == FramesConfig(tokens=100, max=2048)
    assert PruneConfig.parse({"frames": False}, server).frames is None
    assert PruneConfig.parse(server.to_json()) == server


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"tokens": 500}, "frames.tokens"),
        ({"max": 200}, "frames.max"),
        (False, "changes frames,"),
        ({"tokens": 400}, None),
        ({"tokens": 1, "max": 2}, None),
    ],
)
def test_a_request_may_have_fewer_only(asked, said):
    config = PruneConfig.parse({"preset": "default", "frames": {"tokens": 400, "max": 100}})
    settings = ServerSettings(config=config, override="tighten")
    if said is None:
        assert settings.resolve({"frames": asked}).frames.tokens == asked["tokens"]
        return
    with pytest.raises(PruneConfigError, match=said):
        settings.resolve({"frames": asked})
