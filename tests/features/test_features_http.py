"""Features over HTTP, by the client and by plain requests."""

from __future__ import annotations

import base64
import json

import httpx
import numpy as np
import pytest
import torch
from serving_media import data_url, mp4, png
from serving_server import OPTIONS, Server, text, video

from vllm_prune.features import FeaturesClient, FeaturesError

CLIP = mp4(8, 112, 112, seed=1)
QUESTION = "What colour is the flash?"
UNIFORM = {"method": "uniform", "stage1": None, "keep_ratio": None, "target_token_num": 20}


def post(server: Server, *content: dict, **fields: object) -> httpx.Response:
    messages = [{"role": "user", "content": list(content)}]
    return httpx.post(f"{server.root}/pooling", json={"messages": messages, **fields}, timeout=120)


def ask(server: Server, **fields: object) -> httpx.Response:
    return post(server, video(data_url(CLIP)), text(QUESTION), **fields)


def test_the_client_gives_tensors_that_say_what_they_are(server):
    with FeaturesClient(server.root, config=UNIFORM, text="question", dtype="float32") as client:
        found = client.get(CLIP, QUESTION)
        t, h, w = found.grid_thw
        assert found.tokens.shape[0] == found.mask.sum() == len(found.cells) == 20
        assert (found.cells >= 0).all()
        assert (found.cells < torch.tensor([t, h, w])).all()
        assert torch.unique(found.cells, dim=0).shape[0] == 20
        assert found.seconds is not None
        assert torch.equal(found.seconds, found.cells[:, 0] * found.seconds.max() / (t - 1))
        assert found.text.shape == (len(found.text_ids), found.tokens.shape[1])
        assert found.report["video_tokens"]["kept"] == 20
        assert found.layer > 0


def test_the_client_gives_an_image_as_well(server):
    config = {"preset": "baseline", "image": {"method": "uniform", "target_token_num": 5}}
    with FeaturesClient(server.root, config=config) as client:
        found = client.get(png(112, 84), QUESTION, "image")
        assert found.grid_thw == (1, *found.parts[0])
        assert (len(found.tokens), found.seconds) == (5, None)
        with pytest.raises(ValueError, match="modality='audio'"):
            client.get(CLIP, QUESTION, "audio")


def test_repeated_questions_are_not_asked_again_and_others_encode_nothing(server):
    with FeaturesClient(server.root, config={"method": "uniform", "stage1": None, "keep_ratio": 0.3}) as client:
        first = client.get(CLIP, QUESTION)
        assert client.get(CLIP, QUESTION) is first
        assert client.requests == 1
        other = client.get(CLIP, "How many shapes?")
        assert other.report["videos"][0]["source"] == "encoder_cache"
        assert client.requests == 2
        # Nothing behind a video can change what it is, where the question has no say.
        assert torch.allclose(other.tokens, first.tokens, atol=1e-5)


def test_half_precision_travels_within_its_own_rounding(server):
    with (
        FeaturesClient(server.root, config=UNIFORM) as whole,
        FeaturesClient(server.root, config=UNIFORM, wire_dtype="float16") as half,
    ):
        wanted, found = whole.get(CLIP, QUESTION).tokens, half.get(CLIP, QUESTION).tokens
        assert torch.equal(found, wanted.half().float())


def test_rows_before_the_language_model_do_not_depend_on_the_question(server):
    with FeaturesClient(server.root, config=UNIFORM, layer=0) as client:
        assert torch.equal(client.get(CLIP, QUESTION).tokens, client.get(CLIP, "How many?").tokens)


def test_a_plain_request_is_answered_with_the_report(server):
    answer = ask(server, prune=UNIFORM, encoding_format="base64", features={"text": [-1]}).json()
    described = answer["features"]
    rows = np.frombuffer(base64.b64decode(answer["data"][0]["data"]), "<f4").reshape(-1, described["hidden_size"])
    assert len(rows) == 21
    assert described["text"]["rows"] == [20, 21]
    assert answer["prune"]["state"] == "done"
    assert answer["usage"]["prompt_tokens"] > 20


BAD = {
    "layer out of range": ({"features": {"layer": 99}}, "features.layer=99: the model has"),
    "layer not handed out": ({"features": {"layer": 1}}, "start it with --prune-features 0,1,"),
    "unknown field": ({"features": {"layers": 0}}, "unknown field 'layers'"),
    "pad without a target": ({"features": {"pad": True}, "prune": "stage1_only"}, "give prune.target_token_num"),
    "more tokens than there are": ({"prune": {**UNIFORM, "target_token_num": 5000}}, "the video has"),
    "a form without room": ({"encoding_format": "bytes"}, "encoding_format='bytes'"),
    "a wrong configuration": ({"prune": {"method": "best"}}, "method"),
    "prune in the wrong place": ({"keep_ratio": 0.1}, "nothing reads it there"),
}


@pytest.mark.parametrize(("fields", "message"), BAD.values(), ids=BAD)
def test_what_cannot_be_handed_out_is_a_mistake_of_the_client(server, fields, message):
    response = ask(server, **fields)
    assert response.status_code == 400, response.text
    assert message in response.json()["error"]["message"]


def test_text_alone_is_a_mistake_of_the_client(server):
    for response in (
        post(server, text(QUESTION)),
        httpx.post(f"{server.root}/pooling", json={"input": QUESTION}, timeout=120),
    ):
        assert response.status_code == 400, response.text
        assert "features: the request has no video" in response.json()["error"]["message"]


def test_a_client_that_expects_another_precision_is_told(server):
    with FeaturesClient(server.root, dtype="bfloat16") as client, pytest.raises(FeaturesError, match="in float32"):
        client.get(CLIP, QUESTION)


@pytest.mark.long
def test_a_client_with_another_configuration_is_told(tmp_path):
    """By a server that allows none but its own."""
    options = (*OPTIONS, "--runner", "pooling")
    with Server("embedded", tmp_path, prune=json.dumps(UNIFORM), override="none", options=options) as strict:
        with FeaturesClient(strict.root, config=UNIFORM) as client:
            assert len(client.get(CLIP, QUESTION).tokens) == 20
        with (
            FeaturesClient(strict.root, config={**UNIFORM, "target_token_num": 10}) as client,
            pytest.raises(FeaturesError, match=r"400: prune=.*: this server allows no override"),
        ):
            client.get(CLIP, QUESTION)


def test_a_client_is_told_what_the_server_refuses(server):
    with (
        FeaturesClient(server.root, layer=99) as client,
        pytest.raises(FeaturesError, match=r"400: features.*=99"),
    ):
        client.get(CLIP, QUESTION)
