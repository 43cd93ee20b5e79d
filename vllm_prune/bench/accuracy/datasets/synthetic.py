"""Clips made on the fly by the generator of the embedded model, which training has not seen, with their questions."""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from vllm_prune.bench.accuracy.questions import Question
from vllm_prune.bench.accuracy.videos import Frames, mp4_url
from vllm_prune.bench.throughput.errors import BenchmarkError

GENERATOR = "benchmarks.tiny_model"
CLIPS_A_SEED, CLIPS_A_KIND = 1_000_000, 1_000
LONGEST = 4096
"""Frames of a long clip, of which one takes 150 MB."""


def generator(module: str) -> Any:
    """A module of the embedded model's generator.

    Raises:
        BenchmarkError: It is not there.
    """
    try:
        return importlib.import_module(f"{GENERATOR}.{module}")
    except ModuleNotFoundError as error:
        raise BenchmarkError(
            f"--dataset synthetic and pages are made by {GENERATOR}, which is in the source repository but not in the "
            f"installed package ({error}); run `python -m vllm_prune.cli.main bench accuracy` in a checkout, or ask "
            "questions of your own with --dataset FILE.jsonl"
        ) from error


@dataclass(frozen=True)
class SyntheticVideo:
    """A clip that is made when it is needed."""

    seed: int
    """The generator's own."""
    num_frames: int
    noise: str
    long: bool = False
    """Whether its events are somewhere in it, before a still background."""

    @property
    def key(self) -> str:
        return f"{'long-' if self.long else ''}{self.num_frames}-{self.noise}-{self.seed}"

    @property
    def fps(self) -> float:
        """Of its file."""
        return float(generator("long_clips" if self.long else "config").FPS)

    @property
    def scene(self) -> str:
        # Whatever its length and disturbance, a clip of the same seed shows much the same.
        return str(self.seed)

    def frames(self, limit: int) -> Frames:
        clip = _make_clip(self)
        if len(clip.frames) > limit:
            raise BenchmarkError(f"--max-frames {limit}: must be {self.num_frames} or more for clips of that length")
        return Frames(clip.frames, tuple(range(len(clip.frames))), len(clip.frames), self.fps)

    def data_url(self) -> str:
        return mp4_url(_make_clip(self).frames, self.fps)


@lru_cache(maxsize=4)
def _make_clip(video: SyntheticVideo) -> Any:
    degradation = generator("degrade").named_degradation(video.noise)
    if video.long:
        return generator("long_clips").make_long_clip(video.seed, video.num_frames, degradation)
    return generator("clips").make_clip(video.seed, video.num_frames, degradation)


def load(n: int, seeds: Sequence[int], lengths: Sequence[int], noises: Sequence[str]) -> list[Question]:
    """The questions on clips of the seeds that `evaluation_set` takes its clips from.

    Each kind of clip (length and disturbance) has scenes of its own: `n` clips of six kinds say more than one set of
    `n` scenes in six versions.

    Args:
        n: Clips of each kind for each seed.
        seeds: One sample each.
        lengths: Frames a clip.
        noises: Names of disturbances.
    """
    _check(lengths, noises, generator("clips").CLIP_LENGTHS)
    return _load(n, seeds, lengths, noises, long=False)


def load_long(n: int, seeds: Sequence[int], lengths: Sequence[int], noises: Sequence[str]) -> list[Question]:
    """The questions on long clips, in which something short happens once; arguments as of `load`."""
    short = generator("long_clips").SHORT
    _check(lengths, noises, range(short, LONGEST + 1))
    return _load(n, seeds, lengths, noises, long=True)


def _load(n: int, seeds: Sequence[int], lengths: Sequence[int], noises: Sequence[str], long: bool) -> list[Question]:
    if n > CLIPS_A_KIND:
        raise BenchmarkError(f"--n {n}: a seed has {CLIPS_A_KIND} clips of a kind; give more --seeds")
    return [
        question
        for seed in seeds
        for frames in lengths
        for noise in noises
        for clip in range(n)
        for question in _questions(SyntheticVideo(_first_clip(seed, frames, noise) + clip, frames, noise, long), seed)
    ]


def _first_clip(seed: int, frames: int, noise: str) -> int:
    """The generator's seed of the first clip of a kind."""
    kind = zlib.crc32(f"{frames} {noise}".encode()) % (CLIPS_A_SEED // CLIPS_A_KIND)
    return int(generator("clips").HELD_OUT_SEED) + seed * CLIPS_A_SEED + kind * CLIPS_A_KIND


def _check(lengths: Sequence[int], noises: Sequence[str], known: Sequence[int]) -> None:
    listed = f"{known[0]} to {known[-1]}" if isinstance(known, range) else ", ".join(map(str, known))
    for length in lengths:
        if length not in known:
            raise BenchmarkError(f"--frames {length}: clips have {listed} frames")
    for noise in noises:
        try:
            generator("degrade").named_degradation(noise)
        except ValueError as error:
            raise BenchmarkError(f"--noise {noise}: {error}") from error


def _questions(video: SyntheticVideo, seed: int) -> list[Question]:
    return questions_about(video, _make_clip(video).questions, seed, f"{video.num_frames} frames, {video.noise}")


def questions_about(medium: Any, asked: Sequence[Any], seed: int, subset: str = "all") -> list[Question]:
    """The generator's questions `asked` about one clip or picture."""
    return [
        Question(
            key=f"{medium.key}-{number}",
            video=medium,
            text=each.text,
            answer=each.answer,
            category=each.type,
            subset=subset,
            seed=seed,
        )
        for number, each in enumerate(asked)
    ]
