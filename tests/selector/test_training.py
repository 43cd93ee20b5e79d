"""`vllm-prune train-selector`, small."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vllm_prune.cli.main import main
from vllm_prune.embedded import clip_path, model_path
from vllm_prune.question import question_ids
from vllm_prune.selector import SelectorConfig, load_selector, read_header
from vllm_prune.training import fit as fitting
from vllm_prune.training import sources
from vllm_prune.training.fit import FitSettings, fit
from vllm_prune.training.losses import distillation_loss, top_mass, top_recall
from vllm_prune.training.teacher import Teaching, lesson_path, paths, read_lesson, teach

TEACHING = Teaching(model=str(model_path()), name="embedded", layer=2)
SETTINGS = FitSettings(config=SelectorConfig(kind="match", width=192, hidden=16), steps=6, clips=2)


def ignore(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def lessons(tmp_path_factory) -> list[Path]:
    cache = tmp_path_factory.mktemp("cache")
    items = sources.synthetic(4)
    assert teach(items, cache, TEACHING, ["cpu"], ignore) == {}
    return paths(items, cache, TEACHING, {})


def test_the_teacher_is_the_attention_that_serving_asks(lessons):
    """Against Hugging Face's own attention weights of the whole prompt."""
    from transformers import AutoModelForImageTextToText

    from vllm_prune.training.backbone import Backbone

    item = sources.synthetic(1)[0]
    backbone = Backbone(str(model_path()))
    clip, asked = backbone.encode(item.video.frames(64)), backbone.ask(item.questions[0])
    model = AutoModelForImageTextToText.from_pretrained(
        model_path(), dtype=torch.float32, attn_implementation="eager"
    ).eval()
    rows = torch.cat([backbone.embed(asked.head), clip.features, backbone.embed(asked.tail)])[None]
    seen = model.model.language_model(
        inputs_embeds=rows, position_ids=backbone.positions(clip, asked)[:, None], output_attentions=True
    )
    start, end = len(asked.head), len(asked.head) + len(clip.features)
    expected = seen.attentions[2][0, :, end:, start:end].amax((0, 1))
    lesson = read_lesson(lessons[0])
    torch.testing.assert_close(lesson.importance[0], expected, rtol=1e-4, atol=1e-6)
    assert torch.equal(lesson.video, clip.features)
    assert torch.equal(lesson.text[0], backbone.embed(asked.question))
    answer = model.lm_head(seen.last_hidden_state[0, -1]).argmax()
    assert backbone.answer([rows[0]], [backbone.positions(clip, asked)]).tolist() == [answer.item()]


def test_a_selector_reads_the_question_that_serving_shows_it():
    from vllm_prune.training.backbone import Backbone

    backbone = Backbone(str(model_path()))
    asked = backbone.ask("How many shapes are there?")
    assert backbone.processor.tokenizer.decode(asked.question) == "How many shapes are there?"
    placeholders = [backbone.model.config.video_token_id] * 5
    start = len(asked.head)
    prompt = [*asked.head, *placeholders, *asked.tail]
    assert question_ids(prompt, start, start + 5, backbone.turn) == asked.question


def test_training_that_goes_on_equals_training_at_once(lessons, tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "_SAVE_EVERY", 2)
    monkeypatch.setattr(fitting, "_TELL_EVERY", 3)
    (tmp_path / "once").mkdir()
    (tmp_path / "twice").mkdir()
    once = fit(lessons, lessons[:1], SETTINGS, tmp_path / "once", "cpu", ignore)
    step = fitting._step
    calls = []

    def interrupted(*args):
        calls.append(args[-2])
        if len(calls) == 5:
            raise KeyboardInterrupt
        return step(*args)

    monkeypatch.setattr(fitting, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(lessons, lessons[:1], SETTINGS, tmp_path / "twice", "cpu", ignore)
    told: list[str] = []
    twice = fit(lessons, lessons[:1], SETTINGS, tmp_path / "twice", "cpu", told.append)
    assert calls == [0, 1, 2, 3, 4, 4, 5]
    assert "goes on from step 4" in told[0]
    for name, value in once.selector.state_dict().items():
        assert torch.equal(value, twice.selector.state_dict()[name]), name
    assert [entry["recall"] for entry in once.history] == [entry["recall"] for entry in twice.history]


def test_other_settings_do_not_go_on_from_a_checkpoint(lessons, tmp_path):
    fit(lessons, lessons[:1], SETTINGS, tmp_path, "cpu", ignore)
    told: list[str] = []
    fit(lessons, lessons[:1], replace(SETTINGS, seed=1), tmp_path, "cpu", told.append)
    assert not any("goes on" in line for line in told)
    for checkpoint in tmp_path.glob("*.pt"):
        checkpoint.write_bytes(b"broken")
    with pytest.raises(ValueError, match="a checkpoint that cannot be read"):
        fit(lessons, lessons[:1], SETTINGS, tmp_path, "cpu", ignore)


def test_files_of_the_teacher_are_not_made_twice(lessons, tmp_path):
    cache, items = lessons[0].parent, sources.synthetic(4)
    lesson_path(cache, TEACHING, items[1]).write_bytes(b"cut off")
    before = lessons[0].stat().st_mtime_ns
    told: list[str] = []
    teach(items, cache, TEACHING, ["cpu"], told.append)
    assert "3 of 4 videos are in" in told[0]
    assert lessons[0].stat().st_mtime_ns == before
    assert read_lesson(lessons[1]).importance.shape[1] == len(read_lesson(lessons[1]).video)
    assert lesson_path(cache, replace(TEACHING, layer=3), items[0]) != lessons[0]


@pytest.mark.slow
def test_several_processes_teach_what_one_does(lessons, tmp_path):
    items = sources.synthetic(2)
    assert teach(items, tmp_path, TEACHING, ["cpu", "cpu"], ignore) == {}
    for made, known in zip(paths(items, tmp_path, TEACHING, {}), lessons, strict=False):
        torch.testing.assert_close(read_lesson(made).importance, read_lesson(known).importance, rtol=1e-4, atol=1e-6)


def test_losses_and_recall():
    importance = torch.tensor([[0.5, 0.3, 0.1, 0.05, 0.05, 0, 0, 0], [0, 0, 0, 0, 0, 0.1, 0.2, 0.7]])
    perfect, _ = distillation_loss((importance / importance.sum(-1, keepdim=True)).clamp_min(1e-12).log(), importance)
    other, _ = distillation_loss(torch.zeros(2, 8), importance)
    assert abs(perfect.item()) < 1e-5 < other.item()
    assert top_mass(importance) == pytest.approx([0.5, 0.7])
    assert top_recall(torch.eye(2, 8), importance) == [1.0, 0.0]


def test_a_folder_with_broken_videos(tmp_path, capsys):
    """The command from end to end: the broken ones are named, the file fits the model, the card tells all of it."""
    videos, output = tmp_path / "videos", tmp_path / "made" / "selector.safetensors"
    videos.mkdir()
    for name in ("00_16frames_clean", "01_16frames_noise", "02_16frames_clean"):
        (videos / f"{name}.mp4").write_bytes(clip_path(name).read_bytes())
    (videos / "cut.mp4").write_bytes(clip_path("00_16frames_clean").read_bytes()[:1000])
    (videos / "empty.mp4").touch()
    (videos / "notes.txt").write_text("no video")
    (tmp_path / "questions.txt").write_text("What form has the red shape?\n\nHow many shapes are there?\n")
    arguments = ["--videos", str(videos), "--questions", str(tmp_path / "questions.txt"), "--steps", "3"]
    command = ["train-selector", "embedded", *arguments, "--hidden", "8", "-o", str(output)]
    assert main(command) == 0
    told = capsys.readouterr().err
    assert "skipped" in told
    assert "cut.mp4" in told
    assert "empty.mp4" in told
    assert "training: step 3 of 3" in told
    header = read_header(output)
    assert (header.model.name, header.training["teacher_layer"], header.training["questions"]) == ("embedded", 2, 4)
    load_selector(output, width=192)
    card, facts = output.with_suffix(".md").read_text(), json.loads(output.with_suffix(".json").read_text())
    for expected in ("2 skipped", "cut.mp4", "empty.mp4", facts["digest"], "answers are not known"):
        assert expected in card
    assert facts["run"]["history"][-1]["step"] == 3
    assert main(command) == 0
    assert "goes on from step 3" in capsys.readouterr().err
    assert json.loads(output.with_suffix(".json").read_text())["digest"] == facts["digest"]


def test_synthetic_clips_inside_the_decoder(tmp_path):
    output = tmp_path / "s.safetensors"
    arguments = ["--dataset", "synthetic", "--clips", "2", "--steps", "2", "--layer", "1", "--leave-out", "count"]
    arguments += ["--answer-steps", "1"]
    assert main(["train-selector", "embedded", *arguments, "--kind", "joint", "--hidden", "8", "-o", str(output)]) == 0
    header = read_header(output)
    assert (header.place, header.training["teacher_layer"]) == (1, 1)
    card = output.with_suffix(".md").read_text()
    assert "the output of layer 1" in card
    assert "tokens removed behind layer 1" in card


def test_training_on_answers_moves_the_masks_towards_them(monkeypatch):
    """The loss on the answers about one clip falls, through the frozen model."""
    from vllm_prune.selector import Selector
    from vllm_prune.training import end_to_end
    from vllm_prune.training.end_to_end import refine

    monkeypatch.setattr(end_to_end, "_QUESTIONS_A_CLIP", 2)
    monkeypatch.setattr(end_to_end, "_CLIPS_A_STEP", 1)
    monkeypatch.setattr(end_to_end, "_RATIOS", (0.03,))
    monkeypatch.setattr(end_to_end, "_FIRST_TEMPERATURE", 0.2)
    torch.manual_seed(0)
    selector = Selector(SETTINGS.config)
    items = sources.synthetic(1)
    history = refine(selector, items, replace(TEACHING, max_frames=16), 40, 1e-2, 0, "cpu", ignore)
    assert [entry["step"] for entry in history] == [20, 40]
    assert history[0]["answer"] > 1.2 * history[-1]["answer"], history


def test_soft_masks_keep_their_sum_and_become_hard():
    from vllm_prune.training.end_to_end import soft_mask

    scores = torch.randn(3, 20, generator=torch.Generator().manual_seed(0), requires_grad=True)
    for temperature in (1.0, 0.01):
        mask = soft_mask(scores, 5, temperature)
        torch.testing.assert_close(mask.sum(-1), torch.full((3,), 5.0), rtol=1e-4, atol=1e-4)
    top = torch.zeros(3, 20).scatter(1, scores.topk(5).indices, 1.0)
    assert (mask - top).abs().mean() < 0.02
    (gradient,) = torch.autograd.grad(soft_mask(scores, 5, 1.0)[:, 0].sum(), scores)
    torch.testing.assert_close(gradient.sum(-1), torch.zeros(3), rtol=0, atol=1e-5)
    assert bool((gradient[:, 0] > 0).all())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--videos", "absent"], "videos='absent': no such folder"),
        (["--videos", "."], "no video in it"),
        (["--dataset", "unknown"], "neither a known dataset"),
        (["--dataset", "synthetic", "--leave-out", "colour"], "leave_out='colour'"),
        (["--videos", ".", "--leave-out", "count"], "leave_out=['count']: videos of a folder"),
        (["--dataset", "synthetic", "--layer", "5"], "layer=5; tokens can be dropped behind layers 0 to 4"),
        (["--dataset", "synthetic", "--teacher-layer", "6"], "teacher_layer=6; the model has layers 0 to 5"),
        (["--dataset", "synthetic", "--learning-rate", "nan"], "learning_rate=nan"),
        (["--dataset", "synthetic", "--devices", "cuda:9"], "devices='cuda:9'"),
        (["--dataset", "synthetic", "--dtype", "int8"], "dtype='int8'"),
        (["--dataset", "synthetic", "-o", "selector.pt"], "output='selector.pt': must end in .safetensors"),
        (["--dataset", "synthetic", "--hidden", "5"], "hidden=5"),
    ],
)
def test_arguments_that_cannot_be_used(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["train-selector", "embedded", "-o", "s.safetensors", "--clips", "1", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_told_before_anything_is_taught(tmp_path, capsys):
    (tmp_path / "file").touch()
    output = str(tmp_path / "file" / "s.safetensors")
    assert main(["train-selector", "embedded", "--dataset", "synthetic", "--clips", "1", "-o", output]) == 1
    told = capsys.readouterr().err
    assert str(tmp_path / "file") in told
    assert "teacher:" not in told


def test_no_video_can_be_read(tmp_path, capsys):
    (tmp_path / "a.mp4").write_bytes(b"no video")
    assert main(["train-selector", "embedded", "--videos", str(tmp_path), "-o", str(tmp_path / "s.safetensors")]) == 2
    assert "none of 1 videos can be used" in capsys.readouterr().err


def test_the_help_needs_no_torch():
    lines = (
        "import sys",
        "from vllm_prune.cli.main import main",
        "try: main(['train-selector', '--help'])",
        "except SystemExit: print('torch' in sys.modules)",
    )
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")
