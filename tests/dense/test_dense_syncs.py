"""On a GPU: no operation mixes devices, results are the CPU's bit for bit, and the host hardly waits for the device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from emulated_cuda import Counts, emulate, to_cuda
from small_step import Result, SmallStep, alone
from vllm.utils.gpu_sync_debug import gpu_sync_allowed

from vllm_prune.methods import VideoTokens, _cell_links, _finite, create, vidcom2
from vllm_prune.serving.worker.trace import TraceWriter

CONFIGS: dict[str, Any] = {
    "default": "default",
    "quota": {"preset": "default", "params": {"quota": "segment"}},
    "two layers": {"preset": "default", "layers": [3, 6], "keep_ratio": [0.6, 0.5]},
    "dpp": {"preset": "default", "params": {"selector": "dpp"}},
    "stage 1 only": "stage1_only",
}
MOST_SYNCS = {"stage 1": 10, "recompute": 1, "dense step": 10}


def run(config: Any, on_cuda: bool, **options: Any) -> Result:
    with torch.no_grad(), alone():
        if not on_cuda:
            return SmallStep(lambda tensor: tensor, Counts(), config, **options).run()
        with emulate() as counts:
            return SmallStep(to_cuda, counts, config, **options).run()


def check_announced(result: Result) -> None:
    """With VLLM_GPU_SYNC_CHECK=error vLLM ends the engine at a wait that is not inside its `gpu_sync_allowed`."""
    for phase, counts in result.counts.items():
        hidden = [sync for sync in counts.syncs if not sync.announced]
        assert not hidden, f"{phase}: {hidden}"


@pytest.mark.parametrize("name", CONFIGS)
def test_a_step_on_cuda_equals_the_cpus_and_hardly_waits(name: str) -> None:
    here, there = run(CONFIGS[name], False), run(CONFIGS[name], True)
    for what, value in here.values.items():
        assert torch.equal(value, there.values[what]), what
    for phase, counts in there.counts.items():
        assert len(counts.syncs) <= MOST_SYNCS[phase], f"{phase}:\n{counts.describe()}"
    check_announced(there)


@pytest.mark.parametrize("name", ["default", "stage 1 only"])
def test_waits_are_announced_on_the_v1_runner_and_for_traces(name: str, tmp_path: Path) -> None:
    here, there = (run(CONFIGS[name], on_cuda, runner="v1") for on_cuda in (False, True))
    for what, value in here.values.items():
        assert torch.equal(value, there.values[what]), what
    check_announced(there)
    traced = run(CONFIGS[name], True, trace=TraceWriter(str(tmp_path)))
    assert list(tmp_path.iterdir())
    check_announced(traced)


@pytest.mark.parametrize("name", ["dart", "framefusion", "prunevid", "vidcom2"])
def test_methods_wait_no_more_often_for_many_blocks_than_for_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    features = torch.randn(96, 32, generator=torch.Generator().manual_seed(0)).repeat(4, 1).bfloat16()
    chosen, waits = [], []
    for size in (1 << 30, 64):
        for module, constant in ((_finite, "_BLOCK_BYTES"), (_cell_links, "_COPY_BYTES"), (vidcom2, "_COPY_BYTES")):
            monkeypatch.setattr(module, constant, size)
        monkeypatch.setattr(_finite, "_WHOLE_BYTES", size)
        with emulate() as counts:
            tokens = VideoTokens.from_features(to_cuda(features), (24, 4, 4))
            counts.reset()
            chosen.append(create(name).assign(tokens, 100).anchor.cpu())
            waits.append(len(counts.syncs))
    assert torch.equal(*chosen)
    assert waits[0] == waits[1]


def test_emulated_tensors_refuse_what_cuda_refuses() -> None:
    with emulate():
        there = to_cuda(torch.ones(2))
        for wrong in (lambda: there + torch.ones(2), lambda: torch.ones(2)[there.long()], lambda: there.numpy()):
            with pytest.raises((RuntimeError, TypeError)):
                wrong()
        assert (there + torch.tensor(1.0)).cpu().tolist() == [2, 2]


@pytest.mark.parametrize(
    ("action", "syncs"),
    [
        (lambda x: x + 1, 0),
        (lambda x: x[1:].view(1, -1), 0),
        (lambda x: torch.where(x > 0, x, 0), 0),
        (lambda x: x[0].item(), 1),
        (lambda x: x.tolist(), 1),
        (lambda x: bool((x > 0).any()), 1),
        (lambda x: x.cpu(), 1),
        (lambda x: x.nonzero(), 1),
        (lambda x: x[x > 0], 1),
        (lambda x: x[torch.tensor([0])], 1),
        (lambda x: torch.ones(2).to(x.device), 1),
        (lambda x: torch.ones(2).to(x.device, non_blocking=True), 1),
        (lambda x: torch.ones(2).pin_memory().to(x.device, non_blocking=True), 0),
        (lambda x: torch.tensor([1], device=x.device), 1),
    ],
)
def test_what_waits_is_counted(action: Any, syncs: int) -> None:
    with emulate() as counts:
        action(to_cuda(torch.arange(3.0)))
        assert len(counts.syncs) == syncs, counts.describe()
        assert not any(sync.announced for sync in counts.syncs)
    with emulate() as counts, gpu_sync_allowed():
        action(to_cuda(torch.arange(3.0)))
        assert all(sync.announced for sync in counts.syncs)
