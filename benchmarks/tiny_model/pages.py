"""Single pictures that the embedded model can be asked about: coloured forms on a page with lines of grey "text".

It was trained on clips only, and an image is to it what a clip of one step would be. Outlined forms are what its
questions call flashes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .clips import HELD_OUT_SEED
from .questions import PHRASINGS, Question
from .render import form_mask
from .scene import COLOUR_NAMES, COLOURS, FORMS

SIDE = 224  # pixels: 8 x 8 merged tokens
FILLED, OUTLINED = 4, 3  # one form for each of the seven colours
PLACEMENT_TRIES = 100
LETTER, SPACING, LINE = 5, 8, 28  # pixels: a block that stands for a letter, its pitch, and that of lines


@dataclass(frozen=True)
class SyntheticPage:
    """``pixels [side, side, 3]`` uint8 RGB and what can be asked about them."""

    pixels: np.ndarray
    questions: list[Question]


def make_page(seed: int, side: int = SIDE) -> SyntheticPage:
    """The page of a seed."""
    rng = np.random.default_rng([seed, 3])
    paper = int(rng.integers(225, 250) if rng.random() < 0.5 else rng.integers(90, 170))
    pixels = np.full((side, side, 3), paper, dtype=np.uint8)
    _write_lines(rng, pixels, paper - 70)
    colours = [COLOUR_NAMES[i] for i in rng.permutation(len(COLOUR_NAMES))]
    outlines = [FORMS[i] for i in rng.permutation(len(FORMS))]
    placed: list[tuple[int, int, int]] = []
    questions = []
    for number, colour in enumerate(colours):
        outlined = number >= FILLED
        form = outlines[number - FILLED] if outlined else str(rng.choice(FORMS))
        if _draw_form(rng, pixels, form, colour, outlined, placed):
            questions += _ask("flash" if outlined else "shape", colour, form)
    return SyntheticPage(pixels, questions)


def _ask(kind: str, colour: str, form: str) -> list[Question]:
    """In the words of the clips' questions. No colour occurs twice, and no form of an outline does."""
    asked = [Question(f"{kind}_form", PHRASINGS[f"{kind}_form"][0].format(colour=colour), form)]
    if kind == "flash":
        asked.append(Question("flash_colour", PHRASINGS["flash_colour"][0].format(form=form), colour))
    return asked


def _write_lines(rng: np.random.Generator, pixels: np.ndarray, ink: int) -> None:
    """Words of grey blocks in lines of varying length."""
    side = len(pixels)
    for y in range(LINE // 2, side - LETTER, LINE):
        x, end = SPACING, int(rng.integers(side // 4, side))
        while x < end - LETTER:
            for _ in range(int(rng.integers(2, 8))):
                pixels[y : y + LETTER, x : x + LETTER] = ink
                x += SPACING
            x += SPACING


def _draw_form(
    rng: np.random.Generator,
    pixels: np.ndarray,
    form: str,
    colour: str,
    outlined: bool,
    placed: list[tuple[int, int, int]],
) -> bool:
    """Draw a form where it touches no other; False when there is no room."""
    radius = int(rng.integers(10, 14) if outlined else rng.integers(9, 12))
    for _ in range(PLACEMENT_TRIES):
        x, y = (int(place) for place in rng.integers(radius + 1, len(pixels) - radius - 1, size=2))
        if all(max(abs(x - other_x), abs(y - other_y)) > radius + other + 1 for other_x, other_y, other in placed):
            break
    else:
        return False
    placed.append((x, y, radius))
    mask = form_mask(form, radius, outlined)
    top, left = y - radius, x - radius
    rgb = np.clip(np.asarray(COLOURS[colour]) + rng.integers(-14, 15, size=3), 0, 255)
    # Forms lie on paper, not on words.
    around = pixels[top - 1 : top + len(mask) + 1, left - 1 : left + len(mask) + 1]
    around[:] = pixels[0, 0]
    around[1:-1, 1:-1][mask] = rgb
    return True


def evaluation_pages(n: int, seed: int = 0) -> list[SyntheticPage]:
    """``n`` pages of a seed, in colours, forms and places that no clip of training has."""
    first = HELD_OUT_SEED + seed * 1_000_000
    return [make_page(first + i) for i in range(n)]
