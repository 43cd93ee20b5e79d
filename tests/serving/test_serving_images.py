"""Images over HTTP: counts, report, headers, metrics, log, and bad input."""

from __future__ import annotations

import functools
import io
import json

import openai
import pytest
from PIL import Image
from serving_cases import QUESTION
from serving_media import data_url, mp4, png
from serving_server import image, text, video

from vllm_prune.cli.main import main

CLIP = video(data_url(mp4(16, 112, 112, seed=1)))  # 32 tokens before pruning
ASK = text(QUESTION)
BY_HALF = {"image": {"method": "dpp", "keep_ratio": 0.5}}


def picture(height: int = 112, width: int = 112, seed: int = 3):
    return image(data_url(png(height, width, seed=seed), "image/png"))


def animated(kind: str) -> bytes:
    """Two frames, of which the first is that of `picture()`."""
    file = io.BytesIO()
    first, second = (Image.open(io.BytesIO(png(112, 112, seed=seed))).convert("RGB") for seed in (3, 4))
    options = {"lossless": True} if kind == "webp" else {}
    first.save(file, kind, save_all=True, append_images=[second], duration=100, **options)
    return file.getvalue()


def counts(answer) -> dict[str, int]:
    return answer.usage.prompt_tokens_details.multimodal_tokens


def refuse(server, *content, **options) -> str:
    """The message of a 4xx; the next request is answered."""
    with pytest.raises(openai.APIStatusError) as refused:
        server.ask(*content, max_tokens=1, **options)
    assert 400 <= refused.value.status_code < 500, refused.value
    assert len(refused.value.message) < 1000
    assert server.ask(picture(), ASK, prune=BY_HALF, max_tokens=1).usage.completion_tokens == 1
    return refused.value.message


def test_an_image_is_counted_and_reported(open_server):
    whole = open_server.ask(picture(), ASK, max_tokens=2)
    answer = open_server.ask(picture(), ASK, prune=BY_HALF, max_tokens=2)
    assert counts(whole) == {"image": 16}
    assert counts(answer) == {"image": 8, "image_before_pruning": 16}
    assert whole.usage.prompt_tokens - answer.usage.prompt_tokens == 8
    assert answer.prune["image_tokens"] == {"before": 16, "kept": 8, "removed": 0.5, "structure": 0}
    assert (answer.prune["images"][0]["kept"], answer.prune["images"][0]["source"]) == (8, "encoded")
    assert answer.prune["config"]["image"] == BY_HALF["image"]
    assert {"encoder", "merge"} <= answer.prune["seconds"].keys()
    assert answer.prune["videos"] == []
    assert answer.prune["video_tokens"]["removed"] == 0
    again = open_server.ask(picture(), ASK, prune=BY_HALF, max_tokens=2)
    assert again.prune["images"][0]["source"] != "encoded"
    other = open_server.ask(picture(), ASK, prune={"image": {"method": "uniform", "keep_ratio": 0.5}}, max_tokens=2)
    assert other.prune["images"][0]["source"] == "encoded", "pruned another way, it is another image"


def test_images_and_videos_of_several_turns_are_counted_apart(open_server):
    content = [picture(seed=5), CLIP, ASK, picture(56, 112, seed=6), ASK]
    answer = open_server.ask(*content, prune={"image": {"method": "tome", "total": 6}}, max_tokens=2)
    assert counts(answer) == {"image": 6, "image_before_pruning": 24, "video": 16, "video_before_pruning": 32}
    assert [item["kept"] for item in answer.prune["images"]] == [4, 2]
    assert [item["source"] for item in answer.prune["images"]] == ["encoded", "encoded"]
    assert [item["kept"] for item in answer.prune["videos"]] == [16]
    assert answer.prune["video_tokens"]["before"] == 32


def test_headers_and_metrics_name_images(open_server):
    request = open_server.client.chat.completions.with_raw_response
    body = {"model": open_server.model, "messages": [{"role": "user", "content": [picture(seed=8), ASK]}]}
    headers = request.create(**body, max_tokens=1, extra_body={"prune": BY_HALF}).headers
    assert headers["vllm-prune-image-method"] == "dpp"
    assert (headers["vllm-prune-image-tokens-before"], headers["vllm-prune-image-tokens-kept"]) == ("16", "8")
    assert "vllm-prune-video-tokens-kept" not in headers


WRONG = [
    ({"image": {"ratio": 0.5}}, "image: unknown key 'ratio'"),
    ({"image": {"method": "dpp", "keep_ratio": 2}}, "image.keep_ratio=2: must be above 0 and at most 1"),
    ({"image": {"keep_ratio": 0.5}}, "image.keep_ratio=0.5: needs image.method"),
    ({"image": {"method": "evs", "keep_ratio": 0.5}}, "image.method='evs': takes videos only: it keeps the first"),
    ({"image": {"method": "flashvid"}}, "image.method='flashvid': takes videos only: it links"),
    ({"image": 3}, "image=3: must be an object, or false"),
    ({"images": {"method": "dpp"}}, "unknown key 'images'"),
    ({"image": {"method": "attention", "layers": [99]}}, "image.layers=[99]: must lie between 0 and"),
]


@pytest.mark.parametrize(("prune", "said"), WRONG, ids=[str(prune) for prune, _ in WRONG])
@pytest.mark.parametrize("content", [[ASK], [picture(), ASK], [CLIP, ASK]], ids=["text only", "image", "video"])
def test_a_wrong_key_is_refused_whatever_the_request_has(open_server, prune, said, content):
    assert said in refuse(open_server, *content, prune=prune)


def test_a_wrong_key_is_refused_with_a_prompt_of_text(open_server):
    """`/v1/completions`, which takes no media."""
    ask = functools.partial(open_server.client.completions.create, model=open_server.model, prompt="a", max_tokens=1)
    with pytest.raises(openai.BadRequestError, match="image: unknown key 'ratio'"):
        ask(extra_body={"prune": {"image": {"ratio": 0.5}}})
    assert ask(extra_body={"prune": BY_HALF}).usage.completion_tokens == 1


MISPLACED = {
    "beside messages": ([picture()], BY_HALF, "image: nothing reads it there"),
    "of the threshold": ([picture()], {"same_within": 0}, "same_within: nothing reads it there"),
    "in an address": (
        [{"type": "image_url", "image_url": {"url": picture()["image_url"]["url"], "prune": BY_HALF}}],
        {},
        "content part 0, prune: nothing reads it there",
    ),
    "under its own name in an address": (
        [{"type": "image_url", "image_url": {"url": picture()["image_url"]["url"], **BY_HALF}}],
        {},
        "content part 0, image: nothing reads it there",
    ),
}


@pytest.mark.parametrize("name", MISPLACED)
def test_what_nothing_reads_is_refused(open_server, name):
    content, body, said = MISPLACED[name]
    assert said in refuse(open_server, *content, ASK, extra_body=body)


ADDRESSES = {
    "no base64": ("data:image/png,abc", "base64"),
    "unreachable": ("http://127.0.0.1:9/page.png", "Cannot connect"),
    "local file": ("file:///etc/hostname", "--allowed-local-media-path"),
    "no picture": (data_url(b"hello", "image/png"), "send a PNG, JPEG, "),
    "a drawing": (data_url(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml"), "draw others (SVG, PDF) as"),
    "half a picture": (
        data_url(png(112, 112)[:-99], "image/png"),
        "send the whole of a picture file as data:image/png",
    ),
    "too large": (data_url(b"P5 100000 100000 255\n", "image/x-portable-graymap"), "pixels, could be"),
}


@pytest.mark.parametrize("name", ADDRESSES)
def test_addresses_that_lead_nowhere(open_server, name):
    url, said = ADDRESSES[name]
    message = refuse(open_server, image(url), ASK)
    assert f"image_url='{url[:30]}" in message
    assert said in message


def test_a_total_below_the_number_of_images_is_refused(open_server):
    prune = {"image": {"method": "dpp", "total": 1}}
    assert "image.total=1: the request has 2 images" in refuse(open_server, picture(), picture(), ASK, prune=prune)


def test_images_are_refused_where_the_server_prunes_none_of_them(server):
    with pytest.raises(openai.BadRequestError, match="changes image, but"):
        server.ask(picture(), ASK, prune=BY_HALF, max_tokens=1)


@pytest.mark.parametrize("amount", [{"keep_ratio": 0.25}, {"total": 2}], ids=["ratio", "total"])
def test_one_pixel_is_an_image(open_server, amount):
    tiny = image(data_url(png(1, 1), "image/png"))
    answer = open_server.ask(tiny, ASK, prune={"image": {"method": "dpp", **amount}}, max_tokens=1)
    assert counts(answer) == {"image": 1, "image_before_pruning": 1}


@pytest.mark.parametrize("image_config", [{"method": "dpp", "total": 2}, {"same_within": 0}, False], ids=str)
def test_a_line_is_refused(open_server, image_config):
    """Also where its size is asked for beforehand, and where nothing prunes it."""
    line = image(data_url(png(20, 20_000), "image/png"))
    message = refuse(open_server, picture(), line, ASK, prune={"image": image_config})
    assert "image 1 has 20000x20 pixels: the longer side must not be above 200 times the shorter one" in message


@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_of_an_animation_the_first_frame_is_pruned(open_server, kind):
    """As vLLM takes it."""
    moving = image(data_url(animated(kind), f"image/{kind}"))
    answer = open_server.ask(moving, ASK, prune=BY_HALF, max_tokens=2)
    assert counts(answer) == {"image": 8, "image_before_pruning": 16}
    if kind == "webp":  # without loss
        still = open_server.ask(picture(), ASK, prune=BY_HALF, max_tokens=2)
        assert answer.choices[0].message.content == still.choices[0].message.content


def test_chat_asks_about_a_picture(open_server, tmp_path, capsys):
    path = tmp_path / "picture.png"
    path.write_bytes(png(112, 112, seed=9))
    options = ("--url", f"{open_server.root}/v1", "--max-tokens", "2", "--prune", json.dumps(BY_HALF))
    assert main(["chat", str(path), QUESTION, *options]) == 0
    assert "image: 8 of 16 tokens kept, 50%" in capsys.readouterr().out
    assert main(["chat", str(path), QUESTION, *options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["image_tokens"], found["image_tokens_before_pruning"]) == (8, 16)
