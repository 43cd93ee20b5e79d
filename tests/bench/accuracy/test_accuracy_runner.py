"""A run from questions to results, with an asker that needs no model; interrupted and resumed."""

import contextlib
import json

import pytest
from accuracy_cases import question

from vllm_prune.bench.accuracy.asking import Reply, Task, make_batches, request_config, to_answer
from vllm_prune.bench.accuracy.runner import Plan, run_plan
from vllm_prune.bench.throughput.configurations import parse_configurations
from vllm_prune.bench.throughput.errors import BenchmarkError
from vllm_prune.config import PruneConfig

GIVEN = ["stock", "half@50%=evs:0.5", 'few@10%={"method": "uniform", "keep_ratio": 0.1}', "baseline", "again=baseline"]
TOKENS = {"stock": 100, "half@50%": 50, "few@10%": 10, "baseline": 100}


class Backend:
    """Answers "red", not to every third question where tokens were dropped; interrupted after `patience` batches."""

    def __init__(self, patience=1000):
        self.patience = patience
        self.asked = []

    def groups(self, configurations):
        return [[c] for c in configurations if c.config is None] + [[c for c in configurations if c.config]]

    def describe(self):
        return {"model": "none"}

    @contextlib.contextmanager
    def open(self, group):
        yield self

    def ask(self, batches):
        for batch in batches:
            if self.patience == 0:
                raise KeyboardInterrupt
            self.patience -= 1
            self.asked += batch
            yield [to_answer(task, self.reply(task)) for task in batch]

    def reply(self, task):
        tokens = TOKENS[task.configuration.name]
        wrong = tokens < 100 and int(task.question.key) % 3 == 0
        return Reply("blue" if wrong else "red", tokens + 10, tokens)


def questions(count=12):
    return [
        question(str(i), video=f"v{i // 2}", seed=i % 3, category="ab"[i % 2], subset="xy"[i // 6])
        for i in range(count)
    ]


def plan(tmp_path, backend, **changes):
    fields = {
        "command": ["bench"],
        "title": "test",
        "dataset": "d",
        "questions": questions(),
        "configurations": parse_configurations(GIVEN),
        "baseline": "stock",
        "backend": backend,
        "batch": 4,
        "resume": False,
        "output": tmp_path,
        "name": "run",
    }
    return Plan(**{**fields, **changes})


def summary(tmp_path):
    document = json.loads((tmp_path / "run.json").read_text())
    return document, {entry["name"]: entry for entry in document["configurations"]}


def test_everything_is_asked_once(tmp_path):
    backend = Backend()
    run_plan(plan(tmp_path, backend))
    asked = [(task.configuration.name, task.question.key) for task in backend.asked]
    assert len(asked) == len(set(asked)) == 4 * 12  # `again` is `baseline` under another name
    document, entries = summary(tmp_path)
    assert [session["answers"] for session in document["sessions"]] == [48]
    assert entries["stock"]["accuracy"] == {"mean": 1.0, "standard_error": 0.0, "n": 3}
    assert entries["few@10%"]["accuracy"]["mean"] == pytest.approx(8 / 12)
    assert entries["few@10%"]["share_kept"] == 0.1
    assert entries["few@10%"]["difference"]["lost"] == 4
    assert entries["half@50%"]["by_category"]["a"]["questions"] == 6
    assert entries["again"]["accuracy"] == entries["baseline"]["accuracy"]


@pytest.mark.parametrize("patience", range(1, 10, 2))
def test_an_interrupted_run_goes_on(tmp_path, patience):
    whole = tmp_path / "whole"
    run_plan(plan(whole, Backend()))

    first, second = Backend(patience), Backend()
    with pytest.raises(KeyboardInterrupt):
        run_plan(plan(tmp_path, first))
    assert not (tmp_path / "run.json").exists()
    run_plan(plan(tmp_path, second, resume=True))
    asked = [(task.configuration.name, task.question.key) for task in first.asked + second.asked]
    assert len(asked) == len(set(asked)) == 48
    document, entries = summary(tmp_path)
    assert entries == summary(whole)[1]
    assert [session["answers"] for session in document["sessions"]] == [len(first.asked), len(second.asked)]


def test_a_finished_run_can_be_shown_anew(tmp_path):
    run_plan(plan(tmp_path, Backend()))
    backend = Backend()
    run_plan(plan(tmp_path, backend, resume=True, title="other", command=["other"]))
    assert backend.asked == []
    document, _ = summary(tmp_path)
    assert (document["title"], document["command"]) == ("other", "other")
    assert [session["command"] for session in document["sessions"]] == ["bench"]
    assert "  - Asked by: `bench`" in (tmp_path / "run.md").read_text()


def test_a_finished_run_can_be_widened(tmp_path):
    run_plan(plan(tmp_path, Backend(), configurations=parse_configurations(GIVEN[:1]), questions=questions(6)))
    backend = Backend()
    run_plan(plan(tmp_path, backend, configurations=parse_configurations(GIVEN[:2]), resume=True))
    assert len(backend.asked) == 6 + 12


def test_another_configuration_of_the_same_name_is_asked_anew(tmp_path):
    run_plan(plan(tmp_path, Backend(), configurations=parse_configurations(["stock", "half@50%=evs:0.5"])))
    backend = Backend()
    changed = parse_configurations(["stock", "half@50%=evs:0.6"])
    run_plan(plan(tmp_path, backend, configurations=changed, resume=True))
    assert len(backend.asked) == 12


def test_a_second_run_needs_resume(tmp_path):
    run_plan(plan(tmp_path, Backend()))
    with pytest.raises(BenchmarkError, match="--resume"):
        run_plan(plan(tmp_path, Backend()))


def test_report_and_picture(tmp_path):
    run_plan(plan(tmp_path, Backend(), notes="A remark.", ttft={"stock": 900.0, "few@10%": 100.0}))
    report = (tmp_path / "run.md").read_text()
    assert "| `stock` (all tokens) | 100.0 ± 0.0 | 100.0 ± 0.0 |" in report
    assert "| `few` | - | **66.7 ± 33.3** |" in report  # wrong answers are all of one seed
    assert "| `few@10%` | 20 | 10.0 | 10.0% | 66.7 ± 33.3 | -33.3 [" in report
    assert "A remark." in report
    assert "a (n=6) | b (n=6)" in report
    assert "x (n=6) | y (n=6)" in report
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")


def test_the_standard_error_over_one_sample_is_named(tmp_path):
    run_plan(plan(tmp_path, Backend(), questions=[question("1"), question("3", video="w")]))
    assert "standard error over scenes, on 2 questions about 2 videos" in (tmp_path / "run.md").read_text()


def test_batches_keep_videos_together():
    tasks = [Task(configuration, q) for configuration in parse_configurations(GIVEN[:2]) for q in questions()]
    batches = make_batches(tasks, 7)
    assert [len(batch) for batch in batches] == [8, 8, 8]
    videos = [{task.question.video.key for task in batch} for batch in batches]
    assert sum(len(found) for found in videos) == 6
    names = [task.configuration.name for task in batches[0][:4]]
    assert names == ["stock", "stock", "half@50%", "half@50%"]


def test_random_draws_anew_for_every_video():
    config = PruneConfig(method="random", keep_ratio=0.5)
    first, same, other = (request_config(config, question(video=video)) for video in ("v", "v", "w"))
    assert first == same
    assert first["params"] != other["params"]
    PruneConfig.parse(first)
    seeded = PruneConfig(method="random", keep_ratio=0.5, params={"seed": 3})
    assert PruneConfig.parse(request_config(seeded, question())) == seeded


@pytest.mark.parametrize("server", ["baseline", "default", {"method": "uniform", "keep_ratio": 0.1}])
@pytest.mark.parametrize("asked", ["baseline", "stage1_only", {"method": "uniform", "target_token_num": 5}])
def test_a_request_asks_for_all_of_a_configuration_whatever_the_servers_is(server, asked):
    wanted = PruneConfig.parse(asked)
    assert PruneConfig.parse(request_config(wanted, question()), base=PruneConfig.parse(server)) == wanted
