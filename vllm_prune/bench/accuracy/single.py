"""One multiple-choice question about one video, from Python.

from vllm_prune.bench.accuracy.single import VideoQA

qa = VideoQA("Qwen/Qwen2.5-VL-7B-Instruct", prune="default")
choice = qa.ask("clip.mp4", "What does she put into the bag?", ["a book", "an apple", "a coat"])
print(choice.letter, choice.option, choice.text, choice.video_tokens, choice.video_tokens_before)
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vllm_prune.bench.accuracy.asking import Task
from vllm_prune.bench.accuracy.engine import CPU_CACHE_GIB, Engine, EngineSpec, engine_arguments
from vllm_prune.bench.accuracy.questions import Question, letters
from vllm_prune.bench.accuracy.videos import FileVideo, Frames, Video
from vllm_prune.bench.throughput import provenance
from vllm_prune.bench.throughput.configurations import VLLM_PRUNE, Configuration
from vllm_prune.bench.throughput.errors import BenchmarkError
from vllm_prune.config import PruneConfig
from vllm_prune.embedded import DEFAULT, resolve
from vllm_prune.estimate import VideoShape, read_dims
from vllm_prune.estimate.video import read_limits


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What the model chose, and what the video cost."""

    letter: str | None
    """Of the option; None where the text names none."""
    option: str | None
    text: str
    """What the model said."""
    prompt_tokens: int
    video_tokens: int
    """Of the prompt, after pruning."""
    video_tokens_before: int
    seconds: float
    """From video file to answer."""

    @property
    def kept(self) -> float:
        """Share of the video's tokens that were kept."""
        return self.video_tokens / self.video_tokens_before


@dataclass(frozen=True)
class _Decoded(FileVideo):
    """A file that is decoded once: to be asked about, and to be measured."""

    limit: int = 0

    @cached_property
    def _frames(self) -> Frames:
        return super().frames(self.limit)

    def frames(self, limit: int) -> Frames:
        assert limit == self.limit
        return self._frames


class VideoQA:
    """A model in this process that chooses among options."""

    def __init__(
        self,
        model: str = DEFAULT,
        prune: PruneConfig | str | Mapping[str, Any] = "default",
        *,
        max_frames: int = 32,
        max_tokens: int = 16,
        engine: Mapping[str, Any] | None = None,
    ) -> None:
        """Starts it.

        Args:
            model: The name of an embedded model, a folder or a hub name.
            prune: As `--prune`.
            max_frames: Taken from a video at the most.
            max_tokens: Of an answer.
            engine: Further arguments of `vllm.LLM`.
        """
        self._model, self._max_frames = resolve(model), max_frames
        self._config = PruneConfig.parse(prune)
        on_cpu = provenance.runs_on_cpu()
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        if on_cpu:
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", CPU_CACHE_GIB)
        arguments = engine_arguments(on_cpu, engine or {})
        self._engine = Engine(
            EngineSpec(
                model=self._model, variant=True, arguments=arguments, max_frames=max_frames, max_tokens=max_tokens
            )
        )

    def ask(self, video: str | Path, question: str, options: Sequence[str]) -> Choice:
        """Asks `question` about the file `video`.

        Raises:
            BenchmarkError: There is no such file, it cannot be read, or there are fewer than 2 or more than 26 options.
        """
        if not 2 <= len(options) <= 26:
            raise BenchmarkError(f"options={list(options)!r}: a multiple-choice question has 2 to 26 options")
        if not Path(video).is_file():
            raise BenchmarkError(f"video={str(video)!r}: no such file")
        begin = time.perf_counter()
        decoded = _Decoded(Path(video), limit=self._max_frames)
        asked = Question(key="1", video=decoded, text=question, options=tuple(options), answer="A")
        configuration = Configuration(name="asked", given="", program=VLLM_PRUNE, config=self._config)
        (answer,) = self._engine.answer([Task(configuration, asked)])
        seconds = time.perf_counter() - begin
        index = letters(len(options)).find(answer.predicted) if answer.predicted else -1
        assert answer.video_tokens is not None
        return Choice(
            letter=answer.predicted,
            option=options[index] if index >= 0 else None,
            text=answer.said,
            prompt_tokens=answer.prompt_tokens,
            video_tokens=answer.video_tokens,
            video_tokens_before=self._tokens_of(decoded),
            seconds=seconds,
        )

    def _tokens_of(self, video: Video) -> int:
        count, height, width, _ = video.frames(self._max_frames).pixels.shape
        shape = VideoShape(count, height, width)
        t, h, w = shape.grid(read_dims(self._model).vision, read_limits(self._model))
        return t * h * w
