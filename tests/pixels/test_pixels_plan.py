"""Plans on pixels: what is still, what is not, and how limits change them. No model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pixel_clips import (
    ONES,
    ZEROS,
    drifting,
    flickering,
    noisy,
    panning,
    pure_noise,
    still,
    texture,
    to_cells,
    to_patches,
    with_square,
)

from vllm_prune.budget import merged_count, plan_counts, stage1_limits
from vllm_prune.config import PruneConfig, PruneConfigError
from vllm_prune.methods.base import VideoTokens
from vllm_prune.methods.still_cells import (
    StillPlan,
    describe_cells,
    lower_to,
    plan_changes,
    plan_runs,
    plan_segments,
    raise_to,
    stand_ins,
)
from vllm_prune.override import ServerSettings
from vllm_prune.serving.api.pixel_plan import PixelFormat, keep_encoded, plan_video
from vllm_prune.serving.worker.query_free import merge_and_select, over_all_cells, place_tokens

PLANNERS = {
    "runs": lambda cells, tau: plan_runs(cells, tau),
    "segments": lambda cells, tau: plan_segments(cells, tau, 0.1),
    "previous": plan_changes,
}
TAUS = (0.7, 0.8, 0.9)
FORMAT = PixelFormat(merge=2, patch=14, scale=(1.0, 1.0, 1.0), black=(0.0, 0.0, 0.0))


def share(plan: StillPlan) -> float:
    return float(plan.encoded.float().mean())


def config(cluster_ratio: float = 0.5, **others: object) -> PruneConfig:
    stage1 = {"where": "processor", "cluster_ratio": cluster_ratio}
    given = {key: others.pop(key) for key in ("tau", "still", "min_tokens", "max_tokens") if key in others}
    return PruneConfig.parse({"stage1": stage1 | given, **others})


QUIET = {
    "still": lambda: still(40),
    "sensor noise": lambda: noisy(still(40), 4.0),
    "flicker": lambda: flickering(still(40), 0.05),
    "drift": lambda: drifting(still(40), 0.2),
    "noise and flicker": lambda: noisy(flickering(still(40), 0.05), 4.0),
    "all black": lambda: np.zeros((40, 112, 112, 3)),
    "all white": lambda: np.full((40, 112, 112, 3), 255.0),
}


@pytest.mark.parametrize("planner", PLANNERS)
@pytest.mark.parametrize("name", QUIET)
def test_a_still_clip_keeps_a_tenth_at_most(name, planner):
    """Of 20 steps the first is a twentieth; with segments, the first of each of two."""
    plan = PLANNERS[planner](to_cells(QUIET[name]()), 0.8)
    assert sum(plan.per_frame) <= plan.encoded.numel() // 10
    assert bool(plan.encoded[0].all())


@pytest.mark.parametrize("planner", PLANNERS)
@pytest.mark.parametrize("tau", TAUS)
def test_noise_and_a_pan_are_all_new(planner, tau):
    assert share(PLANNERS[planner](to_cells(pure_noise(16)), tau)) == 1
    assert share(PLANNERS[planner](to_cells(panning(16, 6)), tau)) > 0.9


def test_only_what_moves_is_encoded_again():
    """A square enters one cell and leaves another at every step."""
    plan = plan_runs(to_cells(with_square(noisy(still(16), 2.0))), 0.8)
    for step in range(1, 8):
        assert plan.encoded[step].nonzero().squeeze(1).tolist() == [step - 1, step]


def test_a_scene_cut_is_encoded_whole():
    plan = plan_runs(to_cells(np.concatenate((still(8, seed=1), still(8, seed=2)))), 0.8)
    assert plan.per_frame == [16, 0, 0, 0, 16, 0, 0, 0]


def test_slow_change_adds_up_against_the_last_encoded_version():
    """No step differs enough from the one before; all of them together do."""
    clip = still(32)
    clip[:, :28, :28] += np.linspace(0, 20, 32)[:, None, None, None]
    encoded = plan_runs(to_cells(clip), 0.8).encoded[:, 0]
    assert 4 <= int(encoded.sum()) < 16
    assert int(plan_runs(to_cells(clip), 0.8).encoded[:, 1:].sum()) == 15


@pytest.mark.parametrize("tau", TAUS)
def test_changes_are_those_since_the_frame_before(tau):
    """Differential token drop, by its definition, in float64; slow change is its blind spot."""
    clip = noisy(with_square(still(16)), 4.0)
    clip[:, :28, :28] += np.linspace(0, 20, 16)[:, None, None, None]
    cells = to_cells(clip).double()
    mean = cells.mean(2)
    expected = torch.ones(len(cells), cells.shape[3], dtype=torch.bool)
    for frame in range(1, len(cells)):
        light = (mean[frame] / mean[frame - 1]).median(1).values.clamp(1 / 1.4, 1.4)
        apart = (cells[frame] - cells[frame - 1] * light[:, None, None]).square().mean((0, 1)).sqrt()
        expected[frame] = torch.exp(-apart / 9) < tau
    found = plan_changes(cells.float(), tau).encoded
    assert torch.equal(found, expected)
    assert 0 < int(found[1:].sum()) < found[1:].numel()
    assert not bool(plan_changes(to_cells(clip), 0.7).encoded[1:, 0].all())


@pytest.mark.parametrize("planner", PLANNERS)
def test_a_higher_tau_encodes_no_less(planner):
    clip = noisy(with_square(still(16)), 4.0)
    clip[:, :56] += np.linspace(0, 30, 16)[:, None, None, None]
    shares = [share(PLANNERS[planner](to_cells(clip), tau)) for tau in (0.1, 0.5, *TAUS, 0.97, 0.999)]
    assert shares == sorted(shares)
    assert shares[0] < shares[-1]


def test_a_plan_is_deterministic():
    cells = to_cells(noisy(with_square(still(16)), 4.0))
    for planner in PLANNERS.values():
        assert torch.equal(planner(cells, 0.8).encoded, planner(cells.clone(), 0.8).encoded)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_descriptors_are_averages_of_quarters(dtype):
    patches, grid = to_patches(pure_noise(4))
    cells = describe_cells(patches.to(dtype), grid, merge=2, patch=14, scale=ONES, black=ZEROS)
    expected = patches.view(2, 16, 4, 3, 2, 2, 7, 2, 7).double().mean((4, 6, 8))
    expected = expected.permute(0, 3, 2, 4, 5, 1).reshape(2, 3, 16, 16)
    torch.testing.assert_close(cells.double(), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_precision_and_raw_bytes_do_not_change_a_plan(dtype):
    patches, grid = to_patches(noisy(with_square(still(16)), 2.0))
    scaled = PixelFormat(merge=2, patch=14, scale=(68.0, 66.0, 70.0), black=(120.0, 116.0, 104.0))
    mean = torch.tensor(scaled.black).repeat_interleave(2 * 14 * 14)
    normal = ((patches - mean) / torch.tensor(scaled.scale).repeat_interleave(2 * 14 * 14)).to(dtype)
    assert torch.equal(
        plan_video(normal, grid, config(), scaled).encoded, plan_video(patches, grid, config(), FORMAT).encoded
    )


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_videos_of_few_steps(frames):
    cells = to_cells(pure_noise(2 * frames))
    assert share(plan_runs(cells, 0.8)) == 1
    assert share(plan_segments(cells, 0.8, 0.1)) == 1


def test_one_segment_per_frame_encodes_everything():
    assert share(plan_segments(to_cells(still(16)), 0.8, 1.0)) == 1


def test_stand_ins_are_the_last_encoded_version():
    plan = plan_runs(to_cells(noisy(with_square(panning(24, 1)), 4.0)), 0.8)
    frame = stand_ins(plan.encoded)
    place = torch.arange(16).expand_as(frame)
    assert bool(plan.encoded[frame, place].all())
    assert bool((frame <= torch.arange(len(frame))[:, None]).all())
    assert torch.equal(frame == torch.arange(len(frame))[:, None], plan.encoded)


@pytest.mark.parametrize("planner", PLANNERS)
@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.8, 1.0])
def test_a_lower_ceiling_encodes_a_part_of_a_higher_one(planner, ratio):
    plan = PLANNERS[planner](to_cells(noisy(with_square(panning(24, 1)), 4.0)), 0.9)
    before = plan
    natural = merged_count(plan.per_frame, ratio)
    for ceiling in range(natural, 0, -1):
        lowered = lower_to(plan, ceiling, ratio)
        assert bool((lowered.encoded <= before.encoded).all())
        assert bool(lowered.encoded[0].all())
        assert merged_count(lowered.per_frame, ratio) >= ceiling
        if ceiling < natural:
            assert sum(lowered.per_frame) <= max(16, ceiling / ratio) + len(lowered.per_frame) / ratio
        before = lowered
    assert lowered.per_frame[1:] == [0] * 11


def test_the_newest_cells_are_those_that_stay():
    """A faint change goes before a strong one."""
    clip = still(8)
    clip[2:, :28, :28] += 10
    clip[4:, 28:56, :28] += 60
    plan = plan_runs(to_cells(clip), 0.8)
    assert plan.encoded[1:].nonzero().tolist() == [[0, 0], [1, 4]]
    assert lower_to(plan, 17, 1.0).encoded[1:].nonzero().tolist() == [[1, 4]]
    assert raise_to(plan_runs(to_cells(clip), 0.3), 17).encoded[1:].nonzero().tolist() == [[1, 4]]


def test_segments_that_go_on_give_way_before_a_cut_does():
    clip = np.concatenate((still(8, seed=1), still(8, seed=2)))
    plan = plan_segments(to_cells(clip), 0.8, 0.5)
    assert len(set(plan.segment.tolist())) == 4
    lowered = lower_to(plan, 32, 1.0)
    assert lowered.per_frame == [16, 0, 0, 0, 16, 0, 0, 0]


def test_a_floor_is_met_and_one_above_the_video_means_all_of_it():
    patches, grid = to_patches(still(16))
    for floor, encoded in ((17, 17), (100, 100), (10**6, 128)):
        plan = plan_video(patches, grid, config(min_tokens=floor), FORMAT)
        assert sum(plan.per_frame) == encoded
        assert plan_counts(config(min_tokens=floor), 128, plan.per_frame).kept == encoded


@pytest.mark.parametrize("ceiling", [{"max_tokens": 20}, {"keep_ratio": 20 / 128}, {"target_token_num": 20}])
def test_every_way_to_say_a_ceiling_saves_encoding(ceiling):
    patches, grid = to_patches(pure_noise(16))
    limited = config(**ceiling)
    plan = plan_video(patches, grid, limited, FORMAT)
    assert plan_counts(limited, 128, plan.per_frame).kept == 20
    assert sum(plan.per_frame) < 128 / 2
    assert sum(plan_video(patches, grid, config(), FORMAT).per_frame) == 128


def test_a_target_of_the_method_after_it_leaves_the_plan_alone():
    patches, grid = to_patches(pure_noise(16))
    for method in ("attention", "uniform"):
        asked = config(method=method, target_token_num=20)
        plan = plan_video(patches, grid, asked, FORMAT)
        assert sum(plan.per_frame) == 128
        assert plan_counts(asked, 128, plan.per_frame).kept == 20


def test_a_ceiling_below_one_token_a_segment_keeps_the_ceiling():
    patches, grid = to_patches(pure_noise(16))
    for still_cells in ("runs", "segments"):
        limited = config(still=still_cells, max_tokens=1)
        plan = plan_video(patches, grid, limited, FORMAT)
        assert plan.per_frame == [16, 0, 0, 0, 0, 0, 0, 0]
        assert plan_counts(limited, 128, plan.per_frame).kept == 1


def test_pure_noise_keeps_what_the_ceiling_allows():
    patches, grid = to_patches(pure_noise(16))
    assert merged_count(plan_video(patches, grid, config(1.0), FORMAT).per_frame, 1.0) == 128
    for ceiling in (128, 100, 64, 17):
        limited = config(max_tokens=ceiling)
        plan = plan_video(patches, grid, limited, FORMAT)
        assert plan_counts(limited, 128, plan.per_frame).kept == min(ceiling, 64)


def test_patches_of_the_encoded_cells_and_no_others():
    patches, grid = to_patches(with_square(still(16)))
    plan = plan_video(patches, grid, config(), FORMAT)
    kept = keep_encoded(patches, plan, merge=2)
    assert len(kept) == 4 * sum(plan.per_frame)
    assert torch.equal(kept.view(-1, 4, patches.shape[1]), patches.view(128, 4, -1)[plan.encoded.flatten()])
    everything = plan_video(patches, grid, config(min_tokens=128), FORMAT)
    assert keep_encoded(patches, everything, merge=2) is patches


def random_plan(random: np.random.Generator) -> StillPlan:
    """Of any shape, from nearly still to all new."""
    t, cells = int(random.integers(1, 20)), int(random.integers(1, 7)) * int(random.integers(1, 7))
    novelty = torch.from_numpy(random.random((t, cells)).astype(np.float32))
    encoded = novelty > random.random()
    encoded[0] = True
    return StillPlan(novelty, encoded, torch.zeros(t, dtype=torch.int64))


def random_config(random: np.random.Generator, total: int) -> PruneConfig:
    """Limits, and what comes after stage 1."""
    stage1 = {"where": "processor", "cluster_ratio": float(random.uniform(0.05, 1))}
    if random.random() < 0.4:
        stage1["max_tokens"] = int(random.integers(1, total + 5))
    if random.random() < 0.4:
        stage1["min_tokens"] = int(random.integers(1, stage1.get("max_tokens", total + 5) + 1))
    after = random.choice(["none", "capped", "uniform", "attention"])
    if after == "capped":
        return PruneConfig.parse({"stage1": stage1, "keep_ratio": float(random.uniform(0.01, 1))})
    if after in ("uniform", "attention"):
        return PruneConfig.parse({"stage1": stage1, "method": str(after), "keep_ratio": float(random.uniform(0.01, 1))})
    return PruneConfig.parse({"stage1": stage1})


@pytest.mark.parametrize("block", range(10))
def test_placeholders_are_rows_for_1000_random_plans(block):
    for number in range(100):
        random = np.random.default_rng(100 * block + number)
        plan = random_plan(random)
        t, per_frame = plan.encoded.shape
        asked = random_config(random, plan.encoded.numel())
        assert asked.stage1 is not None
        floor, ceiling = stage1_limits(asked, plan.encoded.numel())
        plan = lower_to(raise_to(plan, floor), ceiling, asked.stage1.cluster_ratio)
        counts = plan_counts(asked, plan.encoded.numel(), plan.per_frame)
        cells = plan.encoded.flatten().nonzero().squeeze(1)
        features = torch.from_numpy(random.normal(size=(len(cells), 8)).astype(np.float32))
        tokens, assignment = merge_and_select(place_tokens(features, (t, 1, per_frame), cells), asked, counts)
        assert (len(cells), tokens.num_tokens) == (counts.encoded, counts.entering), (block, number)
        assert min(floor, counts.encoded) <= counts.stage1 <= ceiling
        assert 1 <= counts.kept <= counts.entering <= counts.stage1 <= counts.encoded <= counts.total
        assignment.validate()
        whole = over_all_cells(assignment, cells, (t, 1, per_frame))
        whole.validate()
        assert len(whole.slot) == counts.total
        assert torch.equal(
            VideoTokens.from_features(torch.zeros(counts.total, 1), (t, 1, per_frame)).grid[whole.anchor], tokens.grid
        )


BAD = [
    ({"stage1": {"where": "processor", "tau": 1.0}}, r"stage1\.tau=1\.0: must be below 1"),
    ({"stage1": {"where": "processor", "tau": 0}}, r"stage1\.tau=0: must be above 0"),
    ({"stage1": {"where": "processor", "tau": 1.5}}, r"stage1\.tau=1\.5"),
    ({"stage1": {"where": "processor", "tau": float("nan")}}, r"stage1\.tau=nan"),
    ({"stage1": {"where": "pixels"}}, r"stage1\.where='pixels': must be one of encoder, processor"),
    ({"stage1": {"where": "processor", "still": "both"}}, r"stage1\.still='both': must be one of runs, segments"),
    ({"stage1": {"where": "processor", "max_tokens": 0}}, r"stage1\.max_tokens=0: must be 1 or more"),
    ({"stage1": {"where": "processor", "max_tokens": 2.5}}, r"stage1\.max_tokens=2\.5: must be an integer"),
    ({"stage1": {"where": "processor", "min_tokens": -1}}, r"stage1\.min_tokens=-1: must be 1 or more"),
    (
        {"stage1": {"where": "processor", "min_tokens": 9, "max_tokens": 8}},
        r"min_tokens=9: must not be above stage1\.max_t",
    ),
    (
        {"stage1": {"where": "processor", "min_tokens": 9}, "target_token_num": 8},
        r"min_tokens=9: must not be above target_",
    ),
    ({"stage1": {"max_tokens": 8}}, r'stage1\.max_tokens=8: needs stage1\.where="processor"'),
    ({"stage1": {"without_pixels": "encoder"}}, r'without_pixels="encoder": needs stage1\.where="processor"'),
    (
        {"stage1": {"where": "processor", "without_pixels": "drop"}},
        r"without_pixels='drop': must be one of refuse, encoder",
    ),
    (
        {"stage1": {"where": "processor", "without_pixels": "encoder", "max_tokens": 8}},
        r"without_pixels=\"encoder\": merging by features knows no stage1\.max_tokens",
    ),
    ({"stage1": {"where": "processor"}, "method": "attention", "params": {"quota": "segment"}}, r"params\.quota="),
]


@pytest.mark.parametrize(("value", "said"), BAD, ids=[str(value) for value, _ in BAD])
def test_wrong_configurations(value, said):
    with pytest.raises(PruneConfigError, match=said):
        PruneConfig.parse(value)


SERVER = {"where": "processor", "min_tokens": 4, "max_tokens": 60}


@pytest.mark.parametrize(
    ("request_", "looser"),
    [
        ({"tau": 0.9}, "stage1.tau"),
        ({"min_tokens": 5}, "stage1.min_tokens"),
        ({"still": "segments"}, "stage1.still"),
        ({"where": "encoder", "min_tokens": None, "max_tokens": None}, "stage1.where"),
        ({"tau": 0.7}, None),
        ({"min_tokens": None, "max_tokens": 50, "cluster_ratio": 0.3}, None),
        ({"temporal_segment_ratio": 0.5}, None),  # of no meaning with "runs"
    ],
    ids=str,
)
def test_requests_may_only_tighten_a_plan(request_, looser):
    """Counts would not tell: the server's own plan of the request's video is never made."""
    settings = ServerSettings(config=PruneConfig.parse({"stage1": SERVER}))
    if looser is None:
        assert settings.resolve({"stage1": request_}).stage1 is not None
    else:
        with pytest.raises(PruneConfigError, match=looser.replace(".", r"\.")):
            settings.resolve({"stage1": request_})


def test_the_texture_of_the_clips_is_not_flat():
    """Were it flat, a pan would be still and the tests above would say little."""
    assert texture(0).std() > 20
