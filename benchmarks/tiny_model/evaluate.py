"""Accuracy on held-out clips, per question type and clip length.

``python -m benchmarks.tiny_model.evaluate`` measures the shipped model with the packed forward pass of training;
``--backend hf`` with Hugging Face's processor and ``generate``; ``--base-url http://localhost:8000/v1`` through a
running server, clips sent as mp4.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from .answering import packed_answers
from .clips import CLIP_LENGTHS, evaluation_set
from .config import FPS
from .questions import QUESTION_TYPES
from .video_file import data_url

DEFAULT_MODEL = Path(__file__).parents[2] / "vllm_prune" / "embedded" / "model"
# Given a clip's frames and its questions, the model's answers.
Answerer = Callable[[np.ndarray, list[str]], list[str]]


def packed_answerer(folder: Path) -> Answerer:
    """All questions of a clip in one packed forward pass."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="eager")
    return lambda frames, questions: packed_answers(model.eval(), frames, questions)


def hf_answerer(folder: Path) -> Answerer:
    """Hugging Face's processor and ``generate``, one question at a time, positions as transformers computes them."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.bfloat16).eval()
    processor = AutoProcessor.from_pretrained(folder)

    def answer(frames: np.ndarray, question: str) -> str:
        messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": question}]}]
        prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
        metadata = {"fps": FPS, "total_num_frames": len(frames), "frames_indices": list(range(len(frames)))}
        inputs = processor(text=[prompt], videos=[frames], video_metadata=[metadata], return_tensors="pt")
        with torch.no_grad():
            output = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        return processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    return lambda frames, questions: [answer(frames, question) for question in questions]


def server_answerer(base_url: str, concurrency: int) -> Answerer:
    """Chat completions of an OpenAI-compatible server; it must serve exactly one model."""
    import openai  # only this backend needs it

    client = openai.OpenAI(base_url=base_url, api_key="none")
    served = client.models.list().data[0].id
    pool = ThreadPoolExecutor(concurrency)

    def answer(url: str, question: str) -> str:
        content = [{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": question}]
        reply = client.chat.completions.create(
            model=served, messages=[{"role": "user", "content": content}], max_tokens=4, temperature=0
        )
        return reply.choices[0].message.content or ""

    def answer_all(frames: np.ndarray, questions: list[str]) -> list[str]:
        url = data_url(frames)
        return list(pool.map(lambda question: answer(url, question), questions))

    return answer_all


def graded(
    answerer: Answerer, clips: int, frames: int, seed: int, noise: str, extra_flashes: int
) -> Iterator[tuple[str, bool]]:
    """(question type, right?) of every question on ``clips`` held-out clips."""
    for pixels, asked in evaluation_set(clips, frames, seed, noise, extra_flashes):
        answers = answerer(pixels, [text for _, text, _ in asked])
        for (kind, _, expected), said in zip(asked, answers, strict=True):
            yield kind, said.strip() == expected


def accuracy_table(
    answerer: Answerer, clips: int, frames: int, seed: int, noise: str, extra_flashes: int = 0
) -> dict[str, dict[str, float]]:
    """Per question type: accuracy in per cent, its standard error, and the number of questions."""
    right: dict[str, list[bool]] = defaultdict(list)
    for kind, ok in graded(answerer, clips, frames, seed, noise, extra_flashes):
        right[kind].append(ok)
    table = {}
    for kind in QUESTION_TYPES:
        share, n = float(np.mean(right[kind])), len(right[kind])
        table[kind] = {
            "accuracy": round(100 * share, 2),
            "standard_error": round(100 * (share * (1 - share) / n) ** 0.5, 2),
            "n": n,
        }
    return table


def markdown(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """One row per (frames, noise), one column per question type."""
    lines = ["| clips | " + " | ".join(QUESTION_TYPES) + " |", "|---" * (len(QUESTION_TYPES) + 1) + "|"]
    for name, table in results.items():
        cells = [f"{table[kind]['accuracy']:.1f} ± {table[kind]['standard_error']:.1f}" for kind in QUESTION_TYPES]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, measure, print a table and optionally write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL)
    parser.add_argument("--backend", choices=("packed", "hf"), default="packed")
    parser.add_argument("--base-url", help="ask a running server instead")
    parser.add_argument("--concurrency", type=int, default=4, help="requests at a time to the server")
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--frames", type=int, nargs="+", default=list(CLIP_LENGTHS))
    parser.add_argument("--noise", nargs="+", default=["clean", "noise"])
    parser.add_argument("--extra-flashes", type=int, default=0, help="further events in a clip that nobody asks about")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="file for the results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.base_url:
        answerer = server_answerer(args.base_url, args.concurrency)
    else:
        answerer = {"packed": packed_answerer, "hf": hf_answerer}[args.backend](args.model)
    results = {}
    for frames in args.frames:
        for noise in args.noise:
            results[f"{frames} frames, {noise}"] = accuracy_table(
                answerer, args.clips, frames, args.seed, noise, args.extra_flashes
            )
            print(markdown(results).splitlines()[-1], flush=True)
    print(markdown(results))
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
