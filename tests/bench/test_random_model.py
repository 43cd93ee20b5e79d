"""Model folders without weights."""

import json

import pytest

from vllm_prune.bench.throughput.errors import BenchmarkError
from vllm_prune.bench.throughput.model_dims import FAMILIES
from vllm_prune.bench.throughput.models import resolve_model
from vllm_prune.bench.throughput.named_dims import DIMS
from vllm_prune.bench.throughput.random_model import SPECIAL_TOKENS, write_random_model
from vllm_prune.estimate.dims import parse_dims


@pytest.mark.parametrize("name", DIMS)
def test_dimensions_fit_together(name):
    dims = DIMS[name]
    assert dims.head_width or dims.head_dim * dims.heads == dims.hidden
    assert 2 * sum(dims.mrope_section) == dims.head_dim * dims.rotary_share
    assert max(dims.levels, default=0) < dims.vision_depth
    assert dims.vision_hidden % dims.vision_heads == 0
    assert max(dims.vision_full_attention, default=0) < dims.vision_depth


def test_parameters_are_those_of_the_published_models():
    # Qwen2.5-0.5B: 0.36 B without embeddings; Qwen2.5-VL-7B: 6.5 B, and 0.63 B in the vision blocks.
    assert DIMS["cpu"].llm_parameters == pytest.approx(0.36e9, rel=0.01)
    assert DIMS["cpu-qwen3-vl"].llm_parameters == pytest.approx(0.44e9, rel=0.01)  # of Qwen3-0.6B
    assert DIMS["7b"].llm_parameters == pytest.approx(6.5e9, rel=0.01)
    assert DIMS["7b"].vision_parameters == pytest.approx(0.63e9, rel=0.01)


def test_transformers_reads_the_experts(tmp_path):
    transformers = pytest.importorskip("transformers")
    dims = DIMS["cpu-qwen3-vl-moe"]
    write_random_model(tmp_path, dims)
    text = transformers.AutoConfig.from_pretrained(tmp_path).text_config
    assert (text.num_experts, text.num_experts_per_tok, text.moe_intermediate_size) == (16, 4, dims.mlp)
    assert parse_dims(json.loads((tmp_path / "config.json").read_text())).text.layer_parameters * dims.layers == (
        dims.llm_parameters
    )


def test_transformers_reads_the_layers_that_keep_a_state(tmp_path):
    transformers = pytest.importorskip("transformers")
    dims = DIMS["cpu-qwen3-5"]
    write_random_model(tmp_path, dims)
    text = transformers.AutoConfig.from_pretrained(tmp_path).text_config
    assert text.layer_types == (["linear_attention"] * 3 + ["full_attention"]) * (dims.layers // 4)
    found = parse_dims(json.loads((tmp_path / "config.json").read_text())).text
    assert found.layer_parameters * dims.layers == dims.llm_parameters


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("cpu-llava", 0),  # images only
        ("cpu-llava-next", 0),
        ("cpu-llava-next-video", 7),
        ("cpu-llava-onevision", 7),
        ("cpu-internvl", 7),
    ],
)
def test_models_that_see_squares_are_what_their_dimensions_say(tmp_path, name, side):
    transformers = pytest.importorskip("transformers")
    write_random_model(tmp_path, DIMS[name])
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    found = parse_dims(json.loads((tmp_path / "config.json").read_text()))
    assert found.text.layer_parameters * DIMS[name].layers == DIMS[name].llm_parameters
    assert found.vision.squares.frame_side == side
    assert found.vision.squares.patches * found.vision.patch_pixels == DIMS[name].square
    assert found.vision.depth == DIMS[name].vision_depth
    assert "mrope_section" not in config.text_config.rope_parameters
    processor = transformers.AutoProcessor.from_pretrained(tmp_path)
    assert type(processor).__name__ == FAMILIES[DIMS[name].family].processor


def test_transformers_reads_what_is_written(tmp_path):
    transformers = pytest.importorskip("transformers")
    write_random_model(tmp_path, DIMS["smoke"])
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert config.text_config.hidden_size == DIMS["smoke"].hidden
    assert config.vision_config.out_hidden_size == DIMS["smoke"].hidden
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "What? {A} \n b~"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(len(SPECIAL_TOKENS)))
    assert config.video_token_id == tokenizer.convert_tokens_to_ids("<|video_pad|>")


def test_random_model_has_dummy_weights(tmp_path):
    model = resolve_model("random", "smoke", tmp_path)
    assert model.dummy_weights
    assert (model.path / "config.json").is_file()


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(BenchmarkError, match=r"no config\.json there"):
        resolve_model(str(tmp_path), "smoke", tmp_path)
