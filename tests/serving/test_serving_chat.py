"""`vllm-prune chat` against a server."""

from __future__ import annotations

import json

import pytest
from serving_cases import QUESTION
from serving_media import data_url, mp4
from serving_server import text, video

from vllm_prune.cli.main import main

CLIP = mp4(16, 112, 112, seed=1)  # 32 tokens before pruning


@pytest.fixture
def chat(server, capsys):
    def chat(source: str, *options: str) -> tuple[int, str, str]:
        status = main(["chat", source, QUESTION, "--url", f"{server.root}/v1", "--max-tokens", "4", *options])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return chat


@pytest.fixture
def sources(files, tmp_path) -> dict[str, str]:
    path = tmp_path / "clip.mp4"
    path.write_bytes(CLIP)
    return {"file": str(path), "data URL": data_url(CLIP), "http URL": f"{files}/clip.mp4"}


@pytest.mark.parametrize("kind", ["file", "data URL", "http URL"])
def test_the_answer_and_what_was_saved(server, chat, sources, kind):
    expected = server.ask(video(data_url(CLIP)), text(QUESTION), max_tokens=4)
    status, out, _ = chat(sources[kind])
    assert status == 0
    assert out.startswith(expected.choices[0].message.content)
    assert f"[{expected.usage.prompt_tokens} prompt tokens; video: 16 of 32 tokens kept, 50%]" in out


def test_json(chat, sources):
    status, out, _ = chat(sources["file"], "--json", "--prune", '{"keep_ratio": 0.25}')
    found = json.loads(out)
    assert status == 0
    assert (found["video_tokens"], found["video_tokens_before_pruning"]) == (8, 32)
    assert isinstance(found["answer"], str)


def test_the_servers_refusal_is_shown(chat, sources):
    status, _, err = chat(sources["file"], "--prune", "baseline")
    assert status == 1
    assert "--prune-override any" in err


def test_a_broken_file_is_explained(chat, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(CLIP[:500])
    status, _, err = chat(str(tmp_path / "broken.mp4"))
    assert status == 1
    assert "video_url=" in err


def test_the_address_may_end_before_v1(server, capsys):
    assert main(["chat", data_url(CLIP), QUESTION, "--url", server.root, "--max-tokens", "1"]) == 0


def test_a_wrong_path_on_the_server(server, capsys):
    assert main(["chat", data_url(CLIP), QUESTION, "--url", f"{server.root}/v2"]) == 1
    assert "404" in capsys.readouterr().err
