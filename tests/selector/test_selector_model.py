"""What a selector makes of tokens and a question."""

import subprocess
import sys

import pytest
import torch
from selector_cases import GRID, WIDTH, small_selector, tokens_and_words

from vllm_prune.selector import Selector, SelectorConfig

KINDS = ("match", "joint")


@pytest.mark.parametrize("kind", KINDS)
def test_score_equals_the_batched_forward_of_training(kind):
    selector = small_selector(kind)
    video, words = tokens_and_words()
    places = torch.cartesian_prod(*map(torch.arange, GRID))
    padded = torch.cat([words, torch.full((3, WIDTH), 7.0)])
    mask = torch.arange(8) < 5
    batched = selector(video[None], padded[None], mask[None], places, GRID)[0]
    torch.testing.assert_close(selector.score(video, words, None, GRID), batched, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_question_and_the_tokens_decide(kind):
    selector = small_selector(kind)
    video, words = tokens_and_words()
    _, other = tokens_and_words(seed=1)
    scores = selector.score(video, words, None, GRID)
    assert scores.dtype == torch.float32
    assert scores.unique().numel() == 12
    assert not torch.allclose(scores, selector.score(video, other, None, GRID))


def test_places_of_some_tokens_say_where_they_are():
    selector = small_selector("joint")
    video, words = tokens_and_words()
    places = torch.cartesian_prod(*map(torch.arange, GRID))
    assert torch.equal(selector.score(video, words, None, GRID), selector.score(video, words, places, GRID))
    moved = selector.score(video, words, places.flip(0), GRID)
    assert not torch.allclose(selector.score(video, words, places, GRID), moved)


@pytest.mark.parametrize("kind", KINDS)
def test_no_word_means_no_preference(kind):
    video, words = tokens_and_words()
    for none in (words[:0], torch.full_like(words, torch.nan)):
        assert small_selector(kind).score(video, none, None, GRID).tolist() == [0.0] * 12


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_a_broken_token_is_last_and_harms_no_other(kind, value):
    selector = small_selector(kind)
    video, words = tokens_and_words()
    broken = video.clone()
    broken[4, 1] = value
    scores = selector.score(broken, words, None, GRID)
    assert bool(scores.isfinite().all())
    if value != 3e38:
        assert scores[4] == scores.min()
    if kind == "match":
        others = torch.arange(12) != 4
        torch.testing.assert_close(scores[others], selector.score(video, words, None, GRID)[others])


def test_match_in_pieces_equals_match_at_once(monkeypatch):
    selector = small_selector()
    video, words = tokens_and_words()
    whole = selector.score(video, words, None, GRID)
    monkeypatch.setattr("vllm_prune.selector.model._CHUNK_NUMBERS", 30)
    torch.testing.assert_close(selector.score(video, words, None, GRID), whole)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_inputs_and_weights(kind, dtype):
    selector = small_selector(kind)
    video, words = tokens_and_words()
    exact = selector.score(video.to(dtype).float(), words.to(dtype).float(), None, GRID)
    torch.testing.assert_close(selector.score(video.to(dtype), words.to(dtype), None, GRID), exact)
    low = selector.to(dtype).score(video.to(dtype), words.to(dtype), None, GRID)
    assert low.dtype == torch.float32
    assert torch.corrcoef(torch.stack([low, exact]))[0, 1] > 0.99


@pytest.mark.parametrize(
    ("video", "text", "places", "message"),
    [
        (torch.zeros(12, 5), torch.zeros(2, WIDTH), None, "video: torch.float32 (12, 5)"),
        (torch.zeros(12, WIDTH), torch.zeros(2, 5), None, "text: torch.float32 (2, 5)"),
        (torch.zeros(11, WIDTH), torch.zeros(2, WIDTH), None, "video: 11 tokens for 12 places"),
        (torch.zeros(12, WIDTH, dtype=torch.int64), torch.zeros(2, WIDTH), None, "use floating point"),
    ],
)
def test_other_shapes_are_refused(video, text, places, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace(")", r"\)")):
        small_selector().score(video, text, places, GRID)


@pytest.mark.parametrize(
    "values",
    [{"kind": "other"}, {"width": 0}, {"width": 12.0}, {"hidden": 10, "heads": 4}, {"layers": 9}, {"heads": True}],
)
def test_configurations_out_of_range(values):
    with pytest.raises(ValueError, match=f"{next(iter(values))}={next(iter(values.values()))!r}"):
        SelectorConfig(**{"kind": "match", "width": 12, **values})


def test_size_of_match_at_the_embedded_models_width():
    parameters = Selector(SelectorConfig(kind="match", width=192)).parameters()
    assert sum(parameter.numel() for parameter in parameters) == 37_826


def test_importing_it_imports_neither_vllm_nor_transformers():
    script = "import sys, vllm_prune.selector\nprint(*{'vllm', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
