"""Train the tiny model from scratch: ``python -m benchmarks.tiny_model.train --out DIR``."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Qwen2_5_VLForConditionalGeneration

from .answering import packed_answers
from .config import tiny_config
from .data import Batch, TrainingBatches
from .evaluate import accuracy_table
from .forward import patchify, vision_rotary
from .inputs import sequence_inputs
from .muon import MixedOptimizer
from .objective import Objective

MUON_LR, ADAM_LR = 0.003, 1e-3
WARM_UP = 80  # steps
DECAY_SHARE = 0.4  # of the run, at its end, with a falling learning rate
CHECKPOINT_EVERY = 300  # steps


def initial_model(seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """A bf16 model with weights scaled to their fan-in; what feeds the residual stream starts smaller."""
    torch.manual_seed(seed)
    config = tiny_config()
    config._attn_implementation = "eager"  # faster here, backward included, than the fused kernel with a mask
    model = Qwen2_5_VLForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            continue
        fan_in = parameter[0].numel()
        residual = name.endswith(("o_proj.weight", "down_proj.weight", "attn.proj.weight"))
        std = 0.3 if "embed_tokens" in name else (0.3 if residual else 0.8) / math.sqrt(fan_in)
        nn.init.normal_(parameter, std=std)
    return model.bfloat16()


def split_parameters(objective: Objective) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Matrices of attention and MLPs for Muon; embeddings, output, patches, norms, biases, heads for AdamW."""
    matrices, others = [], []
    for name, parameter in objective.named_parameters():
        is_inner = parameter.ndim == 2 and ("layers." in name or "blocks." in name or "merger.mlp" in name)
        (matrices if is_inner else others).append(parameter)
    return matrices, others


def learning_rate_factor(step: int, steps: int) -> float:
    """Linear warm-up, constant, then linear decay to 2%."""
    decay_from = steps * (1 - DECAY_SHARE)
    falling = 1 - 0.98 * (step - decay_from) / (steps - decay_from)
    return min(1.0, (step + 1) / WARM_UP, falling)


class Curriculum:
    """Short clips first: binding is learned fastest there, and a step costs the same at every length."""

    def __init__(self, steps: int):
        self.steps = steps

    def __call__(self, step: int) -> dict[int, float]:
        """Share of the batches by clip length in frames."""
        if step < 0.35 * self.steps:
            return {16: 1.0}
        if step < 0.55 * self.steps:
            return {16: 0.6, 32: 0.4}
        return {16: 0.4, 32: 0.35, 64: 0.25}


def train_step(
    objective: Objective,
    compiled: Callable[..., tuple[Tensor, ...]],
    optimizer: MixedOptimizer,
    batch: Batch,
    factor: float,
) -> list[float]:
    """One update through ``compiled``, a compiled form of ``objective``; returns the four losses."""
    pairs = batch.frames.shape[1] // 2
    mask, rotary = sequence_inputs(
        objective.model, pairs, batch.chain, batch.offset, batch.time_stride, batch.vllm_rule
    )
    losses = compiled(
        patchify(batch.frames),
        tuple(x.bfloat16() for x in vision_rotary(objective.model)),
        batch.ids,
        batch.targets,
        mask,
        rotary,
        batch.labels,
    )
    losses[0].backward()
    torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
    optimizer.step(factor)
    return [loss.item() for loss in losses]


def held_out_accuracy(model: Qwen2_5_VLForConditionalGeneration, frames: int) -> dict[str, float]:
    """Per cent of right answers per question type on 40 noisy held-out clips."""
    table = accuracy_table(lambda clip, asked: packed_answers(model, clip, asked), 40, frames, seed=0, noise="noise")
    return {kind: row["accuracy"] for kind, row in table.items()}


def save_checkpoint(path: Path, objective: Objective, optimizer: MixedOptimizer, step: int) -> None:
    """Write everything needed to export or to go on."""
    partial = path.with_suffix(".partial")
    torch.save({"objective": objective.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, partial)
    partial.rename(path)


def run(args: argparse.Namespace) -> None:
    """Train from ``args.resume`` or from scratch up to ``args.steps``."""
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    objective = Objective(initial_model(args.seed)).bfloat16()
    optimizer = MixedOptimizer(*split_parameters(objective), muon_lr=MUON_LR, adam_lr=ADAM_LR)
    first = 0
    if args.resume:
        state = torch.load(args.resume)
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    compiled = torch.compile(objective, dynamic=False, fullgraph=True) if args.compile else objective
    curriculum = Curriculum(args.steps)
    batches = TrainingBatches(args.seed, first, args.steps - first, curriculum)
    loader = DataLoader(batches, batch_size=None, num_workers=1, prefetch_factor=4, worker_init_fn=_single_thread)
    started = time.perf_counter()
    for step, batch in enumerate(loader, start=first):
        losses = train_step(objective, compiled, optimizer, batch, learning_rate_factor(step, args.steps))
        done = step + 1
        if done % 20 == 0:
            names = ("loss", "answers", "heads", "alignment")
            record = {"step": done, "seconds": round(time.perf_counter() - started), "frames": batch.frames.shape[1]}
            print(json.dumps(record | {n: round(x, 3) for n, x in zip(names, losses, strict=True)}), flush=True)
        if done % CHECKPOINT_EVERY == 0 or done == args.steps:
            save_checkpoint(args.out / "last.pt", objective, optimizer, done)
            for length in sorted(curriculum(step)):
                print(
                    json.dumps({"step": done, "frames": length} | held_out_accuracy(objective.model, length)),
                    flush=True,
                )


def _single_thread(_: int) -> None:
    """Keep the data worker from taking the cores that the training step uses."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/tiny_model"), help="folder for checkpoints")
    parser.add_argument("--steps", type=int, default=2600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--resume", type=Path, help="checkpoint to go on from")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    run(parser.parse_args())


if __name__ == "__main__":
    main()
