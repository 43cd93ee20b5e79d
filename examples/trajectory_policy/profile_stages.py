"""Where the time of a prediction goes, by stage: table and picture.

python profile_stages.py features --keep 0.12 --url http://localhost:8000
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from clips import make_clip
from collect import QUESTION, TEST_SEED, cells_of, config_of
from error import load
from policy import TrajectoryPolicy, make_scheduler, to_frame

from vllm_prune.features import Features, FeaturesClient

ENCODE, MEMORY, DENOISE, SCHEDULE = STAGES = ("encode", "memory", "denoise", "schedule")


@dataclass
class Profile:
    """Times and calls of one prediction."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    calls: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - begin
        self.calls[name] += 1

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


@dataclass(frozen=True)
class Variant:
    """A way to predict."""

    name: str
    steps: int
    encode_each_step: bool = False
    compiled: bool = False
    dtype: torch.dtype = torch.float32


VARIANTS = (
    Variant("encode in each of 100 steps", 100, encode_each_step=True),
    Variant("encode once, 100 steps", 100),
    Variant("encode once, 10 steps", 10),
    Variant("encode once, 5 steps", 5),
    Variant("10 steps, compiled", 10, compiled=True),
    Variant("10 steps, bf16", 10, dtype=torch.bfloat16),
    Variant("10 steps, compiled, bf16", 10, compiled=True, dtype=torch.bfloat16),
)


@torch.inference_mode()
def predict(
    policy: TrajectoryPolicy, step: Callable[..., Any], variant: Variant, observe: Callable[[], Features]
) -> Profile:
    """One prediction. `observe`: asks the server; `step`: the policy's forward."""
    profile, scheduler = Profile(), make_scheduler(variant.steps)
    path = torch.randn(1, *policy.place.shape[:1], 2, dtype=variant.dtype)
    memory = None
    for level in scheduler.timesteps:
        if memory is None or variant.encode_each_step:
            with profile.stage(ENCODE):
                found = observe()
            with profile.stage(MEMORY):
                cells = torch.from_numpy(cells_of(found))
                memory = policy.remember(found.tokens[None].to(variant.dtype), cells[None].to(variant.dtype))
        with profile.stage(DENOISE):
            clean = step(path, level.expand(1), memory)
        with profile.stage(SCHEDULE):
            path = scheduler.step(clean, level, path).prev_sample
    to_frame(path)
    return profile


def profile_variant(folder: Path, keep: float, url: str, variant: Variant, clips: int) -> dict[str, Any]:
    """The median prediction over clips that the server has not seen before."""
    policy = load(folder, keep)[0].to(variant.dtype)
    step = torch.compile(policy, dynamic=False) if variant.compiled else policy
    found = []
    with FeaturesClient(url, config=config_of(keep), remember=0) as client:
        for number in range(-1, clips):  # the first warms up
            offset = VARIANTS.index(variant) * 1000
            clip = make_clip(2 * TEST_SEED + offset + number).mp4()
            found.append(predict(policy, step, variant, lambda clip=clip: client.get(clip, QUESTION)))
    middle = sorted(found[1:], key=lambda profile: profile.total)[clips // 2]
    return {
        "variant": variant.name,
        "total_ms": 1000 * median(profile.total for profile in found[1:]),
        "stages": {
            name: {"ms": 1000 * middle.seconds[name], "share": middle.seconds[name] / middle.total, "calls": calls}
            for name, calls in middle.calls.items()
        },
    }


def write_table(lines: list[dict[str, Any]]) -> str:
    """Markdown: time, share and calls of each stage."""
    head = ["variant", "total", *(f"{name}: ms, share, calls" for name in STAGES)]
    rows = [head, ["---"] * len(head)]
    for line in lines:
        cells = [f"{own['ms']:.1f}, {own['share']:.0%}, {own['calls']}" for own in line["stages"].values()]
        rows.append([line["variant"], f"{line['total_ms']:.1f} ms", *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def draw(lines: list[dict[str, Any]], file: Path) -> None:
    """Stacked bars, one for each variant."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    left = [0.0] * len(lines)
    names = [line["variant"] for line in lines]
    for stage in STAGES:
        widths = [line["stages"][stage]["ms"] for line in lines]
        axes.barh(names, widths, left=left, label=stage)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for row, line in enumerate(lines):
        axes.text(left[row], row, f" {line['total_ms']:.0f} ms", va="center")
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds of one prediction")
    axes.margins(x=0.12)
    axes.legend()
    figure.savefig(file, dpi=150)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("features"))
    parser.add_argument("--keep", type=float, default=0.12)
    parser.add_argument("--url", default="http://localhost:8000")
    parser.add_argument("--clips", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch in the policy")
    parser.add_argument("--picture", type=Path, default=Path("stages.png"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    lines = [profile_variant(args.folder, args.keep, args.url, variant, args.clips) for variant in VARIANTS]
    print(write_table(lines))
    machine = {"cores": os.cpu_count(), "threads": torch.get_num_threads(), "processor": platform.processor()}
    (args.folder / "stages.json").write_text(json.dumps({"machine": machine, "variants": lines}, indent=1))
    draw(lines, args.picture)


if __name__ == "__main__":
    main()
