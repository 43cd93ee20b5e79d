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
from transformers import AutoModelForImageTextToText, PreTrainedModel

from .answering import packed_answers
from .config import ARCHITECTURES, Architecture, tiny_config
from .data import FRAMES_A_STEP, Batch, TrainingBatches
from .evaluate import accuracy_table
from .forward import patchify, vision_rotary
from .inputs import sequence_inputs
from .layout import VideoLayout, video_layout
from .muon import MixedOptimizer
from .objective import Objective

MUON_LR, ADAM_LR = 0.003, 1e-3
WARM_UP = 80  # steps
DECAY_SHARE = 0.4  # of the run, at its end, with a falling learning rate
CHECKPOINT_EVERY = 150  # steps
RESIDUAL = ("o_proj.weight", "down_proj.weight", "attn.proj.weight")


def initial_model(architecture: Architecture, seed: int) -> PreTrainedModel:
    """A bf16 model with weights scaled to their fan-in; what feeds the residual stream starts smaller."""
    torch.manual_seed(seed)
    config = tiny_config(architecture)
    config._attn_implementation = "sdpa"
    model = AutoModelForImageTextToText.from_config(config)
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            continue
        fan_in = parameter[0].numel()
        residual = name.endswith(RESIDUAL) or ("blocks." in name and name.endswith("linear_fc2.weight"))
        std = 0.3 if "embed_tokens" in name else (0.3 if residual else 0.8) / math.sqrt(fan_in)
        nn.init.normal_(parameter, std=std)
    return to_bfloat16(model)


def to_bfloat16(model: PreTrainedModel) -> PreTrainedModel:
    """Weights as they are served; the rotary frequencies stay in float32, as they are served too."""
    frequencies = [(module, module.inv_freq) for module in model.modules() if hasattr(module, "inv_freq")]
    model.bfloat16()
    for module, values in frequencies:
        module.inv_freq = values
    return model


def split_parameters(objective: Objective) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Matrices of attention and MLPs for Muon; embeddings, output, patches, norms, biases, heads for AdamW."""
    matrices, others = [], []
    for name, parameter in objective.named_parameters():
        is_inner = parameter.ndim == 2 and ("layers." in name or "blocks." in name or "merger" in name)
        (matrices if is_inner else others).append(parameter)
    return matrices, others


def learning_rate_factor(step: int, steps: int) -> float:
    """Linear warm-up, constant, then linear decay to 2%."""
    decay_from = steps * (1 - DECAY_SHARE)
    falling = 1 - 0.98 * (step - decay_from) / (steps - decay_from)
    return min(1.0, (step + 1) / WARM_UP, falling)


class Curriculum:
    """Short clips first: binding is learned fastest there, and a step costs the same at every length."""

    def __init__(self, steps: int, first: int = 0):
        self.steps, self.first = steps, first  # of the language model's training

    def __call__(self, step: int) -> dict[int, float]:
        """Share of the batches by clip length in frames."""
        done = (step - self.first) / (self.steps - self.first)
        if done < 0.35:
            return {16: 1.0}
        if done < 0.55:
            return {16: 0.6, 32: 0.4}
        return {16: 0.4, 32: 0.35, 64: 0.25}


def train_step(
    objective: Objective,
    compiled: Callable[..., tuple[Tensor, ...]],
    optimizer: MixedOptimizer,
    batch: Batch,
    layout: VideoLayout,
    factor: float,
    heads_only: bool = False,
) -> list[float]:
    """One update through ``compiled``, a compiled form of ``objective``; returns the four losses."""
    model = objective.model
    mask, rotary = sequence_inputs(model, layout, batch.chain, batch.offset)
    losses = compiled(
        patchify(batch.frames),
        tuple(x.bfloat16() for x in vision_rotary(model)),
        (layout.head, layout.lead, layout.after, layout.closing),
        batch.ids,
        batch.targets,
        mask,
        rotary,
        batch.labels,
        heads_only,
    )
    losses[0].backward()
    torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
    optimizer.step(factor)
    return [loss.item() for loss in losses]


def held_out_accuracy(model: PreTrainedModel, frames: int) -> dict[str, float]:
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
    objective = Objective(initial_model(args.architecture, args.seed), args.align)
    objective.auxiliary.bfloat16()
    optimizer = MixedOptimizer(*split_parameters(objective), muon_lr=args.muon_lr, adam_lr=args.adam_lr)
    first = 0
    if args.resume:
        state = torch.load(args.resume)
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    compiled = torch.compile(objective, dynamic=False, fullgraph=True) if args.compile else objective
    curriculum = Curriculum(args.steps, args.heads_first)
    batches = TrainingBatches(args.seed, first, args.steps - first, curriculum, args.frames_a_step)
    loader = DataLoader(batches, batch_size=None, num_workers=1, prefetch_factor=4, worker_init_fn=single_thread)
    started = time.perf_counter()
    for step, batch in enumerate(loader, start=first):
        factor = learning_rate_factor(step, args.steps)
        heads_only = step < args.heads_first or step % args.answers_every != 0
        layout = video_layout(args.architecture, batch.frames.shape[1] // 2, batch.time_stride, batch.vllm_rule)
        losses = train_step(objective, compiled, optimizer, batch, layout, factor, heads_only)
        done = step + 1
        if step % 20 == 0:
            names = ("loss", "answers", "heads", "alignment")
            record = {"step": done, "seconds": round(time.perf_counter() - started), "frames": batch.frames.shape[1]}
            print(json.dumps(record | {n: round(x, 3) for n, x in zip(names, losses, strict=True)}), flush=True)
        if done % CHECKPOINT_EVERY == 0 or done == args.steps:
            save_checkpoint(args.out / "last.pt", objective, optimizer, done)
            for length in sorted(curriculum(step)) if done > args.heads_first else ():
                print(
                    json.dumps({"step": done, "frames": length} | held_out_accuracy(objective.model, length)),
                    flush=True,
                )


def single_thread(_: int) -> None:
    """Keep the data worker from taking the cores that the training step uses."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="qwen2_5_vl")
    parser.add_argument(
        "--no-alignment", dest="align", action="store_false", help="do not pull tokens towards colour words"
    )
    parser.add_argument("--out", type=Path, default=Path("build/tiny_model"), help="folder for checkpoints")
    parser.add_argument("--steps", type=int, default=2600)
    parser.add_argument(
        "--frames-a-step", type=int, default=FRAMES_A_STEP, help="in all clips together (default: %(default)s)"
    )
    parser.add_argument(
        "--heads-first", type=int, default=0, metavar="N", help="steps that train the vision tower only"
    )
    parser.add_argument("--muon-lr", type=float, default=MUON_LR, help="rate of matrices (default: %(default)s)")
    parser.add_argument(
        "--answers-every", type=int, default=1, metavar="N", help="then the vision tower alone but for every N-th step"
    )
    parser.add_argument("--adam-lr", type=float, default=ADAM_LR, help="of all else (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--resume", type=Path, help="checkpoint to go on from")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    run(parser.parse_args())


if __name__ == "__main__":
    main()
