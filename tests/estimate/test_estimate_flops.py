"""The formulas against PyTorch's FLOP counter, on models that really run."""

import pytest
import torch
from oracle import run_oracle
from oracle.prompt import Medium, Prompt
from torch.utils.flop_counter import FlopCounterMode

from vllm_prune.config import PruneConfig
from vllm_prune.estimate import VideoShape, estimate
from vllm_prune.estimate.dims import parse_dims
from vllm_prune.estimate.estimate import Request
from vllm_prune.estimate.flops import decoder_flops, encoder_flops, head_flops
from vllm_prune.estimate.saving import attention_saving
from vllm_prune.estimate.text_dims import TextDims

TEXT_BEFORE, TEXT_AFTER = 2, 40
PIXELS = 28  # of a token's side


@pytest.mark.parametrize("grid", [(3, 4, 4), (2, 5, 3), (1, 1, 1), (2, 7, 9)])
def test_the_encoder_is_counted_as_pytorch_counts_it(model, dims, patches, grid):
    pixels, grid_thw = patches(model, grid)
    with FlopCounterMode(display=False) as counter:
        model.model.visual(pixels, grid_thw=torch.tensor([grid_thw]))
    assert encoder_flops(dims.vision, grid).total == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_windows_and_whole_steps_are_told_apart(dims, model, patches):
    """Linear and attention apart: the counter knows which products were batched."""
    grid = (2, 7, 9)
    pixels, grid_thw = patches(model, grid)
    with FlopCounterMode(display=False) as counter:
        model.model.visual(pixels, grid_thw=torch.tensor([grid_thw]))
    by_operator = counter.get_flop_counts()["Global"]
    attention = by_operator[torch.ops.aten.bmm]
    flops = encoder_flops(dims.vision, grid)
    assert flops.attention == attention
    assert flops.linear == pytest.approx(counter.get_total_flops() - attention, rel=0.01)


@pytest.mark.parametrize("length", [1, 64, 700])
def test_an_unpruned_prefill_is_counted_as_pytorch_counts_it(model, dims, length):
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.randint(10, 400, (1, length)), logits_to_keep=1, use_cache=False)
    expected = decoder_flops(dims.text, [length] * dims.text.layers) + head_flops(dims.text)
    assert expected.total == pytest.approx(counter.get_total_flops(), rel=0.01)


def count_oracle(model, patches, grid, config: PruneConfig) -> int:
    """Operations of encoder, all stages and decoder over text, a video of `grid` and text."""
    pixels, grid_thw = patches(model, grid)
    ids = [10] * TEXT_BEFORE + [model.config.video_token_id] + [11] * TEXT_AFTER
    around = parse_dims(model.config.to_dict()).step_text
    text = ((11,), *[(11,) * around] * (grid[0] - 1), (11,) * (around - 1)) if around else ()
    prompt = Prompt(ids, [Medium("video", pixels, grid_thw, text=text)])
    with FlopCounterMode(display=False) as counter:
        run_oracle(model, prompt, config, max_new_tokens=1)
    return counter.get_total_flops()


@pytest.mark.parametrize(
    "prune",
    [
        "baseline",
        "stage2_only",
        {"method": "attention", "layers": [1], "keep_ratio": 0.1},
        {"method": "attention", "layers": [1, 3], "keep_ratio": 0.5},
        {"method": "uniform", "keep_ratio": 0.25},
    ],
)
def test_a_pruned_prefill_is_counted_as_pytorch_counts_the_oracle(model, dims, patches, prune):
    grid = (6, 8, 8)
    request = Request(video=VideoShape(12, 8 * PIXELS, 8 * PIXELS), text_tokens=TEXT_BEFORE + TEXT_AFTER)
    found = estimate(dims, request, PruneConfig.parse(prune))
    assert found.grid == grid
    flops = found.after.flops
    # The oracle reads importance off attention weights it has anyway, so those operations are not in its count.
    expected = flops.total.total - flops.importance.total
    assert expected == pytest.approx(count_oracle(model, patches, grid, PruneConfig.parse(prune)), rel=0.01)


def test_what_the_counter_would_miss_is_not_within_one_per_cent(model, dims, patches):
    """The comparison above can fail: a layer more in the dense prefix is seen."""
    prune = {"method": "attention", "layers": [1], "keep_ratio": 0.1}
    request = Request(video=VideoShape(12, 8 * PIXELS, 8 * PIXELS), text_tokens=TEXT_BEFORE + TEXT_AFTER)
    wrong = estimate(dims, request, PruneConfig.parse({**prune, "layers": [2]})).after.flops.total.total
    assert wrong != pytest.approx(count_oracle(model, patches, (6, 8, 8), PruneConfig.parse(prune)), rel=0.03)


def test_importance_counts_the_products_of_the_code_that_computes_it(dims):
    from vllm_prune.estimate.flops import importance_flops
    from vllm_prune.methods.attention_importance import attention_importance

    text, question, rows, tokens = dims.text, 7, 90, 60
    query = torch.randn(question, text.heads, text.head_dim)
    key = torch.randn(rows, text.kv_heads, text.head_dim)
    visible = torch.arange(rows - question, rows) + 1
    with FlopCounterMode(display=False) as counter:
        attention_importance(query, visible, key, torch.arange(5, 5 + tokens), scale=1.0)
    assert importance_flops(text, question, rows, tokens).total == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_the_usual_example_of_376_of_676_tokens_at_layer_10_of_32():
    """The "about 38%" of attention lies between its projections (30.5%) and its scores (47.5%)."""
    sizes = {"layers": 32, "mlp": 11008, "vocabulary": 32000, "tied": False}
    llava = TextDims(hidden=4096, heads=32, kv_heads=32, head_dim=128, **sizes)
    saving = attention_saving(llava, 676, 376, layer=10)
    assert saving.projections == pytest.approx(22 / 32 * (1 - 376 / 676))
    assert saving.scores == pytest.approx(22 / 32 * (1 - (376 / 676) ** 2))
    assert saving.projections < saving.attention < 0.38 < saving.scores
    assert 22 / 32 - saving.projections == pytest.approx(0.382, abs=0.001)  # what is left of it, not what is saved
    narrow = TextDims(hidden=428, heads=4, kv_heads=4, head_dim=107, **sizes)
    assert attention_saving(narrow, 676, 376, layer=10).attention == pytest.approx(0.38, abs=0.005)
