"""The file of a selector: what is written is read back, everything else is refused in words."""

import hashlib
import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from selector_cases import GRID, MODEL, TABLE, WIDTH, small_selector, tokens_and_words, write_small

from vllm_prune.selector import (
    Header,
    SelectorConfig,
    SelectorFileError,
    digest,
    load_selector,
    read_header,
    write_selector,
)
from vllm_prune.selector.storage import probe_ids

FROM_DRAWS = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "selector.safetensors"
    write_small(path)
    return path.read_bytes()


def refuse(path: Path, match: str, **wanted) -> None:
    with pytest.raises(SelectorFileError, match=match) as caught:
        load_selector(path, **{"width": WIDTH, **wanted})
    assert repr(str(path)) in str(caught.value)


@pytest.mark.parametrize("kind", ["match", "joint"])
def test_what_is_written_is_read_back(tmp_path, kind):
    path = tmp_path / "selector.safetensors"
    written = write_small(path, kind, place=10, training={"steps": 4})
    loaded = load_selector(path, width=WIDTH, model=MODEL, place=10)
    video, words = tokens_and_words()
    assert torch.equal(loaded.selector.score(video, words, None, GRID), written.score(video, words, None, GRID))
    assert loaded.header == read_header(path)
    assert loaded.header.training == {"steps": 4}
    assert loaded.digest == digest(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [item.name for item in tmp_path.iterdir()] == [path.name]
    loaded.check_embeddings(lambda ids: TABLE[ids])


def test_the_same_selector_gives_the_same_file(tmp_path):
    for name in "ab":
        write_small(tmp_path / name)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"width": 16}, "width=12; the model's hidden size is 16"),
        ({"place": 10}, "place='input'; it is to read at 10"),
        ({"model": replace(MODEL, architecture="Other")}, "architecture='Other'"),
        ({"model": replace(MODEL, num_layers=7)}, "num_layers=7 of the model, 6 where it was trained"),
        ({"model": replace(MODEL, vocab_size=41)}, "vocab_size=41"),
        ({"model": replace(MODEL, revision="def")}, "revision='def'"),
    ],
)
def test_made_for_something_else(tmp_path, wanted, message):
    write_small(tmp_path / "s")
    refuse(tmp_path / "s", message, **wanted)


@pytest.mark.parametrize("model", [replace(MODEL, revision=""), replace(MODEL, name="a/copy")])
def test_a_name_and_an_unknown_revision_do_not_matter(tmp_path, model):
    write_small(tmp_path / "s")
    load_selector(tmp_path / "s", width=WIDTH, model=model)


def test_another_models_embeddings(tmp_path):
    write_small(tmp_path / "s")
    loaded = load_selector(tmp_path / "s", width=WIDTH)
    loaded.check_embeddings(lambda ids: TABLE[ids].bfloat16())
    for embed in (lambda ids: TABLE[ids].flip(1), lambda ids: TABLE[ids] * torch.nan, lambda ids: TABLE[ids, :4]):
        with pytest.raises(SelectorFileError, match="embedding"):
            loaded.check_embeddings(embed)


def test_files_that_are_no_selector(tmp_path):
    refuse(tmp_path / "absent", "cannot be read: No such file")
    refuse(tmp_path, "cannot be read|not a regular file")
    os.mkfifo(tmp_path / "pipe")
    refuse(tmp_path / "pipe", "not a regular file")
    for name, data in {
        "empty": b"",
        "pickle": pickle.dumps({"a": 1}),
        "text": b"hello, this is text",
        "nested": (100_000).to_bytes(8, "little") + b"[" * 100_000,
    }.items():
        (tmp_path / name).write_bytes(data)
        refuse(tmp_path / name, "safetensors|bytes; use a file")
    save_file({"x": torch.zeros(1)}, tmp_path / "other")
    refuse(tmp_path / "other", "not a safetensors file with a selector")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read(tmp_path):
    write_small(tmp_path / "s")
    (tmp_path / "s").chmod(0)
    refuse(tmp_path / "s", "Permission denied")


@FROM_DRAWS
@given(part=st.floats(0, 1, exclude_max=True))
def test_every_truncation_is_refused(tmp_path, whole, part):
    (tmp_path / "cut").write_bytes(whole[: int(part * len(whole))])
    refuse(tmp_path / "cut", "selector file")


@FROM_DRAWS
@given(data=st.data())
def test_every_changed_byte_is_refused_or_told(tmp_path, whole, data):
    """A change in what only tells (a name, the training) may pass; no other error ever comes."""
    # The header is a small part of the file, and the more interesting one.
    header_end = 8 + int.from_bytes(whole[:8], "little")
    place = data.draw(st.one_of(st.integers(0, header_end - 1), st.integers(header_end, len(whole) - 1)))
    changed = bytearray(whole)
    changed[place] ^= data.draw(st.integers(1, 255))
    (tmp_path / "changed").write_bytes(changed)
    if place >= header_end:
        refuse(tmp_path / "changed", "not those that were written")
        return
    try:
        loaded = load_selector(tmp_path / "changed", width=WIDTH, model=MODEL)
    except SelectorFileError:
        return
    selector = small_selector().state_dict()
    assert all(torch.equal(value, selector[name]) for name, value in loaded.selector.state_dict().items())


SIZES = {"kind": "match", "width": 12, "hidden": 8, "heads": 2, "layers": 2}
METADATA = [
    ("version", 2, "version=2; this release reads 1"),
    ("version", None, "version=None"),
    ("format", "other", "not a safetensors file with a selector"),
    ("config", None, "fields None"),
    ("config", {"kind": "match"}, "use exactly kind"),
    ("config", {**SIZES, "hidden": 10**9}, "hidden=1000000000; use an integer from 2 to 2048"),
    ("config", {**SIZES, "hidden": 12}, "'text_in.bias': torch.float32 .8,.; must be torch.float32 .12,."),
    ("model", [], "model="),
    ("model", {**vars(MODEL), "vocab_size": -1}, "vocab_size=-1"),
    ("model", {**vars(MODEL), "hidden_size": 13}, "hidden_size=13 of the model, width=12"),
    ("place", -1, "place=-1"),
    ("place", True, "place=True"),
    ("training", 3, "training=3"),
    ("payload", "0", "not those that were written"),
]


@pytest.mark.parametrize(("key", "value", "message"), METADATA)
def test_metadata_that_is_wrong(tmp_path, key, value, message):
    write_small(tmp_path / "s")
    with safe_open(tmp_path / "s", "pt") as file:
        metadata = file.metadata()
    facts = {**json.loads(metadata["selector"]), key: value}
    if value is None:
        del facts[key]
    save_file(load_file(tmp_path / "s"), tmp_path / "changed", {"selector": json.dumps(facts)})
    refuse(tmp_path / "changed", message)


def test_weights_that_are_not_numbers(tmp_path):
    for value in (torch.nan, torch.inf):
        selector = small_selector()
        selector.video_in.weight.data[0, 0] = value
        write_selector(tmp_path / "s", selector, Header(config=selector.config, model=MODEL), TABLE[probe_ids(40)])
        refuse(tmp_path / "s", "tensor 'video_in.weight' holds NaN or Inf")


def test_tensors_missing_and_too_many(tmp_path):
    selector = small_selector()
    joint = Header(config=SelectorConfig(kind="joint", width=WIDTH, hidden=8), model=MODEL)
    write_selector(tmp_path / "s", selector, joint, TABLE[probe_ids(40)])
    refuse(tmp_path / "s", "tensor 'bias' is not one of a selector|is missing")


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    write_small(tmp_path / "s")
    before = digest(tmp_path / "s")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write_small(tmp_path / "s", "joint")
    assert digest(tmp_path / "s") == before
    assert [item.name for item in tmp_path.iterdir()] == ["s"]
