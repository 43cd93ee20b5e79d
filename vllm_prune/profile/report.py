"""Profiles as JSON and as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from vllm_prune.profile.measure import Profile, RequestProfile
from vllm_prune.profile.stages import DECODE, DECODE_VIDEO, ENCODER, STAGES


def mean_seconds(requests: Sequence[RequestProfile]) -> dict[str, float]:
    """By stage, over repeats; their sum is the mean of the totals."""
    return {stage: statistics.mean(request.seconds[stage] for request in requests) for stage in STAGES}


def describe(profiles: Sequence[Profile]) -> list[dict[str, Any]]:
    """All profiles, JSON-ready."""
    return [
        {
            "name": profile.label,
            "configuration": profile.config.to_dict(),
            "first_question": _describe_requests(profile.first),
            "second_question": _describe_requests(profile.second),
            "reuse": _reuse(profile),
        }
        for profile in profiles
    ]


def _describe_requests(requests: Sequence[RequestProfile]) -> dict[str, Any]:
    seconds, last = mean_seconds(requests), requests[-1]
    total = sum(seconds.values())
    return {
        "stages": {
            stage: {
                "ms": round(1000 * seconds[stage], 3),
                "share": round(seconds[stage] / total, 4),
                "calls": last.calls[stage],
            }
            for stage in STAGES
        },
        "total_ms": round(1000 * total, 3),
        "total_ms_of_each_repeat": [round(1000 * request.total, 3) for request in requests],
        "decode_ms_per_token": round(1000 * seconds[DECODE] / max(1, last.calls[DECODE]), 3),
        "prompt_tokens": last.prompt_tokens,
        "video_tokens": last.video_tokens,
        "frames": None if last.frames is None else dict(zip(("seen", "of"), last.frames, strict=True)),
        "structure": last.structure,
        "cached_tokens": last.cached_tokens,
        "answer_tokens": last.answer_tokens,
        "answer": last.answer,
    }


def _reuse(profile: Profile) -> dict[str, Any]:
    """What the second question about the video did not do again."""
    first, second = mean_seconds(profile.first), mean_seconds(profile.second)
    return {
        "encoder_runs_saved": profile.first[-1].calls[ENCODER] - profile.second[-1].calls[ENCODER],
        "prompt_tokens_from_prefix_cache": profile.second[-1].cached_tokens,
        "ms_saved": round(1000 * (sum(first.values()) - sum(second.values())), 3),
        "ms_saved_by_stage": {stage: round(1000 * (first[stage] - second[stage]), 3) for stage in STAGES},
    }


def markdown(profiles: Sequence[Profile], introduction: str, provenance: Sequence[str]) -> str:
    """The whole report."""
    parts = ["# Where the time of a request goes", introduction]
    parts += ["## A question about a new video", _table(profiles, "first")]
    parts += ["## Another question about the same video", _table(profiles, "second")]
    parts += ["## What was reused", _reuse_table(profiles)]
    parts += ["## How it was measured", "\n".join(f"- {line}" for line in provenance)]
    return "\n\n".join(parts) + "\n"


def _table(profiles: Sequence[Profile], which: str) -> str:
    """A row for each stage, with milliseconds, share and calls under every configuration."""
    requests = [getattr(profile, which) for profile in profiles]
    seconds = [mean_seconds(own) for own in requests]
    shown = [stage for stage in STAGES if any(own[-1].calls[stage] for own in requests) or stage == STAGES[-1]]
    head = [cell for profile in profiles for cell in (f"{profile.label}, ms", "share", "calls")]
    lines = [["stage", *head], [":--", *("--:" for _ in head)]]
    for stage in shown:
        cells = []
        for own, times in zip(requests, seconds, strict=True):
            calls = str(own[-1].calls[stage]) if stage != STAGES[-1] else ""
            share = times[stage] / sum(times.values())
            cells += [f"{1000 * times[stage]:.1f}", f"{share:.0%}", calls]
        lines.append([stage, *cells])
    totals = [cell for times in seconds for cell in (f"**{1000 * sum(times.values()):.1f}**", "100%", "")]
    lines.append(["**all**", *totals])
    tokens = [cell for own in requests for cell in (str(own[-1].prompt_tokens), _describe_tokens(own[-1]), "")]
    lines.append(["prompt tokens", *tokens])
    per_token = [
        cell
        for own, times in zip(requests, seconds, strict=True)
        for cell in (f"{1000 * times[DECODE] / max(1, own[-1].calls[DECODE]):.1f}", "", "")
    ]
    lines.append(["decode, per token", *per_token])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _describe_tokens(request: RequestProfile) -> str:
    between = f", {request.structure} of structure" if request.structure else ""
    shown = "" if request.frames is None else ", {} of {} frames".format(*request.frames)
    return f"{request.video_tokens} of video{between}{shown}"


def _reuse_table(profiles: Sequence[Profile]) -> str:
    lines = [
        "| configuration | encoder runs saved | prompt tokens from the prefix cache | ms saved | of the first |",
        "| :-- | --: | --: | --: | --: |",
    ]
    for profile in profiles:
        reuse, total = _reuse(profile), sum(mean_seconds(profile.first).values())
        cached = f"{reuse['prompt_tokens_from_prefix_cache']} of {profile.second[-1].prompt_tokens}"
        saved = reuse["ms_saved"]
        lines.append(
            f"| {profile.label} | {reuse['encoder_runs_saved']} | {cached} | {saved:.1f} | {saved / 1000 / total:.0%} |"
        )
    return "\n".join(lines) + f"\n\nA server reads a video anew for every request (“{DECODE_VIDEO}”)."
