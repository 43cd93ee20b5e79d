"""Requests that vLLM or we refuse after their media were processed: the next one with the same video is answered."""

from __future__ import annotations

import openai
import pytest
from serving_cases import QUESTION
from serving_media import data_url, mp4
from serving_server import text, video

ASK = text(QUESTION)
QUERY_AWARE = {"preset": "default", "keep_ratio": 0.25}

LATE = {
    "logprobs": {"logprobs": True, "top_logprobs": 500},
    "grammar": {"extra_body": {"structured_outputs": {"grammar": "root ::= ("}}},
    "allowed tokens": {"extra_body": {"allowed_token_ids": [10**7]}},
    "biased token": {"logit_bias": {"10000000": 1}},
    "answers of one temperature": {"n": 2},
    "too long a prompt": {"more": text("hello " * 3000)},
    "cut off before the video": {"extra_body": {"truncate_prompt_tokens": 3}},
    "too long a question for one step": {"more": text("hello " * 1900), "prune": QUERY_AWARE},
}


@pytest.mark.parametrize("case", LATE)
def test_a_late_refusal_leaves_nothing_behind(open_server, case):
    """The video of the refused request is new; another one is asked about before and after."""
    seed = 700 + 2 * list(LATE).index(case)
    film, other = (video(data_url(mp4(16, seed=seed + i))) for i in (0, 1))
    before = open_server.ask(other, ASK)
    options = dict(LATE[case])
    content = [film, *filter(None, [options.pop("more", None)]), ASK]
    with pytest.raises(openai.APIStatusError) as raised:
        open_server.ask(*content, **options)
    assert 400 <= raised.value.status_code < 500
    # "withheld" on a server that has seen a salt, which other tests of this session send.
    assert open_server.ask(film, ASK).prune["videos"][0]["source"] in ("encoded", "withheld")
    assert open_server.ask(film, other, ASK).choices[0].message.content
    assert open_server.ask(other, ASK).choices == before.choices
