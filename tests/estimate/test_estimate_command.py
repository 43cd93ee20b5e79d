"""`vllm-prune estimate` as it is called."""

import json
import subprocess
import sys

import pytest

from vllm_prune.cli import estimate as command
from vllm_prune.cli.main import main
from vllm_prune.estimate.device import GIB, read_device
from vllm_prune.estimate.scenario import SCENARIOS


def answer(capsys, *arguments: str) -> str:
    assert main(["estimate", "embedded", *arguments]) == 0
    return capsys.readouterr().out


def test_json_has_every_configuration_asked_for(capsys):
    prune = ("--prune", "default", "--prune", '{"method": "uniform"}')
    default, uniform = json.loads(answer(capsys, "--frames", "32", "--size", "224x112", *prune, "--json"))
    assert default["grid"] == uniform["grid"] == [16, 4, 8]
    assert default["tokens"] == {
        "video": 512,
        "stage1": 256,
        "entering": 256,
        "layers": {"2": 102},
        "kept": 102,
        "structure": 0,
    }
    assert uniform["after"]["flops"]["dense_prefix"]["total"] == 0
    assert uniform["after"]["kv"]["tokens"] == 64 + 205
    assert default["before"]["kv"] == {"tokens": 576, "blocks": 36, "bytes": 36 * 16 * 2 * 6 * 2 * 32 * 2}


def test_frames_follow_the_tokens(capsys):
    """512 frames of 16 tokens a pair: a quarter of the tokens of all of them, or all tokens of a quarter."""
    prune = [{"frames": {"tokens": 1024}}, {"method": "dpp", "keep_ratio": 0.25, "frames": {"tokens": 1024}}]
    arguments = (
        "--frames",
        "512",
        "--size",
        "112x112",
        *(part for each in prune for part in ("--prune", json.dumps(each))),
    )
    few, all_of_them = json.loads(answer(capsys, *arguments, "--json"))
    assert (few["frames"], few["tokens"]["video"], few["tokens"]["kept"]) == (128, 1024, 1024)
    assert (all_of_them["frames"], all_of_them["tokens"]["video"], all_of_them["tokens"]["kept"]) == (512, 4096, 1024)
    assert few["before"] == all_of_them["before"]
    text = answer(capsys, *arguments)
    assert "512 frames of 112x112: a grid of 256 x 4 x 4 tokens" in text
    assert ["frames", "512", "128", "512"] in [line.split() for line in text.splitlines()]
    assert main(["estimate", "embedded", *arguments[:4], "--prune", '{"frames": {"tokens": 15}}']) == 2
    assert "frames.tokens=15: 2 frames keep 16; allow as many" in capsys.readouterr().err


def test_images_are_counted_each_by_itself(capsys):
    image = {"method": "dpp", "keep_ratio": 0.5, "total": 100}
    arguments = ("--images", "8", "--size", "224x112", "--prune", json.dumps({"image": image}), "--prune", "default")
    arguments += ("--prune", '{"image": {"method": "attention", "keep_ratio": 0.25}}')
    shared, whole, asked = json.loads(answer(capsys, *arguments, "--json"))
    assert shared["grid"] == whole["grid"] == [8, 4, 8]
    assert (shared["tokens"]["image"], shared["tokens"]["kept"]) == (256, 96)
    assert shared["after"]["kv"]["tokens"] == 64 + 96
    assert whole["before"] == whole["after"], "a preset says nothing of images"
    assert (asked["tokens"]["entering"], asked["tokens"]["layers"]) == (256, {"2": 64})
    text = answer(capsys, "--images", "8", "--size", "224x112")
    assert "8 images of 224x112: a grid of 4 x 8 tokens each" in text
    assert "same_within" not in text
    flat = answer(capsys, "--images", "8", "--size", "224x112", "--prune", '{"image": {"same_within": 0}}')
    assert "With same_within, flat cells are not encoded" in flat
    assert "image tokens" in text


def test_an_image_costs_the_encoder_what_a_frame_does(capsys):
    images = json.loads(answer(capsys, "--images", "4", "--size", "112x112", "--json"))[0]
    video = json.loads(answer(capsys, "--frames", "8", "--size", "112x112", "--json"))[0]
    assert images["before"]["flops"] == video["before"]["flops"]


def test_the_table_has_a_column_for_each(capsys):
    text = answer(capsys, "--prune", "baseline", "--prune", "aggressive")
    header = text.splitlines()[2].split()
    assert header == ["unpruned", "baseline", "aggressive"]
    assert "ratios of FLOPs" in text


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_scenario_names_a_preset_and_reasons(capsys, scenario):
    proposal = json.loads(answer(capsys, "--scenario", scenario, "--memory", "1", "--json"))
    assert proposal["scenario"] == scenario
    assert proposal["reached"]
    assert proposal["reasons"]
    assert proposal["tokens"]["kept"] < proposal["tokens"]["video"]


def test_less_memory_or_a_harder_goal_prunes_more(capsys):
    edge = [json.loads(answer(capsys, "--scenario", "edge", "--memory", m, "--json"))["preset"] for m in ("1", "0.012")]
    assert edge == ["conservative", "aggressive"]
    scenarios = ("research", "realtime")
    research, realtime = (json.loads(answer(capsys, "--scenario", s, "--json"))["tokens"]["kept"] for s in scenarios)
    assert realtime <= research


def test_a_device_too_small_is_said_to_be(capsys):
    proposal = json.loads(answer(capsys, "--scenario", "edge", "--memory", "0.001", "--json"))
    assert not proposal["reached"]
    assert "fewer frames" in " ".join(proposal["reasons"])


def test_the_machines_own_memory_is_read():
    assert GIB / 4 < read_device().memory < 10_000 * GIB


def test_the_choices_are_the_scenarios():
    assert tuple(SCENARIOS) == command.SCENARIOS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "0x4"], "size='0x4'"),
        (["--size", "9000x1"], "size=9000x1"),
        (["--frames", "0"], "frames=0"),
        (["--text-tokens", "0"], "text_tokens=0"),
        (["--images", "-1"], "images=-1"),
        (["--images", "2", "--scenario", "edge"], "images=2: --scenario"),
        (["--images", "2", "--prune", '{"image": {"method": "dpp", "total": 1}}'], "image.total=1"),
        (["--block-size", "-1"], "block_size=-1"),
        (["--kv-dtype", "int3"], "dtype='int3'"),
        (["--prune", "nope"], "preset='nope'"),
        (["--prune", '{"keep_ratio": 2}'], "keep_ratio=2"),
        (["--scenario", "edge", "--memory", "0"], "memory=0.0"),
        (["--scenario", "edge", "--prune", "default"], "give one of the two"),
    ],
)
def test_a_wrong_argument_is_named(capsys, arguments, message):
    assert main(["estimate", "embedded", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot read"), ("{", "cannot read"), ('{"model_type": "llama"}', "model_type='llama'")],
)
def test_a_wrong_model_is_named(capsys, tmp_path, content, message):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    assert main(["estimate", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_a_missing_field_is_named(capsys, tmp_path):
    fields = {"architectures": ["Qwen2_5_VLForConditionalGeneration"], "num_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert main(["estimate", str(tmp_path)]) == 2
    assert "hidden_size=None" in capsys.readouterr().err


def test_neither_torch_nor_vllm_is_imported_for_a_local_model():
    code = (
        "import sys; from vllm_prune.cli.main import main; assert main(['estimate', 'embedded']) == 0\n"
        "print('heavy:', sorted({'torch', 'vllm', 'transformers'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60).stdout
    assert output.endswith("heavy: []\n")
