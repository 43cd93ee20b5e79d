"""The oracle itself: against Hugging Face's forward pass, against masking, and against positions written by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from oracle import Prompt, load_model, run_oracle
from oracle.from_vllm import to_prompt
from oracle.masked import MaskedVideo, masked_run
from oracle.micro_model import write_micro_model
from oracle.own_config import own_configs
from oracle.rows import TEXT, Layout, join, lay_out, text_row
from oracle.vision import entering_tokens
from PIL import Image
from transformers import AutoProcessor

from vllm_prune.budget import plan_counts
from vllm_prune.config import PRESETS, PruneConfig

VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
USER, REPLY = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
ONE_VIDEO = f"{USER}{VIDEO}What colour is the ball?{REPLY}"
IMAGE_TWO_VIDEOS = f"{USER}{IMAGE}Describe the video.{VIDEO}{VIDEO}What happens?{REPLY}"
TWO_TURNS = f"{ONE_VIDEO}yes<|im_end|>\n{USER}{IMAGE}{VIDEO}Is it a video?{REPLY}no"
STEPS = 4
BEYOND = ("framefusion_dpp", "dtd", "ask_first")
"""Presets that choose, or plan, in a way that the oracle does not have."""


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """For every test here."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_micro_model(tmp_path_factory.mktemp("micro"))


@pytest.fixture(scope="module")
def model(folder):
    return load_model(folder)


@pytest.fixture(scope="module")
def processor(folder):
    return AutoProcessor.from_pretrained(folder)


def video(seed: int, frames: int = 8, fps: float = 3.0):
    noise = np.random.default_rng(seed)
    pixels = np.repeat(noise.integers(0, 255, (1, 112, 140, 3)), frames, 0)
    pixels[frames // 2 :, 28:84, 28:84] = noise.integers(0, 255, 3)
    metadata = {
        "fps": fps,
        "total_num_frames": frames,
        "frames_indices": list(range(frames)),
        "do_sample_frames": False,
    }
    return pixels.astype(np.uint8), metadata


def image(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (84, 112, 3)).astype(np.uint8))


def media_of(text: str):
    videos = [video(seed, frames=8 - 2 * seed) for seed in range(text.count(VIDEO))]
    return {"videos": videos, "images": [image(seed) for seed in range(text.count(IMAGE))]}


def prompt_of(processor, text: str) -> Prompt:
    return to_prompt(processor, text, **media_of(text))


def num_tokens(prompt: Prompt) -> list[int]:
    return [int(np.prod(medium.grid_thw)) // 4 for medium in prompt.media if medium.kind == "video"]


def attention(**fields) -> PruneConfig:
    return PruneConfig.parse({"method": "attention", **fields})


def hf_inputs(processor, text: str) -> dict[str, torch.Tensor]:
    """Ids, pixels and grids as the processor gives them, placeholders expanded by it."""
    media = media_of(text)
    metadata = [
        {key: value for key, value in fields.items() if key != "do_sample_frames"} for _, fields in media["videos"]
    ]
    frames = [pixels for pixels, _ in media["videos"]]
    output = processor(
        text=[text], images=media["images"] or None, videos=frames, video_metadata=metadata, return_tensors="pt"
    )
    wanted = ("input_ids", "pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw")
    return {key: output[key] for key in wanted if key in output}


@pytest.mark.parametrize("text", [ONE_VIDEO, IMAGE_TWO_VIDEOS, TWO_TURNS])
@torch.no_grad()
def test_without_pruning_the_logits_are_those_of_hugging_face(model, processor, text):
    result = run_oracle(model, prompt_of(processor, text), PruneConfig(), STEPS)
    inputs = hf_inputs(processor, text)
    length = result.prompt_len_kept
    assert inputs["input_ids"].shape[1] == length
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([result.generated[:-1]])], dim=1)
    decoded = torch.arange(1, STEPS).expand(3, -1) + result.positions.max()
    positions = torch.cat([result.positions, decoded], dim=1)
    expected = model(**inputs, position_ids=positions[:, None]).logits[0, length - 1 :]
    torch.testing.assert_close(result.logits, expected, atol=1e-5, rtol=0)
    assert result.generated == expected.argmax(-1).tolist()


@pytest.mark.parametrize("layers", [None, [0, 2, 4]])
def test_keeping_everything_is_the_baseline(model, processor, layers):
    prompt = prompt_of(processor, TWO_TURNS)
    baseline = run_oracle(model, prompt, PruneConfig(), STEPS)
    result = run_oracle(model, prompt, attention(keep_ratio=1.0, layers=layers), STEPS)
    assert [len(kept) for kept in result.kept] == num_tokens(prompt)
    assert result.prompt_len_kept == baseline.prompt_len_kept
    assert torch.equal(result.positions, baseline.positions)
    torch.testing.assert_close(result.logits, baseline.logits, atol=1e-5, rtol=0)


def masked_videos(prompt: Prompt, layout: Layout, config: PruneConfig, im_end: int) -> list[MaskedVideo]:
    """The videos of chat turns with a reply header after each, read off the prompt anew."""
    found = []
    for index, medium in enumerate(prompt.media):
        if medium.kind == "image":
            continue
        tokens = (layout.rows.medium == index).nonzero().squeeze(1).tolist()
        end = prompt.ids.index(im_end, layout.first_row.index(tokens[0]))
        stop = layout.first_row[end + len(("<|im_end|>", "\n", "<|im_start|>", "assistant", "\n"))]
        questions = [row for row in range(tokens[-1] + 1, stop) if layout.rows.medium[row] == TEXT]
        targets = plan_counts(config, int(np.prod(medium.grid_thw)) // 4).layers
        found.append(MaskedVideo(range(tokens[0], tokens[-1] + 1), questions, stop, targets))
    return found


def entering(model, prompt: Prompt, config: PruneConfig):
    configs = own_configs(model, prompt, config)
    return [entering_tokens(model, medium, own) for medium, own in zip(prompt.media, configs, strict=True)]


def run_masked(model, prompt: Prompt, config: PruneConfig, generated: list[int]):
    """Logits of the last prompt row and of each generated row but the last; kept tokens of each video."""
    layout = lay_out(model, prompt, entering(model, prompt, config))
    decoded = [text_row(model, token, layout.next_position + step) for step, token in enumerate(generated[:-1])]
    rows = join([layout.rows, *decoded])
    videos = masked_videos(prompt, layout, config, model.config.text_config.eos_token_id)
    logits, kept = masked_run(model, rows.embeds, rows.positions, videos, config.resolved_layers(6))
    return logits[len(layout.rows) - 1 :], kept


@pytest.mark.parametrize("text", [ONE_VIDEO, IMAGE_TWO_VIDEOS, TWO_TURNS])
@pytest.mark.parametrize(
    "config",
    [
        PruneConfig.parse("default"),
        attention(keep_ratio=0.1, layers=[0]),
        attention(target_token_num=7, layers=[4]),
        attention(keep_ratio=[0.7, 0.5, 0.3], layers=[0, 1, 3]),
    ],
    ids=PruneConfig.to_json,
)
@torch.no_grad()
def test_compaction_equals_masking(model, processor, text, config):
    prompt = prompt_of(processor, text)
    result = run_oracle(model, prompt, config, STEPS)
    logits, kept = run_masked(model, prompt, config, result.generated)
    assert [tokens.tolist() for tokens in result.kept] == kept
    torch.testing.assert_close(result.logits, logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "config",
    [
        *(config for name, config in PRESETS.items() if name not in BEYOND),
        PruneConfig.parse({"method": "uniform", "keep_ratio": 0.3}),
    ],
)
def test_counts_are_those_of_the_budget(model, processor, config):
    prompt = prompt_of(processor, TWO_TURNS)
    result = run_oracle(model, prompt, config, 1)
    counts = [plan_counts(config, number) for number in num_tokens(prompt)]
    assert [len(kept) for kept in result.kept] == [count.kept for count in counts]
    image_tokens = 3 * 4
    assert result.prompt_len_kept == len(prompt.ids) - 3 + image_tokens + sum(count.kept for count in counts)
    assert result.positions.shape == (3, result.prompt_len_kept)
    for count, scores in zip(counts, result.importance, strict=True):
        assert [len(of_layer) for of_layer in scores] == [count.entering, *count.layers][: len(count.layers)]


def test_kept_tokens_keep_their_positions(model, processor):
    prompt = prompt_of(processor, ONE_VIDEO)
    full = run_oracle(model, prompt, PruneConfig(), 1)
    pruned = run_oracle(model, prompt, attention(keep_ratio=0.2), 1)
    start = prompt.ids.index(model.config.video_token_id)
    (total,) = num_tokens(prompt)
    kept = torch.cat(
        [torch.arange(start), pruned.kept[0] + start, torch.arange(start + total, full.positions.shape[1])]
    )
    assert torch.equal(pruned.positions, full.positions[:, kept])


def test_positions_are_those_of_vllm(model, processor):
    prompt = prompt_of(processor, ONE_VIDEO)
    assert prompt.media[0].grid_thw == (4, 8, 10)
    start = prompt.ids.index(model.config.video_token_id)
    positions = run_oracle(model, prompt, PruneConfig(), 1).positions
    steps = [0, 2, 5, 8]  # int(t * 2 / 3 fps * 4 positions a second)
    expected = [[start + t, start + h, start + w] for t in steps for h in range(4) for w in range(5)]
    assert positions[:, start : start + 80].T.tolist() == expected
    after = range(start + 9, start + 9 + len(prompt.ids) - start - 1)
    assert positions[:, start + 80 :].tolist() == [list(after)] * 3


@pytest.mark.parametrize("text", ["mean", "last"])
def test_importance_over_the_question(model, processor, text):
    prompt = prompt_of(processor, ONE_VIDEO)
    largest = run_oracle(model, prompt, attention(keep_ratio=0.3), 1).importance[0][0]
    other = run_oracle(model, prompt, attention(keep_ratio=0.3, params={"text": text}), 1).importance[0][0]
    assert (other <= largest).all()
    assert not torch.allclose(other, largest)


def test_attention_is_not_flat(model, processor):
    scores = run_oracle(model, prompt_of(processor, ONE_VIDEO), attention(keep_ratio=0.3), 1).importance[0][0]
    assert scores.max() > 3 * scores.median()


def test_a_video_without_a_question_is_refused(model, processor):
    prompt = prompt_of(processor, f"What happens?{VIDEO}")
    without_end = dataclasses.replace(prompt, ids=prompt.ids[:-1])
    with pytest.raises(ValueError, match="no question"):
        run_oracle(model, without_end, attention(), 1)
    assert run_oracle(model, without_end, PruneConfig(), 1).prompt_len_kept == len(without_end.ids) - 1 + 80


def test_media_must_fit_their_placeholders(model, processor):
    with pytest.raises(ValueError, match="0 images for 1 placeholders"):
        to_prompt(processor, ONE_VIDEO + IMAGE, videos=[video(0)])
    prompt = prompt_of(processor, ONE_VIDEO)
    with pytest.raises(ValueError, match="placeholder"):
        run_oracle(model, Prompt(prompt.ids), PruneConfig(), 1)
    with pytest.raises(ValueError, match="placeholder"):
        run_oracle(model, Prompt(prompt.ids[:2], prompt.media), PruneConfig(), 1)
