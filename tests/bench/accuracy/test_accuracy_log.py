"""The file of answers: interrupted, resumed, misused."""

import dataclasses
import json

import pytest
from accuracy_cases import answer, question

from vllm_prune.bench.accuracy.log import AnswerLog
from vllm_prune.bench.throughput.errors import BenchmarkError

SETTINGS = {"dataset": "d", "model": "m", "engine_arguments": {"seed": 0}}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "results" / "run.answers.jsonl"


def write(path, *answers, resume=False):
    with AnswerLog(path, SETTINGS, resume=resume) as log:
        log.add(answers)


def found(path, *keys, configuration="stock"):
    with AnswerLog(path, SETTINGS, resume=True) as log:
        return [log.get(configuration, question(key)) for key in keys]


def test_answers_come_back(path):
    write(path, answer("a"), answer("b", False, video_tokens=None))
    assert found(path, "a", "b", "c") == [answer("a"), answer("b", False, video_tokens=None), None]
    assert found(path, "a", configuration="{}") == [None]


def test_more_answers_are_added(path):
    write(path, answer("a"))
    write(path, answer("b"), resume=True)
    assert len(path.read_text().splitlines()) == 3
    assert found(path, "a", "b") == [answer("a"), answer("b")]


def test_no_answer_counts_twice(path):
    write(path, answer("a", True), answer("a", False))
    write(path, answer("a", False), resume=True)
    assert found(path, "a") == [answer("a", True)]
    assert len(path.read_text().splitlines()) == 2


@pytest.mark.parametrize("cut", [1, 20, 150])
def test_a_line_that_was_cut_short_is_asked_again(path, cut):
    write(path, answer("a", text="\u00fc?"), answer("b"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    with AnswerLog(path, SETTINGS, resume=True) as log:
        assert log.get("stock", question("b")) is None
        log.add([answer("b")])
    assert path.read_bytes() == whole


def test_a_header_that_was_cut_short_begins_anew(path):
    write(path)
    path.write_bytes(path.read_bytes()[:-5])
    write(path, answer("a"))
    assert found(path, "a") == [answer("a")]


def test_answers_are_not_overwritten(path):
    write(path, answer("a"))
    with pytest.raises(BenchmarkError, match=r"has answers of an earlier run; go on with --resume, or give another -o"):
        write(path)
    assert found(path, "a") == [answer("a")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "other"}, "model='m', this run has 'other'"),
        ({"engine_arguments": {"seed": 1}}, r"engine_arguments=\{'seed': 0\}, this run has \{'seed': 1\}"),
        ({"url": "http://x"}, "url=None, this run has 'http://x'"),
    ],
)
def test_other_settings_are_refused(path, changes, message):
    write(path, answer("a"))
    with pytest.raises(BenchmarkError, match=message):
        AnswerLog(path, {**SETTINGS, **changes}, resume=True)


def test_a_changed_question_is_refused(path):
    write(path, answer("a"))
    with AnswerLog(path, SETTINGS, resume=True) as log:
        with pytest.raises(BenchmarkError, match=r"question 'a' was 'a\?' \(red\) and is now 'a\?' \(blue\)"):
            log.get("stock", question("a", answer="blue"))
        with pytest.raises(BenchmarkError, match="the dataset has changed"):
            log.get("stock", question("a", text="Other?"))


def test_broken_lines_are_located(path):
    write(path, answer("a"))
    good = path.read_text()
    for line, message in [
        ("{\n", "not valid JSON"),
        ("[]\n", "not an object"),
        ('{"x": 1}\n', "not an answer"),
    ]:
        path.write_text(good + line)
        with pytest.raises(BenchmarkError, match=f"jsonl:3: {message}"):
            AnswerLog(path, SETTINGS, resume=True)


def test_sessions_come_back(path):
    with AnswerLog(path, SETTINGS, resume=False) as log:
        with log.session(["ask", "a b"]):
            log.add([answer("a")])
        sessions = log.sessions
    assert [(session["command"], session["answers"]) for session in sessions] == [("ask 'a b'", 1)]
    with AnswerLog(path, SETTINGS, resume=True) as log:
        assert (len(log), log.sessions) == (1, sessions)


def test_one_run_at_a_time(path):
    with AnswerLog(path, SETTINGS, resume=False), pytest.raises(BenchmarkError, match="another run writes to it"):
        AnswerLog(path, SETTINGS, resume=True)
    write(path, answer("a"), resume=True)


def test_lines_are_readable_by_others(path):
    write(path, answer("a"))
    header, line = map(json.loads, path.read_text().splitlines())
    assert header == {"schema": 1, **SETTINGS}
    assert line == dataclasses.asdict(answer("a"))
