"""Small files in the published formats, and the mistakes they may have."""

import json
import sys

import pytest
from accuracy_cases import touch, write_json

from vllm_prune.bench.accuracy.datasets import draw_samples, load_published
from vllm_prune.bench.accuracy.videos import FileVideo, FrameFolder
from vllm_prune.bench.throughput.errors import BenchmarkError


def egoschema(folder, **changes):
    entry = {
        "q_uid": "u1",
        "google_drive_id": "x",
        "question": "Why?",
        **{f"option {i}": f"because {i}" for i in range(5)},
    }
    unanswered = {**entry, "q_uid": "u2"}
    write_json(folder / "questions.json", [{**entry, **changes}, unanswered])
    write_json(folder / "subset_answers.json", {"u1": 3})
    touch(folder / "videos" / "u1.mp4")


def mvbench(folder, **changes):
    moved = {"video": "v.mp4", "question": "Which way?", "candidates": ["Up", "Down"], "answer": "Down"}
    part = {"video": "friends_s01", "question": "Who?", "candidates": ["Ross", "Joey"], "answer": "Ross"}
    write_json(folder / "json" / "moving_direction.json", [{**moved, **changes}])
    write_json(folder / "json" / "episodic_reasoning.json", [{**part, "start": 1.5, "end": 4, "fps": 3}])
    touch(folder / "video" / "clevrer" / "video_validation" / "v.mp4")
    (folder / "video" / "tvqa" / "frames_fps3_hq" / "friends_s01").mkdir(parents=True)


def videomme_entry(**changes):
    entry = {"video_id": "001", "duration": "short", "domain": "Knowledge", "sub_category": "History", "url": "u"}
    entry |= {"videoID": "abc", "question_id": "001-1", "task_type": "Counting", "question": "How many?", "answer": "C"}
    return {**entry, "options": ["A. One.", "B. Two.", "C. Three.", "D. Four."], **changes}


def videomme(folder, **changes):
    lines = "\n".join(json.dumps(entry) for entry in (videomme_entry(**changes), {}) if entry)
    touch(folder / "videomme" / "test.jsonl").write_text(f"{lines}\n\n")
    touch(folder / "data" / "abc.mp4")


def mlvu(folder, **changes):
    entry = {"video": "m.mp4", "duration": 480.0, "question": "Plot?", "candidates": ["a", "b"], "answer": "a"}
    write_json(folder / "json" / "1_plotQA.json", [{**entry, "question_type": "plotQA", **changes}])
    write_json(folder / "json" / "9_summary.json", [{"video": "m.mp4", "question": "Sum up.", "answer": "long"}])
    touch(folder / "video" / "1_plotQA" / "m.mp4")


def longvideobench(folder, **changes):
    entry = {"id": "x_0", "video_id": "x", "video_path": "x.mp4", "question": "When?", "candidates": ["a", "b", "c"]}
    entry |= {"correct_choice": 2, "question_category": "S2E", "duration_group": 600, "subtitle_path": "x.json"}
    write_json(folder / "lvb_val.json", [{**entry, **changes}])
    touch(folder / "videos" / "x.mp4")


FORMATS = {
    "egoschema": egoschema,
    "mvbench": mvbench,
    "videomme": videomme,
    "mlvu": mlvu,
    "longvideobench": longvideobench,
}


def load(name, folder, **changes):
    FORMATS[name](folder, **changes)
    return load_published(name, folder)


def test_egoschema(tmp_path):
    (question,) = load("egoschema", tmp_path)
    assert (question.key, question.text, question.answer) == ("u1", "Why?", "D")
    assert question.options == tuple(f"because {i}" for i in range(5))
    assert question.video == FileVideo(tmp_path / "videos" / "u1.mp4")


def test_mvbench(tmp_path):
    reasoning, direction = load("mvbench", tmp_path)
    assert (direction.key, direction.answer, direction.category) == ("moving_direction-0", "B", "moving_direction")
    assert direction.video == FileVideo(tmp_path / "video" / "clevrer" / "video_validation" / "v.mp4")
    folder = tmp_path / "video" / "tvqa" / "frames_fps3_hq" / "friends_s01"
    assert reasoning.video == FrameFolder(folder, 3.0, 1.5, 4.0)


def test_videomme(tmp_path):
    (question,) = load("videomme", tmp_path)
    assert question.options == ("One.", "Two.", "Three.", "Four.")
    assert (question.key, question.answer, question.category, question.subset) == ("001-1", "C", "Counting", "short")


def test_videomme_parquet(tmp_path):
    pandas, _ = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    (tmp_path / "videomme").mkdir()
    pandas.DataFrame([videomme_entry()]).to_parquet(tmp_path / "videomme" / "test-00000-of-00001.parquet")
    touch(tmp_path / "data" / "abc.mp4")
    (question,) = load_published("videomme", tmp_path)
    assert question.options[2] == "Three."


def test_parquet_without_its_reader_names_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "fastparquet", None)
    touch(tmp_path / "videomme" / "test-00000-of-00001.parquet")
    with pytest.raises(BenchmarkError, match=r"needs pyarrow, .*pip install pyarrow; or export"):
        load_published("videomme", tmp_path)


def test_mlvu_leaves_out_open_questions(tmp_path):
    (question,) = load("mlvu", tmp_path)
    assert (question.key, question.answer, question.category) == ("1_plotQA-0", "A", "plotQA")
    assert question.video == FileVideo(tmp_path / "video" / "1_plotQA" / "m.mp4")


def test_longvideobench(tmp_path):
    (question,) = load("longvideobench", tmp_path)
    assert (question.key, question.answer, question.category, question.subset) == ("x_0", "C", "S2E", "up to 600 s")


def test_questions_of_ones_own(tmp_path):
    touch(tmp_path / "clips" / "a.mp4")
    lines = [
        {"video": "a.mp4", "question": "Which?", "options": ["red", "blue"], "answer": "b", "category": "colour"},
        {"video": "a.mp4", "question": "Which?", "options": ["red", "blue"], "answer": "blue", "id": "mine", "end": 2},
        {"video": "a.mp4", "question": "Which colour?", "answer": "red"},
    ]
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    letter, text, word = load_published(str(path), tmp_path / "clips")
    assert (letter.answer, letter.category, letter.key) == ("B", "colour", "1")
    assert (text.answer, text.key, text.video) == ("B", "mine", FileVideo(tmp_path / "clips" / "a.mp4", None, 2.0))
    assert (word.answer, word.options) == ("red", ())


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("egoschema", {"question": None}, r"questions\.json, entry 0, field 'question': None: must be text"),
        ("egoschema", {"option 4": ""}, r"questions\.json, entry 0, field 'option 4'"),
        ("mvbench", {"answer": "Left"}, r"moving_direction\.json, entry 0, field 'answer': 'Left': must be one of"),
        ("mvbench", {"candidates": "Up"}, "field 'candidates': 'Up': must be a list of texts"),
        ("mvbench", {"candidates": ["Up"]}, "field 'candidates': 1 texts"),
        ("mvbench", {"start": "0:10"}, "field 'start': '0:10': must be a number"),
        ("videomme", {"answer": "E"}, r"test\.jsonl, line 1, field 'answer': 'E': must be a letter from A to D"),
        ("mlvu", {"candidates": None}, r"1_plotQA\.json, entry 0, field 'candidates': None"),
        ("longvideobench", {"correct_choice": 3}, "field 'correct_choice': 3: must be an integer from 0 to 2"),
        ("longvideobench", {"correct_choice": True}, "field 'correct_choice': True"),
    ],
)
def test_mistakes_in_fields_are_named(tmp_path, name, changes, message):
    with pytest.raises(BenchmarkError, match=message):
        load(name, tmp_path, **changes)


def test_a_missing_field_is_named_beside_those_there(tmp_path):
    write_json(tmp_path / "lvb_val.json", [{"id": "a"}])
    with pytest.raises(
        BenchmarkError, match=r"lvb_val\.json, entry 0, field 'candidates': missing; the entry has 'id'"
    ):
        load_published("longvideobench", tmp_path)


def test_a_wrong_answer_number_is_named(tmp_path):
    egoschema(tmp_path)
    write_json(tmp_path / "subset_answers.json", {"u1": 5})
    with pytest.raises(BenchmarkError, match=r"subset_answers\.json, u1: 5: must be an integer from 0 to 4"):
        load_published("egoschema", tmp_path)


@pytest.mark.parametrize("name", FORMATS)
def test_missing_files_are_named(tmp_path, name):
    with pytest.raises(BenchmarkError, match=f"nowhere: no such folder; {name} needs there: "):
        load_published(name, tmp_path / "nowhere")
    with pytest.raises(BenchmarkError, match="json"):
        load_published(name, tmp_path)


@pytest.mark.parametrize("name", FORMATS)
def test_missing_videos_are_named_or_skipped(tmp_path, name):
    FORMATS[name](tmp_path)
    for path in tmp_path.rglob("*.mp4"):
        path.unlink()
    with pytest.raises(BenchmarkError, match=r"1 of \d files are missing, such as .*\.mp4; download them"):
        load_published(name, tmp_path)
    if name == "mvbench":  # the only one with a video left
        (question,) = load_published(name, tmp_path, skip_missing=True)
        assert question.category == "episodic_reasoning"
    else:
        with pytest.raises(BenchmarkError, match="1 of 1 files are missing"):
            load_published(name, tmp_path, skip_missing=True)


def test_broken_json_is_located(tmp_path):
    egoschema(tmp_path)
    (tmp_path / "questions.json").write_text('[\n {"q_uid": }\n]')
    with pytest.raises(BenchmarkError, match=r"questions\.json:2:12: not valid JSON"):
        load_published("egoschema", tmp_path)
    (tmp_path / "questions.json").write_text("{}")
    with pytest.raises(BenchmarkError, match=r"questions\.json: holds dict; must be a list"):
        load_published("egoschema", tmp_path)
    (tmp_path / "questions.json").write_text("[1]")
    with pytest.raises(BenchmarkError, match=r"questions\.json, entry 0: int; must be an object"):
        load_published("egoschema", tmp_path)


def test_broken_lines_are_located(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text('\n{"video": "a.mp4", "question": "?", "answer": "x"}\n{"video"\n')
    with pytest.raises(BenchmarkError, match=r"own\.jsonl:3:9: not valid JSON"):
        load_published(str(path), tmp_path)


def test_one_key_for_two_questions_is_refused(tmp_path):
    touch(tmp_path / "a.mp4")
    line = json.dumps({"video": "a.mp4", "question": "?", "answer": "x", "id": "same"})
    path = tmp_path / "own.jsonl"
    path.write_text(f"{line}\n{line}\n")
    with pytest.raises(BenchmarkError, match="question 'same' comes twice"):
        load_published(str(path), tmp_path)


def test_an_unknown_dataset_and_an_unknown_task_are_named(tmp_path):
    with pytest.raises(
        BenchmarkError, match=r"--dataset 'msvd': neither a known dataset \(synthetic, long, pages, egoschema, "
    ):
        load_published("msvd", tmp_path)
    write_json(tmp_path / "json" / "flying.json", [])
    with pytest.raises(BenchmarkError, match=r"flying\.json: no task of MVBench"):
        load_published("mvbench", tmp_path)


def questions(tmp_path, count):
    touch(tmp_path / "a.mp4")
    path = tmp_path / "many.jsonl"
    path.write_text("".join(f'{{"video": "a.mp4", "question": "{i}?", "answer": "x"}}\n' for i in range(count)))
    return load_published(str(path), tmp_path)


def test_samples_are_disjoint_and_do_not_depend_on_each_other(tmp_path):
    every = questions(tmp_path, 10)
    drawn = draw_samples(every, 3, [0, 2])
    assert [question.seed for question in drawn] == [0, 0, 0, 2, 2, 2]
    assert len({question.key for question in drawn}) == 6
    assert draw_samples(every, 3, [2]) == drawn[3:]
    assert len(draw_samples(every, None, [0])) == 10


def test_samples_that_cannot_be_are_refused(tmp_path):
    every = questions(tmp_path, 10)
    with pytest.raises(BenchmarkError, match="sample 3 would end at question 12 of 10"):
        draw_samples(every, 3, [0, 3])
    with pytest.raises(BenchmarkError, match="give --n"):
        draw_samples(every, None, [0, 1])


def test_a_file_that_is_no_text_is_named(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_bytes(b'{"video": "\xff"}\n')
    with pytest.raises(BenchmarkError, match=r"questions\.jsonl: not UTF-8 text"):
        load_published(str(path), tmp_path)
