"""Index tensors on their way from the host to the device, without either waiting for the other."""

from __future__ import annotations

import torch


def upload(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`tensor`, from the CPU, on `device`.

    A copy from ordinary memory makes the host wait until the device has done everything before it; one from pinned
    memory does not, and PyTorch keeps the pinned memory until the copy is through.
    """
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
