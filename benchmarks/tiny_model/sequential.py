"""Train an embedded model on, to positions in one dimension: ``python -m benchmarks.tiny_model.sequential --out DIR``.

The decoder of the embedded Qwen3-VL learns to see tokens by their index in the prompt, as those of LLaVA and InternVL
do. Its vision tower stays as it is: like theirs it has a learned vector for each place in a frame.
`benchmarks/positions.py` asks the result.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForImageTextToText

from vllm_prune.embedded import model_path

from .data import TrainingBatches
from .layout import sequential_layout
from .muon import MixedOptimizer
from .objective import Objective
from .train import save_checkpoint, single_thread, split_parameters, to_bfloat16, train_step

ARCHITECTURE = "qwen3_vl"
LENGTHS = {16: 0.5, 32: 0.3, 64: 0.2}  # frames of a clip: share of the batches
WARM_UP, DECAY_SHARE = 20, 0.5
CHECKPOINT_EVERY = 50  # steps


def starting_objective() -> Objective:
    """The embedded model, of which the decoder is trained."""
    folder = model_path("embedded-qwen3-vl")
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    objective = Objective(to_bfloat16(model), align=False)
    objective.auxiliary.bfloat16()
    for part in (objective.model.model.visual, objective.auxiliary):
        part.requires_grad_(False)
    return objective


def learning_rate_factor(step: int, steps: int) -> float:
    """Linear warm-up, constant, then linear decay to 2%."""
    falling = 1 - 0.98 * (step - steps * (1 - DECAY_SHARE)) / (steps * DECAY_SHARE)
    return min(1.0, (step + 1) / WARM_UP, falling)


def run(args: argparse.Namespace) -> None:
    """Train up to ``args.steps``, or, if there are more of them, for ``args.seconds``; a later run goes on."""
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    objective = starting_objective()
    optimizer = MixedOptimizer(*split_parameters(objective), muon_lr=args.muon_lr, adam_lr=args.adam_lr)
    checkpoint, first = args.out / "last.pt", 0
    if checkpoint.is_file():
        state = torch.load(checkpoint)
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    batches = TrainingBatches(args.seed, first, args.steps - first, lambda step: LENGTHS, args.frames_a_step)
    loader = DataLoader(batches, batch_size=None, num_workers=1, prefetch_factor=4, worker_init_fn=single_thread)
    started = time.perf_counter()
    for done, batch in enumerate(loader, start=first + 1):
        frames = batch.frames.shape[1]
        layout = sequential_layout(frames // 2, batch.time_stride, timestamps=args.timestamps)
        factor = learning_rate_factor(done - 1, args.steps)
        _, answers, *_ = train_step(objective, objective, optimizer, batch, layout, factor)
        seconds = round(time.perf_counter() - started)
        print(
            json.dumps({"step": done, "seconds": seconds, "frames": frames, "answers": round(answers, 3)}), flush=True
        )
        if done % CHECKPOINT_EVERY == 0 or done == args.steps:
            save_checkpoint(checkpoint, objective, optimizer, done)
        if seconds > args.seconds:
            break


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint")
    parser.add_argument(
        "--timestamps", action="store_true", help="text before each step, as in InternVL; without it, as in LLaVA"
    )
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="end earlier; the next run goes on")
    parser.add_argument("--frames-a-step", type=int, default=128, help="in all clips together (default: %(default)s)")
    parser.add_argument("--muon-lr", type=float, default=0.003, help="rate of matrices (default: %(default)s)")
    parser.add_argument("--adam-lr", type=float, default=1e-3, help="of all else (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    run(parser.parse_args())


if __name__ == "__main__":
    main()
