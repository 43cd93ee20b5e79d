from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from importlib.metadata import EntryPoint

import pytest
import torch

import vllm_prune.methods
from vllm_prune.methods import VideoTokens, create, names, registry


def test_every_public_module_with_a_method_is_registered() -> None:
    helpers = {"base", "registry", "merge_dropped"}
    modules = {info.name for info in pkgutil.iter_modules(vllm_prune.methods.__path__)}
    public = {name for name in modules - helpers if not name.startswith("_")}
    with_method = {
        name
        for name in public
        if any(
            callable(getattr(value, "assign", None)) and value.__module__.endswith(f".{name}")
            for value in vars(importlib.import_module(f"vllm_prune.methods.{name}")).values()
            if isinstance(value, type)
        )
    }
    assert {target.partition(":")[0].rpartition(".")[2] for target in registry._BUILT_IN.values()} == with_method


@pytest.mark.parametrize("name", names())
def test_a_method_knows_its_name(name: str) -> None:
    assert create(name).name == name


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown method 'prunvid'; known methods: .*prunevid.*uniform"):
        create("prunvid")


def test_an_unknown_parameter_lists_the_allowed_ones() -> None:
    with pytest.raises(ValueError, match="method 'prunevid' has no parameter 'rate'; it has: tau, cluster_ratio"):
        create("prunevid", rate=1)


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("prunevid", {"tau": 1.0}, "tau=1.0; use 0 < tau < 1"),
        ("prunevid", {"tau": float("nan")}, "tau=nan"),
        ("prunevid", {"cluster_ratio": 0}, "cluster_ratio=0; use 0 < cluster_ratio <= 1"),
        ("prunevid", {"temporal_segment_ratio": 1.5}, "temporal_segment_ratio=1.5"),
        ("prunevid", {"k": 0}, "k=0; use an integer of 1 or more"),
        ("prunevid", {"keep_small": True}, "keep_small=True"),
        ("prunevid", {"tau": "0.8"}, "tau='0.8'; use 0 < tau < 1"),
        ("random", {"seed": -1}, "seed=-1"),
    ],
)
def test_a_wrong_value_names_field_value_and_range(name: str, params: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create(name, **params)


@dataclass(frozen=True, kw_only=True)
class FirstTokens:
    offset: int = 0
    name = "first"

    def assign(self, tokens, budget):
        raise NotImplementedError


def _install(monkeypatch: pytest.MonkeyPatch, **targets: str) -> None:
    found = [EntryPoint(name, target, registry.ENTRY_POINT_GROUP) for name, target in targets.items()]
    monkeypatch.setattr(registry, "entry_points", lambda group: found if group == registry.ENTRY_POINT_GROUP else [])


def test_a_third_party_method_comes_from_an_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch, first="test_methods_registry:FirstTokens")
    assert "first" in names()
    assert create("first", offset=2).offset == 2


def test_a_third_party_method_cannot_replace_a_built_in(monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch, uniform="test_methods_registry:FirstTokens")
    assert create("uniform").name == "uniform"


@pytest.mark.parametrize("target", ["no_such_module:X", "test_methods_registry:None_", "test_methods_registry:pytest"])
def test_a_broken_third_party_method_is_named(monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    _install(monkeypatch, broken=target)
    with pytest.raises(ValueError, match="method 'broken'"):
        create("broken")


def test_built_in_methods_do_not_look_for_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every request creates its method, and the look takes 10 ms."""

    def look(group: str) -> None:
        raise AssertionError(group)

    monkeypatch.setattr(registry, "entry_points", look)
    assert registry.create("uniform").name == "uniform"
    with pytest.raises(AssertionError):
        registry.create("third_party")


@pytest.mark.parametrize(("method", "field"), [("dart", "pivots"), ("dpp", "rank"), ("prunevid", "k")])
def test_integers_have_an_upper_bound(method, field):
    with pytest.raises(ValueError, match=rf"{field}={10**30}; use an integer of \d+ or less"):
        create(method, **{field: 10**30})


@pytest.mark.parametrize(
    "name", [name for name in registry.for_images() if getattr(registry.load(name), "relevance", "") != "encoder"]
)
def test_rows_and_columns_of_an_image_do_not_matter(name: str) -> None:
    """Cells of an image of tiles are one row. What looks at the attention inside an encoder is refused there."""
    features = torch.randn(48, 16, generator=torch.Generator().manual_seed(0))
    for budget in (1, 5, 24, 47):
        square, row = (
            create(name).assign(VideoTokens.from_features(features, (1, *extent)), budget)
            for extent in ((6, 8), (1, 48))
        )
        assert torch.equal(square.slot, row.slot)
        assert torch.equal(square.anchor, row.anchor)
