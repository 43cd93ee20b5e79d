"""The attention inside the vision encoder, as vLLM's encoder is seen to compute it, against whole matrices."""

from __future__ import annotations

import functools
import re
from typing import Any

import pytest
import torch
from dense_cases import VIDEO, Case, chat, compare, video
from oracle.from_vllm import to_prompt
from oracle.prompt import Medium
from oracle.vision import received
from test_dense_refused import configure
from vllm.model_executor.layers.fusion.mm_input_norm import IdentityInputNorm

from vllm_prune.config import PruneConfig, PruneConfigError
from vllm_prune.methods.registry import load, names
from vllm_prune.serving.api.encoder_check import check_encoder_is_readable, check_encoder_runs
from vllm_prune.serving.worker.encoder_attention import EncoderAttention

FULL, WINDOWS = -1, -2
VISIONZIP = {"method": "visionzip", "stage1": None, "keep_ratio": 0.4}


def case(seed: int, config: Any, frames: int = 6) -> Case:
    return Case(chat(f"{VIDEO}What moves?"), (video(seed, frames, 140, 168),), config=config)


def read_on_rank(worker: Any, patches: list[torch.Tensor], grids: list[list[int]], layer: int) -> list[torch.Tensor]:
    """What `EncoderAttention` reads while this rank encodes some videos at once."""
    visual = worker.model_runner.model.visual
    attention = EncoderAttention(layer)
    own = visual.input_norm
    visual.input_norm = IdentityInputNorm()  # the patches have been normalised already
    with torch.inference_mode(), attention.reading(visual, [PruneConfig.parse(VISIONZIP)]):
        visual(torch.cat(patches), grid_thw=grids)
        found = [attention.take(len(part) // visual.spatial_merge_size**2) for part in patches]
    visual.input_norm = own
    assert attention.take(1) is None
    return found


def media(oracle: Any) -> list[Medium]:
    cases = [case(seed, None, 4 * seed) for seed in (1, 2)]
    return [to_prompt(oracle.processor, each.text, videos=each.videos).media[0] for each in cases]


def check(engine: Any, oracle: Any, layer: int) -> None:
    videos = media(oracle)
    given = ([medium.pixel_values for medium in videos], [list(medium.grid_thw) for medium in videos], layer)
    expected = [received(oracle.model, medium, layer) for medium in videos]
    for found in engine.call("on_ranks", functools.partial(_call, given)):
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine.double(), theirs, rtol=1e-4, atol=1e-5)
            assert float(mine.std()) > 0.01


def _call(given: tuple[Any, ...], worker: Any) -> list[torch.Tensor]:
    return read_on_rank(worker, *given)


@pytest.mark.parametrize("layer", [FULL, WINDOWS])
def test_what_is_read_is_what_whole_matrices_give(eager, oracle, layer):
    check(eager, oracle, layer)


@pytest.mark.slow
@pytest.mark.parametrize("layer", [FULL, WINDOWS])
def test_all_ranks_read_the_same(two_ranks, oracle, layer):
    check(two_ranks, oracle, layer)
    cases = [case(3, VISIONZIP)]
    compare(cases, two_ranks.run([each.prompt() for each in cases]), oracle)


def test_methods_that_look_and_methods_that_do_not_share_a_call(eager, oracle):
    """The second is encoded with the first, and its own choice does not change."""
    cases = [case(3, VISIONZIP), case(4, "default"), case(5, {**VISIONZIP, "method": "prumerge"})]
    together = eager.run([each.prompt() for each in cases])
    compare(cases, together, oracle)
    eager.call("forget")
    for each, before in zip(cases, together, strict=True):
        (alone,) = eager.run([each.prompt()])
        assert alone.token_ids == before.token_ids


HIDDEN = [
    ({"tensor_parallel_size": 2, "mm_encoder_tp_mode": "data"}, 'mm_encoder_tp_mode="data"; use "weights"'),
    (
        {"compilation_config": {"compile_mm_encoder": True}},
        "a compiled one does not show; leave out compile_mm_encoder",
    ),
    ({"mm_encoder_attn_backend": "FLASHINFER"}, 'mm_encoder_attn_backend="FLASHINFER" lays out otherwise'),
]


@pytest.mark.parametrize(("options", "said"), HIDDEN, ids=["ranks", "compiled", "FlashInfer"])
def test_an_encoder_that_does_not_show_it_is_refused(micro, options, said):
    """At the start, or where a request asks for it: the reason is then kept for the processor."""
    with pytest.raises(Exception, match=f"method='visionzip': the method needs the attention .*{re.escape(said)}"):
        configure(micro, VISIONZIP, "tighten", **options)
    hf_config = configure(micro, {"method": "uniform", "keep_ratio": 0.5}, "tighten", **options).model_config.hf_config
    check_encoder_is_readable(PruneConfig.parse({"method": "uniform"}), hf_config)
    with pytest.raises(PruneConfigError, match=re.escape(said)):
        check_encoder_is_readable(PruneConfig.parse(VISIONZIP), hf_config)


@pytest.mark.parametrize("merge_dropped", [False, True])
@pytest.mark.parametrize("name", [name for name in names() if getattr(load(name), "relevance", "") == "encoder"])
def test_precomputed_embeddings_have_no_attention_to_give(name, merge_dropped):
    config = PruneConfig.parse({"method": name, "keep_ratio": 0.5, "params": {"merge_dropped": merge_dropped}})
    with pytest.raises(PruneConfigError, match=f"method='{name}': .* brings precomputed embeddings, .* the medium"):
        check_encoder_runs(config, has_pixels=False)
    check_encoder_runs(config, has_pixels=True)
