"""Where the time of a prediction goes, by stage: table and picture.

python profile_stages.py vidcom2-0.12 --url http://localhost:8000
"""

from __future__ import annotations

import argparse
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from clips import Clip, make_clip
from collect import TEST_SEED, cells_of, client_of
from error import load_policy
from policy import TrajectoryPolicy, make_scheduler, to_frame
from report import as_table, write_report

from vllm_prune.bench.throughput.provenance import describe
from vllm_prune.features import Features, FeaturesClient

ENCODE, MEMORY, DENOISE, SCHEDULE = STAGES = ("encode", "memory", "denoise", "schedule")
TITLE = "Where the time of a prediction goes"
STAGES_SAID = """Encode: a request to the server, with its answer; memory: what the policy makes of the tokens, once
for an answer; denoise: the policy; schedule: the scheduler. Encoder runs: as the server's reports say."""


@dataclass
class Profile:
    """Times and calls of one prediction."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    calls: Counter[str] = field(default_factory=Counter)
    encoder_runs: int = 0
    """Of the server's vision encoder, as its reports say."""

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
    asks_each_step: bool = False
    new_clip_each_step: bool = False
    """So that the server cannot know its tokens."""
    compiled: bool = False
    dtype: torch.dtype = torch.float32


VARIANTS = (
    Variant("encode in each of 100 steps", 100, asks_each_step=True, new_clip_each_step=True),
    Variant("ask in each of 100 steps", 100, asks_each_step=True),
    Variant("encode once, 100 steps", 100),
    Variant("encode once, 10 steps", 10),
    Variant("encode once, 5 steps", 5),
    Variant("10 steps, compiled", 10, compiled=True),
    Variant("10 steps, bf16", 10, dtype=torch.bfloat16),
    Variant("10 steps, compiled, bf16", 10, compiled=True, dtype=torch.bfloat16),
)


@torch.inference_mode()
def predict(
    policy: TrajectoryPolicy, step: Callable[..., Any], variant: Variant, observe: Callable[[int], Features]
) -> Profile:
    """One prediction. `observe`: asks the server, given the number of the step; `step`: the policy's forward."""
    profile, scheduler = Profile(), make_scheduler(variant.steps)
    path = torch.randn(1, *policy.place.shape[:1], 2, dtype=variant.dtype)
    memory = None
    for number, level in enumerate(scheduler.timesteps):
        if memory is None or variant.asks_each_step:
            with profile.stage(ENCODE):
                found = observe(number)
            profile.encoder_runs += found.report["videos"][0]["source"] == "encoded"
            with profile.stage(MEMORY):
                tokens, cells = found.tokens.to(variant.dtype), torch.from_numpy(cells_of(found)).to(variant.dtype)
                memory = policy.remember(tokens[None], cells[None], found.mask[None])
        with profile.stage(DENOISE):
            clean = step(path, level.expand(1), memory)
        with profile.stage(SCHEDULE):
            path = scheduler.step(clean, level, path).prev_sample
    to_frame(path)
    return profile


def mark(clip: Clip, number: int) -> bytes:
    """The clip as a file that differs from all with another number, below 256: its bits stand in a corner."""
    frames = clip.frames.copy()
    for bit in range(8):
        frames[:, :8, 8 * bit : 8 * bit + 8] = 255 * (number >> bit & 1)
    return Clip(frames, clip.centres, clip.colour).mp4()


def profile_variant(args: argparse.Namespace, variant: Variant) -> dict[str, Any]:
    """The median prediction over clips that the server has not seen before, after one that warms up."""
    found = []
    with client_of(args.url, args.choice) as client:
        for number in range(args.clips + 1):
            clip = make_clip(2 * TEST_SEED + VARIANTS.index(variant) * 1000 + number)
            files = [mark(clip, step) for step in range(variant.steps if variant.new_clip_each_step else 1)]
            if not found:
                policy, step = _load(args, variant, client.get(mark(clip, 255), clip.question).tokens.shape[1])
            found.append(predict(policy, step, variant, partial(observe, client, clip.question, files)))
    middle = sorted(found[1:], key=lambda profile: profile.total)[args.clips // 2]
    return {
        "variant": variant.name,
        "total_ms": 1000 * middle.total,
        "totals_ms": [1000 * profile.total for profile in found[1:]],
        "encoder_runs": middle.encoder_runs,
        "stages": {
            name: {"ms": 1000 * middle.seconds[name], "share": middle.seconds[name] / middle.total, "calls": calls}
            for name, calls in middle.calls.items()
        },
    }


def observe(client: FeaturesClient, question: str, files: list[bytes], number: int) -> Features:
    """What the server makes of the clip that it is shown in a step."""
    return client.get(files[number % len(files)], question)


def _load(args: argparse.Namespace, variant: Variant, width: int) -> tuple[TrajectoryPolicy, Callable[..., Any]]:
    policy = load_policy(args.folder, args.choice, 0, width).to(variant.dtype)
    return policy, torch.compile(policy, dynamic=False) if variant.compiled else policy


def write_table(lines: list[dict[str, Any]]) -> str:
    """Markdown: time, share and calls of each stage, and how much faster than the first line."""
    rows = [["variant", "encoder runs", *(f"{name}: ms, share, calls" for name in STAGES), "total, ms", "factor"]]
    for line in lines:
        cells = [f"{own['ms']:.1f}, {own['share']:.0%}, {own['calls']}" for own in line["stages"].values()]
        factor = lines[0]["total_ms"] / line["total_ms"]
        rows.append([line["variant"], str(line["encoder_runs"]), *cells, f"{line['total_ms']:.1f}", f"{factor:.1f}"])
    return as_table(rows)


def draw(lines: list[dict[str, Any]], file: Path) -> None:
    """Stacked bars, one for each variant, the slow ones apart from the fast ones."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.4), layout="constrained")
    slow = sum(variant.asks_each_step for variant in VARIANTS)
    parts = figure.subplots(2, 1, height_ratios=[slow, len(lines) - slow])
    for axes, own in zip(parts, (lines[:slow], lines[slow:]), strict=True):
        _draw_bars(axes, own)
    parts[1].legend(loc="lower right")
    parts[1].set_xlabel("milliseconds of one prediction")
    figure.savefig(file, dpi=150)


def _draw_bars(axes: Any, lines: list[dict[str, Any]]) -> None:
    left = [0.0] * len(lines)
    for stage in STAGES:
        widths = [line["stages"][stage]["ms"] for line in lines]
        axes.barh([line["variant"] for line in lines], widths, left=left, label=stage)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for row, line in enumerate(lines):
        axes.text(left[row], row, f" {line['total_ms']:.0f} ms", va="center")
    axes.invert_yaxis()
    axes.margins(x=0.15)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("choice", nargs="?", default="vidcom2-0.12", help="as collect.py has it")
    parser.add_argument("--folder", type=Path, default=Path("features"))
    parser.add_argument("--url", default="http://localhost:8000")
    parser.add_argument("--clips", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch in the policy")
    parser.add_argument("--out", type=Path, default=Path("results"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    place = describe()
    lines = []
    for variant in VARIANTS:
        lines.append(profile_variant(args, variant))
        print(f"{variant.name}: {lines[-1]['total_ms']:.1f} ms", flush=True)
    table = write_table(lines)
    print(table)
    said = f"Tokens `{args.choice}`; the median of {args.clips} clips, new to the server; {args.threads} thread(s)."
    write_report(args.out, "stages", [TITLE, said, STAGES_SAID, table], {"variants": lines}, place)
    draw(lines, args.out / "stages.png")


if __name__ == "__main__":
    main()
