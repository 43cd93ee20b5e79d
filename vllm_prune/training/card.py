"""The model card of a selector: a Markdown file beside it, and the same facts as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm_prune.selector import INPUT, Header
from vllm_prune.training.losses import TOP_SHARE
from vllm_prune.training.scoring import BY_BOTH, BY_SCORE, FREE, RATIOS, UNPRUNED, Rights, percent

_LIMITS = (
    "Distilled from one layer's attention: what that layer overlooks, the selector overlooks as well.",
    "Use it with the DPP over the whole video: the top scores alone spend few tokens on copies of one object.",
    "Serving refuses it for a model of another architecture, size or embedding table.",
)


def write_card(path: Path, header: Header, digest: str, rights: Rights, run: Mapping[str, Any]) -> None:
    """Write `path` with suffix .md and .json; `run` holds what differs from run to run: times, machine, losses."""
    facts = {
        "digest": digest,
        "config": vars(header.config),
        "model": vars(header.model),
        "place": header.place,
        "training": header.training,
        "accuracy": [
            {"chosen by": name, "share": ratio, "percent": percent(found)[0], "se": percent(found)[1], "n": len(found)}
            for (name, ratio), found in rights.items()
        ],
        "run": dict(run),
    }
    path.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(_text(path, header, digest, rights, run), encoding="utf-8")


def _text(path: Path, header: Header, digest: str, rights: Rights, run: Mapping[str, Any]) -> str:
    config, model, training = header.config, header.model, header.training
    where = "what enters layer 0" if header.place == "input" else f"the output of layer {header.place}"
    lines = [
        f"# Selector for {model.name}",
        "",
        f"`{path.name}`, SHA-256 `{digest}`, {training['parameters']:,} parameters, kind `{config.kind}`. It reads "
        f"{where} and says how relevant each visual token is to the question.",
        "",
        f"For {model.architecture}, hidden size {model.hidden_size}, {model.num_layers} layers, vocabulary "
        f"{model.vocab_size}" + (f", revision {model.revision}." if model.revision else "."),
        "",
        "## Training",
        "",
        f"    {training['command']}",
        "",
        *_training_lines(training, run),
        "",
        "## What it finds",
        "",
        f"Of the teacher's top {TOP_SHARE:.0%} of the tokens, the selector's top {TOP_SHARE:.0%} hold "
        f"{100 * training['recall']:.1f}% (mean over the questions about {training['validation_videos']} videos kept "
        "out of training).",
        "",
        *_accuracy_lines(rights, header.place),
        "",
        "## Limits",
        "",
        *(f"- {note}" for note in _LIMITS),
    ]
    return "\n".join(lines) + "\n"


def _training_lines(training: Mapping[str, Any], run: Mapping[str, Any]) -> list[str]:
    return [
        f"- Data: {training['data']}; {training['videos']} videos with {training['questions']} questions to train, "
        f"{training['validation_videos']} videos to validate, {len(run['skipped'])} skipped"
        + (f" ({', '.join(run['skipped'])})." if run["skipped"] else "."),
        f"- Teacher: attention at layer {training['teacher_layer']}, maximum over the text after the video and over "
        f"heads. Its top {TOP_SHARE:.0%} of the tokens get {100 * training['top_mass']:.0f}% of its attention "
        "(validation).",
        f"- Losses after {training['steps']} steps: KL {training['kl']:.3f}, BCE on the top tokens "
        f"{training['bce']:.3f}."
        + (f" Then {training['answer_steps']} steps on the answers." if training["answer_steps"] else "")
        + f" Seed {training['seed']}.",
        f"- The last call took {run['teacher_seconds']:.0f} s for the teacher and {run['fit_seconds']:.0f} s for the "
        "selector.",
        *(f"- {line}" for line in run["place"]),
    ]


def _accuracy_lines(rights: Rights, place: str | int) -> list[str]:
    if not rights:
        return ["No accuracy: the answers are not known."]
    removed = "before layer 0" if place == INPUT else f"behind layer {place}"
    whole = rights[UNPRUNED, 1.0]
    mean, error = percent(whole)
    lines = [
        f"Accuracy in percent ± standard error, first token of the answer, {len(whole)} questions about videos kept "
        f"out of training; tokens removed {removed}, at their original positions. With all tokens: "
        f"{mean} ± {error}.",
        "",
        "| chosen by | " + " | ".join(f"{ratio:.0%}" for ratio in RATIOS) + " |",
        "|---|" + "---|" * len(RATIOS),
    ]
    for name in (FREE, BY_SCORE, BY_BOTH):
        cells = ["{} ± {}".format(*percent(rights[name, ratio])) for ratio in RATIOS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines
