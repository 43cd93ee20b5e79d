"""Memory that videos take beyond an engine's own, the longer they are, in each of its processes.

    python -m benchmarks.long_memory [--frames 256 2048] [--clips still moving] [--presets default pixels] -o OUTDIR

The embedded model, and generated clips: noise that stands still, or noise that is new in every frame, and a colour that
flashes for a second. Every row has an engine of its own: a front, which prepares frames (vLLM's API server, here the
program that asks), a core, which schedules, and a worker, which has the model. What is measured is the peak of each
one's resident memory (VmHWM, the kernel's own) while a video is answered, beyond what it had before. Beside it,
computed from their shapes, what of that has to be there: frames (before, and not counted), pixels that go from process
to process, the encoder's features, and what a dense prefix holds (scratch: keys and values of the layers up to the
choice, hidden states, rows of the encoder cache).
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ending import exit_from
from benchmarks.result_file import measure_into
from vllm_prune.bench.throughput.report import table

SIZE = 112
CELLS = (SIZE // 28) ** 2
MIB = 1 << 20
PRESETS: dict[str, dict[str, Any]] = {
    "default": {"preset": "default"},
    "pixels": {"preset": "default", "stage1": {"where": "processor"}},
}
ASKED = (
    "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>What colour is the flash?<|im_end|>\n"
    "<|im_start|>assistant\n"
)


def clip(frames: int, moving: bool) -> tuple[np.ndarray, dict[str, Any]]:
    """Frames [T, 112, 112, 3], two of which are red, and what vLLM wants to know about them."""
    noise = np.random.default_rng(0)
    pixels = np.empty((frames, SIZE, SIZE, 3), dtype=np.uint8)
    for frame in range(frames):
        if moving or frame == 0:
            coarse = noise.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        pixels[frame] = coarse.repeat(14, axis=0).repeat(14, axis=1)
    first = frames // 3 * 2 // 2 * 2
    pixels[first : first + 2, 28:84, 28:84] = (220, 30, 30)
    return pixels, {
        "fps": 2.0,
        "duration": frames / 2,
        "total_num_frames": frames,
        "frames_indices": list(range(frames)),
        "video_backend": "opencv",
        "do_sample_frames": False,
    }


def resident(pid: int) -> int:
    """Bytes of a process that are in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def processes() -> dict[str, int]:
    """Ids of this one, of the engine core (the largest of its children) and of the worker (of the core's)."""
    front = os.getpid()
    core = max(_children(front), key=resident)
    return {"front": front, "core": core, "worker": max(_children(core), key=resident)}


def _children(pid: int) -> list[int]:
    return [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in _listed(task / "children")]


def _listed(path: Path) -> list[str]:
    return path.read_text().split()


class Peak:
    """The most memory that a process had in the meantime, by the kernel's own count."""

    def __init__(self, pid: int) -> None:
        self._status = Path(f"/proc/{pid}/status")
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # from here on
        self.before = resident(pid)

    @property
    def bytes(self) -> int:
        """So far."""
        (line,) = (line for line in self._status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024


class Sizes:
    """What has to be there of a request's video, in bytes, from the shapes of what is sent to the core."""

    def __init__(self, llm: Any) -> None:
        self._model = llm.llm_engine.model_config
        self.found: dict[str, int] = {}
        core = llm.llm_engine.engine_core
        self._send, core.add_request = core.add_request, self._see

    def _see(self, request: Any) -> Any:
        from vllm_prune.serving.wire.request_spec import read_spec

        (video,) = request.mm_features
        pixels, spec = video.data["pixel_values_videos"].data, read_spec(video)
        rows = 0 if spec is None or not spec.config.chooses_inside else spec.counts.carried_rows
        features = len(pixels) // 4 * self._model.hf_text_config.hidden_size * self._model.dtype.itemsize
        self.found = {"pixels": pixels.nbytes, "features": features, "scratch": self._scratch(rows, spec)}
        return self._send(request)

    def _scratch(self, rows: int, spec: Any) -> int:
        """Of so many dense rows.

        Keys and values of the layers up to the choice and of one more (the scratch cache of a layer), queries of the
        last, two hidden states, a row of the encoder cache and a position for each.
        """
        from vllm_prune.serving.wire.decoder_layers import pruning_layers

        if not rows:
            return 0
        text, head = self._model.hf_text_config, self._model.get_head_size()
        layers = pruning_layers(spec.config, self._model)[0] + 1
        numbers = (layers + 1) * 2 * text.num_key_value_heads * head + text.num_attention_heads * head
        return rows * ((numbers + 3 * text.hidden_size) * self._model.dtype.itemsize + 3 * 8)


def start(frames: int, preset: str | None, args: argparse.Namespace) -> Any:
    """An engine for videos of so many frames; `preset` None: stock vLLM's."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
    os.environ["HF_HUB_OFFLINE"] = "1"
    if preset is None:
        os.environ["VLLM_PLUGINS"] = ""
    from vllm import LLM

    from vllm_prune import engine_args
    from vllm_prune.embedded import model_path

    options: dict[str, Any] = {
        "max_model_len": args.model_len,
        "max_num_batched_tokens": args.step_tokens,
        "enable_prefix_caching": False,
        "mm_processor_cache_gb": 0,
        "limit_mm_per_prompt": {"video": 1, "image": 0},
        "enforce_eager": True,
        "hf_overrides": {"text_config": {"max_position_embeddings": args.model_len}},
        "seed": 0,
    }
    if preset is None:  # in shorter ones it does not begin with the video
        options["max_num_batched_tokens"] = max(args.step_tokens, frames // 2 * CELLS)
        return LLM(model=str(model_path()), **options)
    config = {**PRESETS[preset], "keep_ratio": None, "target_token_num": args.kept}
    dense = max(frames // 2 * CELLS, args.step_tokens)
    return LLM(**engine_args(str(model_path()), config, dense_tokens=dense, **options))


def measure(frames: int, moving: bool, preset: str | None, args: argparse.Namespace, pipe: Any) -> None:
    """Sends what one engine took and answered."""
    llm = start(frames, preset, args)
    from vllm import SamplingParams

    params, sizes = SamplingParams(max_tokens=4, temperature=0.0), Sizes(llm)

    def ask(video: Any) -> Any:
        request = {"prompt": ASKED, "multi_modal_data": {"video": [video]}}
        (output,) = llm.generate([request], params, use_tqdm=False)
        return output

    ask(clip(16, moving))  # warms up
    video = clip(frames, moving)
    begin, peaks = time.perf_counter(), {name: Peak(pid) for name, pid in processes().items()}
    output = ask(video)
    found: dict[str, Any] = {
        "frames": frames,
        "tokens": frames // 2 * CELLS,
        "prompt_tokens": len(output.prompt_token_ids),
        "answer": output.outputs[0].text,
        "seconds": time.perf_counter() - begin,
        "frames_mib": video[0].nbytes / MIB,
        **{f"{name}_mib": size / MIB for name, size in sizes.found.items()},
    }
    for name, peak in peaks.items():
        there = sum(sizes.found.values()) if name == "worker" else sizes.found["pixels"]
        own, beyond = peak.before / MIB, (peak.bytes - peak.before) / MIB
        found |= {f"{name}_own_mib": own, f"{name}_beyond_mib": beyond, f"{name}_rest_mib": beyond - there / MIB}
    pipe.send(found)
    llm.llm_engine.engine_core.shutdown()


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """What `measure` found, by engine, clip and length."""
    found: list[dict[str, Any]] = []
    context = multiprocessing.get_context("spawn")
    engines = [*args.presets, *([None] if args.stock else [])]
    for preset, kind, frames in itertools.product(engines, args.clips, args.frames):
        ours, theirs = context.Pipe()
        process = context.Process(target=measure, args=(frames, kind == "moving", preset, args, theirs))
        process.start()
        theirs.close()
        row: dict[str, Any] = {"engine": preset or "stock", "clip": kind}
        try:
            row |= ours.recv()
        except EOFError:
            row |= {"frames": frames, "answer": None}
        process.join()
        found.append(row)
        print(*(f"{key} {value:.1f}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()))
    return found


def report(rows: list[dict[str, Any]]) -> str:
    """A table; in brackets, what is left beyond what has to be there."""
    names = ("front", "core", "worker")
    sizes = ("frames_mib", "pixels_mib", "features_mib", "scratch_mib")
    header = ["engine, clip", "length", "prompt tokens", *(size.removesuffix("_mib") for size in sizes), *names]
    body = [
        [
            f"`{row['engine']}`, {row['clip']}",
            f"{row['frames']:,}",
            f"{row['prompt_tokens']:,}",
            *(f"{row[size]:.1f}" for size in sizes),
            *(f"{row[f'{name}_beyond_mib']:.1f} ({row[f'{name}_rest_mib']:.1f})" for name in names),
        ]
        for row in rows
        if row["answer"] is not None
    ]
    title = (
        "# Memory of long videos\n\nMiB; of each process the peak beyond its own, and what of that is neither pixels"
    )
    return f"{title} nor, in the worker, features or scratch.\n\n{table(header, body)}\n"


def main(argv: list[str] | None = None) -> int:
    """Prints a line for each engine and writes all to OUTDIR/long-memory.json, and a table beside it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, nargs="+", default=[256, 2048])
    parser.add_argument("--clips", nargs="+", choices=["still", "moving"], default=["still", "moving"])
    parser.add_argument("--presets", nargs="*", choices=sorted(PRESETS), default=sorted(PRESETS))
    parser.add_argument("--kept", type=int, default=512, help="target_token_num")
    parser.add_argument("--step-tokens", type=int, default=1024, help="max_num_batched_tokens")
    parser.add_argument("--model-len", type=int, default=20480)
    parser.add_argument("--stock", action="store_true", help="stock vLLM, too")
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args(argv)
    path = args.output / "long-memory.json"
    command = ["python", "-m", "benchmarks.long_memory", *(argv or sys.argv[1:])]
    found = measure_into(path, command, lambda: {"rows": run(args)})
    path.with_suffix(".md").write_text(report(found["rows"]))
    print(path)
    return 0


if __name__ == "__main__":
    exit_from("benchmarks.long_memory", main)
