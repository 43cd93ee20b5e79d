"""Invariants 1 and 2: placeholders, rows of the model and KV blocks are those of the tokens that stay."""

from __future__ import annotations

import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving_cases import CASES, IMAGE, QUESTION, VIDEO, ask, chat, prompt
from serving_engine import BLOCK_SIZE, Engine, client_id, prune
from serving_media import image_item, video_item

from vllm_prune.budget import plan_counts
from vllm_prune.config import PruneConfig
from vllm_prune.methods import registry

METHODS = [
    {"stage1": {"cluster_ratio": 0.5}},
    {"stage1": {"cluster_ratio": 0.3, "tau": 0.7, "temporal_segment_ratio": 0.5}, "target_token_num": 7},
    {"stage1": {"cluster_ratio": 0.5}, "method": "uniform", "keep_ratio": 0.5},
    {"method": "uniform", "target_token_num": 1},
    {"method": "random", "keep_ratio": 0.1, "params": {"seed": 3}},
    {"preset": "default"},
]
VIDEOS = {name: case for name, case in CASES.items() if "video" in case.get("multi_modal_data", {})}


def grids_of(case: dict) -> list[int]:
    """Tokens of each video before pruning, by vLLM's own processor's rules: pairs of frames, cells of 28 pixels."""
    return [
        math.ceil(frames.shape[0] / 2) * (frames.shape[1] // 28) * (frames.shape[2] // 28)
        for frames, _ in case["multi_modal_data"]["video"]
    ]


def kept_of(case: dict, config: dict) -> int:
    parsed = PruneConfig.parse(config)
    return sum(plan_counts(parsed, num_tokens).kept for num_tokens in grids_of(case))


@pytest.fixture(scope="module")
def num_rows(shared_engine: Engine):
    """Counts the rows that the model yields, as it yields them."""
    rows: list[int] = []
    embed = shared_engine.model.embed_multimodal

    def counting(**inputs):
        outputs = embed(**inputs)
        rows.extend(len(output) for output in outputs)
        return outputs

    shared_engine.model.embed_multimodal = counting
    yield rows
    shared_engine.model.embed_multimodal = embed


@pytest.mark.parametrize("config", METHODS, ids=str)
def test_placeholders_are_rows_for_every_method_and_grid(engine, stock, config):
    fewest = config.get("target_token_num", 1)
    videos = {name: case for name, case in VIDEOS.items() if min(grids_of(case)) >= fewest}
    if PruneConfig.parse(config).query_aware:  # needs a question behind the video
        videos = {name: case for name, case in videos.items() if not case["prompt"].endswith("<|video_pad|>")}
    assert len(videos) > 6
    answers = engine.run([prune(case, config) for case in videos.values()], max_tokens=1)
    for (name, case), answer in zip(videos.items(), answers, strict=True):
        removed = sum(grids_of(case)) - kept_of(case, config)
        assert answer.prompt_len == stock[name].prompt_len - removed, name


QUERY_FREE = [name for name in registry.names() if getattr(registry.load(name), "relevance", "unused") != "required"]


@pytest.mark.parametrize("method", QUERY_FREE)
def test_every_method_serves_small_and_large_videos(engine, method):
    """A worker that raises ends the server, so whatever a request may name must work on whatever a video may be."""
    names = ["one token", "two tokens", "one frame", "odd number of frames", "tall", "many positions"]
    for ratio in (0.01, 0.2, 0.5):
        config = {"method": method, "keep_ratio": ratio}
        answers = engine.run([prune(CASES[name], config) for name in names], max_tokens=1)
        video_token_id = engine.model.config.video_token_id
        for name, answer in zip(names, answers, strict=True):
            assert answer.prompt_token_ids.count(video_token_id) == kept_of(CASES[name], config), name


@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    frames=st.integers(1, 9),
    height=st.integers(1, 5),
    width=st.integers(1, 5),
    method=st.sampled_from(["stage1", "uniform", "random"]),
    amount=st.one_of(st.floats(0.01, 1.0), st.integers(1, 60)),
)
def test_any_grid_and_any_amount(engine, num_rows, frames, height, width, method, amount):
    field = "target_token_num" if isinstance(amount, int) else "keep_ratio"
    config = {field: amount, **({"stage1": True} if method == "stage1" else {"method": method})}
    num_tokens = math.ceil(frames / 2) * height * width
    if field == "target_token_num" and amount > num_tokens:
        config[field] = num_tokens
    kept = plan_counts(PruneConfig.parse(config), num_tokens).kept
    case = ask(frames, 28 * height, 28 * width, seed=frames)
    num_rows.clear()
    engine.core.reset_encoder_cache()
    (answer,) = engine.run([prune(case, config)], max_tokens=1)
    (text,) = engine.run([prompt(chat(VIDEO.replace("<|video_pad|>", "") + QUESTION))], max_tokens=1)
    assert answer.prompt_len == text.prompt_len + kept
    assert num_rows == [kept]


def test_a_request_holds_the_blocks_of_text_and_kept_tokens(engine):
    """Ten requests that differ in video, method, amount and text, running at once."""
    requests = [
        (ask(16, 112, 140, seed=1), {"method": "uniform", "keep_ratio": 0.25}),
        (ask(16, 112, 140, seed=1), {"method": "uniform", "keep_ratio": 0.5}),
        (ask(16, 112, 140, seed=2), {"stage1": {"cluster_ratio": 0.3}}),
        (ask(16, 224, 224, seed=3), {"stage1": {"cluster_ratio": 0.5}, "method": "random", "keep_ratio": 0.1}),
        (ask(16, 224, 224, seed=4, question=QUESTION * 12), {"method": "random", "keep_ratio": 0.9}),
        (ask(32, 224, 224, seed=5), {"stage1": True, "target_token_num": 20}),
        (ask(32, 224, 224, seed=6), {"stage1": True, "target_token_num": 21}),
        (ask(1, 28, 28, seed=7), {"method": "uniform", "keep_ratio": 0.5}),
        (CASES["two videos, text between"], {"method": "uniform", "target_token_num": 16}),
        (CASES["turns"], {"stage1": {"cluster_ratio": 0.25}}),
    ]
    free = engine.num_free_blocks()
    ids = engine.add([prune(case, config) for case, config in requests], max_tokens=8)
    held = blocks_after_prefill(engine)
    for request_id, (case, config) in zip(map(client_id, ids), requests, strict=True):
        prompt_len, num_blocks = held[request_id]
        text = prompt_len - kept_of(case, config)
        assert 10 < text < 200
        assert num_blocks == math.ceil((text + kept_of(case, config)) / BLOCK_SIZE)
    assert len({num_blocks for _, num_blocks in held.values()}) > 5
    # No two of them share a full block: their videos or configurations differ.
    assert free - engine.num_free_blocks() == sum(engine.blocks_held().values())
    while engine.llm.llm_engine.has_unfinished_requests():
        engine.step()


def blocks_after_prefill(engine: Engine) -> dict[str, tuple[int, int]]:
    """Prompt length and blocks of every request, in the step in which its prompt is complete."""
    found: dict[str, tuple[int, int]] = {}
    while len(found) < len(engine.scheduler.requests):
        engine.step()
        held = engine.blocks_held()
        for request in engine.scheduler.running:
            if request.num_computed_tokens == request.num_prompt_tokens:
                request_id = client_id(request.request_id)
                found[request_id] = (request.num_prompt_tokens, held[request_id])
    return found


def test_the_attention_sees_the_pruned_length(engine):
    """`seq_lens` that the attention backend is given: nothing is masked and kept."""
    from vllm.forward_context import get_forward_context

    lengths: list[list[int]] = []

    def look(_module, _inputs):
        metadata = get_forward_context().attn_metadata
        if metadata:
            lengths.append(next(iter(metadata.values())).seq_lens.tolist())

    hook = engine.model.language_model.model.layers[-1].register_forward_pre_hook(look)
    try:
        case, config = ask(16, 224, 224, seed=8), {"method": "uniform", "keep_ratio": 0.125}
        (answer,) = engine.run([prune(case, config)], max_tokens=3)
    finally:
        hook.remove()
    assert sum(grids_of(case)) == 512
    assert answer.prompt_len < 64 + 64
    assert lengths == [[answer.prompt_len + i] for i in range(3)]


def test_images_are_never_pruned(engine, stock):
    case = prompt(chat(IMAGE + QUESTION), images=[image_item(112, 112, seed=3)])
    (answer,) = engine.run([prune(case, {"method": "uniform", "keep_ratio": 0.1})])
    assert answer.prompt_len == stock["image"].prompt_len
    assert answer.token_ids == stock["image"].token_ids


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"method": "attention", "layers": [5]}, r"layers=\[5\]: must lie between 0 and 4"),
        ({"method": "attention", "layers": [1, 99]}, r"layers=\[1, 99\]: must lie between"),
        ({"method": "random", "params": {"seed": -1}}, "seed=-1"),
    ],
)
def test_what_would_fail_in_a_worker_is_refused_before(engine, config, said):
    with pytest.raises(ValueError, match=said):
        engine.run([prune(CASES["video"], config)], max_tokens=1)
    (answer,) = engine.run([CASES["video"]], max_tokens=1)
    assert len(answer.token_ids) == 1


def test_videos_of_one_prompt_keep_their_own_shares(engine):
    """The budget is each video's, not the prompt's."""
    videos = [video_item(2, 56, 56, seed=1), video_item(16, 112, 112, seed=2)]
    case = prompt(chat(f"{VIDEO}{VIDEO}{QUESTION}"), videos=videos)
    config = {"method": "uniform", "target_token_num": 10}
    engine.run([prune(case, {"method": "uniform", "keep_ratio": 0.5})], max_tokens=1)
    with pytest.raises(ValueError, match=r"target_token_num=10: the video has 4 tokens"):
        engine.run([prune(case, config)], max_tokens=1)


def test_the_encoder_takes_no_more_at_once_than_fits(engine, monkeypatch):
    """However few tokens the videos of a step keep; a video that has more goes alone."""
    config = {"method": "uniform", "target_token_num": 1}
    case = prune(CASES["two videos, adjacent"], config)
    (whole,) = engine.run([case])
    sizes = grids_of(case)
    calls: list[int] = []
    monkeypatch.setattr(engine.model, "_encoder_tokens", max(sizes))
    hook = engine.model.visual.register_forward_hook(lambda _model, _inputs, rows: calls.append(len(rows)))
    engine.forget()
    (in_parts,) = engine.run([case])
    hook.remove()
    assert sorted(calls) == sorted(sizes)
    assert in_parts.token_ids == whole.token_ids


@pytest.mark.parametrize(
    "config",
    [
        {"method": "uniform", "target_token_num": 5},
        {"method": "visionzip", "keep_ratio": 0.4},
        {"preset": "stage1_only", "stage1": {"where": "processor"}},
    ],
    ids=["uniform", "visionzip", "pixel plan"],
)
def test_a_video_longer_than_a_call_of_the_encoder_is_encoded_in_groups_of_frames(engine, monkeypatch, config):
    case = prune(prompt(chat(f"{VIDEO}{QUESTION}"), videos=[video_item(16, 112, 112, seed=2)]), config)
    engine.forget()
    (whole,) = engine.run([case])
    calls: list[int] = []
    monkeypatch.setattr(engine.model, "_encoder_tokens", 20)
    hook = engine.model.visual.register_forward_hook(lambda _model, _inputs, rows: calls.append(len(rows)))
    engine.forget()
    (in_groups,) = engine.run([case])
    hook.remove()
    assert len(calls) > 1
    assert max(calls) <= 32
    assert in_groups.token_ids == whole.token_ids
