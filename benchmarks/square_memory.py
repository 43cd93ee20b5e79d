"""Memory that preparing a video takes, for families that make a square of every frame.

    python -m benchmarks.square_memory [--frames 64 256 1024] [--families llava_onevision ...] -o OUTDIR

Every row has a process of its own, with what vLLM's API server prepares requests by: once as stock vLLM has it, once
with the plugin. Measured is the peak of its resident memory (VmHWM, the kernel's own) while a video is prepared, beyond
what it had before, its frames among that; beside it what the request then brings: pixels, in bfloat16. Models have
dimensions and no weights, squares 224 pixels, frames 256 x 256.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import multiprocessing
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ending import exit_from
from benchmarks.long_memory import MIB, Peak
from benchmarks.result_file import measure_into
from vllm_prune.bench.throughput.report import table

SIDE, FRAME = 224, 256
DIMS = {
    "llava_onevision": "cpu-llava-onevision",
    "llava_next_video": "cpu-llava-next-video",
    "internvl": "cpu-internvl",
    "internvl_chat": "cpu-internvl",
}
PIXELS = {"internvl_chat": "pixel_values_flat_video"}
"""Field of the pixels, where it is not "pixel_values_videos"."""
CHAT_TOKENS = {"<|image_pad|>": "<IMG_CONTEXT>", "<|vision_start|>": "<img>", "<|vision_end|>": "</img>"}
CHAT = {
    "architectures": ["InternVLChatModel"],
    "min_dynamic_patch": 1,
    "max_dynamic_patch": 4,
    "dynamic_image_size": True,
    "use_thumbnail": True,
    "downsample_ratio": 0.5,
}
"""What the other class for InternVL reads of a configuration, beside what Hugging Face's class does."""
NUMBERS = {"vision_config": {"image_size": SIDE, "patch_size": 14}}
"""As it reads them; Hugging Face's class makes pairs of them."""


def write_model(folder: Path, family: str) -> Path:
    """A model without weights, into `folder`, which is returned."""
    from vllm_prune.bench.throughput.named_dims import DIMS as NAMED
    from vllm_prune.bench.throughput.random_model import write_random_model

    write_random_model(folder, dataclasses.replace(NAMED[DIMS[family]], square=SIDE))
    if family == "internvl_chat":
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            text = (folder / name).read_text()
            for old, new in CHAT_TOKENS.items():
                text = text.replace(old, new)
            (folder / name).write_text(text)
        config = folder / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | CHAT))
    return folder


def processor_of(model: Path, family: str, plugin: bool) -> Any:
    """What prepares requests."""
    os.environ |= {"VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1", "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"}
    if not plugin:
        os.environ["VLLM_PLUGINS"] = ""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.multimodal import MULTIMODAL_REGISTRY

    from vllm_prune import engine_args

    options: dict[str, Any] = {"max_model_len": 1 << 17, "dtype": "bfloat16", "enforce_eager": True}
    if family == "internvl_chat":
        options["hf_overrides"] = NUMBERS
    arguments = engine_args(str(model), "baseline", **options) if plugin else {"model": str(model), **options}
    return MULTIMODAL_REGISTRY.create_processor(EngineArgs(**arguments).create_model_config())


def clip(frames: int) -> tuple[np.ndarray, dict[str, Any]]:
    """Noise [T, 256, 256, 3], and what vLLM wants to know about it."""
    coarse = np.random.default_rng(0).integers(0, 256, (frames, FRAME // 16, FRAME // 16, 3), dtype=np.uint8)
    pixels = coarse.repeat(16, axis=1).repeat(16, axis=2)
    return pixels, {"fps": 2.0, "duration": frames / 2, "total_num_frames": frames, "do_sample_frames": False}


def measure(frames: int, family: str, plugin: bool, pipe: Any) -> None:
    """Sends what one process took."""
    from vllm.multimodal.processing.context import TimingContext
    from vllm.multimodal.processing.inputs import ProcessorInputs

    with tempfile.TemporaryDirectory() as folder:
        processor = processor_of(write_model(Path(folder), family), family, plugin)
        placeholder = "<video>" if family == "internvl_chat" else "<|video_pad|>"
        ids = processor.info.get_tokenizer().encode(f"{placeholder}?")

        def prepare(video: Any) -> Any:
            items = processor.info.parse_mm_data({"video": [video]})
            return processor.apply(ProcessorInputs(ids, items), TimingContext(enabled=False))

        prepare(clip(8))  # warms up
        video = clip(frames)
        peak = Peak(os.getpid())
        (item,) = prepare(video)["mm_kwargs"]["video"]
        beyond, size = peak.bytes - peak.before, item[PIXELS.get(family, "pixel_values_videos")].data.nbytes
    pipe.send({"frames_mib": video[0].nbytes / MIB, "pixels_mib": size / MIB, "beyond_mib": beyond / MIB})


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """What `measure` found, by family, length and whether the plugin is there."""
    context, found = multiprocessing.get_context("forkserver"), []
    context.set_forkserver_preload(["vllm.engine.arg_utils", "vllm.multimodal", "vllm_prune"])  # which take seconds
    for family, frames, plugin in itertools.product(args.families, args.frames, (False, True)):
        ours, theirs = context.Pipe()
        process = context.Process(target=measure, args=(frames, family, plugin, theirs))
        process.start()
        theirs.close()
        row = {"family": family, "frames": frames, "plugin": plugin, **ours.recv()}
        process.join()
        found.append(row)
        print(*(f"{key} {value:.1f}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()))
    return found


def report(rows: list[dict[str, Any]]) -> str:
    """A table, stock beside the plugin."""
    body = []
    for stock, ours in zip(rows[::2], rows[1::2], strict=True):
        figures = [f"{stock[key]:.1f}" for key in ("frames_mib", "pixels_mib")]
        peaks = [f"{row['beyond_mib']:.1f} ({row['beyond_mib'] / row['pixels_mib']:.2f})" for row in (stock, ours)]
        body.append([f"`{stock['family']}`", f"{stock['frames']:,}", *figures, *peaks])
    header = ["family", "length", "frames", "pixels", "peak, stock", "peak, plugin"]
    title = "# Memory of videos of squares\n\nMiB; peaks beyond what the process had, in brackets divided by the pixels"
    return f"{title} that the request brings.\n\n{table(header, body)}\n"


def main(argv: list[str] | None = None) -> int:
    """Prints a line for each process and writes all to OUTDIR/square-memory.json, and a table beside it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--families", nargs="+", choices=sorted(DIMS), default=list(DIMS))
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args(argv)
    path = args.output / "square-memory.json"
    command = ["python", "-m", "benchmarks.square_memory", *(argv or sys.argv[1:])]
    found = measure_into(path, command, lambda: {"rows": run(args)})
    path.with_suffix(".md").write_text(report(found["rows"]))
    print(path)
    return 0


if __name__ == "__main__":
    exit_from("benchmarks.square_memory", main)
