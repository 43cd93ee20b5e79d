"""Memory that an engine takes beyond its own for ever longer videos, and whether it answers.

    python -m benchmarks.long_memory [--frames 256 512 1024 2048] [--step-tokens 1024] [--stock] -o OUTDIR

The embedded model, and generated clips: noise that stands still, and a colour that flashes for a second. Every length
has an engine core of its own (its worker included) in a process apart from the one that decodes and prepares frames;
what is measured is that process's peak resident memory while it answers, beyond what it had before.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ending import exit_from
from benchmarks.result_file import measure_into

SIZE = 112
CELLS = (SIZE // 28) ** 2
MIB = 1 << 20
PATCH_BYTES = 4 * 3 * 2 * 14 * 14 * 4
"""Of the pixels of a token as they reach the encoder: four patches of two frames, in float32."""
ASKED = (
    "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>What colour is the flash?<|im_end|>\n"
    "<|im_start|>assistant\n"
)


def clip(frames: int) -> tuple[np.ndarray, dict[str, Any]]:
    """Frames [T, 112, 112, 3], two of which are red, and what vLLM wants to know about them."""
    still = np.random.default_rng(0).integers(60, 90, (1, SIZE, SIZE, 3), dtype=np.uint8)
    pixels = np.repeat(still, frames, axis=0)
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


def core_pid() -> int:
    """Of the engine core, the largest of this process's children."""
    children = [process.pid for process in multiprocessing.active_children() if process.pid]
    return max(children, key=resident)


class Peak:
    """The most memory that a process had in the meantime, asked a hundred times a second."""

    def __init__(self, pid: int) -> None:
        self._pid, self.bytes, self._ends = pid, resident(pid), threading.Event()
        self.before = self.bytes
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._ends.wait(0.01):
            self.bytes = max(self.bytes, resident(self._pid))

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()


def measure(frames: int, stock: bool, args: argparse.Namespace, pipe: Any) -> None:
    """Sends what one engine took and answered."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
    os.environ["HF_HUB_OFFLINE"] = "1"
    if stock:
        os.environ["VLLM_PLUGINS"] = ""
    from vllm import LLM, SamplingParams

    from vllm_prune import engine_args
    from vllm_prune.embedded import model_path

    tokens = frames // 2 * CELLS
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
    if not stock:
        dense = max(tokens, args.step_tokens)
        config = {"preset": args.preset, "keep_ratio": None, "target_token_num": args.kept}
        options = engine_args(str(model_path()), config, dense_tokens=dense, **options)
    else:
        options["model"] = str(model_path())
    llm: Any = LLM(**options)
    params = SamplingParams(max_tokens=4, temperature=0.0)

    def ask(length: int) -> Any:
        request = {"prompt": ASKED, "multi_modal_data": {"video": [clip(length)]}}
        (output,) = llm.generate([request], params, use_tqdm=False)
        return output

    ask(16)  # warms up
    begin = time.perf_counter()
    with Peak(core_pid()) as peak:
        output = ask(frames)
    pipe.send(
        {
            "frames": frames,
            "tokens": tokens,
            "prompt_tokens": len(output.prompt_token_ids),
            "answer": output.outputs[0].text,
            "seconds": time.perf_counter() - begin,
            "own_mib": peak.before / MIB,
            "beyond_mib": (peak.bytes - peak.before) / MIB,
            "pixels_mib": tokens * PATCH_BYTES / MIB,
        }
    )
    llm.llm_engine.engine_core.shutdown()


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """What `measure` found, by length and engine."""
    found: list[dict[str, Any]] = []
    context = multiprocessing.get_context("spawn")
    for stock in (False, True) if args.stock else (False,):
        for frames in args.frames:
            ours, theirs = context.Pipe()
            process = context.Process(target=measure, args=(frames, stock, args, theirs))
            process.start()
            theirs.close()
            try:
                row = {"engine": "stock" if stock else args.preset, **ours.recv()}
            except EOFError:
                row = {"engine": "stock" if stock else args.preset, "frames": frames, "answer": None}
            process.join()
            found.append(row)
            print(
                *(f"{key} {value:.1f}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items())
            )
    return found


def main(argv: list[str] | None = None) -> int:
    """Prints a line for each engine and writes all to OUTDIR/long-memory.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, nargs="+", default=[256, 512, 1024, 2048])
    parser.add_argument("--preset", default="default")
    parser.add_argument("--kept", type=int, default=512, help="target_token_num")
    parser.add_argument("--step-tokens", type=int, default=1024, help="max_num_batched_tokens")
    parser.add_argument("--model-len", type=int, default=20480)
    parser.add_argument("--stock", action="store_true", help="stock vLLM, too")
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args(argv)
    path = args.output / "long-memory.json"
    command = ["python", "-m", "benchmarks.long_memory", *(argv or sys.argv[1:])]
    measure_into(path, command, lambda: {"rows": run(args)})
    print(path)
    return 0


if __name__ == "__main__":
    exit_from("benchmarks.long_memory", main)
