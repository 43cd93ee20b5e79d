"""Qwen's videos through the Hugging Face processor in groups of frames: bit for bit what it makes of them whole."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle.micro_model import write_micro_model

from vllm_prune import engine_args
from vllm_prune.patches import apply_all
from vllm_prune.serving.api import frame_groups, grouped_video, video_pixels
from vllm_prune.serving.api.processor import PruningProcessorMixin

sys.path.insert(0, str(Path(__file__).parents[1] / "pixels"))
from pixel_clips import panning, pure_noise, video_item

LONG = pytest.mark.long  # the video processors of the others
FAMILIES = [
    pytest.param("qwen2_vl", marks=LONG),
    "qwen2_5_vl",
    "qwen3_vl",
    pytest.param("qwen3_5", marks=LONG),
]
STEP = 2  # frames
KINDS = ["bytes", "float32", "bfloat16"]
"""Of pixels: by default vLLM has bytes made, and normalizes them on the device."""
PLANS: list[tuple[str, dict[str, Any]]] = [
    ("bytes", {}),
    ("float32", {"still": "segments"}),
    ("bfloat16", {"still": "previous", "tau": 0.9}),
    ("bytes", {"min_tokens": 80}),
    ("bfloat16", {"max_tokens": 30}),
]


@pytest.fixture(scope="module", params=FAMILIES)
def make(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function from a kind of pixels to the family's processor."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.multimodal import MULTIMODAL_REGISTRY

    apply_all()
    model = write_micro_model(tmp_path_factory.mktemp("groups") / request.param, family=request.param)
    made = {}

    def make(kind: str = "bytes") -> Any:
        if kind not in made:
            options = {} if kind == "bytes" else {"dtype": kind, "mm_device_do_normalize": False}
            arguments = engine_args(str(model), {}, override="any", max_model_len=4096, enforce_eager=True, **options)
            made[kind] = MULTIMODAL_REGISTRY.create_processor(EngineArgs(**arguments).create_model_config())
        return made[kind]

    return make


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Frames that the Hugging Face processor held as floats at once."""
    counts: list[int] = []
    for kind in (frame_groups.Qwen2VLVideoProcessor, frame_groups.Qwen3VLVideoProcessor):
        original = kind.patchify

        def patchify(self: Any, videos: torch.Tensor, *args: Any, _own: Any = original, **kwargs: Any) -> Any:
            counts.append(videos.shape[0] * videos.shape[1])
            return _own(self, videos, *args, **kwargs)

        monkeypatch.setattr(kind, "patchify", patchify)
    return counts


def group_steps(monkeypatch: pytest.MonkeyPatch, steps: int, height: int, width: int) -> None:
    monkeypatch.setattr(grouped_video, "GROUP_BYTES", steps * STEP * 3 * 4 * height * width)


def run(processor: Any, clips: list[Any], stage1: Any = None, **options: Any) -> Any:
    config: Any = {} if stage1 is None else {"prune": processor.resolve({"stage1": stage1}).to_json()}
    items = processor.info.parse_mm_data({"video": clips})
    return processor._apply_hf_processor_main(items, {**options, **config})


def run_stock(processor: Any, clips: list[Any], **options: Any) -> Any:
    items = processor.info.parse_mm_data({"video": clips})
    return super(PruningProcessorMixin, processor)._apply_hf_processor_main(items, options)


@pytest.mark.parametrize("frames", [2, 3, 6, 7, 12])
def test_groups_are_the_whole_bit_for_bit(make, seen, frames, monkeypatch):
    """In groups of six frames, with and without a last one that is filled up; sizes that are changed."""
    processor, clip = make("bytes" if frames % 3 else "float32"), video_item(pure_noise(frames, 1, 119, 147))
    stock = run_stock(processor, [clip])
    assert seen.pop() >= frames
    _, h, w = (int(x) for x in stock["video_grid_thw"][0])
    patch = processor.info.get_hf_processor().video_processor.patch_size
    group_steps(monkeypatch, 3, h * patch, w * patch)
    ours = run(processor, [clip])
    assert ours["pixel_values_videos"].dtype == stock["pixel_values_videos"].dtype
    assert len(seen) == -(-frames // 6)
    assert max(seen) <= 6
    assert torch.equal(ours["video_grid_thw"], stock["video_grid_thw"])
    assert torch.equal(ours["pixel_values_videos"], stock["pixel_values_videos"])


@pytest.mark.parametrize("kind", KINDS)
def test_several_videos_of_any_kind_and_size(make, kind, monkeypatch):
    group_steps(monkeypatch, 1, 112, 112)
    clip, metadata = video_item(pure_noise(7, seed=1))
    clips = [
        (torch.from_numpy(clip), metadata),
        video_item(panning(4, 3)),
        video_item(pure_noise(9, seed=2, height=63, width=210)),
        video_item(pure_noise(2, seed=3)),
    ]
    for own in (clips, [(torch.from_numpy(clip).permute(0, 3, 1, 2), metadata)]):
        stock, ours = run_stock(make(kind), own), run(make(kind), own)
        assert ours["pixel_values_videos"].dtype == (torch.uint8 if kind == "bytes" else getattr(torch, kind))
        assert torch.equal(ours["video_grid_thw"], stock["video_grid_thw"])
        assert torch.equal(ours["pixel_values_videos"], stock["pixel_values_videos"])


def test_frames_of_their_own_size(make, monkeypatch):
    """Without resizing."""
    group_steps(monkeypatch, 1, 112, 112)
    side = 8 * make().pixel_format().patch
    clip = video_item(pure_noise(5, height=140, width=140)[:, :side, :side])
    stock, ours = (each(make(), [clip], do_resize=False) for each in (run_stock, run))
    assert len(ours["pixel_values_videos"]) == 3 * 8**2
    assert torch.equal(ours["pixel_values_videos"], stock["pixel_values_videos"])


@pytest.mark.parametrize(("kind", "stage1"), PLANS, ids=str)
def test_plans_group_by_group_keep_the_same_cells(make, seen, kind, stage1, monkeypatch):
    clip, processor = video_item(panning(17, 2)), make(kind)
    stage1 = {"where": "processor", **stage1}
    whole = run(processor, [clip], stage1)
    group_steps(monkeypatch, 2, 112, 112)
    monkeypatch.setattr(video_pixels, "WHOLE_BYTES", 0)
    seen.clear()
    ours = run(processor, [clip], stage1)
    assert max(seen) <= 6  # frames of 16-pixel patches are smaller
    for field, value in whole.items():
        same = torch.equal if isinstance(value, torch.Tensor) else lambda a, b: str(a) == str(b)
        assert same(ours[field], value), field


def test_what_the_processor_refuses_it_refuses_in_groups(make):
    clip = video_item(pure_noise(4, height=7, width=7 * 300))
    with pytest.raises(ValueError, match="Failed to apply"):
        run_stock(make(), [clip])
    with pytest.raises(ValueError, match="Failed to apply"):
        run(make(), [clip])
