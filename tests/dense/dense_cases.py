"""Requests of all kinds, at random but the same at every run, and what the oracle says about them.

Every frame of a video has noise of its own: in repeated frames stage 1 finds near ties, and the two vision towers,
which differ in the seventh digit, would break them differently.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from dense_engine import BLOCK_SIZE, Answer, RemoteEngine
from oracle import OracleResult, run_oracle
from oracle.from_vllm import to_prompt
from PIL import Image

from vllm_prune.config import PruneConfig

VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
QUESTIONS = (
    "What colour is the flash?",
    "How many shapes?",
    "What form is the red shape, and does it move from left to right or the other way?",
    "yes or no?",
    "Describe the video.",
)
LOGPROB_TOLERANCE = 1e-4


@functools.cache
def video(seed: int, frames: int = 8, height: int = 112, width: int = 112, fps: float = 2.0) -> tuple[np.ndarray, dict]:
    noise = np.random.default_rng(seed)
    pixels = np.repeat(noise.integers(0, 255, (1, height, width, 3)), frames, axis=0)
    pixels[frames // 2 :, 20 : height // 2, 20 : width // 2] = noise.integers(0, 255, 3)
    light = 40 * np.sin(np.arange(frames) + seed)[:, None, None, None]
    pixels = np.clip(pixels + noise.normal(0, 25, pixels.shape) + light, 0, 255).astype(np.uint8)
    metadata = {
        "fps": fps,
        "duration": frames / fps,
        "total_num_frames": frames,
        "frames_indices": list(range(frames)),
        "video_backend": "opencv",
        "do_sample_frames": False,
    }
    return pixels, metadata


def image(seed: int, height: int = 84, width: int = 112) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3)).astype(np.uint8))


def chat(*turns: str, system: str = "") -> str:
    """User and assistant in turn, and the header of the next reply."""
    roles = ("user", "assistant")
    said = "".join(f"<|im_start|>{roles[i % 2]}\n{text}<|im_end|>\n" for i, text in enumerate(turns))
    first = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
    return f"{first}{said}<|im_start|>assistant\n"


@dataclass(frozen=True)
class Case:
    """One request."""

    text: str
    videos: tuple[Any, ...] = field(default=(), repr=False)
    images: tuple[Any, ...] = ()
    config: Any = None
    """The request's own; None: what the server has."""

    def prompt(self) -> dict[str, Any]:
        """For `vllm.LLM`."""
        media = {name: list(items) for name, items in (("video", self.videos), ("image", self.images)) if items}
        prompt: dict[str, Any] = {"prompt": self.text}
        if media:
            prompt["multi_modal_data"] = media
        if self.config is not None and media:
            prompt["mm_processor_kwargs"] = {"prune": self.config}
        return prompt


CONFIGS: tuple[Any, ...] = (
    None,
    "stage2_only",
    "default",
    "conservative",
    "aggressive",
    "stage1_only",
    "baseline",
    {"method": "attention", "stage1": None, "keep_ratio": 0.3, "params": {"text": "mean"}},
    {"method": "attention", "stage1": None, "keep_ratio": 0.5, "params": {"text": "last"}},
    "pyramiddrop",
    "framefusion",
    {"preset": "default", "layers": [0, 2, 4], "keep_ratio": [0.9, 0.6, 0.5]},
    {"method": "attention", "stage1": None, "layers": [0], "keep_ratio": None, "target_token_num": 5},
    {"preset": "default", "layers": [1, 4], "keep_ratio": None, "target_token_num": [20, 7]},
    {"method": "uniform", "stage1": None, "keep_ratio": 0.3},
    {"method": "visionzip", "stage1": None, "keep_ratio": 0.4},
)


ASK_FIRST: tuple[Any, ...] = (
    {"method": "question", "stage1": None, "keep_ratio": 0.3},
    {"method": "question", "stage1": None, "keep_ratio": 0.12, "params": {"exponent": 1.0}},
    {"method": "question", "stage1": None, "keep_ratio": 0.3, "params": {"relevance": "text"}},
    {"method": "question", "stage1": None, "keep_ratio": 0.25, "params": {"selector": "topk"}},
    {"method": "question", "stage1": {"cluster_ratio": 0.5}, "keep_ratio": 0.4},
    {
        "method": "question",
        "stage1": None,
        "keep_ratio": None,
        "target_token_num": 7,
        "params": {"relevance": "text", "text": "max", "exponent": 0.5},
    },
    {"method": "question", "stage1": None, "keep_ratio": 1.0},
)
"""The question chooses before the first layer."""


IMAGE_CONFIGS: tuple[Any, ...] = (
    {"preset": "baseline", "image": {"method": "uniform", "keep_ratio": 0.3}},
    {"preset": "default", "image": {"method": "dpp", "keep_ratio": 0.5, "min_tokens": 6}},
    {"preset": "stage1_only", "image": {"method": "dart", "target_token_num": 5}},
    {"method": "uniform", "stage1": None, "keep_ratio": 0.3, "image": {"method": "tome", "total": 9}},
    {"preset": "stage2_only", "image": {"method": "vidcom2", "keep_ratio": 0.7, "total": 14, "min_tokens": 2}},
    {"preset": "baseline", "image": {"method": "prunevid", "keep_ratio": 0.4}},
    {"preset": "aggressive", "image": {"method": "visionzip", "keep_ratio": 0.5}},
    {"preset": "baseline", "image": {"method": "random", "params": {"merge_dropped": True}}},
    {"preset": "default", "image": {"method": "uniform", "keep_ratio": 1.0}},
    {"preset": "default", "image": {"method": "attention", "keep_ratio": 0.5}},
    {"preset": "baseline", "image": {"method": "attention", "keep_ratio": [0.8, 0.5], "layers": [2, 4]}},
    {"preset": "stage2_only", "layers": [3], "image": {"method": "attention", "target_token_num": 3, "layers": [2]}},
    {"preset": "stage1_only", "image": {"method": "question", "keep_ratio": 0.4, "params": {"relevance": "text"}}},
    {"preset": "default", "image": {"method": "question", "keep_ratio": 0.4}},
)
"""Images pruned as well, by the methods that take them."""
IMAGE_SIZES = ((84, 112), (28, 28), (140, 56))
"""(height, width) in pixels: of 12 cells, of 4 and of 10."""


def random_case(
    random: np.random.Generator,
    configs: Sequence[Any] = CONFIGS,
    image_share: float = 0.2,
    image_sizes: Sequence[tuple[int, int]] = ((84, 112),),
    most_frames: int = 10,
) -> Case:
    """Text, image, one video or several, in one turn or in several; an image in place of a video at `image_share`.

    `image_sizes`: (height, width) in pixels. `most_frames`: of a video; it has a fifth of them at the least.
    """
    videos: list[Any] = []
    images: list[Any] = []

    def said() -> str:
        return str(random.choice(QUESTIONS))

    def picture() -> Image.Image:
        height, width = image_sizes[0] if len(image_sizes) == 1 else random.choice(image_sizes)
        return image(int(random.integers(100)), int(height), int(width))

    def shown() -> str:
        if random.random() < image_share:
            images.append(picture())
            return IMAGE
        frames, side = int(random.integers(most_frames // 5, most_frames + 1)), int(random.choice([84, 112, 140]))
        fps = float(random.choice([1.0, 2.0, 2.997, 8.0]))
        videos.append(video(int(random.integers(100)), frames, 112, side, fps))
        return VIDEO

    def turn(num_media: int) -> str:
        parts = [shown() for _ in range(num_media)]
        before = said() if random.random() < 0.3 else ""
        between = said() if random.random() < 0.3 else ""
        return before + between.join(parts) + said()

    kind = random.choice(["text", "image", "video", "several", "turns"], p=[0.1, 0.1, 0.4, 0.2, 0.2])
    system = "You are given a video and answer briefly. " * 3 if random.random() < 0.3 else ""
    if kind == "text":
        text = chat(said(), "red", said(), system=system)
    elif kind == "image":
        images.append(picture())
        text = chat(IMAGE + said(), system=system)
    elif kind == "turns":
        text = chat(turn(1), "a red ball", turn(int(random.integers(0, 2))), "no", turn(1), system=system)
    else:
        text = chat(turn(1 if kind == "video" else 2), system=system)
    config = configs[int(random.integers(len(configs)))]
    return (
        Case(text, tuple(videos[:3]), tuple(images[:2]), config)
        if _fits(videos, images)
        else random_case(random, configs, image_share, image_sizes, most_frames)
    )


def in_turns(configs: Sequence[Any], count: int, seed: int, **kinds: Any) -> list[Case]:
    """`count` at random; `configs` take turns. `kinds`: see `random_case`."""
    random, turns = np.random.default_rng(seed), itertools.cycle(configs)
    return [random_case(random, [next(turns)], **kinds) for _ in range(count)]


def prompts(cases: Sequence[Case]) -> list[dict[str, Any]]:
    """For `RemoteEngine.run`."""
    return [case.prompt() for case in cases]


IMAGE_BATCHES = [0, *(pytest.param(start, marks=pytest.mark.long) for start in (14, 28))]
"""Where batches of 14 of them begin; each configuration is in each."""


@functools.cache
def image_cases() -> list[Case]:
    """42 at random; the configurations that prune images take turns."""
    return in_turns(IMAGE_CONFIGS, 42, seed=11, image_share=0.6, image_sizes=IMAGE_SIZES)


def _fits(videos: list[Any], images: list[Any]) -> bool:
    return len(videos) <= 3 and len(images) <= 2


class Oracle:
    """The oracle for one model, and one configuration of the server; it remembers what it has computed."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        config: Any,
        selectors: Any = None,
        chooser: Any = None,
        contiguous: bool = False,
    ) -> None:
        """`chooser`: by whose embeddings a question chooses; None: `model`'s. `contiguous`: see `run_oracle`."""
        self.model, self.processor, self.config = model, processor, PruneConfig.parse(config)
        self.selectors, self.chooser, self.contiguous = selectors, chooser, contiguous
        self._known: dict[Any, OracleResult] = {}

    def __call__(self, case: Case, max_tokens: int) -> OracleResult:
        key = (case.text, tuple(map(id, case.videos)), tuple(map(id, case.images)), repr(case.config), max_tokens)
        if key not in self._known:
            config = self.config_of(case)
            prompt = to_prompt(self.processor, case.text, videos=case.videos, images=case.images, typed=True)
            options = (self.selectors, self.chooser, self.contiguous)
            self._known[key] = run_oracle(self.model, prompt, config, max_tokens, *options)
        return self._known[key]

    def config_of(self, case: Case) -> PruneConfig:
        """What a request is pruned by."""
        return self.config if case.config is None else PruneConfig.parse(case.config, base=self.config)

    def spans(self, prompt: list[int], pruned: PruneConfig | None = None) -> list[tuple[int, int]]:
        """(start, stop) of the turns of a compacted prompt from their first medium to choose from on, found anew.

        `pruned`: the request's configuration; without, the question chooses tokens of videos.
        """
        config = self.model.config
        starts = {getattr(config, "video_token_id", None)} if pruned is None or pruned.chooses_inside else set()
        if pruned is not None and pruned.image is not None and pruned.image.choice.chooses_inside:
            starts.add(config.image_token_id)
        spans: list[tuple[int, int]] = []
        for index, token in enumerate(prompt):
            if token in starts and (not spans or index >= spans[-1][1]):
                end = config.text_config.eos_token_id
                stop = prompt.index(end, index) + 5 if end in prompt[index:] else len(prompt)
                spans.append((index, min(stop, len(prompt))))
        return spans


def compare(
    cases: Sequence[Case],
    answers: Sequence[Answer],
    oracle: Oracle,
    max_tokens: int = 4,
    tolerance: float = LOGPROB_TOLERANCE,
) -> float:
    """Asserts that all answers of a run are the oracle's, and returns the largest error of a log-probability."""
    error = 0.0
    for index, (case, answer) in enumerate(zip(cases, answers, strict=True)):
        assert not answer.error, answer.error
        expected = oracle(case, max_tokens)
        where = f"request {index}: {case}, {answer.steps}, {answer.num_cached} cached"
        assert len(answer.prompt) == expected.prompt_len_kept, where
        assert answer.token_ids == expected.generated, where
        logprobs = torch.log_softmax(expected.logits.double(), dim=-1).numpy()
        error = max(error, float(np.abs(answer.logprobs - logprobs).max()))
        assert error < tolerance, (error, where)
    for prompt in {tuple(answer.prompt) for answer in answers}:
        same = [(case, answer) for case, answer in zip(cases, answers, strict=True) if tuple(answer.prompt) == prompt]
        compare_chosen([(case, answer, oracle(case, max_tokens)) for case, answer in same], tolerance)
    return error


def compare_chosen(runs: list[tuple[Case, Answer, OracleResult]], tolerance: float = LOGPROB_TOLERANCE) -> None:
    """The traced videos of requests with equal prompts are the oracle's, and none is missing."""
    wanted = [
        (kept.numpy(), [scores.numpy() for scores in importance], answer.num_cached == 0, case)
        for case, answer, result in runs
        for kept, importance in zip(result.kept, result.importance, strict=True)
        if importance and len(importance[0]) > len(kept)
    ]
    traced = runs[0][1].chosen
    for video in traced:
        same = [_same_choice(video, kept, scores, tolerance) for kept, scores, _, _ in wanted]
        assert any(same), [case for *_, case in wanted]
    for kept, scores, computed, case in wanted:
        assert not computed or any(_same_choice(video, kept, scores, tolerance) for video in traced), case


def _same_choice(video: dict[str, np.ndarray], kept: np.ndarray, scores: list[np.ndarray], tolerance: float) -> bool:
    found = [video[f"importance_layer{layer}"] for layer in video["layers"]]
    return (
        np.array_equal(video["kept"], kept)
        and len(found) == len(scores)
        and all(len(a) == len(b) and _same_scores(a, b, tolerance) for a, b in zip(found, scores, strict=True))
    )


def _same_scores(found: np.ndarray, expected: np.ndarray, tolerance: float) -> bool:
    """Within a log-probability's `tolerance`, a tenth for importance: 0 to 1, where a selector's is any number."""
    importance = expected.min() >= 0 and expected.max() <= 1
    return bool(np.abs(found - expected).max() < (tolerance / 10 if importance else tolerance))


def check_steps(answer: Answer, oracle: Oracle, case: Case) -> None:
    """No step begins or ends inside a dense span, and blocks are those of the compacted prompt."""
    for start, stop in oracle.spans(answer.prompt, oracle.config_of(case)):
        for step in answer.steps:
            assert not start < step.start < stop, (step, start, stop)
            assert not start < step.start + step.count < stop, (step, start, stop)
    assert answer.most_blocks == -(-len(answer.prompt) // BLOCK_SIZE)


def check_cold_cached_and_in_chunks(engine: RemoteEngine, oracle: Oracle, batch: Sequence[Case]) -> None:
    """Asserts that all are the oracle's: computed, cached, and in steps that end anywhere a dense span allows."""
    prompts = [case.prompt() for case in batch]
    answers = engine.run(prompts)
    compare(batch, answers, oracle)
    for case, answer in zip(batch, answers, strict=True):
        check_steps(answer, oracle, case)
    compare(batch, engine.run(prompts), oracle)
    engine.call("forget")
    both = zip(batch, answers, strict=True)
    spans = [span for case, answer in both for span in oracle.spans(answer.prompt, oracle.config_of(case))]
    longest = max([1, *(stop - start for start, stop in spans)])
    compare(batch, engine.run(prompts, step_tokens=longest + 7), oracle)
