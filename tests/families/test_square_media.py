"""What families with squares of one size decide before the engine: placeholders, layouts, and what they refuse."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from dense_cases import IMAGE, VIDEO, Case, chat, image, video
from oracle.micro_model import write_micro_model

from vllm_prune import engine_args
from vllm_prune.config import PruneConfigError
from vllm_prune.layout import MediumLayout
from vllm_prune.serving.api.position_check import check_table
from vllm_prune.serving.wire.positions import ask_for_positions, read_position_table, write_position_table

SIZES = ((84, 112), (28, 28), (140, 56), (300, 90), (84, 84), (91, 517), (20, 1000), (1000, 20))
"""(height, width) in pixels; the last two have less than a row, or a column, of patches in any number of tiles."""
LONG = {name: pytest.param(name, marks=pytest.mark.long) for name in ("llava_next", "llava_next_video", "internvl")}
WITH_VIDEOS = ("llava_onevision", LONG["llava_next_video"], LONG["internvl"])
FAMILIES = ("llava", "llava_onevision", LONG["llava_next"], LONG["internvl"])
"""vLLM takes seconds to look at each new one."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("squares")


@pytest.fixture(scope="module")
def processors(folder: Path) -> Any:
    """By family, and chat template."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.multimodal import MULTIMODAL_REGISTRY

    made: dict[Any, Any] = {}

    def make(family: str, template: str = "", **fields: Any) -> Any:
        if (family, template) not in made or fields:
            model = write_micro_model(folder / f"{family}{len(made)}{len(fields)}", family=family)
            if template:
                (model / "chat_template.jinja").write_text(template)
            config = json.loads((model / "config.json").read_text())
            (model / "config.json").write_text(json.dumps(config | fields))
            arguments = engine_args(
                str(model), "baseline", override="any", max_model_len=1024, dtype="float32", enable_mm_embeds=True
            )
            made[family, template] = MULTIMODAL_REGISTRY.create_processor(EngineArgs(**arguments).create_model_config())
        return made[family, template]

    return make


def process(processor: Any, case: Case, **options: Any) -> Any:
    from vllm.multimodal.processing.context import TimingContext
    from vllm.multimodal.processing.inputs import ProcessorInputs

    media = {name: list(items) for name, items in (("video", case.videos), ("image", case.images)) if items}
    kwargs = options if case.config is None else options | {"prune": case.config}
    ids = processor.info.get_tokenizer().encode(case.text)
    inputs = ProcessorInputs(ids, processor.info.parse_mm_data(media), hf_processor_mm_kwargs=kwargs)
    return processor.apply(inputs, TimingContext(enabled=False))


def asked(config: Any, height: int = 84, width: int = 112) -> Case:
    return Case(chat(f"{IMAGE}yes or no?"), (), (image(1, height, width),), config)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_an_image_that_keeps_everything_is_written_as_vllm_writes_it(processors, family, height, width):
    whole = {"image": {"method": "uniform", "total": 10_000}}
    stock, ours = (process(processors(family), asked(config, height, width)) for config in (None, whole))
    assert ours["prompt_token_ids"] == stock["prompt_token_ids"]
    (mine,), (theirs,) = ours["mm_placeholders"]["image"], stock["mm_placeholders"]["image"]
    assert (mine.offset, mine.length) == (theirs.offset, theirs.length)
    assert mine.get_num_embeds() == theirs.get_num_embeds()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_total_is_shared_by_what_the_images_have(processors, family, height, width):
    found = process(processors(family), asked({"image": {"method": "uniform", "total": 5}}, height, width))
    ((place,), layout) = found["mm_placeholders"]["image"], layout_of(found)
    assert place.length == 5 + layout.num_pinned


def layout_of(found: Any, field: str = "prune_image_spec", modality: str = "image") -> MediumLayout:
    from vllm_prune.serving.wire.request_spec import VideoSpec

    return VideoSpec.decode(found["mm_kwargs"][modality][0][field].data).layout


@pytest.mark.parametrize("family", WITH_VIDEOS)
@pytest.mark.parametrize("frames", [1, 2, 11])
def test_a_video_is_its_frames_and_what_stands_around_them(processors, family, frames):
    case = Case(chat(f"{VIDEO}what?"), (video(1, frames),))
    found = process(processors(family), case)
    layout = layout_of(found, "prune_spec", "video")
    (place,) = found["mm_placeholders"]["video"]
    assert layout.grid == (frames, 3, 3)
    assert layout.num_slots == place.length
    if family != "internvl":
        assert layout.encoder_pins == ((9 * frames,) if family == "llava_onevision" else ())
    else:
        assert [len(run) for run in layout.text[1:-1]] == [len(layout.text[1])] * min(8, frames - 1) + [
            len(layout.text[1]) + 1
        ] * max(0, frames - 9)
        ids = torch.tensor(found["prompt_token_ids"][place.offset : place.offset + place.length])
        assert ids[place.is_embed.logical_not()].tolist() == layout.text_ids()


def test_newlines_of_a_tiled_image_stand_behind_its_rows(processors):
    """84 x 112 pixels fill 5 of 6 rows of patches of two tiles of which each is 6 wide, behind a small one of 36."""
    layout = layout_of(process(processors("llava_onevision"), asked({"image": {"method": "uniform"}})))
    assert layout.grid[:2] == (1, 1)
    lines = [36, *(pin + 1 for pin in layout.encoder_pins)]
    assert len({after - before for before, after in itertools.pairwise(lines)}) == 1
    assert lines[-1] == layout.num_slots


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"image": {"method": "visionzip"}}, "needs the attention inside the vision encoder"),
        ({"method": "uniform", "keep_ratio": 0.5, "stage1": {"where": "processor"}}, "takes whole frames only"),
        ({"image": {"method": "uniform", "same_within": 4}}, "takes whole images only"),
        ({"image": {"method": "evs"}}, "takes videos only"),
        ({"image": {"method": "attention", "layers": [5]}}, "must lie between 0 and 4 for a decoder of 6 layers"),
    ],
)
def test_what_squares_cannot_have_is_refused(processors, family, config, said):
    with pytest.raises(PruneConfigError, match=said):
        process(processors(family), asked(config))


@pytest.mark.long
def test_a_total_is_shared_by_the_tiles_that_a_request_asks_for(processors):
    """Which takes a server that trusts its clients with the processor's options."""
    found = process(processors("internvl"), asked({"image": {"method": "uniform", "total": 20}}, 84, 84), min_patches=4)
    assert layout_of(found).grid == (5, 3, 3)
    assert found["mm_placeholders"]["image"][0].length == 20 + layout_of(found).num_pinned


def test_a_method_that_looks_at_rows_is_refused_where_an_image_has_none(processors, monkeypatch):
    from vllm_prune.methods import registry

    monkeypatch.setattr(registry.load("uniform"), "spatial", True, raising=False)
    spatial = asked({"image": {"method": "uniform"}})
    process(processors("llava"), spatial)
    with pytest.raises(
        PruneConfigError, match=r"image\.method='uniform': looks at rows and columns, but an image here"
    ):
        process(processors("llava_onevision"), spatial)
    process(processors("llava_onevision"), Case(chat(f"{VIDEO}what?"), (video(1, 2),), (), {"method": "uniform"}))


@pytest.mark.parametrize(
    "fields", [{"vision_feature_select_strategy": "full"}, {"vision_config": {"model_type": "pixtral"}}]
)
def test_an_encoder_whose_tokens_are_not_its_patches_is_refused(processors, fields):
    """A class token among them, or rows of any length."""
    with pytest.raises(PruneConfigError, match=r"model: its vision encoder .* hands out \d+ tokens for a square of"):
        processors("llava", **fields)


def test_a_chat_template_without_turns_serves_query_free_methods_only(processors):
    processor = processors("llava", "{% for m in messages %}{{ m.content }}{% endfor %}")
    process(processor, asked({"image": {"method": "uniform"}}))
    with pytest.raises(PruneConfigError, match="chat template yields no end of a question's turn"):
        process(processor, asked({"image": {"method": "attention"}}))


def test_the_template_of_llava_1_5_has_turns(processors):
    template = (
        "{% for m in messages %}{% if m.role != 'system' %}{{ m.role.upper() + ' ' }}{% endif %}"
        "{% for c in m.content if c.type == 'image' %}{{ '<image>\n' }}{% endfor %}"
        "{% for c in m.content if c.type == 'text' %}{{ c.text + ' ' }}{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
    )
    tokenizer = processors("llava").info.get_tokenizer()
    turn = processors("llava", template).turn
    assert tokenizer.decode(turn.reply_start).strip() == "ASSISTANT"


def test_embeddings_of_images_are_served_unpruned(processors):
    rows = (torch.zeros(36, 192),)
    embedded = Case(chat(f"{IMAGE}yes or no?"), (), rows)
    found = process(processors("llava"), embedded)
    assert [place.length for place in found["mm_placeholders"]["image"]] == [36]
    with pytest.raises(PruneConfigError, match="image_embeds do not say where their rows lie"):
        process(processors("llava"), Case(embedded.text, (), rows, {"image": {"method": "uniform"}}))
    with pytest.raises(ValueError, match="got 64, but model expects 192"):
        process(processors("llava"), Case(embedded.text, (), (torch.zeros(36, 64),)))


def test_the_decoder_keeps_its_own_rotation(processors):
    """The bookkeeping of positions is asked for around it."""
    from vllm.transformers_utils.config import uses_mrope

    config = processors("llava").info.get_hf_config()
    assert uses_mrope(config)
    assert not uses_mrope(config.text_config)
    assert json.loads(config.text_config.to_json_string())["rope_parameters"]["rope_type"] == "default"


def test_the_table_of_positions_binds_decoders_without_m_rope_only():
    outer, text = SimpleNamespace(), SimpleNamespace(max_position_embeddings=2048)
    write_position_table(outer, text, 1024)
    assert read_position_table(outer) is None
    ask_for_positions(outer)
    assert read_position_table(outer) is None
    write_position_table(outer, text, 1024)
    assert read_position_table(outer) == 2048
    write_position_table(outer, text, 8192)  # of a scaled rotation
    assert read_position_table(outer) == 8192


def test_a_prompt_with_more_positions_than_the_decoder_knows_is_refused():
    from vllm_prune.budget import TokenCounts

    counts = TokenCounts(total=576, encoded=576, stage1=576, entering=276)
    left_out = counts.positions_left_out(contiguous=False)
    check_table(376, left_out, 676)
    check_table(376, left_out, None)
    with pytest.raises(
        PruneConfigError, match=r"input_tokens=376: .* of 676 tokens, and the model knows 675 positions"
    ):
        check_table(376, left_out, 675)
    check_table(376, counts.positions_left_out(contiguous=True), 675)
    asked = TokenCounts(total=576, encoded=576, stage1=576, entering=576, layers=(276,))
    assert asked.positions_left_out(contiguous=True) == asked.positions_left_out(contiguous=False) == 300


def test_positions_of_a_grid_are_not_numbered_anew():
    from vllm.engine.arg_utils import EngineArgs
    from vllm.multimodal import MULTIMODAL_REGISTRY

    from vllm_prune.embedded import model_path

    arguments = engine_args(str(model_path("embedded")), "baseline", positions="contiguous", max_model_len=1024)
    with pytest.raises(PruneConfigError, match="positions='contiguous': the positions of this model's media are those"):
        MULTIMODAL_REGISTRY.create_processor(EngineArgs(**arguments).create_model_config())
    with pytest.raises(PruneConfigError, match="positions='odd': must be one of kept, contiguous"):
        engine_args(str(model_path("embedded")), "baseline", positions="odd")


def test_rows_that_are_numbered_anew_wait_for_their_positions():
    """Which rows of a prompt come packed, the positions that wait tell (`worker/positions.py`)."""
    from vllm_prune.serving.worker.positions import Medium, fill_rows, prompt_positions, unfilled_rows

    layout = MediumLayout((1, 1, 3), rope="sequential")
    positions, delta = prompt_positions(7, [Medium(2, 3, layout, renumbered=True)])
    index = unfilled_rows(positions)
    fill_rows(positions, index, torch.from_numpy(layout.offsets()))
    assert (index.tolist(), delta) == ([2, 3, 4], 0)
    assert torch.equal(positions, torch.arange(7).expand(3, -1))


@pytest.mark.parametrize(("config", "renumbered"), [({"keep_ratio": 0.5}, True), ({"keep_ratio": 1.0}, False)])
def test_what_keeps_everything_is_not_numbered_anew(config, renumbered):
    from vllm_prune.config import PruneConfig
    from vllm_prune.serving.wire.request_spec import VideoSpec

    parsed = PruneConfig.parse({"method": "uniform", "stage1": None, **config})
    layout = MediumLayout((2, 3, 3), encoder_pins=(18,), rope="sequential")
    spec = VideoSpec.decode(VideoSpec(config=parsed, layout=layout, turn=None, contiguous=True).encode())
    assert spec.renumbered == renumbered
    assert spec.prompt_layout.num_slots == spec.counts.rows


@pytest.mark.usefixtures("alone")
def test_the_rows_of_a_medium_that_is_numbered_anew_follow_one_another():
    """From the encoder's features to positions; the newline row behind the cells stays the last."""
    from vllm_prune.config import PruneConfig
    from vllm_prune.serving.wire.notes import StepRecorder
    from vllm_prune.serving.wire.request_spec import VideoSpec
    from vllm_prune.serving.worker import carrier
    from vllm_prune.serving.worker.encoder_rows import EncoderRows
    from vllm_prune.serving.worker.positions import Medium, fill_rows, prompt_positions, unfilled_rows

    config = PruneConfig.parse({"method": "uniform", "stage1": None, "keep_ratio": 0.5})
    layout = MediumLayout((2, 3, 3), encoder_pins=(18,), rope="sequential")
    spec = VideoSpec(config=config, layout=layout, turn=None, contiguous=True)
    features = torch.randn(19, 8)
    made = EncoderRows(None, 8, lambda ids: torch.zeros(len(ids), 8))
    (rows,) = made.pack([made.select(features, spec, None, StepRecorder())])
    positions, delta = prompt_positions(20, [Medium(5, len(rows), spec.prompt_layout, spec.renumbered)])
    (part,), _, _ = carrier.read_parts([rows], positions, list(range(20)))
    kept, slots, _ = carrier.unpack(rows, 8)
    fill_rows(positions, unfilled_rows(positions), made.media[part.info].row_offsets(slots, part.row))
    assert torch.equal(positions, torch.arange(20).expand(3, -1))
    assert (len(rows), delta) == (10, 0)
    assert torch.equal(kept[-1], features[18])
    assert torch.equal(kept, features[slots])  # what is handed out of them has to be told from the others
