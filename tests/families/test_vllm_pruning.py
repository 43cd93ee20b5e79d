"""What vLLM's own pruning keeps of a video in each family that has it, ours keeps: the same masks on the same features.

Of a whole model, and with vLLM's model in place of Hugging Face's: `test_family_exactness.py`.
"""

from __future__ import annotations

import pytest
import torch
from dense_cases import VIDEO, chat
from dense_cases import video as clip
from oracle import load_model
from oracle.from_vllm import to_prompt
from oracle.micro_model import write_micro_model
from oracle.vision import encode
from stock import SIDE, masks_of_ours
from transformers import AutoProcessor
from vllm import ModelRegistry
from vllm.multimodal.video_prune import evs, vidcom2

from vllm_prune.methods import VideoTokens
from vllm_prune.serving.wire import architectures

THEIRS = {"evs": evs.compute_retention_mask, "vidcom2": vidcom2.compute_retention_mask}
HAVE_IT = {
    "Qwen2VLForConditionalGeneration": (),
    "Qwen2_5_VLForConditionalGeneration": ("evs",),
    "Qwen3VLForConditionalGeneration": ("evs", "vidcom2"),
    "Qwen3VLMoeForConditionalGeneration": ("evs", "vidcom2"),
    "Qwen3_5ForConditionalGeneration": ("evs", "vidcom2"),
    "Qwen3_5MoeForConditionalGeneration": ("evs", "vidcom2"),
    "LlavaForConditionalGeneration": (),
    "LlavaNextForConditionalGeneration": (),
    "LlavaNextVideoForConditionalGeneration": (),
    "LlavaOnevisionForConditionalGeneration": (),
    "InternVLChatModel": (),
    "InternVLForConditionalGeneration": (),
}
"""As docs/families.md says."""


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"])
def videos(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[VideoTokens], int]:
    """Features of videos, by the encoder of a model of random weights, and how wide those of the first layer are."""
    folder = str(write_micro_model(tmp_path_factory.mktemp(request.param), family=request.param))
    model = load_model(folder)
    clips = [clip(seed, frames, side) for seed, frames, side in ((1, 2, 112), (2, 8, 112), (3, 15, 84), (4, 10, 140))]
    prompt = to_prompt(AutoProcessor.from_pretrained(folder), chat(VIDEO * len(clips)), videos=clips)
    with torch.no_grad():
        return [encode(model, medium) for medium in prompt.media], model.config.text_config.hidden_size


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.75, 0.9])
@pytest.mark.parametrize("method", THEIRS)
def test_masks_are_those_of_vllm(videos, method, rate):
    every, width = videos
    for tokens in every:
        t, h, w = tokens.grid_thw
        theirs = THEIRS[method](tokens.features, (t, SIDE * h, SIDE * w), SIDE, rate)
        assert torch.equal(masks_of_ours(tokens, method, rate, int(theirs.sum()), width), theirs)


def test_features_for_later_layers_decide_as_well(videos):
    """Were they left out, the masks would be others."""
    every, width = videos
    tokens = every[-1]
    if tokens.features.shape[1] == width:
        pytest.skip("the family has none")
    half = tokens.num_tokens // 2
    first = VideoTokens(tokens.features[:, :width], tokens.grid, tokens.grid_thw)
    for method in THEIRS:
        kept = masks_of_ours(tokens, method, 0.5, half, width)
        assert not torch.equal(kept, masks_of_ours(first, method, 0.5, half, width))


def test_which_families_have_it_in_vllm():
    models = {name: ModelRegistry.models[name].load_model_cls() for name in architectures.families()}
    assert {name: getattr(model, "supported_video_pruning_methods", ()) for name, model in models.items()} == HAVE_IT
