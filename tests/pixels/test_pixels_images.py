"""Plans on pixels for images in a running engine, beside the oracle; and what the encoder makes of the cells left."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from dense_cases import IMAGE, Oracle, chat
from dense_cases import image as noise
from oracle.from_vllm import to_prompt
from oracle.pixels import encode_cells, new_cells
from oracle.prompt import Medium
from PIL import Image
from pixel_cases import OTHER, QUESTION, SAME, ask, page, page_cases, scan
from pixel_checks import check_cold_warm_and_in_chunks, watched
from pixel_clips import pure_noise, video_item


def test_pages_equal_the_oracle_cold_warm_and_in_chunks(engine, pixel_oracle):
    check_cold_warm_and_in_chunks(engine, pixel_oracle, page_cases())


def test_the_oracle_joins_cells_within_a_threshold(pixel_oracle):
    counts = [len(new_cells(medium_of(pixel_oracle, scan(1)), 2, within)) for within in (0, 4, 6, 10)]
    assert counts == sorted(set(counts), reverse=True)
    assert counts[0] == 35


def image_tokens(answer: Any, oracle: Oracle) -> int:
    return answer.prompt.count(oracle.model.config.image_token_id)


def medium_of(oracle: Oracle, picture: Image.Image) -> Medium:
    (medium,) = to_prompt(oracle.processor, chat(IMAGE + QUESTION), images=(picture,), typed=True).media
    return medium


def test_only_what_is_new_goes_through_the_encoder(engine, pixel_oracle):
    encoded = len(new_cells(medium_of(pixel_oracle, page(1)), 2))
    answer, patches, _ = watched(engine, ask(SAME, images=(page(1),)))
    assert patches == 4 * encoded
    assert image_tokens(answer, pixel_oracle) == encoded
    assert 5 < encoded < 35


def test_a_picture_that_is_flat_nowhere_is_stock_bit_for_bit(engine):
    stock, all_patches, (stock_rows,) = watched(engine, ask("baseline", images=(noise(3),)))
    answer, patches, (rows,) = watched(engine, ask(SAME, images=(noise(3),)))
    assert (patches, answer.prompt) == (all_patches, stock.prompt)
    np.testing.assert_array_equal(rows, stock_rows)
    np.testing.assert_array_equal(answer.logprobs, stock.logprobs)


@pytest.mark.parametrize("size", [(28, 28), (280, 140), (1, 1)])
def test_a_flat_picture_is_one_token(engine, pixel_oracle, size):
    answer, patches, _ = watched(engine, ask(SAME, images=(Image.new("RGB", size, (250, 250, 240)),)))
    assert (patches, image_tokens(answer, pixel_oracle)) == (4, 1)


def test_what_is_too_long_for_its_width_is_refused(engine):
    wide, long = video_item(pure_noise(2, seed=1, height=28, width=5628)), Image.new("RGB", (28, 5628))
    refused, too, served = engine.run(
        [ask(SAME, wide, images=(page(4),)).prompt(), ask(SAME, images=(page(4), long)).prompt(), ask(SAME).prompt()]
    )
    assert "video 0 has 5628x28 pixels: the longer side must not be above 200 times the shorter one" in refused.error
    assert "image 1 has 28x5628 pixels: the longer side must not be above 200 times the shorter one" in too.error
    assert not served.error


def test_small_images_stay_whole(engine):
    small = {
        "preset": "baseline",
        "image": {"same_within": 0, "method": "uniform", "keep_ratio": 1.0, "min_tokens": 35},
    }
    stock, all_patches, _ = watched(engine, ask("baseline", images=(page(2),)))
    answer, patches, _ = watched(engine, ask(small, images=(page(2),)))
    assert (patches, answer.prompt, answer.token_ids) == (all_patches, stock.prompt, stock.token_ids)


def test_the_threshold_is_part_of_what_caches_know(engine, pixel_oracle):
    """Also where a total makes an image's own count part of its identity."""
    pale = np.array(page(3))
    pale[::3] -= 4
    picture = Image.fromarray(pale)
    for more in ({}, {"method": "uniform", "total": 30}):
        configs = [{"preset": "baseline", "image": {"same_within": within, **more}} for within in (0, 8)]
        strict, loose = engine.run([ask(config, images=(picture,)).prompt() for config in configs])
        assert not strict.error, strict.error
        assert image_tokens(loose, pixel_oracle) < image_tokens(strict, pixel_oracle) <= 35
        again = engine.run([ask(configs[1], images=(picture,), question=OTHER).prompt()])[0]
        assert image_tokens(again, pixel_oracle) == image_tokens(loose, pixel_oracle)


def test_embeddings_are_refused(engine):
    data = {"image": {"image_embeds": torch.randn(16, 192), "image_grid_thw": torch.tensor([[1, 8, 8]])}}
    request = {"prompt": chat(IMAGE + QUESTION), "multi_modal_data": data, "mm_processor_kwargs": {"prune": SAME}}
    narrow = {**request, "multi_modal_data": {"image": {**data["image"], "image_embeds": torch.randn(16, 64)}}}
    refused, unfit, served = engine.run([request, narrow, ask(SAME, images=(page(4),)).prompt()])
    assert "image.same_within: needs pixels" in refused.error
    assert "image_embeds: has shape [16, 64]" in unfit.error
    assert not served.error


@torch.no_grad()
def test_with_windows_alone_only_windows_with_a_hole_change(pixel_oracle):
    """And with the attention over the whole picture that the model has in some layers, all cells do, a little."""
    medium = medium_of(pixel_oracle, page(1, 224, 224))
    visual = copy.deepcopy(pixel_oracle.model.model.visual)
    cells, (_, h, w) = new_cells(medium, 2), medium.grid_thw
    side, everywhere = visual.window_size // visual.patch_size // 2, torch.arange(h * w // 4)
    window = everywhere // (w // 2) // side * w + everywhere % (w // 2) // side
    left_out = everywhere[~torch.isin(everywhere, cells)]
    whole = ~torch.isin(window[cells], window[left_out])
    assert 0 < int(whole.sum()) < len(cells)

    def change() -> torch.Tensor:
        everything = encode_cells(visual, medium, everywhere)[cells]
        return (encode_cells(visual, medium, cells) - everything).norm(dim=1) / everything.norm(dim=1)

    mixed = change()
    visual.fullatt_block_indexes = []
    windowed = change()
    assert float(windowed[whole].max()) < 1e-5
    assert float(windowed[~whole].median()) > 1e-3  # not where a whole window is flat: an average of equals
    assert float(mixed[whole].min()) > 1e-5
    assert float(mixed[whole].max()) < 0.5
