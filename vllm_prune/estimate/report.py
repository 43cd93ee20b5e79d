"""Estimates as text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vllm_prune.estimate.estimate import Cost, Estimate, Request
from vllm_prune.estimate.flops import Flops

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


def table(labels: Sequence[str], estimates: Sequence[Estimate], request: Request) -> str:
    """A column without pruning and one for each configuration."""
    costs = [estimates[0].before, *(estimate.after for estimate in estimates)]
    rows = [["", "unpruned", *labels], *_token_rows(estimates), *_flop_rows(costs), *_memory_rows(costs)]
    rows.append(["predicted prefill time", "100%", *(f"{e.prefill_ratio:.0%}" for e in estimates)])
    rows.append(["  encoder output cached", "100%", *(f"{e.decoder_ratio:.0%}" for e in estimates)])
    t, h, w = estimates[0].grid
    head = (
        f"{request.video.frames} frames of {request.video.width}x{request.video.height}: "
        f"a grid of {t} x {h} x {w} tokens; {request.text_tokens} tokens of text; "
        f"KV blocks of {request.block_size} tokens"
    )
    notes = ["Predicted times are ratios of FLOPs, not measurements."]
    if any(found.config.stage1 is not None and found.config.stage1.where == "processor" for found in estimates):
        notes.append(
            "With stage 1 before the encoder, still cells are not encoded either: how many, only the video tells."
        )
    return "\n\n".join([head, _align(rows), "\n".join(notes)])


def _token_rows(estimates: Sequence[Estimate]) -> list[list[str]]:
    total = str(estimates[0].counts.total)
    return [
        ["video tokens", total, *(str(estimate.counts.total) for estimate in estimates)],
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


def _align(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for first, *cells in rows:
        aligned = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *aligned]))
    return "\n".join(lines)
