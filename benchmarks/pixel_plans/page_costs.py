"""Pages whose equal cells are not encoded: share encoded by threshold, and time beside stock vLLM."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from transformers import Qwen2VLImageProcessor

from benchmarks.pixel_plans.costs import Bench, medians
from benchmarks.pixel_plans.pages import Page, draw_pages
from vllm_prune.bench.throughput.report import table
from vllm_prune.methods.same_cells import cell_levels, plan_same

CELLS = {"28 pixels (Qwen2-VL, Qwen2.5-VL)": 14, "32 pixels (Qwen3-VL)": 16}
THRESHOLDS = (0, 1, 2, 4, 8, 16, 32)
MERGE, FRAMES = 2, 2
SAME = {"preset": "baseline", "image": {"same_within": 0}}
PROMPT = (
    "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>what does the page say?<|im_end|>\n"
    "<|im_start|>assistant\n"
)


def shares(page: Page, patch: int) -> dict[str, float]:
    """Cells of a page, and the share that is encoded by threshold."""
    processor = Qwen2VLImageProcessor(patch_size=patch, max_pixels=4_000_000)
    made = processor(images=[page.pixels.copy()], return_tensors="pt")
    patches, (_, h, w) = made["pixel_values"], made["image_grid_thw"][0].tolist()
    deviation, mean = (torch.tensor(getattr(processor, name)) for name in ("image_std", "image_mean"))
    levels = cell_levels(patches, merge=MERGE, frames=FRAMES, scale=255 * deviation, black=255 * mean)
    plans = {within: plan_same(levels, (h // MERGE, w // MERGE), within) for within in THRESHOLDS}
    found = {str(within): float(plan.encoded.float().mean()) for within, plan in plans.items()}
    return {"cells": h * w // MERGE**2, **found}


class ImageBench(Bench):
    """An engine on random weights that takes one image."""

    modality = "image"

    def ask_page(self, page: Page, config: Any) -> dict[str, float]:
        """One request; seconds, bytes and tokens."""
        return self.send(PROMPT, Image.fromarray(page.pixels), config)


def measure(dims: str, repeats: int, show: Callable[[str], None] = print) -> dict[str, Any]:
    """Shares of all pages, and medians of time (`repeats` of 0: no times, and no engine)."""
    pages = draw_pages()
    by_cell = {name: {page.name: shares(page, patch) for page in pages} for name, patch in CELLS.items()}
    if repeats == 0:
        return {"shares": by_cell}
    bench = ImageBench(dims)
    samples: dict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
    for repeat in range(repeats + 1):
        for page in pages:
            for name, config in (("stock", "baseline"), ("same", SAME)):
                sample = bench.ask_page(page, config)
                if repeat:  # the first round warms up
                    samples[page.name, name].append(sample)
        show(f"round {repeat} of {repeats}")
    times = {page.name: {name: medians(samples[page.name, name]) for name in ("stock", "same")} for page in pages}
    return {"model": bench.model_description, "repeats": repeats, "shares": by_cell, "times": times}


def markdown(result: dict[str, Any]) -> str:
    """The tables."""
    parts = [
        "# Pages whose equal cells are not encoded",
        "Twenty pages and screens drawn by code (`benchmarks/pixel_plans/pages.py`), through Qwen's image processor.",
    ]
    for name, pages in result["shares"].items():
        parts += [f"## Share of the cells that is encoded, cells of {name}", _share_table(pages)]
    if "times" not in result:
        return "\n\n".join(parts) + "\n"
    parts += [
        "## Time, threshold 0 beside stock vLLM",
        f"One request at a time, prefix and processor caches off, medians of {result['repeats']}; {result['model']}. "
        "Encoder: of vLLM's vision encoder alone. TTFT: from the request to the first token, preprocessing included.",
        _time_table(result["times"]),
    ]
    return "\n\n".join(parts) + "\n"


def _share_table(pages: dict[str, dict[str, float]]) -> str:
    keys = [*map(str, THRESHOLDS)]
    rows = [[name, f"{row['cells']:.0f}", *(f"{row[key]:.1%}" for key in keys)] for name, row in pages.items()]
    means = [f"**{statistics.mean(row[key] for row in pages.values()):.1%}**" for key in keys]
    return table(["page", "cells", *(f"within {key}" for key in keys)], [*rows, ["**mean**", "", *means]])


def _time_table(times: dict[str, dict[str, dict[str, float]]]) -> str:
    header = [
        "page",
        "prompt tokens",
        "stock",
        "planning, ms",
        "encoder, ms",
        "stock",
        "÷ stock",
        "TTFT, ms",
        "stock",
        "÷ stock",
    ]
    rows = [[name, *_time_cells(row["same"], row["stock"])] for name, row in times.items()]
    keys = ("prompt_tokens", "plan_s", "encoder_s", "ttft_s")
    sums = {
        kind: {key: sum(row[kind].get(key, 0.0) for row in times.values()) for key in keys}
        for kind in ("same", "stock")
    }
    return table(header, [*rows, ["**all twenty**", *_time_cells(sums["same"], sums["stock"])]])


def _time_cells(same: dict[str, float], stock: dict[str, float]) -> Sequence[str]:
    cells = [f"{same['prompt_tokens']:.0f}", f"{stock['prompt_tokens']:.0f}", f"{1e3 * same['plan_s']:.0f}"]
    for key in ("encoder_s", "ttft_s"):
        cells += [f"{1e3 * same[key]:.0f}", f"{1e3 * stock[key]:.0f}", f"{same[key] / stock[key]:.2f}"]
    return cells
