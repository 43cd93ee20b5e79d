"""Features of families with positions in one dimension, against a Hugging Face run of the same stages.

With positions that are kept, and with contiguous ones. Long, but for what needs no engine.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from dense_cases import IMAGE, VIDEO, Case, Oracle, chat, image, video
from dense_engine import RemoteEngine
from feature_engine import FeatureEngine, check_cold_warm_and_in_chunks
from oracle.micro_model import micro_selectors
from square_cases import (
    CHAT,
    FAMILIES,
    IMAGES_ONLY,
    VIDEOS_ONLY,
    asking_cases,
    cases,
    image_cases,
    of_family,
    options_of,
    square_oracle,
    write_square_model,
)

from vllm_prune.config import PruneConfig

pytestmark = pytest.mark.long
POSITIONS = ("kept", "contiguous")
QUESTION = "What colour is the flash?"
UNIFORM = {"method": "uniform", "stage1": None, "keep_ratio": 0.3}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module", params=POSITIONS)
def positions(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, family: str) -> str:
    return write_square_model(tmp_path_factory.mktemp(family), family)


@pytest.fixture(scope="module")
def started(model: str, family: str, positions: str) -> Iterator[RemoteEngine]:
    options = {"selector": micro_selectors(model), "positions": positions, **options_of(family)}
    with RemoteEngine(model, "default", kind=FeatureEngine, **options) as engine:
        yield engine


@pytest.fixture(scope="module")
def oracle(model: str, family: str, positions: str) -> Oracle:
    return square_oracle(model, family, contiguous=positions == "contiguous")


def asked(family: str) -> list[Case]:
    """Requests of all kinds that have something to hand out."""
    of_images = [] if family in (*IMAGES_ONLY, VIDEOS_ONLY) else image_cases(family)
    kinds = itertools.zip_longest(cases(family), asking_cases(family), of_images)
    drawn = [case for kind in kinds for case in kind if case is not None]
    return [case for case in drawn if case.videos or (case.images and _prunes_images(case))][:32]


def _prunes_images(case: Case) -> bool:
    return PruneConfig.parse(case.config, base=PruneConfig.parse("default")).prunes_images


@pytest.mark.parametrize("start", range(0, 32, 8))
def test_features_equal_the_oracle_cold_warm_and_in_chunks(
    engine, oracle, family, start, record_property: Callable[[str, object], None]
):
    batch = asked(family)[start : start + 8]
    assert batch
    record_property("largest error", check_cold_warm_and_in_chunks(engine, oracle, batch))


def test_seconds_are_those_of_the_frames_and_images_have_none(engine, family):
    if family in IMAGES_ONLY:
        pytest.skip("no videos")
    (case,) = of_family(family, [Case(chat(VIDEO + QUESTION), (video(3, fps=8.0),), (), UNIFORM)])
    (found,) = engine.call("encode", [case.prompt()], {"layer": 0})
    (medium,) = found.described["media"]
    assert medium["grid_thw"][0] == 8
    assert medium["seconds"] == [cell[0] / 8 for cell in medium["cells"]]


def test_cells_of_an_image_are_told_by_its_parts(engine, oracle, family):
    """Tiled ones are a small version and then the whole, with a newline behind each row, which is no token."""
    if family == VIDEOS_ONLY:
        pytest.skip("no images")
    config = {"preset": "baseline", "image": {"method": "uniform", "keep_ratio": 0.5}}
    (case,) = of_family(family, [Case(chat(IMAGE + QUESTION), (), (image(1, 112, 160),), config)])
    (found,) = engine.call("encode", [case.prompt()], {"layer": 0})
    (medium,) = found.described["media"]
    t, h, w = medium["grid_thw"]
    assert medium["seconds"] is None
    assert medium["tokens"] == len(medium["cells"]) == -(-t * h * w // 2)
    assert sum(height * width for height, width in medium["parts"]) == t * h * w
    assert len(medium["parts"]) == {"llava": 1, "internvl": t, CHAT: t}.get(family, 2)


def test_questions_about_a_medium_encode_it_once(engine, family):
    config = {"preset": "baseline", "image": {"method": "uniform", "keep_ratio": 0.5}}
    shown = (IMAGE, (), (image(1),), config) if family in IMAGES_ONLY else (VIDEO, (video(3),), (), UNIFORM)
    place, videos, images, config = shown
    asking = [Case(chat(place + words), videos, images, config) for words in (QUESTION, "How many?", QUESTION)]
    found = [engine.call("encode", [case.prompt()], {})[0] for case in of_family(family, asking)]
    assert engine.call("num_encoded") == 1
    first, other, again = found
    assert np.array_equal(first.rows, again.rows)
    assert np.abs(first.rows - other.rows).max() < 1e-5  # nothing behind a medium changes what it is
