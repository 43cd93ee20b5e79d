"""What the teacher says of each video, computed once and kept on disk.

One file a video, named by all that it depends on: a run that was interrupted goes on behind the last file, and a run
with another model, layer or question computes its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, multiprocessing

from vllm_prune.bench.accuracy.videos import Frames
from vllm_prune.selector import INPUT, ModelIdentity
from vllm_prune.selector.storage import probe_ids
from vllm_prune.training.backbone import Backbone
from vllm_prune.training.errors import TrainingError
from vllm_prune.training.sources import Item

_TELL_EVERY_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Teaching:
    """What is asked of the teacher."""

    model: str
    """Folder or name on the hub."""
    name: str
    """As the user gave it."""
    layer: int
    """Whose attention is the truth."""
    place: str | int = INPUT
    """Which states the selector reads: as of `Header.place`."""
    max_frames: int = 64
    dtype: str | None = None
    """Of torch; None: see `Backbone`."""


@dataclass(frozen=True)
class Lesson:
    """One video with all its questions."""

    video: Tensor
    """[N, C] as the selector reads it."""
    text: list[Tensor]
    """Q tensors [W, C] of the questions."""
    importance: Tensor
    """[Q, N] float32."""
    grid: tuple[int, int, int]


def lesson_path(cache: Path, teaching: Teaching, item: Item) -> Path:
    """The file of a video."""
    path = getattr(item.video, "path", None)
    facts: list[Any] = [asdict(teaching), item.key]
    if isinstance(path, Path) and path.is_file():
        facts += [path.stat().st_size, path.stat().st_mtime_ns]
    return cache / f"{_short_hash(facts)}.safetensors"


def read_lesson(path: Path) -> Lesson:
    """A file of `teach`."""
    with safe_open(path, "pt") as file:
        t, h, w = json.loads(file.metadata()["grid"])
        lengths = file.get_tensor("lengths").tolist()
        video, text, importance = (file.get_tensor(name) for name in ("video", "text", "importance"))
    return Lesson(video.float(), list(text.float().split(lengths)), importance, (t, h, w))


def load_backbone(teaching: Teaching, device: str) -> Backbone:
    """The model that is asked."""
    dtype = getattr(torch, teaching.dtype) if teaching.dtype else None
    return Backbone(teaching.model, name=teaching.name, device=device, dtype=dtype)


def is_whole(path: Path) -> bool:
    """Whether a file is there and can be read to its end."""
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() is not None
    except (OSError, SafetensorError):
        return False


def teach(
    items: Sequence[Item],
    cache: Path,
    teaching: Teaching,
    devices: Sequence[str],
    tell: Callable[[str], None],
) -> dict[str, str]:
    """Make the files that are not there yet; what could not be read, with the reason, by video.

    devices: One process each, where there are several; each loads the model.
    """
    cache.mkdir(parents=True, exist_ok=True)
    missing = [item for item in items if not is_whole(lesson_path(cache, teaching, item))]
    if len(missing) < len(items):
        tell(f"teacher: {len(items) - len(missing)} of {len(items)} videos are in {cache}")
    shards = [missing[rank :: len(devices)] for rank in range(len(devices))]
    if len(devices) > 1 and missing:
        work = [(shard, cache, teaching, device) for shard, device in zip(shards, devices, strict=True)]
        with multiprocessing.get_context("spawn").Pool(len(devices)) as pool:
            skipped = dict(pair for found in pool.starmap(_teach_quietly, work) for pair in found.items())
    else:
        skipped = _teach_shard(missing, cache, teaching, devices[0], tell)
    if len(skipped) == len(items):
        video, reason = next(iter(skipped.items()))
        raise TrainingError(f"none of {len(items)} videos can be used, such as {video}: {reason}")
    return skipped


def _teach_quietly(items: Sequence[Item], cache: Path, teaching: Teaching, device: str) -> dict[str, str]:
    return _teach_shard(items, cache, teaching, device, lambda line: None)


def _teach_shard(
    items: Sequence[Item], cache: Path, teaching: Teaching, device: str, tell: Callable[[str], None]
) -> dict[str, str]:
    skipped: dict[str, str] = {}
    if not items:
        return skipped
    backbone = load_backbone(teaching, device)
    _write_probes(cache, teaching, backbone)
    started = told = time.monotonic()
    for number, item in enumerate(items, 1):
        try:
            frames = item.video.frames(teaching.max_frames)
            data = _lesson_bytes(backbone, item, frames, teaching)
        # A decoder meets a broken file in many ways; whichever it is, the others are taught.
        except (ValueError, OSError, RuntimeError) as error:
            skipped[item.video.key] = f"{type(error).__name__}: {error}"
            tell(f"teacher: skipped {item.video.key}: {error}")
            continue
        _write(lesson_path(cache, teaching, item), data)
        if time.monotonic() - told > _TELL_EVERY_S or number == len(items):
            told = time.monotonic()
            left = (told - started) / number * (len(items) - number)
            tell(f"teacher: {number} of {len(items)} videos, {told - started:.0f} s, {left:.0f} s left")
    return skipped


def _write_probes(cache: Path, teaching: Teaching, backbone: Backbone) -> None:
    """Keep what a selector's file tells of the model: training that goes on need not load it."""
    rows = backbone.embed(probe_ids(backbone.identity.vocab_size).tolist()).cpu()
    _write(_probes_path(cache, teaching), save({"rows": rows}, {"model": json.dumps(asdict(backbone.identity))}))


def read_probes(cache: Path, teaching: Teaching) -> tuple[ModelIdentity, Tensor]:
    """The model's identity, and the embeddings [P, C] of the probe tokens of a selector's file."""
    path = _probes_path(cache, teaching)
    if not is_whole(path):
        _write_probes(cache, teaching, load_backbone(teaching, "cpu"))
    with safe_open(path, "pt") as file:
        return ModelIdentity(**json.loads(file.metadata()["model"])), file.get_tensor("rows")


def _probes_path(cache: Path, teaching: Teaching) -> Path:
    return cache / f"model-{_short_hash(asdict(teaching))}.safetensors"


def _write(path: Path, data: bytes) -> None:
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_bytes(data)
    partial.replace(path)


def _short_hash(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]


def _lesson_bytes(backbone: Backbone, item: Item, frames: Frames, teaching: Teaching) -> bytes:
    clip = backbone.encode(frames)
    asked = [backbone.ask(question) for question in item.questions]
    seen = backbone.see(clip, asked, teaching.layer)
    if teaching.place == INPUT:
        video, text = clip.features, [backbone.embed(each.question) for each in asked]
    else:
        inside = backbone.see(clip, asked, int(teaching.place))
        video, text = (
            inside[0].medium[clip.cells],
            [state.tail[each.rows] for state, each in zip(inside, asked, strict=True)],
        )
    if not bool(video.isfinite().all()):
        raise ValueError("its visual tokens hold NaN or Inf")
    tensors = {
        "video": video,
        "text": torch.cat(text),
        "lengths": torch.tensor([len(rows) for rows in text]),
        "importance": torch.stack([each.importance for each in seen]),
    }
    if not bool(tensors["importance"].isfinite().all()):
        raise ValueError("the teacher's attention holds NaN or Inf")
    tensors = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
    return save(tensors, {"grid": json.dumps(clip.grid)})


def paths(items: Iterable[Item], cache: Path, teaching: Teaching, skipped: dict[str, str]) -> list[Path]:
    """Files of the items that were not skipped."""
    return [lesson_path(cache, teaching, item) for item in items if item.video.key not in skipped]
