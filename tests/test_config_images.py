"""What a configuration says of images: accepted, refused with which words, changed by requests, and as counts."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle.own_config import image_targets

from vllm_prune.budget import plan_counts
from vllm_prune.budget_images import config_of_image, total_share
from vllm_prune.config import PRESETS, ImageConfig, PruneConfig, PruneConfigError
from vllm_prune.methods import VideoTokens, registry
from vllm_prune.override import ServerSettings

DPP = {"method": "dpp", "keep_ratio": 0.5}
SIZES = st.lists(st.integers(1, 400), min_size=1, max_size=12)


@st.composite
def images(draw: st.DrawFn) -> ImageConfig:
    """Any valid one."""
    fields = {"method": draw(st.sampled_from(registry.for_images()))}
    fields["total"] = total = draw(st.none() | st.integers(1, 600))
    fields |= draw(
        st.sampled_from([{}, {"keep_ratio": draw(st.floats(0.01, 1))}, {"target_token_num": draw(st.integers(1, 500))}])
    )
    ceiling = min(value for value in (500, total, fields.get("target_token_num")) if value is not None)
    fields["min_tokens"] = draw(st.none() | st.integers(1, ceiling))
    return ImageConfig(**fields)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (7, r"image=7: must be an object, or false"),
        (True, r"image=True: must be an object, or false"),
        ({"ratio": 0.5}, r"image: unknown key 'ratio'; known keys: method, keep_ratio, .*total"),
        ({"stage1": True}, r"image: unknown key 'stage1'"),
        ({"keep_ratio": 0.5}, r"image\.keep_ratio=0\.5: needs image\.method"),
        ({"total": 9}, r"image\.total=9: needs image\.method"),
        ({**DPP, "keep_ratio": 0}, r"image\.keep_ratio=0: must be above 0"),
        ({**DPP, "keep_ratio": "half"}, r"image\.keep_ratio='half': must be a number"),
        ({**DPP, "target_token_num": 3}, r"image\.keep_ratio=0\.5 and target_token_num=3: give one"),
        ({"method": "dpp", "total": 0}, r"image\.total=0: must be 1 or more"),
        ({"method": "dpp", "total": 2**31}, r"image\.total=2147483648: must be 2147483647 or less"),
        ({"method": "dpp", "total": True}, r"image\.total=True: must be an integer"),
        ({"method": "dpp", "min_tokens": 0.5}, r"image\.min_tokens=0\.5: must be an integer"),
        ({"method": "dpp", "min_tokens": 9, "total": 8}, r"image\.min_tokens=9: must not be above .*8"),
        ({"method": "dpp", "min_tokens": 9, "target_token_num": 8}, r"image\.min_tokens=9: must not be above"),
        ({**DPP, "layers": [3]}, r'image\.layers=\(?\[?3.*only method "attention"'),
        ({**DPP, "params": {"seed": 1}}, r"image\.method='dpp': .*no parameter 'seed'"),
        ({"method": "best"}, r"image\.method='best': unknown; known for images: dart, dpp, prumerge, (?!.*(evs|topk))"),
        ({"method": 3}, r"image\.method=3: must be a string"),
        ({"method": "topk"}, r"image\.method='topk': needs relevance"),
        ({"same_within": -1}, r"image\.same_within=-1: must be 0 or more"),
        ({"same_within": 33}, r"image\.same_within=33: must be 32 or less, in grey levels"),
        ({"same_within": 0.5}, r"image\.same_within=0\.5: must be an integer"),
        ({"same_within": True}, r"image\.same_within=True: must be an integer"),
        ({"same_within": 0, "keep_ratio": 0.5}, r"image\.keep_ratio=0\.5: needs image\.method"),
        ({"same_within": 0, "method": "vidcom2"}, r"image\.method='vidcom2': needs every token of the image"),
        ({"same_within": 0, "total": 9}, r"image\.total=9: needs image\.method"),
    ],
)
def test_what_is_refused(image, said):
    with pytest.raises(PruneConfigError, match=said):
        PruneConfig.parse({"preset": "default", "image": image})


def test_methods_say_which_media_they_take():
    taken = ["dart", "dpp", "prumerge", "prunevid", "random", "tome", "uniform", "vidcom2", "visionzip"]
    assert registry.for_images() == taken
    for method in sorted({*registry.names()} - {*taken, "topk"}):
        with pytest.raises(PruneConfigError, match=rf"image\.method='{method}': takes videos only: \w.*; known for"):
            PruneConfig.parse({"image": {"method": method, "keep_ratio": 0.5}})
        assert PruneConfig.parse({"method": method, "keep_ratio": 0.5}).method == method


@pytest.mark.parametrize(("params", "merges_tiles"), [({}, False), ({"temporal_segment_ratio": 0.25}, True)])
def test_tiles_of_an_image_are_not_taken_for_moments(params, merges_tiles):
    """What they show at one place of each is unlike, but for what all tokens have in common."""
    choice = PruneConfig.parse({"image": {"method": "prunevid", "params": params}}).image.choice
    random = torch.Generator().manual_seed(0)
    features = torch.randn(5, 64, 64, generator=random) + 3 * torch.randn(64, generator=random)
    tiles = VideoTokens.from_features(features.flatten(0, 1), (5, 8, 8))
    slot = registry.create(choice.method, **choice.params).assign(tiles, 160).slot
    of_tiles = [set(tiles.grid[slot == number, 0].tolist()) for number in range(160)]
    assert any(len(tile) > 1 for tile in of_tiles) == merges_tiles


@given(images())
def test_json_reads_back(image):
    config = PruneConfig(image=image)
    assert PruneConfig.parse(json.loads(config.to_json())) == config
    assert PruneConfig.parse(config.to_json()) == config
    assert config.of_videos == PruneConfig()


def test_nothing_is_said_of_images_by_default():
    for preset in PRESETS.values():
        assert preset.image is None
        assert not preset.prunes_images
        assert "image" not in preset.to_dict()


@pytest.mark.parametrize("off", [None, False, {"method": "none"}])
def test_images_can_be_turned_off(off):
    base = PruneConfig.parse({"preset": "default", "image": DPP})
    assert PruneConfig.parse({"image": off}, base) == PruneConfig.parse("default")


def test_a_request_changes_what_it_names_and_a_preset_says_nothing_of_images():
    base = PruneConfig.parse({"preset": "default", "image": {**DPP, "min_tokens": 4}})
    for request in ("aggressive", {"preset": "aggressive"}, {"keep_ratio": 0.3}, '{"keep_ratio": 0.3}'):
        assert PruneConfig.parse(request, base).image == base.image
    assert PruneConfig.parse({"image": {"keep_ratio": 0.2}}, base).image.to_dict() == {
        "method": "dpp",
        "keep_ratio": 0.2,
        "min_tokens": 4,
    }
    changed = PruneConfig.parse({"image": {"target_token_num": 9}}, base)
    assert changed.image.to_dict() == {"method": "dpp", "target_token_num": 9, "min_tokens": 4}
    assert changed.of_videos == base.of_videos


TIGHTEN = ServerSettings(config=PruneConfig.parse({"preset": "default", "image": {**DPP, "total": 60}}))


def check_as_served(image, sizes):
    """As the processor does with a request for images of these sizes."""
    asked = TIGHTEN.resolve({"image": image}).image
    share, allowed = (total_share(each, sizes) for each in (asked, TIGHTEN.config.image))
    for size in sizes:
        TIGHTEN.check_image(config_of_image(asked, size, share), size, allowed)


@pytest.mark.parametrize(
    "image", [{"keep_ratio": 0.2}, {"total": 40}, {"min_tokens": 4, "total": 59}, {"target_token_num": 9}]
)
def test_a_request_may_ask_for_fewer_tokens_of_images(image):
    check_as_served(image, [50, 90])


@pytest.mark.parametrize(
    ("image", "sizes", "said"),
    [
        ({"method": "uniform"}, [], r"changes image\.method, but .*image\.keep_ratio, .*image\.total"),
        (False, [], r"changes image, but"),
        ({"params": {"scope": "frame"}}, [], r"changes image\.params"),
        ({"keep_ratio": 0.6}, [20], r"prune\.image: keeps 12 of an image's 20 tokens, above this server's 10; lower"),
        ({"total": 90, "keep_ratio": 1.0}, [50, 90], r"keeps 32 of an image's 50 tokens, above this server's 21"),
        ({"min_tokens": 40}, [20], r"keeps 20 of an image's 20 tokens, above this server's 10"),
    ],
)
def test_a_request_may_not_ask_for_more(image, sizes, said):
    with pytest.raises(PruneConfigError, match=said):
        check_as_served(image, sizes)


def test_images_cannot_be_pruned_where_the_server_prunes_none_of_them():
    with pytest.raises(PruneConfigError, match="changes image, but"):
        ServerSettings(config=PruneConfig.parse("default")).resolve({"image": DPP})
    assert ServerSettings(config=PruneConfig.parse({"image": DPP})).may_prune
    assert not ServerSettings(config=PruneConfig()).may_prune


@given(images(), SIZES)
def test_counts_are_those_of_exact_fractions(image, sizes):
    if image.total is not None and sum(min(size, image.min_tokens or 1) for size in sizes) > image.total:
        with pytest.raises(PruneConfigError, match=f"has {len(sizes)} images"):
            total_share(image, sizes)
        return
    share = total_share(image, sizes)
    kept = [plan_counts(config_of_image(image, size, share), size).kept for size in sizes]
    assert kept == [steps[-1] for steps in image_targets(image, sizes)]
    assert all(min(size, image.min_tokens or 1) <= count <= size for size, count in zip(sizes, kept, strict=True))
    if image.total is not None:
        assert sum(kept) <= image.total
        assert share is None or sum(kept) > image.total - len(sizes)


def test_images_of_one_size_keep_the_same_whatever_stands_beside_them():
    image = ImageConfig(method="uniform", total=100)
    share = total_share(image, [30, 80, 30, 300])
    assert [config_of_image(image, size, share).target_token_num for size in (30, 30)] == [6, 6]
    assert total_share(image, [300, 30, 80, 30]) == share


def test_a_total_below_the_number_of_images_is_refused():
    image = ImageConfig(method="uniform", total=3)
    with pytest.raises(PruneConfigError, match=r"image\.total=3: the request has 4 images, .*; use 4 or more"):
        total_share(image, [9, 9, 9, 9])


def test_cells_that_are_like_their_neighbours_need_no_method():
    config = PruneConfig.parse({"image": {"same_within": 0}})
    assert config.prunes_images
    assert not config.image.keeps_everything
    assert config.keeps_everything  # of videos
    assert PruneConfig.parse(config.to_json()) == config
    assert PruneConfig.parse({"image": {"same_within": None}}, base=config).image is None
    counts = plan_counts(config_of_image(config.image, 40, None, 12), 40, (12,))
    assert (counts.total, counts.encoded, counts.stage1, counts.kept) == (40, 12, 12, 12)


@given(images(), st.integers(1, 300), st.data())
def test_a_method_chooses_among_the_encoded_cells(image, size, data):
    encoded = data.draw(st.integers(1, size))
    share = data.draw(st.none() | st.floats(0, 1))
    kept = plan_counts(config_of_image(image, size, share, encoded), size, (encoded,)).kept
    assert 1 <= kept <= plan_counts(config_of_image(image, size, share), size).kept
    assert kept <= encoded
    if share is None:
        assert kept == plan_counts(config_of_image(image, encoded), encoded).kept


@pytest.mark.parametrize(
    ("own", "asked", "allowed"),
    [
        ({"same_within": 4}, {"same_within": 4}, True),
        ({"same_within": 4}, {"same_within": 8}, True),
        ({"same_within": 4}, {"same_within": 3}, False),
        ({"same_within": 4}, {"same_within": None}, False),
        ({"same_within": 4}, False, False),
        (DPP, {"same_within": 0}, True),
        ({**DPP, "same_within": 4}, {"keep_ratio": 0.3}, True),
        ({**DPP, "same_within": 4}, {"same_within": 0}, False),
    ],
)
def test_requests_may_only_raise_the_threshold(own, asked, allowed):
    settings = ServerSettings(config=PruneConfig.parse({"image": own}), override="tighten")
    if allowed:
        assert settings.resolve({"image": asked}).image.same_within is not None
    else:
        with pytest.raises(PruneConfigError, match=r"changes image.*allows only fewer tokens"):
            settings.resolve({"image": asked})


def test_a_request_keeps_no_more_of_what_is_encoded_than_the_server():
    settings = ServerSettings(config=PruneConfig.parse({"image": {**DPP, "same_within": 0}}), override="tighten")
    asked = settings.resolve({"image": {"keep_ratio": 0.8}})
    with pytest.raises(PruneConfigError, match=r"keeps 16 of an image's 40 tokens, above this server's 10"):
        settings.check_image(config_of_image(asked.image, 40, None, 20), 40, None, (20,))
    fewer = settings.resolve({"image": {"keep_ratio": 0.25}})
    settings.check_image(config_of_image(fewer.image, 40, None, 20), 40, None, (20,))
