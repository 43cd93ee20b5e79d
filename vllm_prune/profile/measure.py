"""Runs requests one at a time in this process, and times their stages."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllm_prune.config import PruneConfig
from vllm_prune.profile.stages import DECODE_VIDEO, OTHER, STAGES, timed_stages
from vllm_prune.profile.timers import StageTimes, Timers

_TEXT_ROOM = 1024
"""Tokens of the prompt beside the video, and of the answer."""


@dataclass(frozen=True, kw_only=True)
class RequestProfile:
    """Of one request. `seconds` sum to `total`."""

    seconds: Mapping[str, float]
    calls: Mapping[str, int]
    total: float
    prompt_tokens: int
    video_tokens: int
    structure: int
    """Rows between them, such as timestamps."""
    cached_tokens: int
    """Of the prompt, found in the prefix cache."""
    answer_tokens: int
    answer: str
    frames: tuple[int, int] | None = None
    """Of the video, that the model was shown, and all of them."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Of one configuration, repeat by repeat: a question about a new video, then another about the same one."""

    label: str
    config: PruneConfig
    first: Sequence[RequestProfile]
    second: Sequence[RequestProfile]


class Profiler:
    """An engine whose stages are timed."""

    def __init__(
        self,
        model: str,
        video: str,
        *,
        max_tokens: int,
        media_io_kwargs: Mapping[str, Any],
        engine: Mapping[str, Any],
        configs: Sequence[PruneConfig] = (),
    ) -> None:
        """`configs`: those to be profiled; the engine has room for the frames that they sample."""
        from vllm_prune.show.media import load_video

        self._model, self._video, self._media_io_kwargs = model, video, dict(media_io_kwargs)
        images, metadata = load_video(video, model, self._media_io_kwargs)
        self.frames = images.shape[:3]
        total = max(metadata.get("total_num_frames") or 0, len(images))
        self._llm = _start(model, room_for(model, self.frames, total, configs), engine)
        from vllm import SamplingParams

        self._sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens)
        self._names = itertools.count()
        self._timers = Timers(_device_wait())

    def profile(self, label: str, config: PruneConfig, questions: tuple[str, str], repeats: int) -> Profile:
        """Times both questions `repeats` times, after a round that is not counted."""
        runner = self._llm.llm_engine.model_executor.driver_worker.worker.model_runner
        rounds = []
        with timed_stages(self._timers, runner.get_model()):
            for _ in range(repeats + 1):
                name = f"profile-{next(self._names)}"
                rounds.append([self._ask(config, question, name) for question in questions])
        first, second = zip(*rounds[1:], strict=True)
        return Profile(label=label, config=config, first=first, second=second)

    def _ask(self, config: PruneConfig, question: str, name: str) -> RequestProfile:
        """One request about the video, under a name by which caches know it."""
        from vllm_prune.show.media import load_video

        self._timers.reset()
        begin = self._timers.now()
        sampling = self._sampling_of(config)
        load = self._timers.timed(DECODE_VIDEO, load_video)
        video = load(self._video, self._model, sampling)
        content = [{"type": "video"}, {"type": "text", "text": question}]
        prompt = self._llm.get_tokenizer().apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        request = {
            "prompt": prompt,
            "multi_modal_data": {"video": [video]},
            "multi_modal_uuids": {"video": [name]},
            "mm_processor_kwargs": {"prune": {"preset": "baseline", **config.to_dict()}},
        }
        (output,) = self._llm.generate([request], self._sampling, use_tqdm=False)
        return self._describe(output, self._timers.now() - begin, self._timers.reset())

    def _sampling_of(self, config: PruneConfig) -> dict[str, Any]:
        """How a server with `config` loads the video."""
        from vllm_prune.serving.api.frame_sampling import sampling_options

        given = self._media_io_kwargs.get("video", {})
        processor = self._llm.llm_engine.renderer.mm_processor
        options = sampling_options(processor, given, given, {"prune": config.to_dict()})
        return self._media_io_kwargs if options is None else {**self._media_io_kwargs, "video": options}

    def _describe(self, output: Any, total: float, times: StageTimes) -> RequestProfile:
        other = total - sum(times.seconds.values())
        seconds = {**times.seconds, OTHER: other}
        return RequestProfile(
            seconds={stage: seconds.get(stage, 0.0) for stage in STAGES},
            calls={stage: times.calls.get(stage, 0) for stage in STAGES},
            total=total,
            prompt_tokens=len(output.prompt_token_ids),
            video_tokens=output.prune.kept,
            frames=output.prune.facts.media[0].frames,
            structure=output.prune.structure,
            cached_tokens=output.num_cached_tokens or 0,
            answer_tokens=len(output.outputs[0].token_ids),
            answer=output.outputs[0].text.strip(),
        )


@dataclass(frozen=True)
class Room:
    """Tokens that an engine is to have room for."""

    prompt: int
    before_choice: int = 0
    """Of a video whose frames follow its kept tokens, before a question chooses."""


def room_for(model: str, shown: Sequence[int], total: int, configs: Sequence[PruneConfig]) -> Room:
    """Of the video with all that vLLM samples, and of what each configuration with `frames` samples itself.

    Args:
        model: A folder or hub name.
        shown: Frames that vLLM samples, their height and width.
        total: Frames of the file.
        configs: To be profiled.
    """
    from vllm_prune.budget import count_most
    from vllm_prune.estimate import VideoShape, read_dims
    from vllm_prune.estimate.video import read_limits, sampled_video
    from vllm_prune.serving.api.frame_budget import FOR_VIDEO

    count, height, width = shown
    dims, limits = read_dims(model), read_limits(model)
    t, h, w = VideoShape(count, height, width).grid(dims.vision, limits)
    prompt, before = [t * (h * w + dims.step_text_most)], [0]
    for config in configs:
        if config.frames is None:
            continue
        sampled = sampled_video(VideoShape(total, height, width), dims.vision, config, limits)
        t, h, w = sampled.grid(dims.vision, limits)
        prompt.append(config.frames.tokens + t * dims.step_text_most)
        if config.chooses_inside:
            entering = count_most(config.of_videos, t * h * w, t).entering
            before.append(math.ceil(entering / FOR_VIDEO) + t * dims.step_text_most)
    return Room(max(prompt) + _TEXT_ROOM, max(before))


def _start(model: str, room: Room, engine: Mapping[str, Any]) -> Any:
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # vLLM warns at every request that it keeps its threads
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    from vllm import LLM
    from vllm.platforms import current_platform

    from vllm_prune.engine import engine_args
    from vllm_prune.show.errors import ShowError

    options: dict[str, Any] = {
        "max_model_len": room.prompt,
        "max_num_batched_tokens": room.prompt,
        "max_num_seqs": 1,
        "limit_mm_per_prompt": {"video": 1, "image": 0},
        "enable_prefix_caching": True,
        "enforce_eager": True,  # within a compiled or captured model there are no places to time
        "seed": 0,
    }
    if current_platform.is_cpu():
        options |= {"gpu_memory_utilization": 0.1, "block_size": 32}
    options |= engine
    if room.before_choice > options["max_num_batched_tokens"]:
        options.setdefault("dense_tokens", room.before_choice)
    try:
        return LLM(**engine_args(model, "baseline", override="any", **options))
    except ValueError as error:
        raise ShowError(f"model={model!r}: {error}") from error


def _device_wait() -> Any:
    import torch

    return torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
