"""The seam of a family: the table, a family from outside, how turns end, what is refused."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from chat_templates import THINKING
from dense_cases import LOGPROB_TOLERANCE, Case, chat, video
from dense_engine import RemoteEngine
from oracle.micro_model import EMBEDDED_MODEL, write_micro_model
from transformers import AutoTokenizer
from vllm.model_executor.models.config import VerifyAndUpdateConfig
from vllm.model_executor.models.qwen2_vl import Qwen2VLMultiModalDataParser
from vllm.multimodal.parse import ImageProcessorItems, MultiModalDataItems

from vllm_prune.config import PruneConfig, PruneConfigError
from vllm_prune.serving.api.family import FamilyProcessor
from vllm_prune.serving.api.image_specs import ImageSpecs
from vllm_prune.serving.api.turn_format import derive_turn_format
from vllm_prune.serving.config_hook import PruneConfigHook, hook_behind
from vllm_prune.serving.wire import architectures
from vllm_prune.spans import TurnFormat

REPOSITORY = Path(__file__).parents[2]
FAMILIES = REPOSITORY / "vllm_prune" / "serving" / "families"
EXAMPLE = REPOSITORY / "examples" / "third_party_family"
PIP_INSTALL = ("pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation")
START, END = "<|vision_start|>", "<|vision_end|>"
QWEN = (EMBEDDED_MODEL / "chat_template.jinja").read_text()
GLM = (
    "{% for m in messages %}<|vision_start|>{{ m.role }}\n"
    "{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}<|vision_start|>assistant\n{% endif %}"
)
PLAIN = (
    "{% for m in messages %}{% if m.role == 'user' %}USER: {{ m.content }} "
    "{% else %}ASSISTANT: {{ m.content }}</s>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
STEPS = 4
NO_TURNS = "{% for m in messages %}{{ m.content }}{% endfor %}"
BROKEN = "{{ raise_exception('not for you') }}"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(EMBEDDED_MODEL)


def turn_of(tokenizer: Any, template: Any) -> TurnFormat | None:
    return derive_turn_format(tokenizer, SimpleNamespace(chat_template=template))


@pytest.mark.parametrize(
    ("template", "header"),
    [
        (QWEN, "<|im_end|>\n<|im_start|>assistant\n"),
        ({"default": QWEN, "rag": NO_TURNS}, "<|im_end|>\n<|im_start|>assistant\n"),
        (QWEN.replace("assistant\n", "assistant\n<think>\n"), "<|im_end|>\n<|im_start|>assistant\n"),
        (THINKING, "<|im_end|>\n<|im_start|>assistant\n"),
        (THINKING.replace("enable_thinking", "not enable_thinking"), "<|im_end|>\n<|im_start|>assistant\n"),
        (GLM, "<|vision_start|>assistant\n"),
        (PLAIN, " ASSISTANT:"),
    ],
    ids=["qwen", "named", "thinking", "thinking open", "thinking closed", "no end of turn", "content is text"],
)
def test_where_a_reply_begins_is_read_off_the_chat_template(tokenizer, template, header):
    found = turn_of(tokenizer, template)
    start = tokenizer.encode(header.rstrip(), add_special_tokens=False)
    more = len(tokenizer.encode(header, add_special_tokens=False)) - len(start)
    special = {tokenizer.convert_tokens_to_ids(name) for name in ("<|im_start|>", "<|im_end|>", "<|video_pad|>")}
    assert (found.reply_start, found.num_more) == (tuple(start), more)
    assert special <= set(found.special)
    assert not set(found.special) & set(tokenizer.encode("What colour is it?\n", add_special_tokens=False))


@pytest.mark.parametrize("template", [NO_TURNS, BROKEN], ids=["no turns", "raises"])
def test_a_template_without_turns_yields_none(tokenizer, template):
    assert turn_of(tokenizer, template) is None


def test_a_family_may_say_itself_how_a_reply_begins(tokenizer):
    found = derive_turn_format(tokenizer, SimpleNamespace(chat_template=NO_TURNS), "<|im_end|>assistant\n")
    assert found.reply_start == tuple(tokenizer.encode("<|im_end|>assistant", add_special_tokens=False))
    assert found.num_more == len(tokenizer.encode("\n", add_special_tokens=False))


@pytest.mark.parametrize(
    ("able", "config", "said"),
    [
        ({"turn": None}, {"method": "attention"}, "chat template yields no end of a question's turn"),
        ({"turn": None}, {"method": "question"}, "chat template yields no end of a question's turn"),
        ({}, {"method": "question"}, "this server has no selector"),
        ({"plans_on_pixels": False}, {"stage1": {"where": "processor"}}, "takes whole frames only"),
    ],
)
def test_what_a_model_cannot_do_is_refused(able, config, said):
    able = {"turn": TurnFormat(reply_start=(1,), num_more=0), "plans_on_pixels": True} | able
    served = SimpleNamespace(hf_config=SimpleNamespace())
    able["info"] = SimpleNamespace(get_hf_config=SimpleNamespace, ctx=SimpleNamespace(model_config=served))
    processor: Any = SimpleNamespace(**able)
    processor._check_part = lambda part: FamilyProcessor._check_part(processor, part)
    FamilyProcessor.check_can_serve(processor, PruneConfig.parse({"method": "uniform"}))
    with pytest.raises(PruneConfigError, match=said):
        FamilyProcessor.check_can_serve(processor, PruneConfig.parse(config))


def test_a_total_over_images_asks_for_their_sizes():
    """Those of images that the client has encoded are in their grids; a uuid alone has none."""
    own: Any = SimpleNamespace(image_grid="image_grid_thw", merge=2)
    encoded = {"image_embeds": torch.zeros(8, 4), "image_grid_thw": torch.tensor([[1, 4, 6], [1, 2, 4]])}
    items = Qwen2VLMultiModalDataParser(spatial_merge_size=2).parse_mm_data({"image": encoded})
    assert ImageSpecs.image_sizes(own, items, {}) == [6, 2]
    assert ImageSpecs.image_sizes(own, MultiModalDataItems({}), {}) == []
    with pytest.raises(PruneConfigError, match=r"image\.total: an image that is named by its uuid alone"):
        ImageSpecs.image_sizes(own, MultiModalDataItems({"image": ImageProcessorItems([None])}), {})


@pytest.mark.parametrize(
    "architecture",
    ["Glm4vForConditionalGeneration", "Gemma4ForConditionalGeneration", "MllamaForConditionalGeneration", "Unknown"],
)
def test_an_architecture_without_a_family_is_refused_with_the_list(architecture):
    with pytest.raises(ValueError, match=r"has no pruning variant; supported: .*Qwen2VLFor") as info:
        architectures.variant_of(architecture)
    assert all(known in str(info.value) for known in architectures.families())


def test_the_docs_say_how_long_the_file_of_each_family_is():
    table = (REPOSITORY / "docs" / "families.md").read_text()
    said = dict(re.findall(r"\[(\d+)\]\(\.\./vllm_prune/serving/families/(\w+\.py)\) \|", table))
    found = {path.name: len(path.read_text().splitlines()) for path in FAMILIES.glob("[!_]*.py")}
    assert {name: int(lines) for lines, name in said.items()} == found
    assert max(found.values()) <= 120


def test_a_family_from_outside_cannot_replace_a_built_in(monkeypatch):
    name, path = next(iter(architectures.families().items()))
    ours = [EntryPoint(n, "other:Variant", architectures.ENTRY_POINT_GROUP) for n in (name, "Other")]
    monkeypatch.setattr(architectures, "entry_points", lambda group: ours)
    assert architectures.families.__wrapped__() == {**architectures.families(), "Other": "other:Variant"}
    assert architectures.families.__wrapped__()[name] == path


def test_the_hook_of_the_architecture_itself_comes_first(monkeypatch):
    called = []

    class Theirs(VerifyAndUpdateConfig):
        verify_and_update_model_config = staticmethod(lambda config: called.append(("theirs", config)))
        verify_and_update_config = staticmethod(lambda config: called.append(("their", config)))

    for name in ("verify_and_update_model_config", "verify_and_update_config"):
        monkeypatch.setattr(PruneConfigHook, name, staticmethod(lambda config: called.append(("ours", config))))
    both = hook_behind(Theirs)
    both.verify_and_update_model_config("model")
    both.verify_and_update_config("all")
    assert called == [("theirs", "model"), ("ours", "model"), ("their", "all"), ("ours", "all")]
    assert hook_behind(None) is PruneConfigHook


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RemoteEngine]:
    """A model of the example's architecture, where the example is installed as a wheel, and only there."""
    installed = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", *PIP_INSTALL, "--target", installed, EXAMPLE], check=True, timeout=120)
    folder = write_micro_model(tmp_path_factory.mktemp("numbered") / "micro", family="qwen2_vl")
    fields = json.loads((folder / "config.json").read_text())
    fields["architectures"] = ["NumberedForConditionalGeneration"]
    (folder / "config.json").write_text(json.dumps(fields))
    path = os.pathsep.join([str(installed), str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(installed))  # a spawned process takes over this one's path
        with RemoteEngine(str(folder), "baseline", {"PYTHONPATH": path}) as engine:
            yield engine


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RemoteEngine]:
    """The same model as it is."""
    folder = write_micro_model(tmp_path_factory.mktemp("plain") / "micro", family="qwen2_vl")
    with RemoteEngine(str(folder), "baseline", limit_mm_per_prompt={"video": STEPS, "image": 0}) as engine:
        yield engine


def separate(clip: Any, config: Any) -> Case:
    """The video's steps as videos of their own, with the numbers as text between them."""
    frames, metadata = clip
    short = {**metadata, "total_num_frames": 2, "frames_indices": [0, 1]}
    parts = tuple((frames[2 * step : 2 * step + 2], short) for step in range(STEPS))
    text = "".join(f"{step}.<|video_pad|>" for step in range(STEPS))
    return Case(chat(f"{START}{text}{END}How many?"), parts, (), config)


@pytest.mark.parametrize("ratio", [1.0, 0.5, 0.25])
def test_a_family_from_outside_is_served_and_its_text_stays_in_place(numbered, plain, ratio):
    """Text within a medium is to the model what it is between media: same prompt's length, same log-probabilities."""
    clip = video(3)
    config = {"method": "uniform", "keep_ratio": ratio}
    (one,) = numbered.run([Case(chat(f"{START}<|video_pad|>{END}How many?"), (clip,), (), config).prompt()])
    (many,) = plain.run([separate(clip, config).prompt()])
    assert len(one.prompt) == len(many.prompt)
    assert ratio < 1 or one.prompt == many.prompt
    assert one.token_ids == many.token_ids
    assert np.abs(one.logprobs - many.logprobs).max() < LOGPROB_TOLERANCE
