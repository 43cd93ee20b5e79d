"""As many frames as the kept tokens allow: those that vLLM itself samples with that number, in every family."""

from __future__ import annotations

import base64
import io
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from oracle.micro_model import write_micro_model
from PIL import Image

from vllm_prune import engine_args
from vllm_prune.budget import count_most
from vllm_prune.config import PruneConfig, PruneConfigError
from vllm_prune.media.errors import UnusableVideo
from vllm_prune.patches import apply_all
from vllm_prune.show.media import load_sampled, load_video

sys.path.insert(0, str(Path(__file__).parents[1] / "serving"))
from serving_media import frames, mp4, video_item

FAMILIES = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"]
CONFIGS = [
    {},
    {"method": "uniform", "keep_ratio": 0.25},
    {"method": "uniform", "target_token_num": 30},
    {"preset": "default"},
    {"stage1": {"where": "processor"}, "method": "dpp", "keep_ratio": 0.5},
]


def jpeg(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


class Family:
    """A model's processor, and the options by which its renderer loads videos."""

    def __init__(self, folder: Path, family: str, config: Any = None, override: str = "any", **options: Any) -> None:
        from vllm.engine.arg_utils import EngineArgs
        from vllm.multimodal import MULTIMODAL_REGISTRY

        apply_all()
        model = write_micro_model(folder / family, family=family) if not (folder / family).exists() else folder / family
        options = {"max_model_len": 4096, "enforce_eager": True, **options}
        arguments = engine_args(str(model), config or {}, override=override, **options)
        self.processor: Any = MULTIMODAL_REGISTRY.create_processor(EngineArgs(**arguments).create_model_config())

    def load(self, data: bytes, prune: Any, given: Any = None, **others: Any) -> tuple[Any, dict[str, Any]]:
        """Frames and metadata of a file, as a chat loads it."""
        return self.load_url(f"data:video/mp4;base64,{base64.b64encode(data).decode()}", prune, given, **others)

    def load_url(
        self, url: str, prune: Any, given: Any = None, default: Any = None, **others: Any
    ) -> tuple[Any, dict[str, Any]]:
        """Likewise, of what a client sends; the operator gives the same options, unless others are said."""
        from vllm.multimodal.media.connector import MediaConnector

        from vllm_prune.serving.api.frame_sampling import sampling_options

        own = given if default is None else default
        options = sampling_options(self.processor, given or {}, own or {}, {"prune": prune, **others})
        kind = type(getattr(self.processor.info.get_hf_processor(), "video_processor", None)).__name__
        return (
            MediaConnector({"video": given or {} if options is None else options})
            .fetch_video(url, video_processor=kind)
            .media
        )

    def process(self, item: Any, prune: Any) -> Any:
        """What the processor makes of a video: its report."""
        from vllm.multimodal.processing.context import TimingContext
        from vllm.multimodal.processing.inputs import ProcessorInputs

        items = self.processor.info.parse_mm_data({"video": [item]})
        prompt = self.processor.info.get_tokenizer().encode("<|vision_start|><|video_pad|><|vision_end|>")
        inputs = ProcessorInputs(prompt, items, hf_processor_mm_kwargs={"prune": prune})
        return self.processor.apply(inputs, TimingContext(enabled=False))["prune_facts"].media[0]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    return Family(tmp_path_factory.mktemp("frames"), request.param)


def own_frames(family: Family, data: bytes, count: int) -> list[int]:
    """Indices that vLLM's loader samples if its number, or both limits of its rate, are that."""
    return family.load(data, {}, {"min_frames": count, "max_frames": count, "num_frames": count})[1]["frames_indices"]


FILE = mp4(90, 112, 140, fps=25.0)
PICTURES = [jpeg(frame) for frame in frames(40, 112, 140)]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("tokens", [33, 400])
def test_frames_are_those_that_vllm_samples_with_that_number(family, config, tokens):
    sampled, metadata = family.load(FILE, {**config, "frames": {"tokens": tokens}})
    assert metadata["frames_indices"] == own_frames(family, FILE, len(sampled))
    assert metadata["total_num_frames"] == 90
    assert not metadata["do_sample_frames"]
    medium = family.process((sampled, metadata), {**config, "frames": {"tokens": tokens}})
    assert medium.frames == (len(sampled), 90)
    assert medium.counts.kept <= tokens
    if len(sampled) < 90:  # two more were too many
        cells = family.processor.tokens_of_frames(140, 112, len(sampled) + 2, {})
        most = count_most(PruneConfig.parse(config), cells, (len(sampled) + 2) // 2)
        assert most.kept > tokens


@pytest.mark.parametrize("config", CONFIGS[:3], ids=str)
def test_arrays_lose_the_frames_that_are_too_many(family, config):
    item = video_item(61, 112, 140)
    whole = family.process(item, config)
    tokens = max(whole.counts.kept // 3, 30)
    medium = family.process(item, {**config, "frames": {"tokens": tokens}})
    assert medium.counts.kept <= tokens
    assert medium.frames[1] == 61
    assert medium.frames[0] < 61 or config.get("target_token_num")
    assert family.process(item, {**config, "frames": {"tokens": 4096}}) == whole


def test_what_somebody_limits_stays_limited(family):
    data, roomy = mp4(90, 56, 56, fps=30.0), {"frames": {"tokens": 4000}}
    assert len(family.load(data, roomy)[0]) == 90
    assert len(family.load(data, {"frames": {"tokens": 4000, "max": 33}})[0]) == 32
    assert len(family.load(data, roomy, {"max_frames": 20})[0]) == 20
    assert len(family.load(data, roomy, {"fps": 10})[0]) == 30


@pytest.mark.parametrize("given", [{"num_frames": 1}, {"max_frames": 1}, {"fps": 0.01}, {"fps": 1e308}], ids=str)
def test_a_limit_is_a_step_of_the_grid_at_the_least(family, given):
    sampled, _ = family.load(FILE, {"method": "uniform", "keep_ratio": 0.1, "frames": {"tokens": 4000}}, given)
    assert len(sampled) == (90 if given == {"fps": 1e308} else 2)


BAD_OPTIONS = [
    ("num_frames", "8", "must be an integer of -1 or more"),
    ("num_frames", 2.5, "must be an integer of -1 or more"),
    ("num_frames", True, "must be an integer of -1 or more"),
    ("min_frames", None, "must be an integer of 0 or more"),
    ("max_frames", 0, "must be an integer of 1 or more"),
    ("temporal_patch_size", 0, "must be an integer of 1 or more"),
    ("fps", "2", "must be a number above 0, or -1 for none"),
    ("fps", float("nan"), "must be a number above 0, or -1 for none"),
    ("fps", float("inf"), "must be a number above 0, or -1 for none"),
    ("video_backend", "nothing", "vLLM has no such loader"),
    ("video_backend", 3, "vLLM has no such loader"),
]


@pytest.mark.parametrize(("name", "value", "said"), BAD_OPTIONS, ids=str)
def test_options_that_are_none_are_refused(family, name, value, said):
    with pytest.raises(PruneConfigError, match=re.escape(f"media_io_kwargs.video.{name}={value!r}: {said}")):
        family.load(FILE, {"frames": {"tokens": 100}}, {name: value})


@pytest.mark.parametrize(("name", "value"), [("backend", "torchcodec"), ("max_frames", "20")])
def test_what_the_operator_gives_is_refused_at_the_start(tmp_path, name, value):
    """Where the server's own configuration has `frames`; else each request with some is."""
    options = {"media_io_kwargs": {"video": {name: value}}}
    with pytest.raises(Exception, match=re.escape(f"media_io_kwargs.video.{name}={value!r}")):
        Family(tmp_path, "qwen2_5_vl", {"frames": {"tokens": 100}}, **options)
    assert Family(tmp_path, "qwen2_5_vl", **options)


def test_nobody_asks_for_the_loader_that_asks_the_sampler(family):
    for prune in ({}, {"frames": {"tokens": 100}}):
        with pytest.raises(Exception, match="video_backend='vllm_prune_frames': is no option of requests; leave it"):
            family.load(FILE, prune, {"video_backend": "vllm_prune_frames"})


def test_arrays_with_metadata_of_any_kind(family):
    """Indices as an array, or none; of another number of frames they are of no use."""
    pixels, metadata = video_item(61, 112, 140)
    prune = {"method": "uniform", "keep_ratio": 0.5, "frames": {"tokens": 100}}
    seen = family.process((pixels, metadata), prune).frames
    assert seen[0] < 61
    for indices in (np.arange(61), tuple(range(61)), [], None):
        assert family.process((pixels, {**metadata, "frames_indices": indices}), prune).frames == seen
    with pytest.raises(UnusableVideo, match=r"frames_indices=\[1, 2\]: names 2 frames, and the video has 61"):
        family.process((pixels, {**metadata, "frames_indices": [1, 2]}), prune)


def test_a_small_budget_is_refused_with_what_it_takes(family):
    with pytest.raises(PruneConfigError, match=r"^frames\.tokens=3: 2 frames of this video keep \d+ tokens") as refused:
        family.load(FILE, {"frames": {"tokens": 3}})
    needed = int(str(refused.value).split("keep ")[1].split()[0])
    assert len(family.load(FILE, {"frames": {"tokens": needed}})[0]) == 2
    with pytest.raises(PruneConfigError, match="8 frames of this video keep"):
        family.load(FILE, {"frames": {"tokens": needed}}, {"min_frames": 8})


def test_a_request_gets_no_more_frames_than_the_servers_own(tmp_path):
    """Where it may only ask for less: of a server whose frames follow the tokens, and of one whose do not."""
    few = {"method": "uniform", "keep_ratio": 0.5}
    server = Family(tmp_path, "qwen2_5_vl", {**few, "frames": {"tokens": 200}}, "tighten")
    own = len(server.load(FILE, None)[0])
    assert len(server.load(FILE, {"keep_ratio": 0.1})[0]) == own
    assert len(server.load(FILE, {"frames": {"tokens": 100}})[0]) == own // 2
    assert len(server.load(FILE, {"frames": {"tokens": 100}, "keep_ratio": 0.25})[0]) == own
    plain = Family(tmp_path, "qwen2_5_vl", few, "tighten")
    own = len(plain.load(FILE, None)[0])
    assert len(plain.load(FILE, {"frames": {"tokens": 4000}})[0]) == own
    assert len(plain.load(FILE, {"frames": {"tokens": 4000}}, {"max_frames": 1})[0]) == 2
    assert len(plain.load(FILE, {"frames": {"tokens": 20}})[0]) < own


def test_lists_of_pictures_and_loaders_with_a_rate_of_their_own_keep_to_the_tokens(family):
    pictures = ",".join(base64.b64encode(picture).decode() for picture in PICTURES)
    prune = {"frames": {"tokens": 100}}
    media = family.load_url(f"data:video/jpeg;base64,{pictures}", prune)
    assert len(media[0]) == len(PICTURES)  # all of them: the processor leaves some out
    assert family.process(media, prune).counts.kept <= 100
    sampled, metadata = family.load(FILE, prune, {"video_backend": "opencv_dynamic"})
    assert family.process((sampled, metadata), prune).counts.kept <= 100
    assert family.process((sampled, metadata), prune).frames == (len(sampled), 90)


@pytest.mark.parametrize(("name", "value"), [("num_frames", 8), ("fps", 1)])
def test_two_numbers_of_frames_contradict_each_other(family, name, value):
    prune = {"frames": {"tokens": 100}}
    with pytest.raises(PruneConfigError, match=rf"frames\.tokens=100 and media_io_kwargs\.video\.{name}={value}: both"):
        family.load(FILE, prune, {name: value}, default={})
    with pytest.raises(PruneConfigError, match=rf"frames\.tokens=100 and mm_processor_kwargs\.{name}={value}: both"):
        family.load(FILE, prune, **{name: value})


def test_another_decoder_cannot_be_asked(family):
    with pytest.raises(PruneConfigError, match=r"media_io_kwargs\.video\.backend='torchcodec'"):
        family.load(FILE, {"frames": {"tokens": 100}}, {"backend": "torchcodec"})


@pytest.mark.parametrize("tokens", [100, 3000])
def test_what_was_sampled_is_loaded_again_by_its_number(family, tmp_path, tokens):
    path = tmp_path / "clip.mp4"
    path.write_bytes(FILE)
    prune = {"method": "uniform", "keep_ratio": 0.5, "frames": {"tokens": tokens}}
    sampled, metadata = family.load(FILE, prune)
    drawn, found = load_sampled(str(path), family.processor.info.ctx.model_config.model, len(sampled) // 2)
    assert found["frames_indices"] == metadata["frames_indices"]
    assert np.array_equal(drawn, sampled)


def test_any_number_of_frames_is_loaded_again_by_its_limits(tmp_path):
    """Above the 768 that vLLM's loaders stop at, too."""
    model, path, data = Family(tmp_path, "qwen2_5_vl"), tmp_path / "clip.mp4", mp4(1000, 56, 56)
    path.write_bytes(data)
    _, metadata = model.load(data, {"method": "uniform", "keep_ratio": 0.1, "frames": {"tokens": 4000, "max": 900}})
    given = {"video": {"min_frames": 900, "max_frames": 900}}
    drawn, found = load_video(str(path), model.processor.info.ctx.model_config.model, given)
    assert len(drawn) == 900
    assert found["frames_indices"] == metadata["frames_indices"]


@pytest.mark.parametrize("kind", ["llava_onevision", "internvl", "llava"])
def test_models_of_squares_sample_by_a_number(tmp_path, kind):
    """One frame a step, of as many tokens whatever its size. A model without videos refuses none for its own."""
    model = Family(tmp_path, kind)
    for tokens in (33, 150):
        sampled, metadata = model.load(FILE, {"method": "uniform", "keep_ratio": 0.25, "frames": {"tokens": tokens}})
        assert len(sampled) == int((tokens + 0.499) / 0.25) // model.processor.tokens_of_frames(1, 1, 1, {})
        assert metadata["frames_indices"] == own_frames(model, FILE, len(sampled))
