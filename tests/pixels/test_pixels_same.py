"""Plans on pixels for pictures: which cells are as their neighbour is. No model."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pixel_clips import pure_noise, to_patches
from transformers import Qwen2VLImageProcessor

from benchmarks.pixel_plans.pages import draw_pages
from vllm_prune.methods.base import Assignment
from vllm_prune.methods.same_cells import SamePlan, cell_levels, plan_same
from vllm_prune.serving.worker.query_free import over_all_cells

ONES, ZEROS = torch.ones(3), torch.zeros(3)
PAGES = {page.name: page.pixels for page in draw_pages()}
NEVER_FLAT = ("letter, scanned",)


def levels_of(pixels: np.ndarray) -> tuple[torch.Tensor, tuple[int, int]]:
    """Cells of 28 pixels of a picture, which is cut to whole ones."""
    height, width = (side // 28 * 28 for side in pixels.shape[:2])
    patches, (_, h, w) = to_patches(np.repeat(pixels[None, :height, :width], 2, axis=0))
    return cell_levels(patches, merge=2, frames=2, scale=ONES, black=ZEROS), (h, w)


def share(plan: SamePlan) -> float:
    return float(plan.encoded.float().mean())


@st.composite
def flat_pictures(draw: st.DrawFn) -> tuple[torch.Tensor, tuple[int, int]]:
    """Few different cells of two pixels, so that neighbours are often equal or nearly so."""
    grid = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    palette = torch.tensor(draw(st.lists(st.lists(st.integers(0, 12), min_size=2, max_size=2), min_size=1, max_size=4)))
    chosen = draw(st.lists(st.integers(0, len(palette) - 1), min_size=grid[0] * grid[1], max_size=grid[0] * grid[1]))
    return palette[chosen].to(torch.uint8), grid


def decode(levels: torch.Tensor, encoded: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """The picture from its encoded cells and the rule, in words of its own: what a reader can make of them."""
    h, w = grid
    seen = torch.full_like(levels, 255).int()
    for cell in range(h * w):
        row, column = divmod(cell, w)
        left, above, corner = cell - 1, cell - w, cell - w - 1
        if encoded[cell]:
            seen[cell] = levels[cell]
        elif column == 0:
            seen[cell] = seen[above]
        elif row == 0:
            seen[cell] = seen[left]
        else:
            down, across = ((seen[corner] - seen[other]).abs().max() for other in (left, above))
            seen[cell] = seen[above] if down < across else seen[left]
    return seen.to(levels.dtype)


@given(flat_pictures())
def test_encoded_cells_and_the_rule_give_the_picture_back(picture):
    levels, grid = picture
    plan = plan_same(levels, grid)
    assert torch.equal(decode(levels, plan.encoded, grid), levels)
    assert torch.equal(levels[plan.stand_in], levels)


@given(flat_pictures(), st.integers(0, 13))
def test_what_stands_in_for_a_cell_is_encoded_and_within_the_threshold(picture, within):
    levels, grid = picture
    plan = plan_same(levels, grid, within)
    assert bool(plan.encoded[0])
    assert bool(plan.encoded[plan.stand_in].all())
    assert torch.equal(plan.stand_in[plan.encoded], plan.encoded.nonzero().squeeze(1))
    assert int((levels[plan.stand_in].int() - levels.int()).abs().max()) <= within


@given(flat_pictures())
def test_a_cell_and_its_stand_in_are_joined_by_cells_of_the_same(picture):
    """Step by step to the left or upwards, all of them stood in for by the same one."""
    levels, (h, w) = picture
    stand_in = plan_same(levels, (h, w), 3).stand_in.view(h, w)
    for row in range(h):
        for column in range(w):
            own = int(stand_in[row, column])
            if own != row * w + column:
                neighbours = [stand_in[row, column - 1]] if column else []
                neighbours += [stand_in[row - 1, column]] if row else []
                assert own in neighbours


@given(flat_pictures())
def test_a_higher_threshold_encodes_a_subset(picture):
    levels, grid = picture
    plans = [plan_same(levels, grid, within).encoded for within in range(14)]
    for lower, higher in itertools.pairwise(plans):
        assert not bool((higher & ~lower).any())


@pytest.mark.parametrize("side", [1, 2, 9])
def test_a_flat_picture_is_one_cell(side):
    assert plan_same(torch.full((side**2, 12), 7, dtype=torch.uint8), (side, side)).encoded.nonzero().tolist() == [[0]]


def test_a_rectangle_on_a_page_is_told_by_its_corners():
    """Encoded are its first cell, and where the page goes on to its right and below it: nothing along its sides."""
    page = torch.zeros(8, 9, 1, dtype=torch.uint8)
    page[2:6, 3:7] = 9
    encoded = plan_same(page.view(72, 1), (8, 9)).encoded.view(8, 9)
    assert encoded.nonzero().tolist() == [[0, 0], [2, 3], [2, 7], [6, 3]]


def test_a_gradient_does_not_vanish():
    """No step is above the threshold, and all of them are far apart."""
    ramp = torch.arange(0, 250, 2, dtype=torch.uint8).view(-1, 1)
    plan = plan_same(ramp, (1, 125), 8)
    assert 125 / 5 <= int(plan.encoded.sum()) <= 125 / 2
    assert int((ramp[plan.stand_in].int() - ramp.int()).abs().max()) <= 8


def test_everything_is_new_in_a_photo():
    levels, grid = levels_of(pure_noise(1, height=280, width=280)[0].astype(np.uint8))
    assert share(plan_same(levels, grid, 8)) == 1


@pytest.mark.parametrize("name", PAGES)
def test_pages_are_flat_in_many_places(name):
    levels, grid = levels_of(PAGES[name])
    exact, near = plan_same(levels, grid), plan_same(levels, grid, 8)
    assert torch.equal(levels[exact.stand_in], levels)
    assert share(exact) < 0.9 or name in NEVER_FLAT
    assert share(near) < 0.9
    assert not bool((near.encoded & ~exact.encoded).any())


@pytest.mark.parametrize("rescaled", [True, False])
def test_normalised_pixels_are_the_same_cells(rescaled):
    """What a processor makes of a page in float32 is compared as the bytes it came from."""
    pixels = PAGES["invoice"].copy()
    processor = Qwen2VLImageProcessor(do_rescale=rescaled, do_normalize=rescaled, max_pixels=4_000_000)
    made = processor(images=[pixels], return_tensors="pt")
    patches, (_, h, w) = made["pixel_values"], made["image_grid_thw"][0].tolist()
    deviation, mean = (torch.tensor(getattr(processor, name)) for name in ("image_std", "image_mean"))
    scale, black = (255 * deviation, 255 * mean) if rescaled else (ONES, ZEROS)
    levels = cell_levels(patches, merge=2, frames=2, scale=scale, black=black)
    assert levels.dtype == torch.uint8
    plan = plan_same(levels, (h // 2, w // 2))
    by_cell = patches.reshape(len(levels), -1)
    assert torch.equal(by_cell[plan.stand_in], by_cell)
    assert share(plan) < 0.4


def test_pixels_between_grey_levels_are_compared_as_they_are():
    patches = torch.zeros(8, 3 * 2 * 4)
    patches[5] = 1e-4
    levels = cell_levels(patches, merge=2, frames=2, scale=60 * ONES, black=0.3 * ONES)
    assert plan_same(levels, (1, 2)).encoded.tolist() == [True, True]
    assert plan_same(levels, (1, 2), 1).encoded.tolist() == [True, False]


def test_a_trace_shows_cells_that_are_not_encoded_as_dropped():
    """In a picture nothing that comes before stands in for them; in a video the last version does."""
    kept = Assignment.identity(3, torch.device("cpu"))
    picture = over_all_cells(kept, torch.tensor([0, 3, 4]), (1, 2, 3))
    assert picture.slot.tolist() == [0, -1, -1, 1, 2, -1]
    assert picture.anchor.tolist() == [0, 3, 4]
    video = over_all_cells(kept, torch.tensor([0, 1, 3]), (2, 1, 2))
    assert video.slot.tolist() == [0, 1, 0, 2]
