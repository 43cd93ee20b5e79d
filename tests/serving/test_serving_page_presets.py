"""What the page `/prune` offers: presets that its server takes, and no others."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
from vllm.engine.arg_utils import EngineArgs
from vllm.multimodal import MULTIMODAL_REGISTRY

from vllm_prune import engine_args
from vllm_prune.config import PRESETS, PruneConfigError
from vllm_prune.page.plugin import PageState


@pytest.mark.parametrize(
    ("prune", "override", "offered"),
    [
        ("default", "any", PRESETS.keys() - {"ask_first"}),
        ("baseline", "any", PRESETS.keys() - {"ask_first"}),
        ("default", "tighten", {"default", "aggressive"}),
        ("stage1_only", "tighten", {"stage1_only"}),
        ("baseline", "tighten", {"baseline"}),
        ("default", "none", {"default"}),
        ('{"method": "question", "keep_ratio": 0.2, "params": {"relevance": "text"}}', "tighten", set()),
    ],
)
def test_what_the_server_would_refuse_is_not_offered(model, prune, override, offered):
    """Of a server without a selector; every other preset is refused, and those offered are not."""
    arguments = engine_args(model, prune, override=override, max_model_len=1024, enforce_eager=True)
    processor = MULTIMODAL_REGISTRY.create_processor(EngineArgs(**arguments).create_model_config())
    state = PageState(model, processor.settings, processor, {})
    assert state.describe()["presets"].keys() == offered
    for name in PRESETS:
        with nullcontext() if name in offered else pytest.raises(PruneConfigError):
            processor.settings.check_counts(processor.resolve(name), 128)
