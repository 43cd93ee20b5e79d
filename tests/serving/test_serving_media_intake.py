"""Files of all kinds sent to a running server: whole ones are answered, others get a 4xx, and the server stays up."""

from __future__ import annotations

import os
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest
from serving_cases import QUESTION
from serving_media import data_url, mp4
from serving_server import FEW_BLOCKS, OPTIONS, Server, text, video

sys.path.insert(0, str(Path(__file__).parents[1] / "media"))
from media_files import TEXTS, gif, kept, picture, written

GOOD = video(data_url(mp4(16, 112, 112, seed=1)))
WHOLE = {
    **{name: kept(name) for name in ("b_frames.ts", "live.webm", "trailing_id3.mp4", "trailing_text.mp4")},
    **{ending: written(ending) for ending in ("mov", "mkv", "m2ts", "mpg", "flv")},
    "gif": gif(),
}
REFUSED = {
    "av1.mp4": (kept("av1.mp4"), ["codec is AV1", "ffmpeg -i INPUT -c:v libx264"]),
    "crash.avi": (kept("crash.avi"), ["AVI", "ffmpeg -i INPUT", "--prune-containers avi"]),
    "one_frame.mp4": (kept("one_frame.mp4"), ["1 frame(s)", "image_url"]),
    "sdp": (TEXTS["sdp"], ["names other files"]),
    "hls": (TEXTS["hls"], ["names other files"]),
    "ffconcat": (TEXTS["ffconcat"], ["names other files"]),
    "picture": (picture("WEBP"), ["WebP picture", "image_url"]),
    "wmv": (written("wmv"), ["ASF", "ffmpeg -i INPUT", "--prune-containers asf"]),
}


@pytest.mark.parametrize("name", WHOLE)
def test_whole_files_are_answered(server, name):
    assert server.ask(video(data_url(WHOLE[name])), text(QUESTION), max_tokens=1).usage.completion_tokens == 1


@pytest.mark.parametrize("name", REFUSED)
def test_other_files_are_refused_in_words(server, name):
    data, said = REFUSED[name]
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        server.ask(video(data_url(data)), text(QUESTION), max_tokens=1)
    assert all(part in refused.value.message for part in said), refused.value.message
    assert "whole of a video file" not in refused.value.message
    assert server.ask(GOOD, text(QUESTION), max_tokens=1).usage.completion_tokens == 1


def test_texts_that_name_addresses_hold_nobody_up(server):
    """FFmpeg would wait ten seconds for each of these to send something."""
    sdp = video(data_url(TEXTS["sdp"]))

    def ask(content: dict) -> type:
        try:
            return type(server.ask(content, text(QUESTION), max_tokens=1))
        except openai.APIStatusError as error:
            return type(error)

    begin = time.monotonic()
    with ThreadPoolExecutor(17) as threads:
        answers = list(threads.map(ask, [*[sdp] * 16, GOOD]))
    assert answers[:-1] == [openai.UnprocessableEntityError] * 16
    assert not issubclass(answers[-1], Exception)
    assert time.monotonic() - begin < 10


def decoders(server: Server) -> list[int]:
    """The decoding processes of a server."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            command = (folder / "cmdline").read_bytes()
            if b"vllm_prune/media/child.py" in command and str(server.pid).encode() in command.split(b"\0"):
                found.append(int(folder.name))
        except (OSError, ValueError):
            continue
    return found


def test_nobody_is_warned_of_the_page_that_nobody_asked_for(server):
    assert "prune_page" not in server.log()


@pytest.mark.long
def test_three_hundred_damaged_files(model, tmp_path):
    """Eight formats, damaged in five ways, AVI among them as an operator may let it in."""
    clips = {ending: written(ending) for ending in ("mp4", "mov", "mkv", "webm", "ts", "mpg", "flv", "avi")}
    choose = random.Random(0)
    files = [_damage(choose, clips[choose.choice(sorted(clips))]) for _ in range(299)] + [kept("crash.avi")]
    options = (*OPTIONS, *FEW_BLOCKS, "--prune-containers", "avi")
    with Server(model, tmp_path, prune='{"stage1": {"cluster_ratio": 0.5}}', options=options) as running:

        def send(data: bytes) -> int:
            body = {"model": running.model, "max_tokens": 1}
            body["messages"] = [{"role": "user", "content": [video(data_url(data)), text(QUESTION)]}]
            return httpx.post(f"{running.root}/v1/chat/completions", json=body, timeout=300).status_code

        with ThreadPoolExecutor(4) as threads:
            codes = list(threads.map(send, files))
        assert {code for code in codes if not (code == 200 or 400 <= code < 500)} == set()
        assert codes.count(200) > 10
        assert codes[-1] == 422
        assert running.ask(GOOD, text(QUESTION), max_tokens=1).usage.completion_tokens == 1
        left = decoders(running)
        assert 1 <= len(left) <= 8
    deadline = time.monotonic() + 60
    while any(os.path.exists(f"/proc/{pid}") for pid in left):
        assert time.monotonic() < deadline, "decoders outlive their server"
        time.sleep(0.1)


def _damage(choose: random.Random, data: bytes) -> bytes:
    """Bytes changed, a part cut out, doubled, zeroed or put in place of another, or the end left out."""
    made = bytearray(data)
    a, b = sorted(choose.sample(range(len(data)), 2))
    size = min(b - a, 2000)
    match choose.randrange(6):
        case 0:
            for _ in range(choose.randint(1, 60)):
                made[choose.randrange(len(made))] = choose.randrange(256)
        case 1:
            del made[a : a + size]
        case 2:
            made[a:a] = data[a : a + size]
        case 3:
            made[a : a + size] = bytes(size)
        case 4:
            made[a : a + size] = data[b - size : b]
        case 5:
            del made[choose.randint(len(data) // 3, len(data) - 1) :]
    return bytes(made)
