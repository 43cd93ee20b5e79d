"""KV bytes and blocks against what vLLM itself says and gives out."""

import pytest
from oracle.micro_model import FAMILIES, write_micro_model
from transformers import AutoModelForImageTextToText, AutoTokenizer, AutoVideoProcessor

from vllm_prune.config import PRESETS, PruneConfig
from vllm_prune.estimate import VideoShape, estimate, read_dims
from vllm_prune.estimate.dims import parse_dims
from vllm_prune.estimate.estimate import Request
from vllm_prune.estimate.kv import kv_need, token_bytes
from vllm_prune.estimate.video import PixelLimits, read_limits


@pytest.fixture(scope="module")
def qwen3_vl(tmp_path_factory):
    return write_micro_model(tmp_path_factory.mktemp("qwen3_vl"), family="qwen3_vl")


@pytest.mark.parametrize("block_size", [16, 32])
@pytest.mark.parametrize("tokens", [1, 16, 17, 1000])
def test_bytes_are_those_of_vllms_pages(block_size, tokens):
    from torch import bfloat16
    from vllm.v1.kv_cache_interface import FullAttentionSpec

    text = read_dims("embedded").text
    page = FullAttentionSpec(block_size=block_size, num_kv_heads=text.kv_heads, head_size=text.head_dim, dtype=bfloat16)
    need = kv_need(text, 2, tokens, block_size)
    assert need.bytes == page.page_size_bytes * text.layers * need.blocks
    assert (need.blocks - 1) * block_size < tokens <= need.blocks * block_size


def test_a_token_of_qwen_7b_takes_56_kib(tmp_path):
    import json

    from vllm_prune.bench.throughput.named_dims import DIMS
    from vllm_prune.bench.throughput.random_model import write_random_model

    dims = read_dims(str(write_random_model(tmp_path, DIMS["7b"])))
    assert token_bytes(dims.text, dims.dtype_bytes) == 56 << 10
    assert dims.parameters == pytest.approx(8.29e9, rel=0.01)  # what its model card's files hold
    # Older files have the text's fields at the top.
    fields = json.loads((tmp_path / "config.json").read_text())
    fields |= {**fields.pop("text_config"), "model_type": "qwen2_5_vl"}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert read_dims(str(tmp_path / "config.json")) == dims


@pytest.mark.parametrize("frames", [1, 15, 16])
@pytest.mark.parametrize(("width", "height"), [(112, 112), (640, 272), (1280, 720), (10, 13), (300, 500)])
def test_the_grid_is_the_processors(frames, width, height):
    from vllm_prune.embedded import model_path

    processor = AutoVideoProcessor.from_pretrained(model_path())
    t, h, w = VideoShape(frames, height, width).grid(read_dims("embedded").vision, read_limits("embedded"))
    assert t * h * w * 4 == processor.get_num_of_video_patches(frames, height, width, {})


@pytest.mark.parametrize("frames", [2, 15, 64, 205])
@pytest.mark.parametrize(("width", "height"), [(112, 112), (1280, 720), (10, 13), (106, 356)])
def test_the_grid_is_the_processors_where_limits_are_of_all_frames(qwen3_vl, frames, width, height):
    folder = qwen3_vl
    processor = AutoVideoProcessor.from_pretrained(folder)
    t, h, w = VideoShape(frames, height, width).grid(read_dims(str(folder)).vision, read_limits(str(folder)))
    assert t * h * w * 4 == processor.get_num_of_video_patches(frames, height, width, {})


def test_there_is_room_for_the_longest_text_around_a_step():
    from vllm_prune.embedded import model_path

    stamp = AutoTokenizer.from_pretrained(model_path()).encode("<359999.9 seconds>", add_special_tokens=False)
    assert len(stamp) + 2 <= parse_dims(FAMILIES["qwen3_vl"][0]().to_dict()).step_text_most


def test_a_frame_is_not_resized_where_no_processor_file_says_so():
    vision = read_dims("embedded").vision
    assert VideoShape(4, 2800, 2800).grid(vision) == (2, 100, 100)
    assert VideoShape(4, 2800, 2800).grid(vision, PixelLimits(28 * 28, 280 * 280)) == (2, 10, 10)


@pytest.mark.parametrize("preset", PRESETS)
def test_pruning_never_costs_more(preset):
    request = Request(video=VideoShape(64, 448, 448))
    found = estimate(read_dims("embedded"), request, PRESETS[preset])
    assert 0 < found.prefill_ratio <= 1
    assert found.kv_ratio <= 1
    if preset == "baseline":
        assert found.before == found.after
    else:
        assert found.after.prompt_tokens == request.text_tokens + found.counts.kept
        assert found.after.prompt_tokens < found.before.prompt_tokens or PRESETS[preset].plans_on_pixels
        if not PRESETS[preset].plans_on_pixels:  # what still pixels save, nobody knows here
            assert found.decoder_ratio < found.prefill_ratio < 1


def test_of_many_experts_all_are_stored_and_a_row_goes_through_some():
    config = FAMILIES["qwen3_vl_moe"][0]()
    model = AutoModelForImageTextToText.from_config(config)
    dims = parse_dims(config.to_dict())
    matrices = sum(parameter.numel() for parameter in model.parameters())
    assert dims.parameters == pytest.approx(matrices, rel=0.02)
    text = config.text_config
    expert = 3 * text.hidden_size * text.moe_intermediate_size
    kinds = dims.text.stored_layer_parameters - dims.text.layer_parameters
    assert kinds == (text.num_experts - text.num_experts_per_tok) * expert


@pytest.mark.parametrize("family", ["qwen3_5", "qwen3_5_moe"])
def test_layers_that_keep_a_state_have_no_keys(family):
    config = FAMILIES[family][0]()
    model = AutoModelForImageTextToText.from_config(config)
    dims = parse_dims(config.to_dict())
    assert dims.parameters == pytest.approx(sum(p.numel() for p in model.parameters()), rel=0.02)
    text = config.text_config
    keyed = text.layer_types.count("full_attention")
    assert 0 < dims.text.keyed_layers == keyed < text.num_hidden_layers
    assert token_bytes(dims.text, 2) == 4 * keyed * text.num_key_value_heads * text.head_dim
    published = {**config.to_dict()["text_config"], "layer_types": None, "full_attention_interval": 3}
    assert parse_dims({**config.to_dict(), "text_config": published}) == dims
    request = Request(video=VideoShape(64, 448, 448))
    assert estimate(dims, request, PruneConfig.parse("default")).layers == (2,)
    with pytest.raises(ValueError, match=r"layers=\[1\]: .* which in this decoder are 2; the others keep one state"):
        estimate(dims, request, PruneConfig.parse("fastv"))
    assert estimate(dims, request, PruneConfig.parse({"method": "question", "keep_ratio": 0.25})).prefill_ratio < 1


def test_text_around_the_steps_of_a_video_is_counted_and_stays():
    dims = parse_dims(FAMILIES["qwen3_vl"][0]().to_dict())
    request = Request(video=VideoShape(64, 448, 448), text_tokens=20)
    found = estimate(dims, request, PruneConfig.parse({"method": "uniform", "keep_ratio": 0.25}))
    steps, rows, columns = found.grid
    assert found.before.prompt_tokens == 20 + steps * (9 + rows * columns)
    assert found.after.prompt_tokens == 20 + steps * 9 + steps * rows * columns // 4


def test_a_layer_beyond_the_model_is_refused():
    config = PruneConfig.parse({"method": "attention", "layers": [5]})
    with pytest.raises(ValueError, match=r"layers=\[5\].*between 0 and 4"):
        estimate(read_dims("embedded"), Request(video=VideoShape(8, 112, 112)), config)
