"""The teacher on Qwen3-VL: timestamps between the steps of a video, deepstack behind the first layers."""

import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from vllm_prune.training import sources
from vllm_prune.training.backbone import Backbone
from vllm_prune.training.choosing import answers, kept_positions

sys.path.insert(0, str(Path(__file__).parents[1]))
from oracle.micro_model import write_micro_model

LAYER = 2


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    folder = write_micro_model(tmp_path_factory.mktemp("qwen3") / "micro", family="qwen3_vl")
    backbone = Backbone(str(folder))
    item = sources.synthetic(1)[0]
    frames = item.video.frames(8)
    clip, asked = backbone.encode(frames), backbone.ask(item.questions[0])
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": item.questions[0]}]}]
    prompt = backbone.processor.apply_chat_template(messages, add_generation_prompt=True)
    metadata = {"fps": frames.fps, "total_num_frames": frames.total, "frames_indices": list(frames.indices)}
    inputs = backbone.processor(
        text=[prompt],
        videos=[frames.pixels],
        video_metadata=[metadata],
        do_sample_frames=False,
        return_tensors="pt",
    )
    with torch.no_grad():
        output = model(**inputs, output_attentions=True)
    return backbone, clip, asked, model, inputs, output


def test_the_prompt_and_its_positions_are_those_of_transformers(seen):
    backbone, clip, asked, model, inputs, _ = seen
    ids = [*asked.head, *clip.layout.prompt(model.config.video_token_id), *asked.tail]
    assert ids == inputs["input_ids"][0].tolist()
    positions, _ = model.model.get_rope_index(
        inputs["input_ids"],
        video_grid_thw=inputs["video_grid_thw"],
        mm_token_type_ids=inputs["mm_token_type_ids"],
    )
    assert torch.equal(positions[:, 0], backbone.positions(clip, asked))


def test_the_teacher_is_the_attention_to_the_tokens_of_the_video(seen):
    backbone, clip, asked, _, _, output = seen
    start = len(asked.head)
    end = start + clip.layout.num_slots
    expected = output.attentions[LAYER][0, :, end:][:, :, start + clip.cells].amax((0, 1))
    (found,) = backbone.see(clip, [asked], LAYER)
    torch.testing.assert_close(found.importance, expected, rtol=1e-3, atol=1e-6)


def test_answers_run_deepstack_and_keep_the_timestamps(seen):
    backbone, clip, asked, _, _, output = seen
    rows, positions = backbone.rows(clip, asked), backbone.positions(clip, asked)
    hidden = backbone.run(rows[None], positions[:, None], range(len(backbone.language.layers)))
    logits = backbone.model.lm_head(backbone.language.norm(hidden))[0, -1]
    torch.testing.assert_close(logits, output.logits[0, -1], rtol=1e-3, atol=1e-3)
    everything = torch.arange(len(clip.features))
    assert answers(backbone, clip, [asked], [everything]).item() == output.logits[0, -1].argmax()
    kept = everything[::7]
    fewer = backbone.rows(clip, asked, kept)
    assert len(fewer) == len(asked.head) + len(kept) + clip.layout.num_pinned + len(asked.tail)
    assert kept_positions(backbone, clip, asked, kept).shape == (3, len(fewer))
    assert torch.equal(fewer[:, : clip.features.shape[1]][-len(asked.tail) :], backbone.embed(asked.tail))
