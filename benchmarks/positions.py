"""Kept positions against contiguous ones, where positions have one dimension: right answers of a small trained model.

    python -m benchmarks.tiny_model.sequential --steps 300 --out build/llava
    python -m benchmarks.tiny_model.sequential --steps 300 --timestamps --out build/internvl
    python -m benchmarks.positions llava=build/llava/last.pt internvl=build/internvl/last.pt -o OUTDIR

What a query-free method leaves of held-out clips goes through the decoder twice: each token at its index in the
unpruned prompt, and numbered anew. The same tokens, the same questions: the two are compared question by question.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.result_file import measure_into
from benchmarks.tiny_model.clips import evaluation_set
from benchmarks.tiny_model.config import TIME_STRIDE
from benchmarks.tiny_model.export import model_from_checkpoint
from benchmarks.tiny_model.forward import decode, encode_video, patchify, vision_rotary
from benchmarks.tiny_model.inputs import sequence_inputs
from benchmarks.tiny_model.layout import GRID, VideoLayout, keep_cells, sequential_layout
from benchmarks.tiny_model.objective import packed_rows
from benchmarks.tiny_model.packing import pack_prompts
from benchmarks.tiny_model.sequential import ARCHITECTURE
from benchmarks.tiny_model.tokenizer import build_tokenizer
from vllm_prune.bench.throughput import provenance
from vllm_prune.methods import VideoTokens, compact, create

METHODS = ("uniform", "evs", "dpp", "prunevid")
KEEP_RATIOS = (0.5, 0.25, 0.1)
SHAPE = ("model", "frames", "method", "keep_ratio")


class Asker:
    """A trained model and one video."""

    def __init__(self, model: PreTrainedModel, frames: np.ndarray, timestamps: bool):
        tables = tuple(table.bfloat16() for table in vision_rotary(model))
        self.model = model
        self.layout = sequential_layout(len(frames) // 2, TIME_STRIDE, timestamps=timestamps)
        self.video = encode_video(model, patchify(torch.from_numpy(frames)[None]), tables)  # [pairs, 16, levels * C]
        self.tokenizer = build_tokenizer(timestamps=True)

    def answers(self, questions: Sequence[str], video: Tensor, layout: VideoLayout, rows: Tensor) -> list[str]:
        """One word to each question, as of `logits`."""
        tokens = self.logits(questions, video, layout, rows).argmax(-1).tolist()
        return [self.tokenizer.decode([token]).strip() for token in tokens]

    def logits(self, questions: Sequence[str], video: Tensor, layout: VideoLayout, rows: Tensor) -> Tensor:
        """[questions, vocabulary], from the `rows` of the whole sequence that `layout` has, `video` for its tokens."""
        whole = self.layout
        tail, last = pack_prompts(list(questions))
        ids = torch.from_numpy(tail.ids)[None]
        shared_ids = (whole.head, whole.lead, whole.after, whole.closing)
        embeds, levels = packed_rows(self.model, video[None], shared_ids, ids)
        rows = torch.cat([rows, torch.arange(len(whole.groups), embeds.shape[1])])
        chain, offset = torch.from_numpy(tail.chain)[None], torch.from_numpy(tail.offset)[None]
        mask, rotary = sequence_inputs(self.model, layout, chain, offset)
        hidden = decode(self.model, embeds[:, rows], [level[:, rows] for level in levels], mask, rotary)
        return self.model.lm_head(hidden[0, -ids.shape[1] :][last])

    def choose(self, method: str, keep_ratio: float) -> tuple[Tensor, Tensor]:
        """The video with the means of merged tokens in the places of the kept ones, and the places [K]."""
        pairs, cells, channels = self.video.shape
        width = self.model.config.text_config.hidden_size
        every = self.video.reshape(pairs * cells, channels)
        tokens = VideoTokens.from_features(every[:, :width], (pairs, GRID, GRID))
        assignment = create(method).assign(tokens, round(keep_ratio * tokens.num_tokens))
        merged = compact(VideoTokens(every, tokens.grid, tokens.grid_thw), assignment).features
        return every.index_copy(0, assignment.anchor, merged).view_as(self.video), assignment.anchor


def grade(asker: Asker, asked: Sequence[tuple[str, str, str]]) -> Iterator[tuple[str, float, np.ndarray, np.ndarray]]:
    """(method, keep ratio, right with kept positions, right with contiguous ones), of each question."""
    questions, expected = [text for _, text, _ in asked], [answer for *_, answer in asked]
    for method in METHODS:
        for keep_ratio in KEEP_RATIOS if method != METHODS[0] else (1.0, *KEEP_RATIOS):
            video, places = asker.choose(method, keep_ratio)
            both = [
                np.array(asker.answers(questions, video, *keep_cells(asker.layout, places, contiguous=way)))
                for way in (False, True)
            ]
            kept, contiguous = (found == np.array(expected) for found in both)
            yield method, keep_ratio, kept, contiguous


@torch.no_grad()
def measure(models: dict[str, Path], clips: int, lengths: Sequence[int], seed: int) -> list[dict[str, Any]]:
    """A row for each model, length, method and share kept."""
    found: dict[tuple[Any, ...], list[np.ndarray]] = {}
    for name, checkpoint in models.items():
        model = model_from_checkpoint(checkpoint, ARCHITECTURE)
        for frames in lengths:
            for pixels, asked in evaluation_set(clips, frames, seed, "noise"):
                asker = Asker(model, pixels, timestamps=name == "internvl")
                for method, keep_ratio, *right in grade(asker, asked):
                    found.setdefault((name, frames, method, keep_ratio), []).append(np.stack(right))
    return [dict(zip(SHAPE, key, strict=True)) | summarise(right) for key, right in found.items()]


def summarise(clips: Sequence[np.ndarray]) -> dict[str, Any]:
    """Percentages of what was right, [2, questions] for each clip, and the difference with its standard error.

    Questions about one clip are not independent, so the error is that of a ratio over clips.
    """
    kept, contiguous = (100 * row.mean() for row in np.concatenate(clips, 1))
    asked = np.array([right.shape[1] for right in clips])
    gained = np.array([right[0].sum() - int(right[1].sum()) for right in clips])
    gain = gained.sum() / asked.sum()
    error = (gained - gain * asked).std(ddof=1) * len(clips) ** 0.5 / asked.sum()
    return {
        "questions": int(asked.sum()),
        "kept": round(kept, 2),
        "contiguous": round(contiguous, 2),
        "gain": round(100 * gain, 2),
        "standard_error": round(100 * error, 2),
    }


def render(result: dict[str, Any]) -> str:
    """A table in Markdown."""
    lines = [
        "# Kept positions and contiguous ones",
        "",
        "`" + " ".join(result["command"]) + "`",
        "",
        "Right answers in per cent, to the same questions about the same tokens of held-out clips; how many points",
        "more are right with kept positions, ± the standard error over clips. The models are the embedded Qwen3-VL,",
        "whose decoder was trained on to positions of one dimension: `llava` with tokens one after the other,",
        "`internvl` with text before each step (`benchmarks/positions.py`).",
        "",
        "| model | frames | method | kept tokens | kept positions | contiguous | difference | questions |",
        "|---" * 8 + "|",
    ]
    for row in result["rows"]:
        cells = [row["model"], row["frames"], row["method"], f"{row['keep_ratio']:.0%}", row["kept"], row["contiguous"]]
        cells += [f"{row['gain']:+} ± {row['standard_error']}", row["questions"]]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += ["", *(f"- {line}" for line in provenance.describe_lines(result["provenance"]))]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes positions-MODELS.json and .md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="llava|internvl=CHECKPOINT", type=_named)
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--frames", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the figures")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    command = ["python -m benchmarks.positions", *(arguments or sys.argv[1:])]
    path = options.output / f"positions-{'-'.join(dict(options.models))}.json"
    result = measure_into(
        path, command, lambda: {"rows": measure(dict(options.models), options.clips, options.frames, options.seed)}
    )
    path.with_suffix(".md").write_text(render(result), encoding="utf-8")
    print(render(result))


def _named(text: str) -> tuple[str, Path]:
    name, _, path = text.partition("=")
    if name not in ("llava", "internvl") or not Path(path).is_file():
        raise argparse.ArgumentTypeError(f"{text!r}: must be llava=CHECKPOINT or internvl=CHECKPOINT")
    return name, Path(path)


if __name__ == "__main__":
    main()
