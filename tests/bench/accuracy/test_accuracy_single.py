"""One question from Python, as a user would ask it, with the embedded model."""

import json
import subprocess
import sys

import pytest

from vllm_prune.budget import plan_counts
from vllm_prune.config import PRESETS
from vllm_prune.embedded import clips

SCRIPT = """
import dataclasses, json, sys
from vllm_prune.bench.accuracy.single import VideoQA
from vllm_prune.bench.throughput.errors import BenchmarkError

qa = VideoQA(prune="default")
found = [dataclasses.asdict(qa.ask(sys.argv[1], "Which form?", ["circle", "square"]))]
for video, options in ((sys.argv[1], ["one"]), ("/no.mp4", ["a", "b"])):
    try:
        qa.ask(video, "Which form?", options)
    except BenchmarkError as error:
        found.append(str(error))
print("found:" + json.dumps(found))
"""


@pytest.fixture(scope="module")
def found():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(clips()[0].path)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.rpartition("found:")[2])


def test_an_option_is_predicted_with_text_and_statistics(found):
    choice = found[0]
    assert choice["text"]
    assert (choice["letter"], choice["option"]) in [("A", "circle"), ("B", "square"), (None, None)]
    assert choice["video_tokens_before"] == 128
    assert choice["video_tokens"] == plan_counts(PRESETS["default"], 128).kept
    assert choice["prompt_tokens"] > choice["video_tokens"]


def test_what_cannot_be_asked_is_named(found):
    assert found[1].startswith("options=['one']: a multiple-choice question has 2 to 26 options")
    assert found[2] == "video='/no.mp4': no such file"
