"""vLLM's breakable CUDA graphs on a machine without a GPU: steps are captured and replayed, by vLLM's own wrapper.

A capture is a list of PyTorch operations with the tensors that they were given. A replay runs them again on the same
tensors and puts what they make where the capture put it: as on a GPU, nothing but these operations happens, and what
they are to work on has to be in the buffers that the capture saw.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ENVIRONMENT = {"VLLM_USE_BREAKABLE_CUDAGRAPH": "1"}
"""Of the engine's process. On a GPU, VLLM_BATCH_INVARIANT=1 sets it for some models; its own kernels need one."""
_WAITS = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select")


class EmulatedGraph:
    """`torch.cuda.CUDAGraph`."""

    capturing: EmulatedGraph | None = None
    replays = 0

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def capture_begin(self, **_: Any) -> None:
        EmulatedGraph.capturing = self

    def capture_end(self) -> None:
        EmulatedGraph.capturing = None

    def replay(self) -> None:
        EmulatedGraph.replays += 1
        for func, args, kwargs, made in self.calls:
            again = func(*args, **kwargs)
            for new, old in zip(tree_leaves(again), tree_leaves(made), strict=True):
                if isinstance(old, torch.Tensor) and new.data_ptr() != old.data_ptr():
                    old.copy_(new)


class _Recorder(TorchDispatchMode):
    """Gives every operation to the graph that is captured; one that waits for the device cannot be."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        graph = EmulatedGraph.capturing
        assert graph is None or func.overloadpacket.__name__ not in _WAITS, f"{func} in a capture"
        made = func(*args, **(kwargs or {}))
        if graph is not None and EmulatedGraph.capturing is graph:  # else vLLM broke the capture around it
            graph.calls.append((func, args, kwargs or {}, made))
        return made


@contextlib.contextmanager
def _recording(*_: Any) -> Iterator[None]:
    """In place of the pool of memory in which a capture happens."""
    with _Recorder():
        yield None


def emulate_graphs(worker: Any) -> None:
    """From now on steps of this worker (V2 runner) are captured if their number of tokens is new, else replayed."""
    from vllm.compilation import breakable_cudagraph
    from vllm.config import CUDAGraphMode
    from vllm.platforms import current_platform
    from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor

    torch.cuda.CUDAGraph = EmulatedGraph  # type: ignore[assignment, misc]
    torch.accelerator.empty_cache = lambda: None
    breakable_cudagraph.capture_pool = _recording
    breakable_cudagraph.weak_ref_tensor = breakable_cudagraph.weak_ref_tensors = lambda tensors: tensors
    runner = worker.model_runner
    with mock.patch.object(type(current_platform), "get_global_graph_pool", return_value=None):
        wrapper = breakable_cudagraph.BreakableCUDAGraphWrapper(runner.model, runner.vllm_config)
    mode = CUDAGraphMode.PIECEWISE
    manager = runner.cudagraph_manager
    manager.use_breakable_cg, manager.breakable_cg_runner = True, wrapper
    manager.dispatch = lambda num_reqs, num_tokens, *_, **__: BatchExecutionDescriptor(mode, num_tokens, None)


def captured(worker: Any) -> tuple[list[int], int]:
    """Numbers of tokens of the steps that were captured, and how many pieces of captures were replayed."""
    from vllm.compilation.breakable_cudagraph import BreakableCUDAGraphWrapper

    (wrapper,) = BreakableCUDAGraphWrapper._all_instances
    return [descriptor.num_tokens for descriptor in wrapper.entries], EmulatedGraph.replays
