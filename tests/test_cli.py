"""`vllm-prune serve` without starting anything, and what `vllm-prune chat` does before it asks."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import shlex
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from vllm_prune.cli import serve
from vllm_prune.cli.chat import parse_prune, video_url
from vllm_prune.cli.main import main
from vllm_prune.cli.port import check_port
from vllm_prune.cli.secrets import masked
from vllm_prune.config import PRESETS, PruneConfig
from vllm_prune.embedded import NAMES, model_path, selector_path
from vllm_prune.engine import engine_args
from vllm_prune.serving.wire.settings import read_settings

ARCHITECTURE = "Qwen2_5_VLForConditionalGeneration"


@pytest.fixture(autouse=True)
def only_the_line(monkeypatch):
    """Without what takes vLLM's import (test_cli_dry_run.py has it) or a port that is free."""
    monkeypatch.setattr(serve, "check_line", lambda command, environment: None)
    monkeypatch.setattr(serve, "check_port", lambda passed_on: None)


@pytest.fixture
def model(tmp_path):
    """A folder that says no more than serving has to know."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl", "architectures": [ARCHITECTURE]}))
    return str(tmp_path)


def dry_run(capsys, *arguments: str) -> list[str]:
    """The printed line, as a shell would split it."""
    assert main(["serve", *arguments, "--dry-run"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    return shlex.split(line)


def overrides_of(line: list[str]) -> dict:
    return json.loads(line[line.index("--hf-overrides") + 1])


def settings_of(line: list[str]):
    return read_settings(SimpleNamespace(**overrides_of(line)))


def test_several_selectors(capsys, model):
    given = ["--prune-selector", "a.safetensors", "--prune-selector=b.safetensors"]
    assert settings_of(dry_run(capsys, model, *given)).selectors == ("a.safetensors", "b.safetensors")
    assert settings_of(dry_run(capsys, model)).selectors == ()


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("override", ["none", "tighten", "any"])
def test_the_line_carries_the_settings(capsys, model, name, override):
    line = dry_run(capsys, model, "--prune", name, "--prune-override", override)
    assert line[:3] == ["vllm", "serve", model]
    assert overrides_of(line)["architectures"] == [f"Prune{ARCHITECTURE}"]
    assert (settings_of(line).config, settings_of(line).override) == (PRESETS[name], override)
    assert "--enable-prompt-tokens-details" in line


@pytest.mark.parametrize(
    "words",
    [
        ["--api-key", "hush"],
        ["--api-key=hush"],
        ["--api_key=hush"],
        ["--api_key", "hush"],
        ["--api-k", "hush"],  # argparse completes it
        ["--api-key", "hush", "hush2", "-7"],
        ["--api-key=hush", "hush2"],
        ["--hf-token", "hush"],
        ["--hf_token=hush"],
        ["--kv-transfer-config", '{"kv_connector_extra_config": {"aws_secret_access_key": "hush", "keys": ["hush"]}}'],
        ["--kv-transfer-config.kv_connector_extra_config.api_key", "hush"],
        ['--model-loader-extra-config={"s3": [{"password": "hush"}]}'],
        ["--otlp-traces-endpoint", "https://user:hush@host:1/v1?api_key=hush"],
        ["--middleware-config", '{"api_key": "hush"'],
    ],
)
def test_no_secret_is_printed(capsys, model, words):
    line = dry_run(capsys, model, "--port", "8123", *words, "--max-model-len", "4096")
    assert not any("hush" in word or word == "-7" for word in line)
    assert any("***" in word for word in line)
    rest = ["--port", "8123", "--max-model-len", "4096"]
    assert [word for word in line if word in rest] == rest


@pytest.mark.parametrize("words", [["--api-key", "-hush"], ["--api-k", "--hush"], ["--hf-token", "-hush"]])
def test_a_secret_that_looks_like_an_option_is_refused_without_repeating_it(capsys, model, words):
    assert main(["serve", model, *words]) == 2
    told = capsys.readouterr()
    assert "no value, or one that begins with -; write it as --" in told.err
    assert "hush" not in told.out + told.err
    assert not any("hush" in word for word in masked(["bench", *words]))
    assert dry_run(capsys, model, "--api-key=-hush")[-1] == "--api-key=***"
    assert dry_run(capsys, model, "--hf-token", "-tp", "2", "--hf-token")[-4:] == [
        "--hf-token",
        "-tp",
        "2",
        "--hf-token",
    ]


@pytest.mark.parametrize("words", [["use", "-1"], ["--x", "-1"], ["-"], ["--option", "--other"]])
def test_what_looks_like_an_option_and_hides_nothing_is_shown(words):
    assert masked(words) == words


def test_what_is_no_secret_is_printed_as_given(capsys, model):
    options = [
        "--hf-overrides",
        '{"eos_token": "<end>"}',
        "--tokenizer",
        "t",
        "--media-io-kwargs",
        '{"video": {"a":1}}',
    ]
    line = dry_run(capsys, model, *options)
    assert overrides_of(line)["eos_token"] == "<end>"
    assert line[-4:] == options[-4:]
    assert not any("***" in word for word in line)


def test_numbers_of_tokens_are_printed_as_given(capsys, model):
    assert masked(["--x", '{"tokens": ["hush"], "token": 5}']) == ["--x", '{"tokens": "***", "token": "***"}']
    line = dry_run(capsys, model, "--prune", '{"preset": "default", "frames": {"tokens": 4096, "max": 2048}}')
    assert overrides_of(line)["vllm_prune"]["config"]["frames"] == {"tokens": 4096, "max": 2048}


@pytest.mark.parametrize("option", ['{"api_key": "hush"', '[{"password": "hush"}]'])
def test_a_refusal_repeats_no_overrides(capsys, model, option):
    assert main(["serve", model, "--dry-run", "--hf-overrides", option]) == 2
    assert "hush" not in capsys.readouterr().err


def test_json_and_defaults(capsys, model):
    wanted = {"stage1": {"cluster_ratio": 0.3}, "method": "random", "keep_ratio": 0.5, "params": {"seed": 4}}
    assert settings_of(dry_run(capsys, model, "--prune", json.dumps(wanted))).config == PruneConfig.parse(wanted)
    settings = settings_of(dry_run(capsys, model))
    assert (settings.config, settings.override) == (PRESETS["default"], "tighten")


def test_vllms_own_options_follow_in_order(capsys, model):
    line = dry_run(capsys, model, "--max-model-len", "4096", "--prune", "stage1_only", "--enforce-eager", "-tp=2")
    assert line[line.index("--enable-prompt-tokens-details") + 1 :] == [
        "--max-model-len",
        "4096",
        "--enforce-eager",
        "-tp=2",
    ]


@pytest.mark.parametrize("option", [["--hf-overrides", '{"a": {"b": 1}}'], ['--hf_overrides={"a": {"b": 1}}']])
def test_the_users_own_overrides_are_kept(capsys, model, option):
    line = dry_run(capsys, model, "--prune", "stage1_only", *option)
    assert overrides_of(line)["a"] == {"b": 1}
    assert settings_of(line).config == PRESETS["stage1_only"]
    assert line.count("--hf-overrides") == 1
    assert not any(part.startswith("--hf_overrides") for part in line)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--prune", "magic"], "preset='magic': unknown; known presets: baseline"),
        (["--prune", '{"keep_ratio": 0}'], "keep_ratio=0: must be above 0"),
        (["--prune", '{"keep_ratio": NaN}'], "keep_ratio=nan: must be above 0"),
        (["--prune", "{"], "not valid JSON"),
        (["--hf-overrides", "{"], "--hf-overrides '{': not valid JSON"),
        (["--hf-overrides", "[1]"], "must be a JSON object"),
        (["--hf-overrides.vllm_prune", "{}"], "--hf-overrides.vllm_prune: give it as one JSON object"),
    ],
)
def test_mistakes_are_told_in_one_line(capsys, model, arguments, said):
    assert main(["serve", model, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("vllm-prune serve: ")
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("name", NAMES)
def test_an_embedded_model_has_a_short_name_unless_it_is_given_one_and_its_own_selector(capsys, name):
    line = dry_run(capsys, name)
    assert line[line.index("serve") + 1] == str(model_path(name))
    assert line[line.index("--served-model-name") + 1] == name
    assert str(selector_path(name)) in line[line.index("--hf-overrides") + 1]
    for option in (["--served-model-name", "mine"], ["--served_model_name=mine"]):
        assert dry_run(capsys, name, *option)[-len(option) :] == option
        assert name not in dry_run(capsys, name, *option)


def test_a_wrong_policy_lists_the_known_ones(capsys, model):
    with pytest.raises(SystemExit):
        main(["serve", model, "--prune-override", "all"])
    assert "none" in (error := capsys.readouterr().err)
    assert "tighten" in error


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, ["'LlamaForCausalLM' has no pruning variant", ARCHITECTURE]),
        # These have Qwen's kind of processor, or its positions, and another layout.
        ({"architectures": ["Glm4vForConditionalGeneration"]}, ["'Glm4vFor", "has no pruning variant", ARCHITECTURE]),
        ({"architectures": ["Gemma3ForConditionalGeneration"]}, ["'Gemma3For", "has no pruning variant", ARCHITECTURE]),
        ({"architectures": ["Ernie4_5_VLMoeForConditionalGeneration"]}, ["'Ernie4_5_VLMoeFor", ARCHITECTURE]),
        ({"model_type": "llama"}, ["names no architecture"]),
        ({"architectures": []}, ["names no architecture"]),
        (None, ["no readable config.json"]),
        ("{broken", ["no readable config.json"]),
    ],
)
def test_models_without_a_variant(capsys, tmp_path, config, said):
    if config is not None:
        (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    assert main(["serve", str(tmp_path), "--prune", "stage1_only"]) == 2
    error = capsys.readouterr().err
    assert all(part in error for part in said), error


@pytest.mark.parametrize("arguments", [["serve", "nobody/nothing", "--dry-run"], ["estimate", "nobody/nothing"]])
def test_a_hub_that_is_out_of_reach_is_not_tried_again_and_again(arguments, tmp_path):
    variables = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "vllm_prune.cli.main", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | variables)
    assert done.returncode == 2
    assert "Retrying" not in done.stderr
    (line,) = done.stderr.splitlines()
    assert "http://127.0.0.1:9 is out of reach, and its cache has no such model" in line


def test_engine_args_are_the_same_settings(model):
    arguments = engine_args(model, "stage1_only", override="none", hf_overrides={"a": 1}, max_model_len=5)
    assert arguments["model"] == model
    assert arguments["max_model_len"] == 5
    assert arguments["hf_overrides"]["a"] == 1
    settings = read_settings(SimpleNamespace(**arguments["hf_overrides"]))
    assert (settings.config, settings.override) == (PRESETS["stage1_only"], "none")
    with pytest.raises(ValueError, match="must be a dictionary"):
        engine_args(model, "stage1_only", hf_overrides=lambda config: config)
    with pytest.raises(ValueError, match="none, tighten, any"):
        engine_args(model, "stage1_only", override="all")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("default", "must be an object"),
        ({"configs": {}}, "unknown key 'configs'"),
        ({"config": {"keep_ratio": 2}}, "keep_ratio=2"),
        ({"config": [], "override": "any"}, "must be a preset's name"),
        ({"override": "all"}, "override='all'"),
    ],
)
def test_settings_written_by_hand_are_checked(value, said):
    with pytest.raises(ValueError, match=said):
        read_settings(SimpleNamespace(vllm_prune=value))


def test_serve_stops_at_a_mistake_at_once(model):
    """Before vLLM is imported: in a second or a few, where a server takes half a minute."""
    started = time.monotonic()
    command = [sys.executable, "-X", "importtime", "-m", "vllm_prune.cli.main", "serve", model, "--prune", "magic"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert process.returncode == 2
    assert time.monotonic() - started < 30
    assert not any(line.endswith("| vllm") or line.endswith("| torch") for line in process.stderr.splitlines())


@contextlib.contextmanager
def answering(status, body):
    """The address of a server that answers everything so."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class TestChat:
    def test_addresses_stay(self):
        for url in ("http://host/clip.mp4", "https://host/clip.mp4", "data:video/mp4;base64,AAAA", "file:///clip.mp4"):
            assert video_url(url) == url

    def test_a_file_becomes_a_data_url(self, tmp_path):
        for name, kind in {"clip.mp4": "video/mp4", "clip.webm": "video/webm", "clip": "video/mp4"}.items():
            (tmp_path / name).write_bytes(b"abc")
            assert video_url(str(tmp_path / name)) == f"data:{kind};base64,YWJj"

    def test_what_is_no_file_is_refused(self, tmp_path, capsys):
        for missing in (str(tmp_path / "none.mp4"), str(tmp_path)):
            assert main(["chat", missing, "What?"]) == 2
            assert "no such file" in capsys.readouterr().err

    def test_prune(self, capsys):
        assert parse_prune(None) is None
        assert parse_prune("default") == "default"
        assert parse_prune(' {"keep_ratio": 0.5}') == {"keep_ratio": 0.5}
        assert main(["chat", "data:video/mp4;base64,AAAA", "What?", "--prune", "{"]) == 2
        assert "not valid JSON" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("status", "body", "said"),
        [
            (404, {"detail": "Not Found"}, "there is no API at http"),
            (
                404,
                {"error": {"message": "The model `m` does not exist.", "type": "NotFoundError"}},
                "`m` does not exist",
            ),
            (401, {"error": "Unauthorized"}, "give the server's by --api-key"),
        ],
    )
    def test_a_status_is_explained(self, capsys, status, body, said):
        with answering(status, body) as address:
            arguments = ["data:video/mp4;base64,AAAA", "What?", "--url", f"{address}/there", "--model", "m"]
            assert main(["chat", *arguments]) == 1
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
        assert ("ends in /v1" in error) is (said == "there is no API at http")

    @pytest.mark.parametrize("body", ["text", {}, {"choices": []}, {"object": "list", "data": []}, [1]])
    def test_an_answer_that_is_no_completion_is_told(self, capsys, body):
        with answering(200, body) as address:
            assert main(["chat", "data:video/mp4;base64,AAAA", "What?", "--url", address, "--model", "m"]) == 1
        error = capsys.readouterr().err
        assert "no OpenAI-compatible API there" in error
        assert error.count("\n") == 1

    @pytest.mark.parametrize(
        "url", ["127.0.0.1:8000/v1", "localhost:8000", "ftp://host/v1", "http://", "http://h:x", ""]
    )
    def test_an_address_of_no_http_server_is_a_wrong_argument(self, capsys, url):
        chat = ["chat", "data:video/mp4;base64,AAAA", "What?"]
        bench = ["bench", "accuracy", "--dataset", "synthetic", "-n", "1", "--prune", "stock"]
        for command in (chat, bench) if url else (chat,):
            assert main([*command, "--url", url]) == 2
            assert f"--url {url!r}: must be an address such as http://" in capsys.readouterr().err

    def test_no_server(self, capsys):
        assert main(["chat", "data:video/mp4;base64,AAAA", "What?", "--url", "http://127.0.0.1:9/v1"]) == 1
        assert "no server at http://127.0.0.1:9/v1" in (error := capsys.readouterr().err)
        assert "vllm-prune serve" in error


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_port_in_use_is_named(capsys, monkeypatch, model, more):
    monkeypatch.setattr(serve, "check_port", check_port)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        assert main(["serve", model, "--host", "127.0.0.1", "--port", port, *more]) == 2
    assert f"port={port}: something else listens there" in capsys.readouterr().err


@pytest.mark.parametrize("allowed", [None, "", "prune", "prune_page,prune"])
def test_the_page_is_allowed_beside_what_is_allowed_already(capsys, model, monkeypatch, allowed):
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    if allowed is not None:
        monkeypatch.setenv("VLLM_PLUGINS", allowed)
    assert main(["serve", model, "--prune-page", "--prune-override", "any", "--dry-run"]) == 0
    variable, *line = shlex.split(capsys.readouterr().out)
    names = variable.removeprefix("VLLM_PLUGINS=").split(",")
    # All of vLLM's own plugins would be loaded where nothing is said: naming one must not shut out the others.
    expected = (
        {"prune", "lora_filesystem_resolver"} if allowed is None else {name for name in allowed.split(",") if name}
    )
    assert expected | {"prune_page"} <= set(names)
    assert names.count("prune_page") == 1
    assert settings_of(line).trace is not None
    assert main(["serve", model, "--prune-page", "--prune-trace", "here", "--dry-run"]) == 0
    assert settings_of(shlex.split(capsys.readouterr().out)[1:]).trace == "here"


def test_traces_that_could_not_be_written_are_foretold(capsys, model, tmp_path):
    (tmp_path / "file").touch()
    for folder, told in ((tmp_path / "new" / "deeper", False), (tmp_path / "file" / "below", True)):
        assert main(["serve", model, "--prune-trace", str(folder), "--dry-run"]) == 0
        assert (f"no trace can be written to {folder}" in capsys.readouterr().err) is told


def test_formats_that_are_let_in_reach_the_server_by_its_environment(capsys, model):
    variable, *line = dry_run(capsys, model, "--prune-containers", "avi,ogg")
    assert variable == "VLLM_PRUNE_CONTAINERS=avi,ogg"
    assert line[:2] == ["vllm", "serve"]
    assert dry_run(capsys, model)[:2] == ["vllm", "serve"]
    assert main(["serve", model, "--prune-containers", "avi,sdp", "--dry-run"]) == 2
    assert "--prune-containers 'sdp': no video format that can be let in; use avi, " in capsys.readouterr().err
