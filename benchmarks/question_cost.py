"""What a choice by the question costs beside the vision encoder, for a model of Qwen2.5-VL 7B's shapes.

    python -m benchmarks.question_cost [--steps 12] [--repeats 3] -o OUTDIR

Times are the process's own (CPU clock) in one thread. Weights and tokens are random, which none of these times depend
on. The encoder attends within a step of two frames at most, so that of one step is measured, and a video takes
that many times as long.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from vllm_prune.bench.methods.measure import Measurement, measure
from vllm_prune.bench.throughput import provenance
from vllm_prune.budget import count_kept
from vllm_prune.config.methods import EXPONENTS
from vllm_prune.methods.base import VideoTokens
from vllm_prune.methods.question import choose_diverse, similarity_to_text, weigh_log_relevance
from vllm_prune.selector import Selector, SelectorConfig

CHANNELS, SIDE, WORDS, KEEP = 3584, 16, 20, 0.12
ENCODER = "vision encoder"


def encoder_of_a_step() -> Callable[[], object]:
    """A pass over one step of `SIDE` x `SIDE` tokens."""
    config = Qwen2_5_VLVisionConfig(hidden_size=1280, intermediate_size=3420, depth=32, num_heads=16)
    config.out_hidden_size, config._attn_implementation = CHANNELS, "sdpa"
    encoder = Qwen2_5_VisionTransformerPretrainedModel(config).eval()
    patches = torch.randn(4 * SIDE * SIDE, config.in_channels * config.temporal_patch_size * config.patch_size**2)
    return lambda: encoder(patches, grid_thw=torch.tensor([[1, 2 * SIDE, 2 * SIDE]]))


def choices(steps: int) -> dict[str, Callable[[], object]]:
    """By name: what scores and chooses `KEEP` of a video of `steps` steps."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(steps * SIDE * SIDE, CHANNELS, generator=generator)
    video, words = VideoTokens.from_features(tokens, (steps, SIDE, SIDE)), torch.randn(WORDS, CHANNELS)
    selectors = {kind: Selector(SelectorConfig(kind=kind, width=CHANNELS)).eval() for kind in ("match", "joint")}
    score = selectors["match"].score(tokens, words, None, video.grid_thw)
    weight, kept = weigh_log_relevance(score, EXPONENTS["learned"]), count_kept(len(tokens), KEEP)
    return {
        "similarity to the text": lambda: similarity_to_text(tokens, words, "mean"),
        "score of a selector, match": lambda: selectors["match"].score(tokens, words, None, video.grid_thw),
        "score of a selector, joint": lambda: selectors["joint"].score(tokens, words, None, video.grid_thw),
        "conditional DPP over the video": lambda: choose_diverse(video, kept, weight, "video"),
    }


def render(figures: dict[str, Any]) -> str:
    """A table in Markdown."""
    steps, times = figures["steps"], figures["times"]
    encoder = times[ENCODER]["mean"] * steps
    lines = [
        "# What a choice by the question costs beside the vision encoder",
        "",
        f"{steps * SIDE * SIDE} tokens ({steps} steps of {SIDE} x {SIDE}), {CHANNELS} channels of float32, a question "
        f"of {WORDS} tokens, {KEEP:.0%} kept; shapes of Qwen2.5-VL 7B, random weights, one thread, CPU clock. The "
        f"encoder is measured on one step, and takes {steps} times that for the video, as it attends within steps.",
        "",
        f"`{figures['command']}`",
        "",
        "| what | s (mean ± standard error) | of the encoder's time |",
        "|---|---|---|",
        f"| {ENCODER}, one step | {_seconds(times[ENCODER])} | {1 / steps:.2%} |",
    ]
    lines += [
        f"| {name} | {_seconds(found)} | {found['mean'] / encoder:.2%} |"
        for name, found in times.items()
        if name != ENCODER
    ]
    return "\n".join([*lines, "", *(f"- {line}" for line in provenance.describe_lines(figures["provenance"]))]) + "\n"


def _seconds(found: dict[str, Any]) -> str:
    return f"{found['mean']:.3f} ± {found['standard_error']:.3f}"


@torch.no_grad()
def main() -> None:
    """Measures, and writes question-cost.json and question-cost.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=12, help="steps of the video (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="of each measurement (default: %(default)s)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the figures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    calls = {ENCODER: encoder_of_a_step(), **choices(options.steps)}
    found: dict[str, Measurement] = {name: measure(call, "cpu", options.repeats, "cpu") for name, call in calls.items()}
    figures = {
        "command": " ".join(["python -m benchmarks.question_cost", *sys.argv[1:]]),
        "provenance": provenance.describe(),
        "steps": options.steps,
        "times": {name: one.as_dict() for name, one in found.items()},
    }
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "question-cost.json").write_text(json.dumps(figures, indent=1) + "\n")
    (options.output / "question-cost.md").write_text(render(figures))


if __name__ == "__main__":
    main()
