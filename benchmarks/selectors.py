"""What chooses best, before layer 0 or behind a layer: answers of the embedded model from a part of the tokens.

    python -m benchmarks.selectors -o benchmarks/results/selectors --n 20 --selector match=FILE joint=FILE

Hugging Face's forward in float32, tokens truly removed, at their original positions; the first token of the answer is
compared with the right one, one question of each type about a clip. Clips are those of `evaluation_set`, unseen by
every training. Every clip's answers are a line of OUTPUT.answers.jsonl: a run that was interrupted goes on behind the
last one, and `--seconds` ends one in good time. The table is made anew of all lines at each end.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.selectors_report import write_report
from benchmarks.selectors_ways import Scene, Way, learned_ways, plain_ways
from benchmarks.tiny_model.clips import HELD_OUT_SEED, make_clip
from benchmarks.tiny_model.config import FPS
from benchmarks.tiny_model.degrade import named_degradation
from vllm_prune.bench.accuracy.videos import Frames
from vllm_prune.bench.json_log import JsonLog
from vllm_prune.budget import count_kept
from vllm_prune.config import PruneConfig
from vllm_prune.embedded import model_path
from vllm_prune.methods.attention_importance import select_top
from vllm_prune.selector import LoadedSelector, load_selector
from vllm_prune.training.backbone import Backbone
from vllm_prune.training.choosing import answers, first_token

RATIOS = (0.25, 0.12, 0.06, 0.03)
LENGTHS, NOISES = (16, 32, 64), ("clean", "all")
_FIRST_SEED = 300  # of `evaluation_set`, apart from those of `bench accuracy`
_RECALL_AT = 0.12
_PLAIN = "plain"
UNPRUNED = "unpruned"


@dataclass(frozen=True)
class Case:
    """One clip of the evaluation."""

    seed: int
    frames: int
    noise: str
    number: int

    @property
    def key(self) -> str:
        return f"{self.seed}-{self.frames}-{self.noise}-{self.number}"


def cases(n: int, seeds: Sequence[int]) -> Iterator[Case]:
    """Clips in an order in which every beginning is balanced."""
    for number in range(n):
        for seed in seeds:
            for frames in LENGTHS:
                for noise in NOISES:
                    yield Case(seed, frames, noise, number)


def main() -> None:
    """Runs what the arguments say."""
    args = _arguments()
    backbone = Backbone(args.model, name="embedded")
    groups: dict[str, LoadedSelector | None] = {_PLAIN: None}
    for name, path in (entry.split("=", 1) for entry in args.selector):
        groups[name] = load_selector(path, width=backbone.identity.hidden_size, model=backbone.identity, place=None)
    header = {
        "schema": 1,
        "model": args.model if args.model != str(model_path()) else "embedded",
        "layer": PruneConfig.parse("default").resolved_layers(backbone.identity.num_layers)[0],
        "ratios": RATIOS,
        "exponent": args.exponent,
    }
    digests = {name: loaded.digest if loaded else "" for name, loaded in groups.items()}
    output, command = Path(args.output), ["python", "-m", "benchmarks.selectors", *sys.argv[1:]]
    wanted = list(cases(args.n, args.seeds))
    with JsonLog(output.with_suffix(".answers.jsonl"), header, resume=True, content="answers") as log:
        done = {(line["case"], line["group"], line["digest"]): line for _, line in log.earlier()}
        ends = time.monotonic() + args.seconds
        with log.session(command):
            for case in wanted:
                if time.monotonic() > ends:
                    print(f"--seconds {args.seconds}: ends; run it again to go on", file=sys.stderr)
                    break
                left = {name: found for name, found in groups.items() if (case.key, name, digests[name]) not in done}
                for line in _evaluate(backbone, case, header["layer"], left, args.exponent):
                    log.write([line])
                    done[line["case"], line["group"], line["digest"]] = line
        sessions = log.sessions
    lines = [[done.get((case.key, name, digest)) for name, digest in digests.items()] for case in wanted]
    entries = [_merge(found) for found in lines if all(found)]
    write_report(output, {**header, "selectors": digests, "note": args.note}, entries, sessions, shlex.join(command))


def _merge(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One entry of all groups about a clip."""
    merged = {name: value for name, value in lines[0].items() if name not in ("group", "digest")}
    for part in ("right", "recall"):
        merged[part] = {name: value for line in lines for name, value in line[part].items()}
    return merged


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", required=True, help="of .answers.jsonl, .json and .md, without suffix")
    parser.add_argument("--model", default=str(model_path()), help="a folder (default: the embedded model)")
    parser.add_argument("--n", type=int, default=10, help="clips of each kind and seed (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
    parser.add_argument("--selector", nargs="*", default=[], metavar="NAME=FILE", help="selectors to compare")
    parser.add_argument("--exponent", type=float, default=0.25, help="of learned relevance (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=300, help="no clip is begun after these (default: 300)")
    parser.add_argument("--note", default="", help="a sentence for the table")
    return parser.parse_args()


@torch.no_grad()
def _evaluate(
    backbone: Backbone, case: Case, layer: int, groups: dict[str, LoadedSelector | None], exponent: float
) -> Iterator[dict[str, Any]]:
    """Of each group, whether each question is answered rightly, by way of choosing and share of tokens; and recall."""
    if not groups:
        return
    scene = _prepare(backbone, case, layer)
    for name, loaded in groups.items():
        ways = (
            plain_ways(backbone, scene, exponent)
            if loaded is None
            else learned_ways(backbone, scene, name, loaded, exponent)
        )
        right: dict[str, Any] = {}
        recall: dict[str, Any] = {}
        for label, way in ways.items():
            right[label], recall[label] = _try(backbone, scene, way)
        if loaded is None:
            everything = [torch.arange(len(scene.clip.features))] * len(scene.asked)
            right[UNPRUNED] = {"1.0": _are_right(scene, answers(backbone, scene.clip, scene.asked, everything))}
        yield {
            "case": case.key,
            "group": name,
            "digest": loaded.digest if loaded else "",
            "types": scene.types,
            "frames": case.frames,
            "noise": case.noise,
            "seed": case.seed,
            "right": right,
            "recall": recall,
        }


def _prepare(backbone: Backbone, case: Case, layer: int) -> Scene:
    made = make_clip(HELD_OUT_SEED + 1_000_000 * _seed(case) + case.number, case.frames, named_degradation(case.noise))
    chosen = _one_of_each(case, [(asked.type, asked.text, asked.answer) for asked in made.questions])
    clip = backbone.encode(Frames(made.frames, tuple(range(case.frames)), case.frames, FPS))
    asked = [backbone.ask(text) for _, text, _ in chosen]
    truth = torch.tensor([first_token(backbone, answer) for _, _, answer in chosen])
    types = [kind for kind, _, _ in chosen]
    return Scene(clip, asked, truth, backbone.see(clip, asked, layer), types, layer, _seed(case))


def _try(backbone: Backbone, scene: Scene, way: Way) -> tuple[dict[str, list[bool]], list[float]]:
    """Right answers by share of tokens; recall of the teacher's top tokens at `_RECALL_AT`, by question."""
    right, recall = {}, []
    for ratio in RATIOS:
        count = count_kept(len(scene.clip.features), ratio)
        kept = [way.choose(index, count) for index in range(len(scene.asked))]
        right[str(ratio)] = _are_right(scene, way.reading.answer(backbone, kept))
        if ratio == _RECALL_AT:
            wanted = [select_top(each.importance, count) for each in scene.seen]
            pairs = zip(wanted, kept, strict=True)
            recall = [round(torch.isin(want, have).float().mean().item(), 4) for want, have in pairs]
    return right, recall


def _are_right(scene: Scene, found: Tensor) -> list[bool]:
    right: list[bool] = (found == scene.truth).tolist()
    return right


def _seed(case: Case) -> int:
    return _FIRST_SEED + 10 * case.seed + 3 * NOISES.index(case.noise) + LENGTHS.index(case.frames)


def _one_of_each(case: Case, every: Sequence[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """One question of each type, drawn."""
    rng = np.random.default_rng([3, _seed(case), case.number])
    by_type: dict[str, list[tuple[str, str, str]]] = {}
    for question in every:
        by_type.setdefault(question[0], []).append(question)
    return [questions[rng.integers(len(questions))] for questions in by_type.values()]


if __name__ == "__main__":
    main()
