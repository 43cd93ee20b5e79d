"""How the embedded models are made: the packed forward pass of training, and a few steps of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

pytest.importorskip("benchmarks.tiny_model", reason="needs the repository's benchmarks/")
from benchmarks.tiny_model.clips import evaluation_set
from benchmarks.tiny_model.config import FPS, TIME_STRIDE
from benchmarks.tiny_model.data import training_batch
from benchmarks.tiny_model.export import write_processor, write_tokenizer
from benchmarks.tiny_model.forward import encode_video, patchify, vision_rotary
from benchmarks.tiny_model.inputs import sequence_inputs
from benchmarks.tiny_model.layout import VideoLayout, video_layout
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
    losses = [train_step(objective, objective, optimizer, batch, 1.0) for _ in range(4)]
    assert losses[-1][1] < losses[0][1] - 1  # answers
    assert losses[-1][2] < losses[0][2]  # heads
    assert (losses[0][3] > 0) == align


@pytest.mark.long
def test_the_vision_tower_can_be_trained_first():
    objective = Objective(initial_model("qwen3_vl", seed=0), align=False)
    objective.auxiliary.bfloat16()
    optimizer = MixedOptimizer(*split_parameters(objective), muon_lr=0.003, adam_lr=1e-3)
    before = {name: value.clone() for name, value in objective.named_parameters()}
    train_step(objective, objective, optimizer, training_batch(0, 0, {16: 1.0}, 32), 1.0, heads_only=True)
    moved = {name for name, value in objective.named_parameters() if not torch.equal(value, before[name])}
    assert any("visual.blocks" in name for name in moved)
    assert not any("language_model" in name for name in moved)
