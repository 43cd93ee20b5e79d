"""How the embedded models are made: the packed forward pass of training, and a few steps of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

pytest.importorskip("benchmarks.tiny_model", reason="needs the repository's benchmarks/")
from benchmarks.positions import Asker
from benchmarks.tiny_model.clips import evaluation_set
from benchmarks.tiny_model.config import FPS, TIME_STRIDE
from benchmarks.tiny_model.data import training_batch
from benchmarks.tiny_model.export import write_processor, write_tokenizer
from benchmarks.tiny_model.forward import encode_video, patchify, vision_rotary
from benchmarks.tiny_model.inputs import sequence_inputs
from benchmarks.tiny_model.layout import PADDING, SHARED, VideoLayout, keep_cells, sequential_layout, video_layout
from benchmarks.tiny_model.muon import MixedOptimizer
from benchmarks.tiny_model.objective import Objective, tail_logits
from benchmarks.tiny_model.packing import pack_prompts
from benchmarks.tiny_model.train import initial_model, split_parameters, train_step

FRAMES = 32  # timestamps of one and of two digits


@pytest.fixture(scope="module")
def scene():
    ((frames, asked),) = evaluation_set(1, FRAMES)
    return frames, [question for _, question, _ in asked][:2]


def packed_logits(model, layout: VideoLayout, frames, questions: list[str]) -> torch.Tensor:
    tail, last = pack_prompts(questions)
    ids, chain, offset = (torch.from_numpy(array)[None] for array in (tail.ids, tail.chain, tail.offset))
    mask, rotary = sequence_inputs(model, layout, chain, offset)
    video = encode_video(model, patchify(torch.from_numpy(frames)[None]).float(), vision_rotary(model))[None]
    shared_ids = (layout.head, layout.lead, layout.after, layout.closing)
    return tail_logits(model, video, shared_ids, ids, mask, rotary)[0, last]


@torch.no_grad()
@pytest.mark.parametrize("architecture", [pytest.param("qwen2_5_vl", marks=pytest.mark.long), "qwen3_vl"])
def test_packed_questions_give_what_transformers_gives_for_each(tmp_path: Path, architecture, scene):
    frames, questions = scene
    initial_model(architecture, seed=0).float().save_pretrained(tmp_path)
    write_tokenizer(tmp_path, architecture)
    write_processor(tmp_path, architecture)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(tmp_path)
    metadata = {"fps": FPS, "total_num_frames": FRAMES, "frames_indices": list(range(FRAMES))}
    expected = []
    for question in questions:
        messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": question}]}]
        prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
        inputs = processor(text=[prompt], videos=[frames], video_metadata=[metadata], return_tensors="pt")
        expected.append(model(**inputs).logits[0, -1])
    # transformers goes on behind a Qwen2.5-VL's video at another position than vLLM.
    layout = video_layout(architecture, FRAMES // 2, TIME_STRIDE, vllm_rule=architecture == "qwen3_vl")
    found = packed_logits(model, layout, frames, questions)
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=3e-3)  # pixels are rounded to bf16
    other = video_layout(architecture, FRAMES // 2, TIME_STRIDE * 1.5, vllm_rule=architecture == "qwen3_vl")
    assert (packed_logits(model, other, frames, questions) - found).abs().max() > 3e-3


@pytest.mark.long
@pytest.mark.parametrize(("architecture", "align"), [("qwen2_5_vl", True), ("qwen3_vl", False)])
def test_a_few_steps_on_one_batch_lower_its_loss(architecture, align):
    objective = Objective(initial_model(architecture, seed=0), align)
    objective.auxiliary.bfloat16()
    optimizer = MixedOptimizer(*split_parameters(objective), muon_lr=0.003, adam_lr=1e-3)
    batch = training_batch(0, 0, {16: 1.0}, frames_a_step=32)
    layout = video_layout(architecture, 8, TIME_STRIDE)
    losses = [train_step(objective, objective, optimizer, batch, layout, 1.0) for _ in range(4)]
    assert losses[-1][1] < losses[0][1] - 1  # answers
    assert losses[-1][2] < losses[0][2]  # heads
    assert (losses[0][3] > 0) == align


@pytest.mark.long
def test_the_vision_tower_can_be_trained_first():
    objective = Objective(initial_model("qwen3_vl", seed=0), align=False)
    objective.auxiliary.bfloat16()
    optimizer = MixedOptimizer(*split_parameters(objective), muon_lr=0.003, adam_lr=1e-3)
    before = {name: value.clone() for name, value in objective.named_parameters()}
    layout = video_layout("qwen3_vl", 8, TIME_STRIDE)
    train_step(objective, objective, optimizer, training_batch(0, 0, {16: 1.0}, 32), layout, 1.0, heads_only=True)
    moved = {name for name, value in objective.named_parameters() if not torch.equal(value, before[name])}
    assert any("visual.blocks" in name for name in moved)
    assert not any("language_model" in name for name in moved)


@torch.no_grad()
@pytest.mark.parametrize("timestamps", [False, True])
def test_tokens_that_stay_see_what_they_would_see_beside_hidden_ones(timestamps, scene):
    """At their positions in the unpruned prompt; numbered anew they see something else."""
    asker = Asker(initial_model("qwen3_vl", seed=0).eval(), scene[0], timestamps)
    layout, cells = asker.layout, torch.arange(0, FRAMES // 2 * 16, 3)
    kept, rows = keep_cells(layout, cells, contiguous=False)
    hidden = layout.groups.clone()
    hidden[~torch.isin(torch.arange(len(hidden)), rows)] = PADDING
    everything = torch.arange(len(hidden))
    tokens = asker.video[None]
    beside = asker.logits(scene[1], tokens[0], dataclasses.replace(layout, groups=hidden), everything)
    alone = asker.logits(scene[1], tokens[0], kept, rows)
    anew = asker.logits(scene[1], tokens[0], *keep_cells(layout, cells, contiguous=True))
    torch.testing.assert_close(alone, beside, rtol=0, atol=0.05)  # bfloat16
    assert (anew - beside).abs().max() > 0.2


def test_positions_in_one_dimension_count_the_rows():
    layout = sequential_layout(2, TIME_STRIDE, timestamps=True)
    assert layout.positions[0, layout.groups == SHARED].tolist() == list(range(layout.next_position))
    bare = sequential_layout(2, TIME_STRIDE, timestamps=False)
    left, rows = keep_cells(bare, torch.tensor([0, 5, 31]), contiguous=True)
    assert left.positions[0].tolist() == list(range(len(rows)))
    assert len(rows) == len(bare.groups) - 29
