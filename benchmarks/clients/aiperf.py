"""AIPerf: latency and throughput, from a file of JSON lines with `text` and `video`."""

from __future__ import annotations

import json

from benchmarks.clients.client import MAX_TOKENS, MODEL, Client, Found, Run
from vllm_prune.embedded import model_path

_RESULT = "profile_export_aiperf.json"


def _command(run: Run) -> list[str]:
    questions = run.folder / "questions.jsonl"
    lines = [json.dumps({"text": asked.question, "video": str(asked.clip.path)}) for asked in run.questions]
    questions.write_text("\n".join(lines) + "\n")
    return [
        *(f"{run.program}/aiperf", "profile", "--model", MODEL, "--url", run.url, "--endpoint-type", "chat"),
        *("--streaming", "--input-file", str(questions), "--custom-dataset-type", "single_turn"),
        *("--request-count", str(len(run.questions)), "--concurrency", "2", "--tokenizer", str(model_path())),
        # Its own count of a prompt knows nothing of videos.
        *("--use-server-token-count", "--extra-inputs", f"max_tokens:{MAX_TOKENS}", "--extra-inputs", "temperature:0"),
        *("--ui", "none", "--artifact-dir", str(run.folder / "out")),
    ]


def _read(run: Run) -> Found:
    (file,) = (run.folder / "out").rglob(_RESULT)
    result = json.loads(file.read_text())
    failed = result.get("error_summary")
    if failed:
        raise ValueError(f"requests failed: {failed}")
    figures = {
        "time to the first token, ms": f"{result['time_to_first_token']['p50']:.0f}",
        "prompt tokens": f"{result['input_sequence_length']['avg']:.1f}",
    }
    return Found(round(result["request_count"]["avg"]), figures)


# Offline it takes a tokenizer's path for a name on the hub; online it opens the path and asks no hub.
AIPERF = Client(
    name="aiperf", command=_command, read=_read, environment={"HF_HUB_OFFLINE": "", "TRANSFORMERS_OFFLINE": ""}
)
