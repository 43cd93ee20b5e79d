"""What is told of requests that did not end well, of searches, and of videos that others may have sent."""

from __future__ import annotations

import time
from collections import Counter
from unittest import mock

import httpx
import pytest
from prometheus_client import REGISTRY
from serving_cases import QUESTION
from serving_media import data_url, mp4
from serving_server import text, video
from test_serving_metrics import Change
from transformers import AutoTokenizer
from vllm.multimodal.inputs import PlaceholderRange
from vllm.v1.engine import FinishReason
from vllm.v1.metrics.stats import RequestStateStats

from vllm_prune.budget import plan_counts
from vllm_prune.config import PruneConfig
from vllm_prune.serving.api import metrics as metrics_module
from vllm_prune.serving.api.ends import engine_seconds, state_of
from vllm_prune.serving.api.log import describe, write_log
from vllm_prune.serving.api.metrics import PruneMetrics
from vllm_prune.serving.api.prompt_facts import PromptFacts, PromptMedium
from vllm_prune.serving.api.report import KVFormat, RequestReport
from vllm_prune.serving.api.salts import SharedMedia
from vllm_prune.serving.wire.notes import EncodedMedium

ASK = text(QUESTION)
LONG = text(QUESTION * 10)


def clip(seed: int):
    return video(data_url(mp4(16, seed=seed)))


def report(**fields) -> RequestReport:
    """Of one video of 256 tokens."""
    config = PruneConfig.parse("default")
    counts = plan_counts(config, 256)
    media = (PromptMedium(modality="video", offset=4, length=counts.kept, counts=counts),)
    facts = PromptFacts(config=config, media=media, prompt_len=80, processor_s=0.1)
    return RequestReport(facts, KVFormat(block_size=16, token_bytes=10), **fields)


def test_a_request_that_never_ran_has_no_times_and_no_source():
    stats = RequestStateStats(first_token_ts=8_900.0, last_token_ts=8_900.0)  # what an error's output leaves in it
    ended = report(state=state_of(FinishReason.ERROR), engine_s=engine_seconds(stats, answered=False))
    assert ended.engine_s == {}
    told = ended.to_dict()
    assert (told["state"], told["videos"][0]["source"]) == ("error", "unknown")
    lines = list(describe(ended))
    assert lines[0] == "state error: ended before it was answered"
    assert "encoder cache" not in "\n".join(lines)


def test_times_are_those_of_stamps_that_were_taken():
    stats = RequestStateStats(queued_ts=1.0, scheduled_ts=3.0, first_token_ts=7.0, last_token_ts=15.0)
    assert engine_seconds(stats, answered=True) == {"queue": 2, "prefill": 4, "decode": 8}
    assert engine_seconds(stats, answered=False) == {"queue": 2}
    stats.queued_ts = 0.0
    assert engine_seconds(stats, answered=True) == {"prefill": 4, "decode": 8}


@pytest.fixture
def metrics():
    """Those of this process, which has them already if an engine is in it."""
    if metrics_module._metrics is not None:
        yield metrics_module._metrics
        return
    made = PruneMetrics()
    yield made
    for collector in vars(made).values():
        REGISTRY.unregister(collector)


def values(metrics: PruneMetrics) -> Counter[tuple[str, ...]]:
    samples = (sample for own in vars(metrics).values() for family in own.collect() for sample in family.samples)
    return Counter({(s.name, *sorted(s.labels.values())): s.value for s in samples if not s.name.endswith("_created")})


@pytest.mark.parametrize(("reason", "state"), [(FinishReason.ERROR, "error"), (FinishReason.ABORT, "unfinished")])
def test_what_did_not_finish_is_counted_as_that(metrics, reason, state):
    before = values(metrics)
    metrics.observe("a model", report(state=state_of(reason)))
    added = {key: value for key, value in (values(metrics) - before).items() if value}
    assert [(name, value) for (name, *labels), value in added.items()] == [("vllm_prune:unfinished_requests_total", 1)]
    assert state in next(iter(added))


def test_a_search_is_one_request(open_server):
    film, change = clip(801), Change(open_server)
    search = {"use_beam_search": True}
    answer = open_server.ask(film, ASK, n=3, max_tokens=4, extra_body=search)
    assert len(answer.choices) == 3
    assert answer.prune["videos"][0]["source"] == "encoded"
    assert answer.prune["state"] == "done"
    assert list(answer.prune["seconds"]) == ["processor", "encoder", "merge", "queue", "prefill", "decode"]
    assert change("requests_total") == change("videos_total", source="encoded") == 1
    alone = open_server.ask(film, ASK, n=1, max_tokens=4, extra_body=search)
    assert alone.prune["video_tokens"] == answer.prune["video_tokens"]


def test_tokens_in_and_out_are_counted_though_the_answer_has_no_room(open_server):
    tokenizer = AutoTokenizer.from_pretrained(open_server.model)
    prompt = f"<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>{QUESTION}<|im_end|>\n"
    body = {"token_ids": tokenizer.encode(prompt), "sampling_params": {"max_tokens": 2}}
    body["content_parts"] = [{"type": "video_url", "url": clip(802)["video_url"]["url"]}]
    change = Change(open_server)
    answer = httpx.post(f"{open_server.root}/inference/v1/generate", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    assert "prune" not in answer.json()
    assert change("requests_total") == change("videos_total", source="encoded") == 1
    deadline = time.monotonic() + 10
    while "prune generate-tokens-" not in open_server.log():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def salted(server, film, salt: str | None, *content):
    return server.ask(film, *content, extra_body={"cache_salt": salt} if salt else {}).prune


def test_one_tenant_is_not_told_of_another(open_server):
    """Neither by the source, nor by a stage that was not needed."""
    film = clip(803)
    first, second = (salted(open_server, film, salt, LONG) for salt in ("a", "b"))
    assert [told["videos"][0]["source"] for told in (first, second)] == ["withheld", "withheld"]
    assert list(first["seconds"]) == list(second["seconds"]) == ["queue", "prefill", "decode"]
    # A stranger is told the same of it as of what nobody has sent.
    for unknown in (film, clip(804)):
        told = salted(open_server, unknown, None, LONG)
        assert (told["videos"][0]["source"], list(told["seconds"])) == ("withheld", list(first["seconds"]))
    # What a tenant itself has sent is its own; and nothing is kept among those who use no salt.
    assert salted(open_server, film, "a", LONG)["videos"][0]["source"] == "prefix_cache"
    assert salted(open_server, film, None, text("How many?"), ASK)["videos"][0]["source"] == "encoder_cache"


def test_a_request_id_writes_no_lines_of_its_own():
    with mock.patch("vllm_prune.serving.api.log.logger.info") as info:
        write_log("a\nINFO forged" + "b" * 10**5, report(answered=True))
    shown = info.call_args.args[1]
    assert shown.startswith("a?INFO forgedb")
    assert len(shown) < 300


def test_without_salts_nothing_is_withheld():
    shared = SharedMedia()
    places = {"video": [PlaceholderRange(offset=3, length=8)]}
    film, other = ({"mm_hashes": {"video": [name]}, "mm_placeholders": places} for name in ("film", "other"))
    assert shared.withheld(film) == frozenset()
    assert shared.withheld({**other, "cache_salt": "a"}) == {0}
    assert shared.withheld(film) == frozenset()
    assert shared.withheld(other) == {0}
    assert shared.withheld(other) == frozenset()
    assert shared.withheld({**film, "cache_salt": "b"}) == {0}


def test_what_is_withheld_is_in_no_line_of_the_log():
    told = report(answered=True, withheld=frozenset([0]), encoded={0: EncodedMedium(1.0, 1.0)})
    assert told.sources() == ["withheld"]
    assert "processor" not in "\n".join(describe(told))
