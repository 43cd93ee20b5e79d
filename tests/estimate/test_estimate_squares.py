"""Models that see squares of one size: sizes from their config.json, FLOPs against PyTorch's counter."""

import json
from types import SimpleNamespace

import pytest
import torch
from oracle.micro_model import square_config
from oracle.prompt import Medium
from oracle.squares import encode_square
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageTextToText

from vllm_prune.config import PruneConfig
from vllm_prune.estimate import VideoShape, estimate
from vllm_prune.estimate.dims import parse_dims
from vllm_prune.estimate.estimate import Request
from vllm_prune.estimate.flops import encoder_flops
from vllm_prune.estimate.saving import attention_saving
from vllm_prune.estimate.text_dims import EstimateError

LLAVA = {
    "architectures": ["LlavaForConditionalGeneration"],
    "model_type": "llava",
    "torch_dtype": "float16",
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "text_config": {"model_type": "llama", "max_position_embeddings": 4096, "vocab_size": 32064},
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "image_size": 336,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
    },
}
"""As LLaVA-1.5-7B's config.json has it, which leaves the decoder's sizes to Llama's defaults."""
EXAMPLE = {"image": {"method": "attention", "layers": [10], "target_token_num": 276}}
ONE_IMAGE = Request(video=VideoShape(1, 336, 336), text_tokens=100, images=1)


def test_the_usual_example_is_one_image_of_llava_1_5():
    """576 tokens of an image and 100 of text go on as 376 behind layer 10 of 32."""
    dims = parse_dims(LLAVA)
    found = estimate(dims, ONE_IMAGE, PruneConfig.parse(EXAMPLE))
    assert dims.parameters == pytest.approx(7.06e9, rel=0.01)
    assert found.grid == (1, 24, 24)
    assert (found.before.prompt_tokens, found.after.prompt_tokens) == (676, 376)
    assert found.before.kv.bytes == 43 * 16 * 32 * 2 * 4096 * 2
    assert found.after.kv.blocks == 24
    # Layers 0 to 10 see all rows, since it is behind layer 10 that tokens are dropped.
    saving = attention_saving(dims.text, 676, 376, layer=11)
    flops = [sum(part.attention for part in (f.dense_prefix, f.rest)) for f in (found.before.flops, found.after.flops)]
    assert 1 - flops[1] / flops[0] == pytest.approx(saving.scores)
    # "About 38%" of attention is said of layer 10 being the first without them.
    said = attention_saving(dims.text, 676, 376, layer=10)
    assert said.projections < said.attention < 0.38 < said.scores


@pytest.mark.parametrize(
    ("family", "pixels", "grid"),
    [
        ("llava", (3, 84, 84), (1, 6, 6)),
        ("llava_onevision", (5, 3, 84, 84), (5, 3, 3)),
        ("llava_next_video", (5, 3, 24, 24), (5, 3, 3)),
        ("internvl", (5, 3, 84, 84), (5, 3, 3)),
    ],
)
def test_the_encoder_is_counted_as_pytorch_counts_it(family, pixels, grid):
    config = square_config(family)
    config._attn_implementation = "eager"  # the counter has no formula for the fused attention of CPUs
    model = AutoModelForImageTextToText.from_config(config).float().eval()
    kind = "image" if grid[0] == 1 else "video"
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        tokens = encode_square(model, Medium(kind, torch.randn(pixels), (grid[0], 0, 0)))
    dims = parse_dims(model.config.to_dict())
    shape = VideoShape(grid[0], 360, 640)
    assert shape.grid(dims.vision, of_images=kind == "image") == tokens.grid_thw == grid
    run = _all_layers(dims.vision, model.config)
    assert encoder_flops(run, grid).total == pytest.approx(counter.get_total_flops(), rel=0.01)


def _all_layers(vision, config):
    """Hugging Face runs the layers behind the one whose output is taken, too; vLLM does not have them."""
    fields = vars(vision) | {"depth": config.vision_config.num_hidden_layers}
    return SimpleNamespace(
        **fields,
        block_parameters=vision.block_parameters,
        patch_embed_parameters=vision.patch_embed_parameters,
    )


@pytest.mark.parametrize(
    ("architecture", "images", "said"),
    [
        ("LlavaNextForConditionalGeneration", 1, "cuts an image into tiles by its own table of sizes"),
        ("LlavaForConditionalGeneration", 0, "this model takes images only"),
    ],
)
def test_what_cannot_be_estimated_is_said(architecture, images, said):
    dims = parse_dims(LLAVA | {"architectures": [architecture]})
    with pytest.raises(EstimateError, match=said):
        estimate(dims, Request(video=VideoShape(8, 336, 336), images=images), PruneConfig())


def test_the_decoder_of_a_published_repository_has_another_name():
    config = json.loads(json.dumps(LLAVA)) | {"architectures": ["InternVLChatModel"], "downsample_ratio": 0.5}
    config["llm_config"] = config.pop("text_config") | {"model_type": "qwen3", "hidden_size": 1024}
    sizes = {"num_hidden_layers": 28, "num_attention_heads": 16, "intermediate_size": 3072, "head_dim": 128}
    config["llm_config"] |= sizes
    config["vision_config"] |= {"image_size": 448}
    dims = parse_dims(config)
    assert dims.text.layers == 28
    assert VideoShape(8, 360, 640).grid(dims.vision) == (8, 16, 16)
    assert dims.step_text == 7
