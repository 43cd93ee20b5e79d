"""Questions about pictures: files in the published formats, pages made on the fly, and what is right."""

import base64
import json
import subprocess
import sys

import numpy as np
import pytest
from accuracy_cases import question, touch, write_json
from PIL import Image

from vllm_prune.bench.accuracy.datasets import load_published, pages
from vllm_prune.bench.accuracy.engine import engine_arguments
from vllm_prune.bench.accuracy.parsing import judge
from vllm_prune.bench.accuracy.pictures import FilePicture, modality_of
from vllm_prune.bench.accuracy.questions import SHORT_INSTRUCTION, video_of
from vllm_prune.bench.accuracy.videos import FileVideo
from vllm_prune.bench.throughput.errors import BenchmarkError

generator = pytest.importorskip("benchmarks.tiny_model.pages", reason="needs the repository's benchmarks/")


def docvqa(folder, **changes):
    entry = {"questionId": 337, "question": "What is the date?", "question_types": ["handwritten", "form"]}
    entry |= {"image": "documents/xnbl0037_1.png", "docId": 279, "answers": ["1/8/93", "January 8, 1993"], **changes}
    content = {"dataset_name": "SP-DocVQA", "dataset_split": "val", "data": [entry]}
    write_json(folder / "val_v1.0_withQT.json", content)
    touch(folder / "documents" / "xnbl0037_1.png")


def gqa(folder, **changes):
    entry = {"question": "Is it overcast?", "imageId": "n161313", "answer": "no", "fullAnswer": "No, it is clear."}
    entry |= {"types": {"structural": "verify", "semantic": "global", "detailed": "weatherVerify"}, **changes}
    write_json(folder / "testdev_balanced_questions.json", {"20602949": entry})
    touch(folder / "images" / "n161313.jpg")


def test_docvqa(tmp_path):
    docvqa(tmp_path)
    (loaded,) = load_published("docvqa", tmp_path)
    assert loaded.video == FilePicture(tmp_path / "documents" / "xnbl0037_1.png")
    assert (loaded.key, loaded.category, loaded.answer) == ("337", "handwritten", "1/8/93")
    assert loaded.prompt() == f"What is the date?\n{SHORT_INSTRUCTION}"
    assert judge(loaded, "January 8 1993.") == ("january 8 1993", True)
    assert judge(loaded, "March 20, 2011") == ("march 20 2011", False)


def test_gqa(tmp_path):
    gqa(tmp_path)
    (loaded,) = load_published("gqa", tmp_path)
    assert loaded.video == FilePicture(tmp_path / "images" / "n161313.jpg")
    assert (loaded.key, loaded.category, loaded.answer) == ("20602949", "verify", "no")
    assert judge(loaded, "No.") == ("no", True)
    assert judge(loaded, "note") == ("note", False)


@pytest.mark.parametrize(
    ("write", "name", "changes", "message"),
    [
        (docvqa, "docvqa", {"answers": []}, r"data entry 0, field 'answers': \[\]: must be a list of one text or more"),
        (docvqa, "docvqa", {"questionId": None}, r"field 'questionId': None: must be text"),
        (
            docvqa,
            "docvqa",
            {"image": "documents/other.png"},
            r"1 of 1 files are missing, such as .*documents/other.png",
        ),
        (gqa, "gqa", {"imageId": ""}, r"question 20602949, field 'imageId': '': must be text"),
        (gqa, "gqa", {"answer": 1}, r"question 20602949, field 'answer': 1: must be text"),
    ],
)
def test_mistakes_are_named(tmp_path, write, name, changes, message):
    write(tmp_path, **changes)
    with pytest.raises(BenchmarkError, match=message):
        load_published(name, tmp_path)


@pytest.mark.parametrize(("name", "file"), [("docvqa", "val_v1.0.json"), ("gqa", "testdev_balanced_questions.json")])
def test_files_of_another_form_are_refused(tmp_path, name, file):
    write_json(tmp_path / file, [])
    with pytest.raises(BenchmarkError, match=f"{file}: must be an object"):
        load_published(name, tmp_path)


def test_a_file_of_questions_names_images(tmp_path):
    asked = {"image": "a.png", "question": "Which colour?", "answer": "red"}
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join(json.dumps(entry) for entry in (asked, {**asked, "video": "a.mp4"})))
    touch(tmp_path / "a.png")
    with pytest.raises(BenchmarkError, match="line 2, field 'video': a question is about a video or an image"):
        load_published(str(path), tmp_path)
    path.write_text(json.dumps({**asked, "video": None}))
    (loaded,) = load_published(str(path), tmp_path)
    assert loaded.video == FilePicture(tmp_path / "a.png")
    assert loaded.prompt() == "Which colour?"
    path.write_text(json.dumps({**asked, "start": 1.0}))
    with pytest.raises(BenchmarkError, match="field 'start': a question is about a video or an image"):
        load_published(str(path), tmp_path)


def test_a_picture_is_read_as_a_server_reads_it(tmp_path):
    """Turned as its data say, transparent places white; and sent as the file it is."""
    drawn = Image.new("RGBA", (4, 2), (0, 0, 0, 0))
    drawn.putpixel((0, 0), (255, 0, 0, 255))
    turned = Image.Exif()
    turned[0x0112] = 6  # by 90 degrees
    drawn.save(tmp_path / "a.png", exif=turned)
    picture = FilePicture(tmp_path / "a.png")
    assert picture.pixels().shape == (4, 2, 3)
    assert picture.pixels()[0, 1].tolist() == [255, 0, 0]
    assert picture.pixels()[0, 0].tolist() == [255, 255, 255]
    kind, _, data = picture.data_url().partition(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(data) == (tmp_path / "a.png").read_bytes()


def test_a_file_that_is_no_picture_is_named(tmp_path):
    (tmp_path / "a.png").write_text("text")
    with pytest.raises(BenchmarkError, match=r"a.png: .*give a picture that Pillow reads"):
        FilePicture(tmp_path / "a.png").pixels()


def test_pages_are_held_out_ones_with_their_questions():
    loaded = pages.load(2, [0, 3])
    pictures = list(dict.fromkeys(asked.video for asked in loaded))
    assert len(pictures) == 4
    expected = [*generator.evaluation_pages(2, 0), *generator.evaluation_pages(2, 3)]
    for picture, page in zip(pictures, expected, strict=True):
        assert np.array_equal(picture.pixels(), page.pixels)
        asked = [(q.category, q.text, q.answer) for q in loaded if q.video == picture]
        assert asked == [(q.type, q.text, q.answer) for q in page.questions]
    assert len({asked.key for asked in loaded}) == len(loaded)


def test_every_question_names_one_form():
    for page in generator.evaluation_pages(20):
        assert len({question.text for question in page.questions}) == len(page.questions)


def test_engines_take_what_is_asked_about():
    assert engine_arguments(False, {})["limit_mm_per_prompt"] == {"video": 1, "image": 0}
    assert engine_arguments(False, {}, ["image"])["limit_mm_per_prompt"] == {"video": 0, "image": 1}
    assert [modality_of(medium) for medium in (FileVideo("a.mp4"), FilePicture("a.png"))] == ["video", "image"]


def test_what_is_for_videos_refuses_pictures(tmp_path):
    about = question("q", video="v")
    assert video_of(about, "bench sweep") is about.video
    (asked, *_) = pages.load(1, [0])
    with pytest.raises(BenchmarkError, match=r"bench sweep takes videos only, and question .* is about a picture"):
        video_of(asked, "bench sweep")


@pytest.mark.slow
@pytest.mark.long
def test_the_embedded_model_reads_pages(tmp_path):
    """All tokens, by stock vLLM and by ours: the same answers, nearly all of them right."""
    arguments = ["--dataset", "pages", "-n", "2", "--prune", "stock", "--prune", "baseline", "-o", str(tmp_path)]
    command = [sys.executable, "-m", "vllm_prune.cli.main", "bench", "accuracy", *arguments]
    subprocess.run(command, check=True, timeout=400, capture_output=True)
    stock, ours = json.loads((tmp_path / "accuracy.json").read_text())["configurations"]
    assert stock["accuracy"]["mean"] == ours["accuracy"]["mean"] > 0.85
    assert stock["video_tokens"] == ours["video_tokens"] == 64
    report = (tmp_path / "accuracy.md").read_text()
    assert "questions about 2 pictures" in report
    assert "| picture tokens |" in report
