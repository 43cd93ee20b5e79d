"""Prompts that between them have every arrangement of text, videos and images."""

from __future__ import annotations

from typing import Any

from serving_media import image_item, video_item

VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
QUESTION = "What colour is the flash?"
SCRIPT_PRUNE = {"method": "uniform", "keep_ratio": 0.25}
"""What the script `serving_engine.py` asks for where it runs a variant."""


def chat(*turns: str) -> str:
    """User and assistant in turn, and the header of the next reply."""
    roles = ("user", "assistant")
    said = "".join(f"<|im_start|>{roles[i % 2]}\n{text}<|im_end|>\n" for i, text in enumerate(turns))
    return f"{said}<|im_start|>assistant\n"


def prompt(text: str, *, videos: Any = (), images: Any = ()) -> dict[str, Any]:
    media = {name: list(items) for name, items in (("video", videos), ("image", images)) if items}
    return {"prompt": text, "multi_modal_data": media} if media else {"prompt": text}


def ask(*video: int, question: str = QUESTION, seed: int = 0, fps: float = 2.0) -> dict[str, Any]:
    """A question on one video of (frames, height, width)."""
    return prompt(chat(VIDEO + question), videos=[video_item(*video, seed=seed, fps=fps)])


_SHORT, _LONG = video_item(8, 112, 112, seed=1), video_item(16, 112, 140, seed=2)
_PICTURE, _WIDE = image_item(112, 112, seed=3), image_item(84, 168, seed=4)

CASES: dict[str, dict[str, Any]] = {
    "text": prompt(chat("How many shapes?")),
    "image": prompt(chat(IMAGE + QUESTION), images=[_PICTURE]),
    "video": prompt(chat(VIDEO + QUESTION), videos=[_LONG]),
    "video, then image": prompt(chat(f"{VIDEO}{QUESTION}{IMAGE}"), videos=[_LONG], images=[_WIDE]),
    "image, then video": prompt(chat(f"{IMAGE}{QUESTION}{VIDEO}"), images=[_WIDE], videos=[_LONG]),
    "two videos, adjacent": prompt(chat(f"{VIDEO}{VIDEO}{QUESTION}"), videos=[_SHORT, _LONG]),
    "two videos, text between": prompt(chat(f"{VIDEO}{QUESTION}{VIDEO}How many?"), videos=[_LONG, _SHORT]),
    "one video twice": prompt(chat(f"{VIDEO}{QUESTION}{VIDEO}How many?"), videos=[_LONG, _LONG]),
    "turns": prompt(
        chat(f"{VIDEO}{QUESTION}", "red", f"How many shapes?{IMAGE}{VIDEO}", "two", "What form is the red shape?"),
        videos=[_LONG, _SHORT],
        images=[_PICTURE],
    ),
    "prompt ends in a video": prompt(f"How many shapes?{VIDEO[: -len('<|vision_end|>')]}", videos=[_LONG]),
    "odd number of frames": ask(7, 112, 112, seed=5),
    "one frame": ask(1, 112, 112, seed=6),
    "one token": ask(1, 28, 28, seed=7),
    "two tokens": ask(3, 28, 28, seed=8),
    "tall": ask(6, 280, 56, seed=9),
    "fractional frame rate": ask(16, 112, 140, seed=10, fps=2.997),
    # 315 tokens; 162 positions from one pair of frames to the next
    "many positions": ask(18, 140, 196, seed=11, fps=2 / 40.5),
    # Placeholders that a user typed. vLLM puts media in the place of the first ones; the rest are text.
    "typed image": prompt(chat(f"<|image_pad|>Is it red? {VIDEO}{QUESTION}"), videos=[_LONG]),
    "typed all round": prompt(
        chat(f"<|image_pad|><|vision_end|>{VIDEO}<|vision_start|> <|video_pad|>{QUESTION}<|image_pad|>"), videos=[_LONG]
    ),
    "typed before its video": prompt(chat(f"<|video_pad|>Is it red? {VIDEO}{QUESTION}"), videos=[_LONG]),
    "typed among media": prompt(
        chat(
            f"{IMAGE}<|image_pad|><|vision_start|>{VIDEO}<|image_pad|>{VIDEO}",
            "<|video_pad|>",
            f"<|image_pad|>{QUESTION}<|video_pad|>",
        ),
        images=[_WIDE],
        videos=[_LONG, _SHORT],
    ),
}
TYPED = [name for name in CASES if name.startswith("typed")]
