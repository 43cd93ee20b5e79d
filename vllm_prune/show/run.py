"""Runs the model in this process, once for each configuration, with traces."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vllm_prune.config import PruneConfig
from vllm_prune.estimate import VideoShape, read_dims
from vllm_prune.estimate.dims import read_config
from vllm_prune.estimate.video import read_limits
from vllm_prune.media.kinds import is_picture
from vllm_prune.serving.wire.architectures import variant_of
from vllm_prune.show.errors import ShowError
from vllm_prune.show.media import load_video, to_frames
from vllm_prune.show.picture import DEFAULT_QUESTION as PICTURE_QUESTION
from vllm_prune.show.picture import frames_of, grid_of, load_picture, name_picture_configs
from vllm_prune.show.story import Frames, Panel, Story, label_of, make_panel
from vllm_prune.show.trace_file import TracedVideo, read_trace

DEFAULT_QUESTION = "What happens in the video?"
_TEXT_ROOM = 1024
"""Tokens of the prompt beside the video, and of the answer."""


def run_model(
    video: str,
    question: str | None,
    prunes: Sequence[str],
    *,
    model: str,
    max_tokens: int = 16,
    media_io_kwargs: dict[str, Any] | None = None,
    engine: dict[str, Any] | None = None,
) -> Story:
    """Asks `question` under every configuration of `prunes`.

    Args:
        video: A file, an http(s) URL or a data URL; or that of a picture.
        question: What to ask; None where no question matters: then a configuration that needs one gets a general one,
            and the picture shows neither question nor answer if none does.
        prunes: Presets or JSON objects, as `--prune` takes them.
        model: A folder or hub name.
        max_tokens: Length of the answer.
        media_io_kwargs: As vLLM's option.
        engine: Further arguments of `vllm.LLM`.

    Raises:
        ShowError: The video or the model cannot be used.
        PruneConfigError: A configuration is wrong.
    """
    is_image = is_picture(video)
    configs = name_picture_configs(prunes) if is_image else _on_the_same_frames(name_configs(prunes))
    check_model(model)
    medium: tuple[str, Any]
    if is_image:
        picture = load_picture(video)
        medium, frames, grid = ("image", picture), frames_of(video, picture), grid_of(model, picture)
    else:
        images, metadata = load_video(video, model, media_io_kwargs)
        medium, frames, grid = ("video", (images, metadata)), to_frames(video, images, metadata), _grid(model, images)
    with tempfile.TemporaryDirectory(prefix="vllm-prune-show-") as folder:
        asked = question or (PICTURE_QUESTION if is_image else DEFAULT_QUESTION)
        runner = _Runner(model, Path(folder), medium, asked, grid, max_tokens, engine or {})
        panels = [runner.run(label, config) for label, config in configs.items()]
    if question is None and not any(part.query_aware for config in configs.values() for part in config.parts):
        return make_story(model, frames, None, [replace(panel, answer=None) for panel in panels])
    return make_story(model, frames, asked, panels)


def make_story(model: str, frames: Frames, question: str | None, panels: list[Panel]) -> Story:
    """The story of `panels`, with the sizes of the model's tokens."""
    vision = read_dims(model).vision
    per_step = 1 if frames.is_picture else vision.temporal_patch
    return Story(frames, question, panels, frames_per_step=per_step, token_pixels=vision.token_pixels)


def check_model(model: str) -> None:
    """Raises ShowError unless there is a pruning variant of `model`."""
    from vllm_prune.engine import read_architecture

    try:
        variant_of(read_architecture(model))
    except ValueError as error:
        given = "" if "model=" in str(error) else f"model={model!r}: "
        raise ShowError(f"{given}{error}; give one of these, or leave --model out for the embedded one") from error


def name_configs(prunes: Sequence[str]) -> dict[str, PruneConfig]:
    """The configurations by a label each, without repetitions.

    >>> list(name_configs(["default", "default", '{"method": "uniform"}', '{"preset": "default"}']))
    ['default', 'uniform']
    """
    named: dict[str, PruneConfig] = {}
    for prune in prunes:
        label, config = label_of(prune), PruneConfig.parse(prune)
        if config not in named.values():
            named[config.to_json() if label in named else label] = config
    return named


def _on_the_same_frames(configs: dict[str, PruneConfig]) -> dict[str, PruneConfig]:
    """`configs`, none of which samples frames of its own."""
    for config in configs.values():
        if config.frames is not None:
            raise ShowError(
                f"prune={config.to_json()}: all configurations are shown on the same frames, those of "
                f"--media-io-kwargs; leave frames out"
            )
    return configs


def _grid(model: str, images: np.ndarray) -> tuple[int, int, int]:
    frames, height, width = images.shape[:3]
    return VideoShape(frames, height, width).grid(read_dims(model).vision, read_limits(model))


class _Runner:
    """An engine and the one request that it answers again and again."""

    def __init__(
        self,
        model: str,
        folder: Path,
        medium: tuple[str, Any],
        question: str,
        grid: tuple[int, int, int],
        max_tokens: int,
        engine: dict[str, Any],
    ) -> None:
        self._folder, self._grid, self._max_tokens = folder, grid, max_tokens
        modality, item = medium
        length = grid[0] * (grid[1] * grid[2] + read_dims(model).step_text_most)
        self._llm = _start(model, folder, length, modality, engine)
        content = [{"type": modality}, {"type": "text", "text": question}]
        prompt = self._llm.get_tokenizer().apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        self._prompt = {"prompt": prompt, "multi_modal_data": {modality: [item]}}

    def run(self, label: str, config: PruneConfig) -> Panel:
        from vllm import SamplingParams

        known = set(self._folder.glob("*.npz"))
        request = {**self._prompt, "mm_processor_kwargs": {"prune": config.to_dict() or "baseline"}}
        begin = time.perf_counter()
        try:
            (output,) = self._llm.generate(
                [request], SamplingParams(max_tokens=self._max_tokens, temperature=0.0), use_tqdm=False
            )
        except ValueError as error:
            raise ShowError(f"prune={config.to_json()}: {error}") from error
        seconds = time.perf_counter() - begin
        written = sorted(set(self._folder.glob("*.npz")) - known)
        report = getattr(output, "prune", None)  # of a picture that nothing prunes there is none
        structure = 0 if report is None else report.structure
        traced = read_trace(written[-1])[0] if written else TracedVideo.unpruned(self._grid, config, structure)
        return make_panel(label, traced, output.outputs[0].text.strip(), seconds)


def _start(model: str, folder: Path, media_tokens: int, modality: str, engine: dict[str, Any]) -> Any:
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # vLLM warns at every request that it keeps its threads
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    from vllm import LLM
    from vllm.platforms import current_platform

    from vllm_prune.engine import engine_args

    length = min(media_tokens + _TEXT_ROOM, _longest_prompt(model))
    options: dict[str, Any] = {
        "max_model_len": length,
        "max_num_batched_tokens": length,
        "max_num_seqs": 1,
        "limit_mm_per_prompt": {"video": 0, "image": 0, modality: 1},
        "enable_prefix_caching": False,
        "enforce_eager": True,
        "seed": 0,
    }
    if current_platform.is_cpu():
        options["gpu_memory_utilization"] = 0.1  # only checked there; the KV cache has its own variable
    try:
        arguments = engine_args(model, PruneConfig(), override="any", trace=str(folder), **options | engine)
        return LLM(**arguments)
    except ValueError as error:
        raise ShowError(f"model={model!r}: {error}") from error


def _longest_prompt(model: str) -> int:
    config = read_config(model)
    return (config.get("text_config") or config).get("max_position_embeddings", 32768)
