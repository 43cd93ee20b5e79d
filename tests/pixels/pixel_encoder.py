"""Looks into a worker's vision encoder: functions that the tests send there."""

from __future__ import annotations

from typing import Any

import numpy as np


def watch_encoder(worker: Any) -> None:
    """From now on a worker notes what goes into its vision encoder, and what its model makes of media."""
    model = worker.model_runner.model
    worker.patches, worker.rows = 0, []
    embed = model.embed_multimodal

    def noting_rows(**inputs: Any) -> Any:
        outputs = embed(**inputs)
        worker.rows += [output.detach().clone() for output in outputs]
        return outputs

    def noting_patches(_module: Any, inputs: tuple[Any, ...]) -> None:
        worker.patches += len(inputs[0])

    model.embed_multimodal = noting_rows
    worker.hook = model.visual.register_forward_pre_hook(noting_patches)
    worker.embed = embed


def read_encoder(worker: Any) -> tuple[int, list[np.ndarray]]:
    """What it noted; it notes no more."""
    worker.model_runner.model.embed_multimodal = worker.embed
    worker.hook.remove()
    return worker.patches, [rows.numpy() for rows in worker.rows]
