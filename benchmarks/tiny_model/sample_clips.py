"""Write the sample clips that are shipped: ``python -m benchmarks.tiny_model.sample_clips DIR``.

H.264, which browsers play; OpenCV's wheels cannot write it: ``pip install av`` first.
"""

from __future__ import annotations

import argparse
import json
from fractions import Fraction
from pathlib import Path

import numpy as np

from .clips import HELD_OUT_SEED, SyntheticClip, make_clip
from .config import FPS
from .degrade import named_degradation
from .questions import QUESTION_TYPES, Question

SAMPLE_SEED = HELD_OUT_SEED + 900_000_000  # apart from every evaluation set
# (frames, disturbance) of each clip.
PLAN = (
    [(16, name) for name in ("clean", "noise", "clean", "flicker", "pan")]
    + [(32, name) for name in ("clean", "noise", "clean", "drift", "shake")]
    + [(64, name) for name in ("clean", "noise", "noise", "pan", "all")]
)
MIN_OBJECTS = 4
CRF = "20"  # x264's quality, 0 (lossless) to 51: what is small and faint has to survive


def _eventful(frames: int, noise: str, seed: int) -> tuple[SyntheticClip, int]:
    """The first clip from ``seed`` on with MIN_OBJECTS coloured objects, and the seed after it."""
    while True:
        clip = make_clip(seed, frames, named_degradation(noise))
        seed += 1
        if len(clip.scene.shapes) + len(clip.scene.flashes) >= MIN_OBJECTS:
            return clip, seed


def _one_of_each(questions: list[Question]) -> list[Question]:
    """The first question of every type."""
    return [
        next(q for q in questions if q.type == kind)
        for kind in QUESTION_TYPES
        if any(q.type == kind for q in questions)
    ]


def write_h264(path: Path, frames: np.ndarray) -> None:
    """Encode RGB ``frames [T, H, W, 3]`` uint8 as H.264 in mp4, in the pixel format that every player knows."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(FPS), options={"crf": CRF, "preset": "veryslow"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def write_samples(folder: Path) -> None:
    """Write the mp4 files and clips.json."""
    folder.mkdir(parents=True, exist_ok=True)
    seed, entries = SAMPLE_SEED, []
    for number, (frames, noise) in enumerate(PLAN):
        clip, seed = _eventful(frames, noise, seed)
        name = f"{number:02d}_{frames}frames_{noise}.mp4"
        write_h264(folder / name, clip.frames)
        asked = [{"type": q.type, "question": q.text, "answer": q.answer} for q in _one_of_each(clip.questions)]
        entries.append({"file": name, "frames": frames, "fps": FPS, "disturbance": noise, "questions": asked})
    (folder / "clips.json").write_text(json.dumps(entries, indent=1) + "\n")


def main() -> None:
    """Parse the command line and write the clips."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    write_samples(parser.parse_args().folder)


if __name__ == "__main__":
    main()
