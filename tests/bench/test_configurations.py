"""What may be compared, and how each is started."""

import json

import pytest

from vllm_prune.bench.throughput.configurations import VLLM, VLLM_PRUNE, parse_configurations
from vllm_prune.bench.throughput.errors import BenchmarkError


def parse(text):
    return parse_configurations([text])[0]


def test_stock_has_no_plugin():
    stock = parse("stock")
    assert stock.program == VLLM
    assert stock.environment == {"VLLM_PLUGINS": ""}
    assert stock.serve_command("m", ["--port", "1"]) == [*VLLM, "serve", "m", "--port", "1"]


def test_evs_gets_its_rate():
    assert parse("evs:0.75").serve_command("m", []) == [*VLLM, "serve", "m", "--video-pruning-rate", "0.75"]


def test_drafts_are_asked_for_without_the_plugin():
    mtp = parse_configurations(["mtp:2"], with_mtp=True)[0]
    option, value = mtp.serve_command("m", [])[-2:]
    assert (option, json.loads(value)) == ("--speculative-config", {"method": "mtp", "num_speculative_tokens": 2})
    assert mtp.environment == {"VLLM_PLUGINS": ""}


def test_drafts_beside_pruning():
    ours = parse_configurations(['half=mtp:1+{"method": "uniform", "keep_ratio": 0.5}'], with_mtp=True)[0]
    command = ours.serve_command("m", [])
    assert (ours.name, ours.is_reference, command[: len(VLLM_PRUNE)]) == ("half", False, [*VLLM_PRUNE])
    assert json.loads(command[command.index("--prune") + 1])["method"] == "uniform"
    assert json.loads(command[command.index("--speculative-config") + 1])["num_speculative_tokens"] == 1


@pytest.mark.parametrize("given", ["mtp:0", "mtp:-1", "mtp:x", "mtp:²", "mtp:0+default"])
def test_numbers_of_drafts_that_cannot_be(given):
    with pytest.raises(BenchmarkError, match=f"{given.split('+')[0]}: the number of drafted tokens must be 1 or more"):
        parse_configurations([given], with_mtp=True)


def test_json_becomes_the_prune_option():
    command = parse('{"method": "uniform", "keep_ratio": 0.25}').serve_command("m", [])
    assert command[: len(VLLM_PRUNE) + 2] == [*VLLM_PRUNE, "serve", "m"]
    assert json.loads(command[command.index("--prune") + 1]) == {"method": "uniform", "keep_ratio": 0.25}


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("stage1_only", "stage1_only"),
        ('{"stage1": {"cluster_ratio": 0.25}}', "stage1:cluster_ratio:0.25"),
        ('ours@25%={"stage1": {"cluster_ratio": 0.25}}', "ours@25%"),
        ("half=evs:0.5", "half"),
    ],
)
def test_names(given, name):
    assert parse(given).name == name


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("evs:1.5", "evs:1.5: the rate must be"),
        ("evs:nan", "evs:nan: the rate must be"),
        ("evs:x", "evs:x: the rate must be"),
        ("mtp:2", "preset='mtp:2': unknown"),
        ("stok", "preset='stok': unknown"),
        ('{"keep": 1}', "unknown key 'keep'"),
        ("{", "not valid JSON"),
    ],
)
def test_mistakes_are_named(given, message):
    with pytest.raises(BenchmarkError, match=message):
        parse(given)


def test_equal_names_are_refused():
    with pytest.raises(BenchmarkError, match="'stock' comes 2 times"):
        parse_configurations(["stock", "stock"])
