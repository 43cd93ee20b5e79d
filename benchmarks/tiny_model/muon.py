"""Muon for matrices and AdamW for the rest, on float32 master copies of bf16 parameters.

Muon: Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024). Matrices of one shape are
orthogonalised as one batch, which on a CPU is several times faster than one by one.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalise(update: Tensor, steps: int = 5) -> Tensor:
    """Approximately replace the singular values of ``update [n, rows, columns]`` by one."""
    a, b, c = NEWTON_SCHULZ
    x = update.bfloat16()
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).float()


class MixedOptimizer:
    """One step of Muon on matrices and of AdamW on the other parameters, with a common learning-rate factor."""

    def __init__(self, matrices: list[nn.Parameter], others: list[nn.Parameter], muon_lr: float, adam_lr: float):
        self.muon_lr, self.adam_lr = muon_lr, adam_lr
        self.momentum = 0.95
        self.parameters = matrices + others
        self.masters = [nn.Parameter(p.detach().float().clone()) for p in self.parameters]
        self.groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for index, matrix in enumerate(matrices):
            self.groups[tuple(matrix.shape)].append(index)
        self.velocity = {shape: torch.zeros(len(indices), *shape) for shape, indices in self.groups.items()}
        self.adam = torch.optim.AdamW(self.masters[len(matrices) :], lr=adam_lr, betas=(0.9, 0.98), weight_decay=0.0)

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """Update from the gradients those that have one; ``factor`` scales both learning rates."""
        for master, parameter in zip(self.masters, self.parameters, strict=True):
            master.grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None
        for shape in self.groups:
            self._muon_step(shape, factor)
        self.adam.param_groups[0]["lr"] = self.adam_lr * factor
        self.adam.step()
        for master, parameter in zip(self.masters, self.parameters, strict=True):
            parameter.copy_(master)

    def _muon_step(self, shape: tuple[int, ...], factor: float) -> None:
        moving = [(place, i) for place, i in enumerate(self.groups[shape]) if self.masters[i].grad is not None]
        if not moving:
            return
        places, indices = (list(column) for column in zip(*moving, strict=True))
        gradient = torch.stack([self.masters[i].grad for i in indices])
        velocity = self.velocity[shape][places].lerp(gradient, 1 - self.momentum)
        self.velocity[shape][places] = velocity
        update = orthogonalise(gradient.lerp(velocity, self.momentum))
        scale = max(1.0, shape[0] / shape[1]) ** 0.5
        for i, matrix in zip(indices, update, strict=True):
            self.masters[i].sub_(matrix, alpha=self.muon_lr * factor * scale)

    def state_dict(self) -> dict:
        """Everything needed to go on later."""
        return {
            "masters": [m.detach() for m in self.masters],
            "velocity": self.velocity,
            "adam": self.adam.state_dict(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        """Restore ``state_dict`` and copy the masters to the parameters."""
        for master, parameter, saved in zip(self.masters, self.parameters, state["masters"], strict=True):
            master.copy_(saved)
            parameter.copy_(saved)
        for shape, saved in state["velocity"].items():
            self.velocity[shape].copy_(saved)
        self.adam.load_state_dict(state["adam"])
