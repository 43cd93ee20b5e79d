"""lmms-eval: accuracy. `pass_video_url=True` makes its `openai` model send whole videos instead of frames."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from benchmarks.clients.client import MODEL, Client, Found, Run

_TASK = Path(__file__).with_name("lmms_eval_task")
_FRAMES = 64  # goes with every request, as `media_io_kwargs`: the server has to be told to take that
_FAILED = "LMMS_EVAL_REQUEST_FAILED"


def _command(run: Run) -> list[str]:
    task = run.folder / "task"
    shutil.copytree(_TASK, task, dirs_exist_ok=True)
    lines = [
        json.dumps({"video": str(asked.clip.path), "question": asked.question, "answer": asked.answer})
        for asked in run.questions
    ]
    questions = task / "questions.jsonl"
    questions.write_text("\n".join(lines) + "\n")
    definition = (_TASK / "sample_clips.yaml").read_text().replace("QUESTIONS", str(questions))
    (task / "sample_clips.yaml").write_text(definition)
    model = f"model_version={MODEL},base_url={run.url}/v1,api_key=EMPTY,pass_video_url=True,max_frames_num={_FRAMES}"
    return [
        *(str(run.python), "-m", "lmms_eval", "--model", "openai", "--model_args", model),
        *("--tasks", "sample_clips", "--include_path", str(task), "--batch_size", "1"),
        *("--log_samples", "--output_path", str(run.folder / "out")),
    ]


def _read(run: Run) -> Found:
    (samples,) = (run.folder / "out").rglob("*_samples_sample_clips.jsonl")
    answers = [json.loads(line) for line in samples.read_text().splitlines()]
    # A request that failed is scored as a wrong answer, and the status is 0 all the same.
    failed = [answer for answer in answers if _FAILED in json.dumps(answer["filtered_resps"])]
    if failed:
        raise ValueError(f"{len(failed)} of {len(answers)} requests failed: {failed[0]['filtered_resps']}")
    (results,) = (run.folder / "out").rglob("*_results.json")
    scores = json.loads(results.read_text())["results"]["sample_clips"]
    return Found(len(answers), {"right answers": f"{scores['right,none']:.0%}"})


LMMS_EVAL = Client(
    name="lmms-eval",
    command=_command,
    read=_read,
    environment={"HF_HUB_OFFLINE": "1", "OPENAI_API_KEY": "EMPTY"},
)
