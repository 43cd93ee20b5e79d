"""Question/answer pairs about one object or one short event of a scene. Every answer is one token."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from .scene import COLOUR_NAMES, FORMS, MOTION_NAMES, Scene

QUESTION_TYPES = ("direction", "shape_form", "moving_colour", "flash_form", "flash_colour", "count")
COUNT_WORDS = ("zero", "one", "two", "three")

# The first phrasing is the canonical one, used for evaluation; the others make the model less brittle.
PHRASINGS: dict[str, tuple[str, ...]] = {
    "direction": (
        "Which way does the {colour} shape move?",
        "In which direction is the {colour} shape moving?",
    ),
    "shape_form": (
        "What form has the {colour} shape?",
        "What is the form of the {colour} shape?",
    ),
    "moving_colour": (
        "What color is the shape that moves {motion}?",
        "Which color moves {motion}?",
    ),
    "flash_form": (
        "What form has the {colour} flash?",
        "What is the form of the {colour} flash?",
    ),
    "flash_colour": (
        "What color is the {form} flash?",
        "Which color flashes as a {form}?",
    ),
    "count": (
        "How many shapes are there?",
        "How many shapes appear?",
    ),
}
ANSWERS = COLOUR_NAMES + FORMS + MOTION_NAMES + COUNT_WORDS[1:]


@dataclass(frozen=True)
class Question:
    """One question with its answer word."""

    type: str
    text: str
    answer: str


def _facts(scene: Scene) -> list[tuple[str, dict[str, str], str]]:
    """All (type, slots of the phrasing, answer) that hold and name exactly one object."""
    facts: list[tuple[str, dict[str, str], str]] = []
    motions = Counter(shape.motion for shape in scene.shapes)
    for shape in scene.shapes:
        facts.append(("direction", {"colour": shape.colour}, shape.motion))
        facts.append(("shape_form", {"colour": shape.colour}, shape.form))
        if shape.motion != "still" and motions[shape.motion] == 1:
            facts.append(("moving_colour", {"motion": shape.motion}, shape.colour))
    for flash in scene.flashes:
        facts.append(("flash_form", {"colour": flash.colour}, flash.form))
        facts.append(("flash_colour", {"form": flash.form}, flash.colour))
    facts.append(("count", {}, COUNT_WORDS[len(scene.shapes)]))
    return facts


def all_questions(scene: Scene) -> list[Question]:
    """Every question a scene answers, in its canonical phrasing, in a fixed order."""
    return [Question(kind, PHRASINGS[kind][0].format(**slots), answer) for kind, slots, answer in _facts(scene)]


def sample_questions(rng: np.random.Generator, scene: Scene, limit: int) -> list[Question]:
    """Up to ``limit`` questions in random order and phrasing."""
    facts = _facts(scene)
    chosen = [facts[i] for i in rng.permutation(len(facts))[:limit]]
    return [
        Question(kind, PHRASINGS[kind][rng.integers(len(PHRASINGS[kind]))].format(**slots), answer)
        for kind, slots, answer in chosen
    ]
