"""What a response, a stream, the Python API and the log tell about a request's videos."""

from __future__ import annotations

import json
import re
import time
import weakref

import pytest
import torch
from serving_cases import QUESTION, ask
from serving_engine import BLOCK_SIZE, prune
from serving_media import data_url, mp4
from serving_server import text, video
from transformers import AutoConfig
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionStreamResponse

from vllm_prune.budget import plan_counts
from vllm_prune.config import PruneConfig
from vllm_prune.serving.api.log import describe
from vllm_prune.serving.api.prompt_facts import PromptFacts, PromptMedium
from vllm_prune.serving.api.report import KVFormat, RequestReport
from vllm_prune.serving.api.response import add_to_chunk
from vllm_prune.serving.wire.clock import Stopwatch
from vllm_prune.serving.wire.notes import EncodedMedium, RequestNotes, StepRecorder
from vllm_prune.serving.worker.encoder_batches import prune_each

ASK = text(QUESTION)
LONG = text(QUESTION * 10)
"""More than a block, so that a hit in the prefix cache covers all of the video before it."""


def clip(seed: int, frames: int = 128):
    """A video of frames / 8 x 16 tokens before pruning that no other test sends."""
    return video(data_url(mp4(frames, seed=seed)))


ATTENTION = {"preset": "default", "keep_ratio": 0.25}


def test_every_stage_is_counted_and_timed(open_server):
    answer = open_server.ask(clip(41), ASK, prune=ATTENTION)
    found = answer.prune
    assert found["videos"] == [
        {
            "before": 256,
            "encoded": 256,
            "stage1": 128,
            "entering": 128,
            "layers": [32],
            "kept": 32,
            "structure": 0,
            "frames": {"seen": 32, "of": 128},
            "source": "encoded",
        }
    ]
    assert found["video_tokens"] == {"before": 256, "kept": 32, "removed": 0.875, "structure": 0}
    assert found["video_tokens"]["kept"] == answer.usage.prompt_tokens_details.multimodal_tokens["video"]
    assert (found["method"], found["preset"]) == ("attention", "custom")
    assert PruneConfig.parse(found["config"]) == PruneConfig.parse(ATTENTION)
    stages = found["seconds"]
    assert list(stages) == ["processor", "encoder", "merge", "dense_prefix", "queue", "prefill", "decode"]
    assert all(seconds > 0 for seconds in stages.values())
    # These three are parts of the engine's prefill.
    assert stages["encoder"] + stages["merge"] + stages["dense_prefix"] < stages["prefill"]


def test_blocks_and_bytes_are_those_of_the_paged_cache(open_server):
    answer = open_server.ask(clip(42), ASK, prune="stage1_only")
    kept, saved = answer.usage.prompt_tokens, answer.prune["kv_saved"]
    blocks = -(-(kept + 128) // BLOCK_SIZE) - -(-kept // BLOCK_SIZE)
    assert answer.prune["preset"] == "stage1_only"
    assert saved["blocks"] == blocks == 4
    assert saved["bytes"] == blocks * BLOCK_SIZE * token_bytes(open_server.model)


def token_bytes(model: str) -> int:
    """Keys and values of a token, in float32."""
    fields = AutoConfig.from_pretrained(model).get_text_config()
    dim = fields.hidden_size // fields.num_attention_heads
    return 2 * fields.num_hidden_layers * fields.num_key_value_heads * dim * 4


def test_reuse_is_told_from_encoding(open_server):
    film = clip(43)
    sources = [
        open_server.ask(*content, prune={"method": "uniform", "keep_ratio": 0.5, "enable_stage1": False}).prune
        for content in ((film, LONG), (film, LONG), (ASK, film, text("Why?")))
    ]
    assert [found["videos"][0]["source"] for found in sources] == ["encoded", "prefix_cache", "encoder_cache"]
    assert [found["cached_video_tokens"] for found in sources] == [0, 128, 0]
    assert "encoder" in sources[0]["seconds"]
    assert "encoder" not in sources[1]["seconds"]
    assert "encoder" not in sources[2]["seconds"]


def test_several_videos(open_server):
    known, new = clip(44), clip(45, 64)
    open_server.ask(known, ASK)
    found = open_server.ask(ASK, new, known)
    assert [(v["before"], v["kept"], v["source"]) for v in found.prune["videos"]] == [
        (128, 64, "encoded"),
        (256, 128, "encoder_cache"),
    ]


def test_nothing_pruned_is_reported_too(open_server):
    found = open_server.ask(clip(46), ASK, prune="baseline").prune
    assert (found["method"], found["preset"], found["video_tokens"]["removed"]) == ("none", "baseline", 0)
    assert found["kv_saved"] == {"blocks": 0, "bytes": 0}
    assert found["seconds"]["encoder"] > 0


def test_text_has_no_report(open_server):
    assert not hasattr(open_server.ask(ASK), "prune")


@pytest.mark.parametrize("usage", [True, False])
def test_the_last_chunks_of_a_stream_have_it(open_server, usage):
    options = {"stream_options": {"include_usage": True}} if usage else {}
    film = clip(47)
    whole = open_server.ask(film, ASK)
    chunks = list(open_server.ask(film, ASK, stream=True, **options))
    with_report = [chunk for chunk in chunks if hasattr(chunk, "prune")]
    assert with_report == chunks[-2:] if usage else chunks[-1:]
    for chunk in with_report:
        assert chunk.prune["video_tokens"] == whole.prune["video_tokens"]
        assert chunk.prune["seconds"]["decode"] > 0
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said == whole.choices[0].message.content


def test_no_other_event_has_it(open_server):
    events = [json.loads(event) for event in open_server.events(clip(48), ASK, max_completion_tokens=8)[:-1]]
    assert ["prune" in event for event in events] == [False] * (len(events) - 1) + [True]


def test_the_log_describes_a_request(open_server):
    before = len(open_server.log())
    answer = open_server.ask(clip(49), ASK, prune=ATTENTION)
    deadline = time.monotonic() + 20
    while f"prune {answer.id}" not in open_server.log()[before:]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(0.2)  # the block is written at once, but not in one piece
    log = open_server.log()[before:]
    assert "method attention, preset custom, 256 -> 32 video tokens" in log
    assert "32 of 128 frames; tokens 256 detected, 128 after stage 1, 128 entering the model, 32 after choice 1" in log
    assert "importance: attention weights of the question" in log
    assert "max over text positions, then max over heads" in log
    layer, heads, rows, tokens = re.search(
        r"attention at layer (\d+): (\d+) heads x (\d+) text rows x (\d+) video tokens", log
    ).groups()
    assert (int(layer), int(tokens)) == (2, 128)
    assert int(heads) > 0
    assert int(rows) > 5
    assert re.search(r"times: processor [\d.]+ ms, encoder [\d.]+ ms, merge [\d.]+ ms, dense_prefix [\d.]+ ms", log)
    assert "prefix cache: 0 of 32 video tokens reused" in log


def test_the_tightening_server_does_not_log(server):
    before = len(server.log())
    answer = server.ask(clip(50), ASK)
    assert answer.prune["preset"] == "stage1_only"
    assert answer.id not in server.log()[before:]


def test_outputs_in_python_have_it(engine):
    engine.add([prune(ask(16, 112, 112, seed=51), "default")])
    outputs = []
    while engine.llm.llm_engine.has_unfinished_requests():
        outputs += [output for output in engine.step() if output.finished]
    (output,) = outputs
    assert output.prune.to_dict()["video_tokens"] == {
        "before": 128,
        "kept": 26,
        "removed": 1 - 26 / 128,
        "structure": 0,
    }
    assert output.prune.preset == "default"


def test_a_prompt_in_several_steps_is_one_request(engine):
    film = prune(ask(16, 112, 112, seed=52), {"method": "uniform", "keep_ratio": 0.5})
    engine.scheduler.max_num_scheduled_tokens = 20
    try:
        engine.add([film])
        outputs = []
        while engine.llm.llm_engine.has_unfinished_requests():
            outputs += [output for output in engine.step() if output.finished]
    finally:
        engine.scheduler.max_num_scheduled_tokens = engine.max_step_tokens
    report = outputs[0].prune
    assert report.sources() == ["encoded"]
    assert 0 < report.stage_seconds()["encoder"] < report.stage_seconds()["prefill"]


# --- without a server ---


def test_notes_survive_the_way():
    notes = RequestNotes(
        encoded={0: EncodedMedium(0.5, 0.25), 3: EncodedMedium(1.0, 0.0)}, attention=[[2, 4, 6, 8]], failure='"ß"'
    )
    headers = notes.to_headers({"traceparent": "x"})
    assert headers["traceparent"] == "x"
    assert RequestNotes.from_headers(headers) == notes
    assert RequestNotes.from_headers({"traceparent": "x"}) is None


def test_features_of_one_medium_are_gone_before_the_next_is_encoded():
    alive: list[weakref.ref[torch.Tensor]] = []

    def encode(size):
        rows = torch.zeros(size, 4)
        alive.append(weakref.ref(rows))
        return rows

    def features():
        for size in (30, 10, 20):
            assert not [rows for rows in alive if rows() is not None]
            yield encode(size), None

    encoded = StepRecorder().encoding(features(), torch.device("cpu"))
    assert prune_each(lambda rows, spec, cells: len(rows) + spec, encoded, [1, 2, 3]) == [31, 12, 23]


def test_one_call_of_the_encoder_is_shared_by_size():
    recorder = StepRecorder()

    def features():
        time.sleep(0.06)
        yield torch.zeros(30, 4), None
        yield torch.zeros(10, 4), None

    sizes = [len(rows) for rows, _ in recorder.encoding(features(), torch.device("cpu"))]
    first, second = recorder.finish().encoded
    assert sizes == [30, 10]
    assert first.encoder_s == pytest.approx(3 * second.encoder_s)
    assert first.encoder_s + second.encoder_s >= 0.06


def test_a_stopwatch_runs_until_it_is_stopped():
    watch = Stopwatch(torch.device("cpu"))
    time.sleep(0.01)
    watch.stop()
    seconds = watch.seconds
    time.sleep(0.01)
    assert 0.01 <= watch.seconds == seconds


def finished_report() -> RequestReport:
    """Of two videos of 100 tokens, 48 and 20 kept."""
    config = PruneConfig.parse({"method": "uniform", "keep_ratio": 0.2})
    counts = (plan_counts(PruneConfig.parse({"method": "uniform", "keep_ratio": 0.48}), 100), plan_counts(config, 100))
    places = zip((4, 60), counts, strict=True)
    media = tuple(PromptMedium(modality="video", offset=start, length=own.kept, counts=own) for start, own in places)
    facts = PromptFacts(config=config, media=media, prompt_len=96, processor_s=0.5)
    return RequestReport(facts, KVFormat(block_size=16, token_bytes=10), answered=True, finished=True)


def test_saved_blocks_are_those_of_the_whole_prompt():
    """96 tokens are 6 blocks and 228 are 15: partly filled blocks count once, not for every video."""
    report = finished_report()
    assert (report.before, report.kept, report.saved_blocks, report.saved_bytes) == (200, 68, 9, 9 * 160)


@pytest.mark.parametrize(
    ("cached", "tokens", "sources"),
    [
        (0, 0, ["encoder_cache", "encoder_cache"]),
        (32, 28, ["encoder_cache", "encoder_cache"]),
        (64, 52, ["prefix_cache", "encoder_cache"]),
        (80, 68, ["prefix_cache", "prefix_cache"]),
    ],
)
def test_what_a_hit_in_the_prefix_cache_covers(cached, tokens, sources):
    report = finished_report()
    report.cached_tokens = cached
    assert report.cached("video") == tokens
    assert report.sources() == sources
    report.add(RequestNotes(encoded={1: EncodedMedium(1.0, 0.5)}))
    assert report.sources() == [sources[0], "encoded"]


def chunk(content: str, finish_reason: str | None, **others) -> str:
    choices = [{"index": 0, "delta": {"content": content}, "finish_reason": finish_reason}]
    fields = {"id": "x", "created": 1, "model": "m", "choices": choices, **others}
    return f"data: {ChatCompletionStreamResponse(**fields).model_dump_json(exclude_unset=True)}\n\n"


def test_chunks_that_only_look_like_the_last_one_are_left_alone():
    tricky = '{"finish_reason":"stop"} "choices":[]'
    for event in (chunk(tricky, None), chunk("red", None), "data: [DONE]\n\n", ": keep alive\n\n"):
        assert add_to_chunk(event, finished_report()) == event


def test_last_chunks_keep_all_they_had():
    report = finished_report()
    usage = {"prompt_tokens": 3, "total_tokens": 4, "completion_tokens": 1}
    for event in (chunk("größer", "stop"), chunk("", "length"), chunk("", None, choices=[], usage=usage)):
        sent = add_to_chunk(event, report)
        assert sent.endswith("\n\n")
        fields = json.loads(sent.removeprefix("data: "))
        assert fields.pop("prune") == report.to_dict()
        assert fields == json.loads(event.removeprefix("data: "))
        assert add_to_chunk(event, None) == event


def test_the_log_names_what_was_done():
    lines = "\n".join(describe(finished_report()))
    assert "method uniform, preset custom, 200 -> 68 video tokens" in lines
    assert "video 1: tokens 100 detected, 100 after stage 1, 20 entering the model" in lines
    assert "kept at 60..79 of the prompt's 96" in lines
    assert "importance: by method uniform, without the question" in lines
    assert "image" not in lines


def test_the_log_says_of_images_what_is_true_of_them():
    config = PruneConfig.parse({"preset": "default", "image": {"method": "dpp", "keep_ratio": 0.2}})
    own = PromptMedium(modality="image", offset=4, length=20, counts=plan_counts(config.image.choice, 100))
    facts = PromptFacts(config=config, media=(own,), prompt_len=40, processor_s=0.5)
    report = RequestReport(facts, KVFormat(block_size=16, token_bytes=10), answered=True, finished=True)
    lines = "\n".join(describe(report))
    assert "images: method dpp, 100 -> 20 image tokens" in lines
    assert "importance of images: by method dpp, without the question" in lines
    assert "prefix cache: 0 of 20 image tokens reused" in lines
    assert "video" not in lines
    assert report.to_dict()["video_tokens"]["removed"] == 0
