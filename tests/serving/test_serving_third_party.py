"""The example of docs/methods.md: a package that adds a method is installed, and vLLM serves it by name."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving_cases import CASES
from serving_engine import Engine, prune

from vllm_prune.config import PruneConfig, PruneConfigError
from vllm_prune.methods import names

EXAMPLE = Path(__file__).parents[2] / "examples" / "third_party_method"
PIP_INSTALL = ("pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation")
MANY = CASES["many positions"]  # 315 tokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the example is installed, as a wheel, and only there."""
    installed = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", *PIP_INSTALL, "--target", installed, EXAMPLE], check=True, timeout=120)
    return installed


@pytest.fixture
def installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    assert "largest_norm" not in names()
    monkeypatch.syspath_prepend(str(folder))
    yield
    sys.modules.pop("largest_norm", None)


def kept(engine: Engine, config: dict) -> int:
    """Video tokens of a prompt under `config`; the model must have seen as many rows."""
    (answer,) = engine.run([prune(MANY, config)], max_tokens=1)
    assert answer.num_computed_rows == answer.prompt_len
    return answer.prompt_token_ids.count(engine.model.config.video_token_id)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("params", [{}, {"order": 1.0}, {"merge_dropped": True}], ids=str)
@pytest.mark.parametrize(("ratio", "count"), [(0.2, 63), (0.5, 158)])
def test_it_is_served_with_exact_counts(engine: Engine, params: dict, ratio: float, count: int) -> None:
    config = {"method": "largest_norm", "keep_ratio": ratio, "params": params}
    assert kept(engine, config) == count


@pytest.mark.usefixtures("installed")
def test_after_stage_1_as_well(engine: Engine) -> None:
    config = {"stage1": {"cluster_ratio": 0.5}, "method": "largest_norm", "target_token_num": 33}
    assert kept(engine, config) == 33


@pytest.mark.usefixtures("installed")
def test_a_wrong_parameter_gets_the_methods_own_message(engine: Engine) -> None:
    with pytest.raises(ValueError, match=r"order=-1; use a number above 0"):
        kept(engine, {"method": "largest_norm", "params": {"order": -1}})


@pytest.mark.usefixtures("installed")
def test_the_flag_of_a_server_names_it() -> None:
    assert PruneConfig.parse('{"method": "largest_norm", "keep_ratio": 0.2}').method == "largest_norm"


def test_without_the_package_the_name_is_unknown() -> None:
    with pytest.raises(PruneConfigError, match=r"method='largest_norm'"):
        PruneConfig.parse('{"method": "largest_norm", "keep_ratio": 0.2}')
