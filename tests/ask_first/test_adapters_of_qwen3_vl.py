"""Adapters on Qwen3-VL, whose embeddings they may change: a question chooses by the checkpoint's own."""

from __future__ import annotations

import pytest
from adapters import merged, write_adapter
from allowed import LEARNED
from dense_cases import VIDEO, Case, Oracle, chat, compare, video
from dense_engine import RemoteEngine
from oracle import load_model
from oracle.micro_model import load_by_place, micro_selector, write_micro_model
from transformers import AutoProcessor

pytestmark = pytest.mark.long
QUESTION = "What colour is the flash?"
OPTIONS = {"override": "tighten", "enable_lora": True, "max_loras": 2, "max_lora_rank": 8}


@pytest.mark.parametrize("relevance", ["learned", "text"])
def test_adapters_change_answers_and_no_choice(tmp_path, relevance):
    """One adapter of the layers, one that also changes the embeddings of the question's words.

    (Of these words, since what stands between the steps of a video is embedded for all adapters at once.)
    """
    model = write_micro_model(tmp_path / "micro", family="qwen3_vl")
    path, base, processor = micro_selector(str(model)), load_model(model), AutoProcessor.from_pretrained(model)
    selectors = load_by_place([path])
    words = [*processor.tokenizer(QUESTION).input_ids]
    adapters = [write_adapter(tmp_path / str(seed), base, seed, words=words * (seed - 1)) for seed in (1, 2)]
    config = {**LEARNED, "params": {"relevance": relevance}}
    adapted = [Oracle(merged(base, folder), processor, config, selectors, base) for folder in adapters]
    by_adapted_words = Oracle(adapted[1].model, processor, config, selectors)
    case = Case(chat(VIDEO + QUESTION), (video(3, 10),))
    assert not adapted[1](case, 4).kept[0].equal(by_adapted_words(case, 4).kept[0]), "the test could not fail"
    with RemoteEngine(str(model), config, selector=path, **OPTIONS) as engine:

        def check(step_tokens: int | None = None) -> list[int]:
            """How many tokens came from the prefix cache."""
            answers = engine.run([case.prompt()] * 2, adapters=adapters, step_tokens=step_tokens)
            for answer, expected in zip(answers, adapted, strict=True):
                compare([case], [answer], expected)
            return [answer.num_cached for answer in answers]

        assert check() == [0, 0]
        assert all(check())
        engine.call("forget")
        assert check(step_tokens=23) == [0, 0]
