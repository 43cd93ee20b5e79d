"""Estimates as text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vllm_prune.estimate.device import Device
from vllm_prune.estimate.estimate import Cost, Estimate, Request
from vllm_prune.estimate.flops import Flops
from vllm_prune.estimate.speed import Speed

_SCALES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"))


def format_flops(flops: int) -> str:
    """With three digits and a unit.

    >>> format_flops(12_340_000_000)
    '12.3 G'
    """
    for scale, unit in _SCALES:
        if flops >= scale:
            return f"{flops / scale:.3g} {unit}"
    return str(flops)


def format_bytes(size: int) -> str:
    """In MiB or GiB.

    >>> format_bytes(3 << 30)
    '3.00 GiB'
    """
    return f"{size / (1 << 30):.2f} GiB" if size >= 1 << 30 else f"{size / (1 << 20):.2f} MiB"


@dataclass(frozen=True, kw_only=True)
class OnDevice:
    """What is known of a device."""

    device: Device
    kv_space: int
    """Bytes that requests share."""
    speed: Speed | None = None
    clients: int = 8
    output_tokens: int = 16
    """For the throughput: requests at a time, and the length of their answers."""


def table(labels: Sequence[str], estimates: Sequence[Estimate], request: Request, place: OnDevice | None = None) -> str:
    """A column without pruning and one for each configuration; `place` adds what depends on a device."""
    costs = [estimates[0].before, *(estimate.after for estimate in estimates)]
    rows = [["", "unpruned", *labels], *_token_rows(estimates, request), *_flop_rows(costs), *_memory_rows(costs)]
    rows.append(["predicted prefill time", "100%", *(f"{e.prefill_ratio:.0%}" for e in estimates)])
    rows.append(["  encoder output cached", "100%", *(f"{e.decoder_ratio:.0%}" for e in estimates)])
    if place is not None:
        rows += _device_rows(place, costs, estimates)
    t, h, w = estimates[0].whole
    what, grid = (
        (f"{request.images} images", f"{h} x {w}")
        if request.images
        else (f"{request.video.frames} frames", f"{t} x {h} x {w}")
    )
    head = (
        f"{what} of {request.video.width}x{request.video.height}: "
        f"a grid of {grid} tokens{' each' if request.images else ''}; {request.text_tokens} tokens of text; "
        f"KV blocks of {request.block_size} tokens"
    )
    notes = ["Predicted prefill times are ratios of FLOPs, not measurements."]
    if place is not None:
        notes.append(_device_note(place))
    if any(found.config.stage1 is not None and found.config.stage1.where == "processor" for found in estimates):
        notes.append(
            "With stage 1 before the encoder, still cells are not encoded either: how many, only the video tells."
        )
    asked = [found.config.image for found in estimates if found.of_images]
    if any(image is not None and image.same_within is not None for image in asked):
        notes.append("With same_within, flat cells are not encoded: how many, only the images tell; all are counted.")
    return "\n\n".join([head, _align(rows), "\n".join(notes)])


def _token_rows(estimates: Sequence[Estimate], request: Request) -> list[list[str]]:
    total = str(math.prod(estimates[0].whole))
    fewer = any(estimate.config.frames for estimate in estimates) and not estimates[0].of_images
    frames = ["frames", str(request.video.frames), *(str(estimate.frames) for estimate in estimates)]
    return [
        *([frames] if fewer else []),
        [
            "image tokens" if estimates[0].of_images else "video tokens",
            total,
            *(str(estimate.counts.total) for estimate in estimates),
        ],
        ["  after stage 1", total, *(str(estimate.counts.stage1) for estimate in estimates)],
        ["  entering the LLM", total, *(str(estimate.counts.entering) for estimate in estimates)],
        ["  kept", total, *(_kept(estimate) for estimate in estimates)],
    ]


def _kept(estimate: Estimate) -> str:
    where = f" after layer {', '.join(map(str, estimate.layers))}" if estimate.layers else ""
    return f"{estimate.counts.kept}{where}"


def _flop_rows(costs: Sequence[Cost]) -> list[list[str]]:
    parts: list[tuple[str, Callable[[Cost], Flops]]] = [
        ("FLOPs: encoder", lambda cost: cost.flops.encoder),
        ("FLOPs: dense prefix", lambda cost: cost.flops.dense_prefix),
        ("FLOPs: importance", lambda cost: cost.flops.importance),
        ("FLOPs: rest", lambda cost: cost.flops.rest),
        ("FLOPs: all", lambda cost: cost.flops.total),
    ]
    rows = []
    for name, part in parts:
        rows.append([name, *(format_flops(part(cost).total) for cost in costs)])
        rows.append(["  linear / attention", *(_split(part(cost)) for cost in costs)])
    return rows


def _split(flops: Flops) -> str:
    return f"{format_flops(flops.linear)} / {format_flops(flops.attention)}" if flops.total else "-"


def _memory_rows(costs: Sequence[Cost]) -> list[list[str]]:
    return [
        ["prompt tokens", *(str(cost.prompt_tokens) for cost in costs)],
        ["KV blocks", *(str(cost.kv.blocks) for cost in costs)],
        ["KV bytes", *(format_bytes(cost.kv.bytes) for cost in costs)],
    ]


def _device_rows(place: OnDevice, costs: Sequence[Cost], estimates: Sequence[Estimate]) -> list[list[str]]:
    rows = [["requests that fit at a time", *(str(place.kv_space // cost.kv.bytes) for cost in costs)]]
    speed = place.speed
    if speed is not None:
        rows.append(["predicted TTFT", *(f"{1000 * speed.seconds(cost):.0f} ms" for cost in costs)])
        rows.append(["  of unpruned", "100%", *(f"{speed.ttft_ratio(found):.0%}" for found in estimates)])
        gains = [speed.throughput_ratio(found, place.output_tokens, place.clients) for found in estimates]
        rows.append(["predicted requests a second", "1.0x", *(f"{gain:.1f}x" for gain in gains)])
    return rows


def _device_note(place: OnDevice) -> str:
    note = f"{place.device.name}: {format_bytes(place.kv_space)} for KV blocks beside the weights"
    if place.speed is None:
        return f"{note}; for its times, calibrate it: --calibrate FILE."
    return (
        f"{note}; TTFT from decoded frames, one request at a time; requests a second of {place.clients} clients with "
        f"answers of {place.output_tokens} tokens, by its calibration."
    )


def _align(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for first, *cells in rows:
        aligned = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *aligned]))
    return "\n".join(lines)
