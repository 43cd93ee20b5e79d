"""`vllm_prune:*` on the server's own /metrics, and the dashboard that is made of them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families
from serving_cases import QUESTION
from serving_media import data_url, mp4, png
from serving_plugin import wayward
from serving_server import image, text, video

from vllm_prune.config import PruneConfigError
from vllm_prune.serving.api.metrics_reasons import OTHER, OVERRIDE, reason_of

DASHBOARD = Path(__file__).parents[2] / "launch" / "grafana" / "vllm-prune.json"
ASK = text(QUESTION)
LONG = text(QUESTION * 10)


def clip(seed: int, frames: int = 128):
    """256 tokens before pruning, or 2 for each of the frames."""
    return video(data_url(mp4(frames, seed=seed)))


def samples(server) -> dict[tuple[str, frozenset], float]:
    """Every sample of ours, by name and labels (the model's name left out)."""
    found = {}
    for family in text_string_to_metric_families(httpx.get(f"{server.root}/metrics", timeout=30).text):
        for sample in family.samples:
            if sample.name.startswith("vllm_prune:"):
                labels = frozenset((k, v) for k, v in sample.labels.items() if k != "model_name")
                found[sample.name, labels] = sample.value
    return found


class Change:
    """What was added to the server's samples since this was made."""

    def __init__(self, server) -> None:
        self._server, self._before = server, samples(server)

    def __call__(self, name: str, **labels: str) -> float:
        """Of all samples of a name with these labels, the sum."""
        wanted = set(labels.items())
        after = samples(self._server)
        keys = [key for key in after if key[0] == f"vllm_prune:{name}" and wanted <= key[1]]
        return sum(after[key] - self._before.get(key, 0) for key in keys)


def test_a_request_is_counted_by_stage(open_server):
    change = Change(open_server)
    answer = open_server.ask(clip(61), ASK, prune="default")
    labels = {"method": "attention", "preset": "default", "modality": "video"}
    assert change("requests_total") == change("requests_total", **labels) == 1
    after = {"before": 256, "encoded": 256, "stage1": 128, "entering": 128, "kept": 51}
    for stage, tokens in after.items():
        assert change("video_tokens_sum", stage=stage, **labels) == tokens
        assert change("video_tokens_count", stage=stage, **labels) == 1
    assert change("removed_tokens_total", stage="stage1", **labels) == 128
    assert change("removed_tokens_total", stage="layers", **labels) == 77
    assert change("removed_tokens_total", stage="method") == 0
    assert change("kept_ratio_sum", **labels) == pytest.approx(51 / 256)
    for stage, seconds in answer.prune["seconds"].items():
        assert change("stage_time_seconds_sum", stage=stage, **labels) == pytest.approx(seconds, abs=1e-5)
    assert change("kv_blocks_saved_total", **labels) == answer.prune["kv_saved"]["blocks"] > 0
    assert change("kv_bytes_saved_total", **labels) == answer.prune["kv_saved"]["bytes"]


def test_hits_by_what_was_reused(open_server):
    film, prune = clip(62), {"method": "uniform", "keep_ratio": 0.5, "enable_stage1": False}
    change = Change(open_server)
    for content in ((film, LONG), (film, LONG), (ASK, film)):
        open_server.ask(*content, prune=prune)
    for source in ("encoded", "prefix_cache", "encoder_cache"):
        assert change("videos_total", source=source, method="uniform", preset="custom") == 1
    assert change("cached_tokens_total") == 128


def test_a_configuration_of_ones_own_is_called_custom(open_server):
    change = Change(open_server)
    for ratio in (0.31, 0.32, 0.33):
        open_server.ask(clip(63, 16), ASK, prune={"preset": "default", "keep_ratio": ratio})
    assert change("requests_total", preset="custom") == change("requests_total") == 3


def test_no_preset_is_about_images(open_server):
    change = Change(open_server)
    picture = image(data_url(png(112, 112, seed=67), "image/png"))
    for asked in ({"same_within": 0}, {"method": "attention", "keep_ratio": 0.4}):  # as `baseline` and `stage2_only`
        open_server.ask(picture, ASK, prune={"image": asked}, max_tokens=1)
    assert change("requests_total", modality="image", preset="custom") == 2


def test_text_is_not_counted(open_server):
    change = Change(open_server)
    open_server.ask(ASK)
    assert change("requests_total") == 0


REFUSED = [
    ("keep_ratio", [clip(64, 16), ASK], {"keep_ratio": 3}),
    ("target_token_num", [clip(64, 16), ASK], {"method": "uniform", "target_token_num": 10_000}),
    ("method", [ASK], {"method": "magic"}),
    ("preset", [ASK], "magic"),
]


@pytest.mark.parametrize(("reason", "content", "prune"), REFUSED, ids=[reason for reason, *_ in REFUSED])
def test_refusals_by_reason(open_server, reason, content, prune):
    """With a video or without one."""
    change = Change(open_server)
    with pytest.raises(openai.BadRequestError, match=reason):
        open_server.ask(*content, prune=prune)
    assert change("refusals_total", reason=reason) == change("refusals_total") == 1
    assert change("requests_total") == 0


def test_what_the_policy_forbids(server):
    change = Change(server)
    for prune in ("baseline", {"keep_ratio": 0.9}):
        with pytest.raises(openai.BadRequestError, match="--prune-override any"):
            server.ask(clip(65, 16), ASK, prune=prune)
    assert change("refusals_total", reason=OVERRIDE) == 2


def test_a_text_request_with_a_right_prune_is_answered(server):
    assert server.ask(ASK, prune={"keep_ratio": 0.2}).usage.completion_tokens == 3


def test_failures_are_no_savings(open_server):
    change = Change(open_server)
    with pytest.raises(openai.InternalServerError):
        open_server.ask(clip(66, 16), ASK, prune=wayward("raise"))
    assert change("failures_total", method="wayward") == change("unfinished_requests_total", state="error") == 1
    assert change("requests_total") == change("kv_blocks_saved_total") == change("video_tokens_count") == 0


def test_reasons_are_few():
    """Whatever a client writes, the label has one of a known number of values."""
    assert reason_of(PruneConfigError("prune={'oops'}: unknown key")) == "prune"
    assert reason_of(PruneConfigError("image.keep_ratio=3: must be above 0")) == "image.keep_ratio"
    assert reason_of(PruneConfigError("client_supplied=1: must not be there")) == OTHER
    assert reason_of(PruneConfigError("")) == OTHER


def test_the_dashboard_uses_names_that_exist(open_server):
    """Its queries name metrics of the running server, with labels that these have."""
    for request in ({"prune": "default"}, {"prune": {"method": "uniform", "keep_ratio": 0.5}}):
        open_server.ask(clip(67, 16), ASK, **request)
    for prune in ({"keep_ratio": 3}, wayward("raise")):
        with pytest.raises(openai.APIStatusError):
            open_server.ask(clip(67, 16), ASK, prune=prune)
    families = list(text_string_to_metric_families(httpx.get(f"{open_server.root}/metrics", timeout=30).text))
    labels = {sample.name: set() for family in families for sample in family.samples}
    for family in families:
        for sample in family.samples:
            labels[sample.name] |= set(sample.labels)
    queries = [
        target["expr"] for panel in json.loads(DASHBOARD.read_text())["panels"] for target in panel.get("targets", ())
    ]
    assert len(queries) >= 12
    for query in queries:
        names = re.findall(r"vllm(?:_prune)?:\w+", query)
        assert names
        for name in names:
            assert name in labels, query
        used = set(re.findall(r"(\w+)=~?\"", query)) | {
            label.strip() for group in re.findall(r"by \(([^)]*)\)", query) for label in group.split(",")
        }
        assert used <= set.union(*(labels[name] for name in names)), query


def test_every_metric_is_documented(open_server):
    described = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    text_of_metrics = httpx.get(f"{open_server.root}/metrics", timeout=30).text
    names = set(re.findall(r"^# TYPE (vllm_prune:\w+)", text_of_metrics, re.MULTILINE))
    assert len(names) >= 11
    missing = [name for name in names if not name.endswith("_created") and f"`{name}`" not in described]
    assert not missing
