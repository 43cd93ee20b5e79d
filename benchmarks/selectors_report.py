"""The tables of `benchmarks.selectors`."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Entry = Mapping[str, Any]
_REFERENCES = ("DPP, no question", "attention at layer L")


def write_report(
    output: Path, header: Mapping[str, Any], entries: Sequence[Entry], sessions: Sequence[Any], command: str
) -> None:
    """Write OUTPUT.json and OUTPUT.md of the answers on all clips."""
    if not entries:
        return
    ratios = [str(ratio) for ratio in header["ratios"]]
    names = [name for name in entries[0]["right"] if name != "unpruned"]
    document = {
        **header,
        "command": command,
        "clips": len(entries),
        "questions": sum(len(entry["types"]) for entry in entries),
        "sessions": _sum_up(sessions),
        "accuracy": {
            name: {ratio: dict(zip(("percent", "se"), _mean(entries, name, ratio), strict=True)) for ratio in ratios}
            for name in names
        },
    }
    output.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    output.with_suffix(".md").write_text("\n".join(_lines(document, entries, names, ratios)) + "\n", encoding="utf-8")


def _lines(
    document: Mapping[str, Any], entries: Sequence[Entry], names: Sequence[str], ratios: Sequence[str]
) -> list[str]:
    unpruned = "{:.1f} ± {:.1f}".format(*_mean(entries, "unpruned", "1.0"))
    lines = [
        "# Who chooses before layer 0",
        "",
        f"Model: {document['model']}. {document['clips']} clips of 16, 32 and 64 frames, half of them with all "
        f"disturbances, {document['questions']} questions, seeds {_seeds(entries)}. Percent of first answer tokens "
        "that are right ± standard error over clips; tokens removed before layer 0 at their original positions, "
        f"Hugging Face, float32. Layer L is {document['layer']}; exponent of the relevance {document['exponent']}. "
        f"With all tokens: {unpruned}.",
        "",
        *_table(entries, names, ratios, lambda entry: True),
        "",
        f"Recall: share of the teacher's top 12% that is kept at 12%. {document['note']}".rstrip(),
        "",
    ]
    for reference in _REFERENCES:
        lines += [f"## Paired difference to {reference!r}, points ± standard error over clips", ""]
        lines += [
            "| chosen by | " + " | ".join(_share(ratio) for ratio in ratios) + " |",
            "|---|" + "---|" * len(ratios),
        ]
        for name in (name for name in names if name != reference):
            cells = ["{:+.1f} ± {:.1f}".format(*_difference(entries, name, reference, ratio)) for ratio in ratios]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines.append("")
    for title, keep in _parts(entries):
        clips = [entry for entry in entries if keep(entry)]
        lines += [f"## {title} ({len(clips)} clips)", "", *_table(clips, names, ratios, keep), ""]
    low = ratios[min(2, len(ratios) - 1)]
    lines += [f"## By type of question, {_share(low)}", "", *_by_type(entries, names, low), ""]
    lines += ["## How it was made", "", f"    {document['command']}", ""]
    made = document["sessions"]
    lines.append(
        f"{made['count']} sessions, {made['seconds']:.0f} s in all, on {made['machine']['cpu_cores']} cores of "
        f"{made['machine']['cpu']} that other work shared; commits {', '.join(made['commits']) or 'not known'}. "
        + "Selectors (SHA-256): "
        + (", ".join(f"{name} `{digest[:16]}`" for name, digest in document["selectors"].items() if digest) or "none")
        + "."
    )
    return lines


def _sum_up(sessions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How long all sessions took, and where they were."""
    commits = {str(session["commit"])[:12] for session in sessions if session["commit"]}
    return {
        "count": len(sessions),
        "seconds": round(sum(session["seconds"] for session in sessions), 1),
        "machine": sessions[-1]["machine"],
        "versions": sessions[-1]["versions"],
        "commits": sorted(commits),
    }


def _parts(entries: Sequence[Entry]) -> Iterable[tuple[str, Callable[[Entry], bool]]]:
    for frames in sorted({entry["frames"] for entry in entries}):
        yield f"{frames} frames", lambda entry, frames=frames: entry["frames"] == frames
    for noise in sorted({entry["noise"] for entry in entries}, reverse=True):
        name = "clean" if noise == "clean" else "disturbed"
        yield f"{name.capitalize()} clips", lambda entry, noise=noise: entry["noise"] == noise


def _table(
    entries: Sequence[Entry], names: Sequence[str], ratios: Sequence[str], keep: Callable[[Entry], bool]
) -> list[str]:
    chosen = [entry for entry in entries if keep(entry)]
    lines = ["| chosen by | " + " | ".join(_share(ratio) for ratio in ratios) + " | recall |"]
    lines.append("|---|" + "---|" * (len(ratios) + 1))
    for name in names:
        cells = ["{:.1f} ± {:.1f}".format(*_mean(chosen, name, ratio)) for ratio in ratios]
        recalls = [value for entry in chosen for value in entry["recall"].get(name, [])]
        recall = f"{100 * np.mean(recalls):.0f}" if recalls else "-"
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {recall} |")
    return lines


def _by_type(entries: Sequence[Entry], names: Sequence[str], ratio: str) -> list[str]:
    types = sorted({kind for entry in entries for kind in entry["types"]})
    counts = {kind: sum(entry["types"].count(kind) for entry in entries) for kind in types}
    lines = ["| chosen by | " + " | ".join(f"{kind} (n = {counts[kind]})" for kind in types) + " |"]
    lines.append("|---|" + "---|" * len(types))
    for name in names:
        found = defaultdict(list)
        for entry in entries:
            for kind, right in zip(entry["types"], entry["right"][name][ratio], strict=True):
                found[kind].append(right)
        lines.append(f"| {name} | " + " | ".join(f"{100 * np.mean(found[kind]):.1f}" for kind in types) + " |")
    return lines


def _mean(entries: Sequence[Entry], name: str, ratio: str) -> tuple[float, float]:
    """Percent over all questions, and its standard error with clips as the unit."""
    return _clustered([entry["right"][name][ratio] for entry in entries])


def _difference(entries: Sequence[Entry], name: str, other: str, ratio: str) -> tuple[float, float]:
    pairs = [(entry["right"][name][ratio], entry["right"][other][ratio]) for entry in entries]
    return _clustered([np.subtract(one, two, dtype=float) for one, two in pairs])


def _clustered(groups: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Mean over all values in percent, and the standard error of that ratio of sums over groups."""
    sums = np.array([np.sum(group, dtype=float) for group in groups])
    sizes = np.array([len(group) for group in groups])
    mean = sums.sum() / sizes.sum()
    residual = sums - mean * sizes
    count = len(groups)
    error = (residual**2).sum() ** 0.5 / sizes.sum() * (count / (count - 1)) ** 0.5 if count > 1 else float("nan")
    return round(100 * mean, 2), round(100 * float(error), 2)


def _share(ratio: str) -> str:
    return f"{float(ratio):.0%}"


def _seeds(entries: Sequence[Entry]) -> str:
    return ", ".join(str(seed) for seed in sorted({entry["seed"] for entry in entries}))
