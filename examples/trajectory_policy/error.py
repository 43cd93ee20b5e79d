"""Error of predicted paths by choice of tokens and denoising steps: `python error.py all vidcom2-0.12 --seeds 3`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from clips import SIDE
from collect import ALL, CHOICES
from policy import TrajectoryPolicy, make_scheduler, to_frame
from report import as_table, write_report
from train import load_clips, policy_file

from vllm_prune.bench.throughput.provenance import describe

STEPS = (100, 10, 5)


@torch.inference_mode()
def denoise(policy: TrajectoryPolicy, memory: torch.Tensor, steps: int, generator: torch.Generator) -> torch.Tensor:
    """Paths [B, HORIZON, 2] in frame sides, from noise."""
    scheduler = make_scheduler(steps)
    path = torch.randn(len(memory), *policy.place.shape[:1], 2, generator=generator).to(memory.dtype)
    for level in scheduler.timesteps:
        clean = policy(path, level.expand(len(path)), memory)
        path = scheduler.step(clean, level, path, generator=generator).prev_sample
    return to_frame(path)


def load_policy(folder: Path, choice: str, seed: int, feature_size: int) -> TrajectoryPolicy:
    """One that `train.py` wrote."""
    policy = TrajectoryPolicy(feature_size)
    policy.load_state_dict(torch.load(policy_file(folder, choice, seed)))
    return policy.eval()


def distance(path: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Of each clip, the mean distance in pixels, [B]."""
    return (path - truth).norm(dim=2).mean(dim=1) * SIDE


def measure(folder: Path, choice: str, seeds: int) -> dict[int, torch.Tensor]:
    """Pixels of each number of steps, by policy and clip, [seeds, clips]."""
    clips = load_clips(folder / f"test-{choice}.npz")
    found: dict[int, list[torch.Tensor]] = {steps: [] for steps in STEPS}
    for seed in range(seeds):
        policy = load_policy(folder, choice, seed, clips["tokens"].shape[2])
        with torch.inference_mode():
            memory = policy.remember(clips["tokens"].float(), clips["cells"], clips["mask"])
        for steps in STEPS:
            path = denoise(policy, memory, steps, torch.Generator().manual_seed(seed))
            found[steps].append(distance(path, clips["paths"]))
    return {steps: torch.stack(each) for steps, each in found.items()}


def summarize(
    folder: Path, choice: str, pixels: dict[int, torch.Tensor], first: dict[int, torch.Tensor]
) -> dict[str, Any]:
    """A line of the table: means over policies and clips, standard errors over clips, ratios to the first choice."""
    clips = load_clips(folder / f"test-{choice}.npz")
    lines = {
        steps: {
            "mean": each.mean().item(),
            "se": _standard_error(each),
            "policies": each.mean(dim=1).tolist(),
            "ratio": (each.mean() / first[steps].mean()).item(),
            "ratio_se": _standard_error((each - first[steps]) / first[steps].mean()),
        }
        for steps, each in pixels.items()
    }
    tokens, ball = clips["mask"].sum(1).float().mean().item(), clips["ball"].mean().item()
    return {"choice": choice, "tokens": tokens, "ball": ball, "pixels": lines}


def _standard_error(pixels: torch.Tensor) -> float:
    """Over clips; [seeds, clips]."""
    of_clip = pixels.mean(dim=0)
    return (of_clip.std() / len(of_clip) ** 0.5).item()


def measure_mean_path(folder: Path, choice: str) -> float:
    """Pixels, where every prediction is the mean of the paths trained on."""
    train, test = (load_clips(folder / f"{part}-{choice}.npz")["paths"] for part in ("train", "test"))
    return distance(train.mean(dim=0).expand_as(test), test).mean().item()


def write_table(lines: list[dict[str, Any]], mean_path: float) -> str:
    """Markdown."""
    rows = [
        ["choice", "tokens", "of the ball's cells", *(f"{steps} steps" for steps in STEPS), f"÷ `{lines[0]['choice']}`"]
    ]
    for line in lines:
        ten = line["pixels"][10]
        ratio = "1" if line is lines[0] else f"{ten['ratio']:.2f} ± {ten['ratio_se']:.2f}"
        cells = (f"{own['mean']:.1f} ± {own['se']:.1f}" for own in line["pixels"].values())
        rows.append([f"`{line['choice']}`", f"{line['tokens']:.0f}", f"{line['ball']:.0%}", *cells, ratio])
    return as_table([*rows, ["the mean of all paths", "0", "0%", f"{mean_path:.1f}", "", "", ""]])


def draw(lines: list[dict[str, Any]], file: Path) -> None:
    """Error by kept tokens: a curve for each method, a point where it has one share."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    whole = [line for line in lines if line["choice"] == ALL]
    methods = list(dict.fromkeys(line["choice"].rpartition("-")[0] for line in lines if line["choice"] != ALL))
    for method in methods:
        own = [line for line in lines if line["choice"].rpartition("-")[0] == method]
        own = own + whole if len(own) > 1 else own
        own.sort(key=lambda line: line["tokens"])
        at_ten = [line["pixels"][10] for line in own]
        axes.errorbar(
            [line["tokens"] for line in own],
            [each["mean"] for each in at_ten],
            [each["se"] for each in at_ten],
            marker="o",
            label=method,
        )
    axes.set_xscale("log")
    counts = sorted({round(line["tokens"]) for line in lines})
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("tokens of a clip")
    axes.set_ylabel("error of the path in pixels, 10 steps")
    axes.legend()
    figure.savefig(file, dpi=150)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("choices", nargs="*", default=list(CHOICES), metavar="choice", help="as collect.py has them")
    parser.add_argument("--folder", type=Path, default=Path("features"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("results"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    place = describe()
    pixels = {choice: measure(args.folder, choice, args.seeds) for choice in args.choices}
    first = pixels[args.choices[0]]
    lines = [summarize(args.folder, choice, found, first) for choice, found in pixels.items()]
    mean_path = measure_mean_path(args.folder, args.choices[0])
    table = write_table(lines, mean_path)
    print(table)
    said = (
        f"Mean distance in pixels of a {SIDE}-pixel frame, ± standard error over the clips, which no policy was "
        f"trained on; policies of each choice: {args.seeds}. 100 steps are DDPM's, fewer DDIM's. The last column is "
        "that of 10 steps, clip by clip."
    )
    figures = {"lines": lines, "mean_path": mean_path}
    write_report(args.out, "error", ["Error of predicted paths", said, table], figures, place)
    draw(lines, args.out / "error.png")


if __name__ == "__main__":
    main()
