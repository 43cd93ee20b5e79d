"""Videos that become squares, through their processors in groups of frames: bit for bit as these make them whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from live_tensors import LiveTensors
from pixel_clips import pure_noise, video_item
from square_cases import CHAT, VIDEOS_ONLY, options_of, write_square_model

from vllm_prune import engine_args
from vllm_prune.patches import apply_all
from vllm_prune.serving.api import grouped_video
from vllm_prune.serving.api.processor import PruningProcessorMixin

LONG = pytest.mark.long
FAMILIES = ["llava_onevision", pytest.param(VIDEOS_ONLY, marks=LONG), pytest.param("internvl", marks=LONG), CHAT]
FIELDS = {CHAT: "pixel_values_flat_video"}
"""Of pixels, where it is not "pixel_values_videos"."""
OPTIONS: list[dict[str, Any]] = [
    {"size": {"height": 56, "width": 42}},
    {"size": {"shortest_edge": 30}, "do_center_crop": True, "crop_size": {"height": 28, "width": 28}},
    {"do_resize": False},
    {"do_rescale": False},
    {"do_normalize": False},
    {"do_rescale": False, "do_normalize": False},
    {"do_sample_frames": True, "num_frames": 5},
    {"resample": 2, "image_mean": [0.1, 0.2, 0.3]},
]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def make(family: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function from a precision to the family's processor."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.multimodal import MULTIMODAL_REGISTRY

    apply_all()
    model = write_square_model(tmp_path_factory.mktemp(family), family)
    made = {}

    def make(dtype: str = "bfloat16") -> Any:
        if dtype not in made:
            options = {"override": "any", "max_model_len": 4096, "dtype": dtype, "enforce_eager": True}
            arguments = engine_args(model, {}, **options, **options_of(family))
            made[dtype] = MULTIMODAL_REGISTRY.create_processor(EngineArgs(**arguments).create_model_config())
        return made[dtype]

    return make


def side_of(processor: Any) -> int:
    """Of a square, in pixels."""
    size = processor.info.get_hf_config().vision_config.image_size
    return int(size if isinstance(size, int) else size[0])


def group_frames(monkeypatch: pytest.MonkeyPatch, frames: int, side: int) -> None:
    monkeypatch.setattr(grouped_video, "GROUP_BYTES", frames * 3 * 4 * side**2)


def run(processor: Any, clips: list[Any], **options: Any) -> Any:
    return processor._apply_hf_processor_main(processor.info.parse_mm_data({"video": clips}), options)


def run_stock(processor: Any, clips: list[Any], **options: Any) -> Any:
    items = processor.info.parse_mm_data({"video": clips})
    return super(PruningProcessorMixin, processor)._apply_hf_processor_main(items, options)


def items_of(processor: Any, data: Any, options: Any) -> Any:
    """By video, what the engine gets of it."""
    from vllm.multimodal.inputs import MultiModalKwargsItems

    fields = super(PruningProcessorMixin, processor)._get_mm_fields_config(data, options)
    return MultiModalKwargsItems.from_hf_inputs(data, fields)["video"]


def check_same(processor: Any, family: str, clips: list[Any], **options: Any) -> torch.Tensor:
    """Our pixels of the first video, which are vLLM's as all of it is."""
    stock, ours = run_stock(processor, clips, **options), run(processor, clips, **options)
    theirs, mine = (items_of(processor, data, options) for data in (stock, ours))
    assert len(mine) == len(theirs) == len(clips)
    for one, other in zip(mine, theirs, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            a, b = one[key].data, other[key].data
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
            assert torch.equal(a, b)
    return mine[0][FIELDS.get(family, "pixel_values_videos")].data


@pytest.mark.parametrize("at_once", [1, 2, 100])
@pytest.mark.parametrize("frames", [1, 2, 6, 9])
def test_groups_are_the_whole_bit_for_bit(make, family, frames, at_once, monkeypatch):
    processor = make("float32" if frames % 2 else "bfloat16")
    group_frames(monkeypatch, at_once, side_of(processor))
    pixels = check_same(processor, family, [video_item(pure_noise(frames, 1, 119, 147))])
    assert len(pixels) == frames
    assert pixels.dtype == (torch.float32 if frames % 2 else torch.bfloat16)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_several_videos_of_any_length_and_size(make, family, dtype, monkeypatch):
    processor = make(dtype)
    group_frames(monkeypatch, 2, side_of(processor))
    sizes = [(7, 112, 112), (4, 63, 210), (7, 300, 84), (1, 28, 28)]
    clips = [video_item(pure_noise(frames, frames, height, width)) for frames, height, width in sizes]
    for some in [[clip] for clip in clips] if family == VIDEOS_ONLY else [clips, clips[::2]]:
        check_same(processor, family, some)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options_mean_what_they_meant(make, family, options, monkeypatch):
    if family == CHAT:
        options = {"image_size": 56}  # all that vLLM's processor of videos has
    if family == "internvl" and "size" in options:
        pytest.skip("vLLM's class does not take a size of a request")
    processor, clip = make(), video_item(pure_noise(11, 2, 98, 84))
    group_frames(monkeypatch, 2, 28)
    check_same(processor, family, [clip], **options)


def test_transparent_frames_are_blended_where_any_of_the_video_is(make, family, monkeypatch):
    if family == CHAT:
        pytest.skip("vLLM's own processor takes three channels")
    frames, metadata = video_item(pure_noise(4, 3))
    alpha = np.full((*frames.shape[:3], 1), 255, np.uint8)
    alpha[2, :50] = 77
    group_frames(monkeypatch, 1, side_of(make()))
    check_same(make(), family, [(np.concatenate([frames, alpha], -1), metadata)], input_data_format="channels_last")


def test_beside_the_pixels_there_is_a_group(make, family, monkeypatch):
    processor = make("float32")
    side = side_of(processor)
    clips = [video_item(pure_noise(40, seed, side + 28, side + 28)) for seed in range(2 - (family == VIDEOS_ONLY))]
    group = 3 * 4 * side**2 * 2
    group_frames(monkeypatch, 2, side)
    with LiveTensors() as stock:
        run_stock(processor, clips)
    with LiveTensors() as live:
        ours = run(processor, clips)
    size = sum(pixels.nbytes for pixels in ours[FIELDS.get(family, "pixel_values_videos")])
    assert stock.peak > 1.5 * size
    assert size < live.peak < size + 6 * group  # the first frame of every video, too
