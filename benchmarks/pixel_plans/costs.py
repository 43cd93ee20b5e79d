"""What stage 1 on pixels costs and saves: plan beside preprocessing, bytes and encoder time beside share encoded."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from vllm_prune.bench.throughput.report import table

SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)
PIXELS = {"stage1": {"where": "processor", "cluster_ratio": 1.0}}
PROMPT = (
    "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>what happens in the video?<|im_end|>\n"
    "<|im_start|>assistant\n"
)


class Stopwatch:
    """Seconds spent in functions, by name, of one request at a time."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, whose time is added to `name`."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] += time.perf_counter() - begin

        return timed


class Bench:
    """An engine on random weights, opened up."""

    modality = "video"
    """Of the one medium that a request has."""

    def __init__(self, dims: str) -> None:
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        from vllm import LLM

        from vllm_prune import engine_args
        from vllm_prune.bench.throughput.models import resolve_model

        with tempfile.TemporaryDirectory() as work:
            model = resolve_model("random", dims, Path(work))
            self.model_description = model.description
            options: dict[str, Any] = {
                "max_model_len": 8192,
                "max_num_batched_tokens": 8192,
                "enable_prefix_caching": False,
                "mm_processor_cache_gb": 0,
                "limit_mm_per_prompt": {"video": 0, "image": 0, self.modality: 1},
                "enforce_eager": True,
                "load_format": "dummy",
                "gpu_memory_utilization": 0.3,
                "seed": 0,
            }
            self._llm = LLM(**engine_args(str(model.path), "baseline", override="any", **options))
        self._watch = Stopwatch()
        self._sent = 0

    def ask(self, video: np.ndarray, config: Any, **processor_options: Any) -> dict[str, float]:
        """One request; seconds, bytes and tokens."""
        metadata = {
            "fps": 2.0,
            "duration": len(video) / 2,
            "total_num_frames": len(video),
            "frames_indices": list(range(len(video))),
            "video_backend": "opencv",
            "do_sample_frames": False,
        }
        return self.send(PROMPT, (video, metadata), config, **processor_options)

    def send(self, prompt: str, medium: Any, config: Any, **processor_options: Any) -> dict[str, float]:
        """One request about one medium; seconds, bytes and tokens."""
        from vllm import SamplingParams

        request = {
            "prompt": prompt,
            "multi_modal_data": {self.modality: [medium]},
            "mm_processor_kwargs": {"prune": config, **processor_options},
        }
        sampling = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
        self._watch.seconds.clear()
        with self._watched():
            begin = time.perf_counter()
            (output,) = self._llm.generate([request], sampling, use_tqdm=False)
            ttft = time.perf_counter() - begin
        return {
            **{f"{name}_s": seconds for name, seconds in self._watch.seconds.items()},
            "ttft_s": ttft,
            "sent_bytes": self._sent,
            "prompt_tokens": len(output.prompt_token_ids),
        }

    @contextmanager
    def _watched(self) -> Iterator[None]:
        from vllm_prune.serving.api import image_specs, video_pixels
        from vllm_prune.serving.api.grouped_video import GroupedVideo
        from vllm_prune.serving.families.qwen2_5_vl import PruneQwen2_5_VLProcessor as Processor

        core = self._llm.llm_engine.engine_core
        visual = core.engine_core.model_executor.driver_worker.worker.model_runner.model.visual
        self._sent = 0
        with ExitStack() as stack:
            for owner, name, label in (
                (video_pixels, "plan_video", "plan"),
                (video_pixels, "keep_encoded", "keep"),
                (image_specs, "plan_image", "plan"),
                (image_specs, "keep_cells", "keep"),
                (Processor, "_call_hf_processor", "preprocess"),
                (GroupedVideo, "whole", "preprocess"),
                (video_pixels, "whole_pixels", "preprocess"),
                (Processor, "apply", "processor"),
                (visual, "forward", "encoder"),
            ):
                stack.enter_context(patch.object(owner, name, self._timed(label, getattr(owner, name))))
            stack.enter_context(patch.object(core, "add_request", self._counting(core.add_request)))
            yield

    def _timed(self, label: str, function: Any) -> Any:
        return self._watch.timed(label, function)

    def _counting(self, add_request: Any) -> Any:
        from vllm.v1.serial_utils import MsgpackEncoder

        def counting(request: Any) -> Any:
            self._sent = sum(memoryview(part).nbytes for part in MsgpackEncoder().encode(request))
            return add_request(request)

        return counting


def partly_moving(share: float, frames: int, width: int, height: int, seed: int) -> np.ndarray:
    """Frames [T, height, width, 3] of which `share` of the cells are new in every step, and the others stand still."""
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 255, (frames // 2, height // 7, width // 7, 3), dtype=np.uint8)
    rows, columns = height // 28, width // 28
    still = random.permutation(rows * columns)[: round((1 - share) * rows * columns)]
    mask = np.zeros(rows * columns, dtype=bool)
    mask[still] = True
    by_block = np.kron(mask.reshape(rows, columns), np.ones((4, 4), dtype=bool))
    blocks[:, by_block] = blocks[0, by_block]
    return blocks.repeat(2, axis=0).repeat(7, axis=1).repeat(7, axis=2)


def medians(samples: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of every value of the samples."""
    return {key: statistics.median(sample[key] for sample in samples) for key in samples[0]}


def measure(dims: str, frames: int, size: tuple[int, int], repeats: int) -> dict[str, Any]:
    """Medians for every share of cells that move, and for stock preprocessing and encoding of the same videos."""
    bench = Bench(dims)
    cells = frames // 2 * (size[0] // 28) * (size[1] // 28)
    samples: dict[str, list[dict[str, float]]] = defaultdict(list)
    for repeat in range(repeats + 1):
        for share in SHARES:
            video = partly_moving(share, frames, *size, seed=repeat)
            for name, config in ((f"{share:.0%}", PIXELS), ("stock", "baseline")):
                if name == "stock" and share != 1.0:
                    continue
                sample = bench.ask(video, config)
                if repeat:  # the first round warms up
                    samples[name].append(sample)
    text = statistics.median(s["prompt_tokens"] for s in samples["stock"]) - cells
    rows = {}
    for name, own in samples.items():
        row = medians(own)
        row["encoded_share"] = (row.pop("prompt_tokens") - text) / cells
        rows[name] = row
    stock = rows["stock"]
    for row in rows.values():
        row["encoder_of_stock"] = row["encoder_s"] / stock["encoder_s"]
        row["bytes_of_stock"] = row["sent_bytes"] / stock["sent_bytes"]
        if "plan_s" in row:
            row["plan_of_preprocessing"] = row["plan_s"] / row["preprocess_s"]
    return {"model": bench.model_description, "frames": frames, "size": list(size), "cells": cells, "rows": rows}


def markdown(result: dict[str, Any]) -> str:
    """The table."""
    header = ["cells that move", "encoded", "encoder, ms", "of stock", "÷ encoded share", "sent, MB", "of stock"]
    header += ["preprocessing, ms", "plan, ms", "of preprocessing", "copy, ms", "TTFT, ms"]
    rows = []
    for name, row in result["rows"].items():
        plan = row.get("plan_s")
        own = (
            ("-", "-", "-")
            if plan is None
            else (f"{1e3 * plan:.1f}", f"{row['plan_of_preprocessing']:.1%}", f"{1e3 * row['keep_s']:.1f}")
        )
        rows.append(
            [
                name,
                f"{row['encoded_share']:.1%}",
                f"{1e3 * row['encoder_s']:.0f}",
                f"{row['encoder_of_stock']:.1%}",
                f"{row['encoder_of_stock'] / row['encoded_share']:.2f}",
                f"{row['sent_bytes'] / 1e6:.1f}",
                f"{row['bytes_of_stock']:.1%}",
                f"{1e3 * row['preprocess_s']:.0f}",
                *own,
                f"{1e3 * row['ttft_s']:.0f}",
            ]
        )
    return (
        "# Stage 1 on pixels: what it costs and saves\n\n"
        f"{result['frames']} frames of {result['size'][0]} x {result['size'][1]}, {result['cells']} cells, one request "
        f"at a time, medians of {result['repeats']}; {result['model']}.\n\n{table(header, rows)}\n"
    )
