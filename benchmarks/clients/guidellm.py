"""GuideLLM: latency and throughput, from a file of JSON lines with a column `video`."""

from __future__ import annotations

import json

from benchmarks.clients.client import MAX_TOKENS, MODEL, Client, Found, Run
from vllm_prune.embedded import model_path

_RESULT = "guidellm.json"


def _command(run: Run) -> list[str]:
    questions = run.folder / "questions.jsonl"
    lines = [json.dumps({"prompt": asked.question, "video": str(asked.clip.path)}) for asked in run.questions]
    questions.write_text("\n".join(lines) + "\n")
    extras = {"body": {"max_tokens": MAX_TOKENS, "temperature": 0}}
    options = {
        "backend": {"kind": "openai_http", "target": run.url, "model": MODEL, "extras": extras},
        "profile": {"kind": "concurrent", "streams": [2]},
        "constraint": {"kind": "max_requests", "count": len(run.questions)},
        "tokenizer": {"kind": "huggingface_auto", "model": str(model_path())},
        "data": {"kind": "json_file", "path": str(questions)},
        "output": {"kind": "json", "path": str(run.folder / _RESULT)},
    }
    named = [part for name, value in options.items() for part in (f"--{name}", json.dumps(value))]
    return [f"{run.program}/guidellm", "run", *named, "--disable-console-interactive"]


def _read(run: Run) -> Found:
    (benchmark,) = json.loads((run.folder / _RESULT).read_text())["benchmarks"]
    metrics = benchmark["metrics"]
    totals = metrics["request_totals"]
    if totals["errored"] or totals["incomplete"]:
        raise ValueError(f"{totals['errored']} requests failed and {totals['incomplete']} were not finished")
    figures = {
        "time to the first token, ms": f"{metrics['time_to_first_token_ms']['successful']['median']:.0f}",
        "prompt tokens": f"{metrics['prompt_token_count']['successful']['mean']:.1f}",
    }
    return Found(totals["successful"], figures)


GUIDELLM = Client(name="guidellm", command=_command, read=_read, environment={"HF_HUB_OFFLINE": "1"})
