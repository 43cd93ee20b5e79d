"""Measures a device's speed with the model's own sizes and random weights: one engine, one request at a time."""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vllm_prune.estimate.dims import ModelDims
from vllm_prune.estimate.speed import Sample, Speed, fit_speed
from vllm_prune.estimate.video import PixelLimits, VideoShape

_QUESTION = "What happens in the video?"
_TEXT_ROOM = 256
DECODED = 16
"""Tokens of an answer, by which a decoding step is timed."""


class Meter:
    """An engine that is asked about videos of noise, each another one, and tells how long that took."""

    def __init__(self, model: str, longest: int, *, clients: int = 1, eager: bool = True) -> None:
        """`longest`: tokens of the longest video; `clients`: requests at a time."""
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")
        from vllm import LLM
        from vllm.platforms import current_platform

        from vllm_prune.engine import engine_args

        length = longest + _TEXT_ROOM
        options: dict[str, Any] = {
            "max_model_len": length,
            "max_num_batched_tokens": length,
            "max_num_seqs": clients,
            "enable_prefix_caching": False,
            "mm_processor_cache_gb": 0,
            "limit_mm_per_prompt": {"video": 1, "image": 0},
            "enforce_eager": eager,
            "load_format": "dummy",
            "seed": 0,
        }
        if current_platform.is_cpu():
            options |= {"gpu_memory_utilization": 0.1, "block_size": 32}
        self._llm = LLM(**engine_args(model, "baseline", override="any", **options))
        self._decoder_seconds = 0.0
        runner = self._llm.llm_engine.model_executor.driver_worker.worker.model_runner
        decoder = runner.get_model()
        decoder.forward = self._timed(decoder.forward)
        content = [{"type": "video"}, {"type": "text", "text": _QUESTION}]
        self._prompt = self._llm.get_tokenizer().apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        self._seeds = itertools.count()

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = _now()
            result = function(*args, **kwargs)
            self._decoder_seconds += _now() - begin
            return result

        return timed

    def first_token(self, shape: VideoShape, prune: Any = None) -> Sample:
        """Times one request."""
        request = self._request(shape, prune)
        self._decoder_seconds = 0.0
        begin = _now()
        (output,) = self._generate([request], 1)
        seconds = _now() - begin
        return Sample(
            frames=shape.frames,
            height=shape.height,
            width=shape.width,
            text_tokens=len(output.prompt_token_ids) - output.prune.kept,
            seconds=seconds,
            decoder_seconds=self._decoder_seconds,
        )

    def seconds_a_request(self, shape: VideoShape, count: int, prune: Any = None) -> float:
        """Of `count` requests at once, with answers of `DECODED` tokens."""
        requests = [self._request(shape, prune) for _ in range(count)]
        begin = _now()
        self._generate(requests, DECODED)
        return (_now() - begin) / count

    def decode_step(self, shape: VideoShape) -> float:
        """Seconds of a decoding step."""
        one = self.first_token(shape).seconds
        return max(0.0, self.seconds_a_request(shape, 1) - one) / (DECODED - 1)

    def _request(self, shape: VideoShape, prune: Any) -> dict[str, Any]:
        size = (shape.frames, shape.height, shape.width, 3)
        pixels = np.random.default_rng(next(self._seeds)).integers(0, 256, size, dtype=np.uint8)
        metadata = {
            "fps": 2.0,
            "duration": shape.frames / 2,
            "total_num_frames": shape.frames,
            "frames_indices": list(range(shape.frames)),
            "video_backend": "opencv",
            "do_sample_frames": False,
        }
        request = {"prompt": self._prompt, "multi_modal_data": {"video": [(pixels, metadata)]}}
        return request if prune is None else {**request, "mm_processor_kwargs": {"prune": prune}}

    def _generate(self, requests: list[dict[str, Any]], tokens: int) -> list[Any]:
        from vllm import SamplingParams

        sampling = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
        return self._llm.generate(requests, sampling, use_tqdm=False)


def calibrate(
    meter: Meter, dims: ModelDims, limits: PixelLimits | None, video: VideoShape, repeats: int = 3
) -> tuple[Speed, list[Sample]]:
    """The speed from unpruned videos of a quarter, half, three quarters and all of the frames of `video`."""
    lengths = sorted({max(2, video.frames * part // 4) for part in (1, 2, 3, 4)})
    shapes = [VideoShape(frames, video.height, video.width) for frames in lengths]
    meter.first_token(shapes[-1])  # whatever is done once, is done
    taken = [[meter.first_token(shape) for shape in shapes] for _ in range(repeats)]
    samples = [_median([row[index] for row in taken]) for index in range(len(shapes))]
    return fit_speed(dims, samples, meter.decode_step(shapes[0]), limits), samples


def _median(samples: Sequence[Sample]) -> Sample:
    first = samples[0]
    return Sample(
        frames=first.frames,
        height=first.height,
        width=first.width,
        text_tokens=first.text_tokens,
        seconds=statistics.median(sample.seconds for sample in samples),
        decoder_seconds=statistics.median(sample.decoder_seconds for sample in samples),
    )


def _now() -> float:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
