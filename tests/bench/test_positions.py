"""Kept positions against contiguous ones: what a table says of the questions that were right."""

import numpy as np
import pytest

positions = pytest.importorskip("benchmarks.positions", reason="needs the repository's benchmarks/")


def test_differences_are_those_of_questions_and_errors_those_of_clips():
    clips = [np.array([[True, True], [True, False]]), np.array([[False] * 4, [False] * 3 + [True]])]
    found = positions.summarise(clips)
    assert found == {
        "questions": 6,
        "kept": 33.33,
        "contiguous": 33.33,
        "gain": 0.0,
        "standard_error": round(100 * 2**0.5 * 2**0.5 / 6, 2),
    }
    more = positions.summarise([clips[0]] * 3)
    assert (more["gain"], more["standard_error"]) == (50.0, 0.0)


def test_a_model_without_a_known_layout_is_refused(capsys):
    with pytest.raises(SystemExit):
        positions.main(["qwen=last.pt", "-o", "out"])
    assert "must be llava=CHECKPOINT or internvl=CHECKPOINT" in capsys.readouterr().err
