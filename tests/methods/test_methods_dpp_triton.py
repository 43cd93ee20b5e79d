"""The Triton kernel of the DPP's picks without a GPU: its logic in Triton's interpreter, and that it compiles.

Needs `pip install triton`, which vLLM's builds for the CPU do not bring.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

_INTERPRET = """
import json, torch
from vllm_prune.methods._greedy_map import first_picks, greedy_map
from vllm_prune.methods._greedy_map_triton import greedy_map as fused

def case(seed, lengths, steps, exact, dtype):
    draw = torch.Generator().manual_seed(seed)
    segments, n = len(lengths), max(lengths)
    points = torch.randn(segments, n, 2 * n, generator=draw, dtype=dtype)
    points[:, 1] = 0
    points[:, 4] = 4 * points[:, 2]
    units = torch.nn.functional.normalize(points, dim=2)
    kernel = units @ units.mT
    kernel.diagonal(dim1=1, dim2=2).copy_(points.any(2))
    weight = torch.rand(segments, n, generator=draw, dtype=dtype).clamp(1e-6 if seed > 1 else 1)
    valid = torch.arange(n) < torch.tensor(lengths)[:, None]
    each = torch.arange(segments)
    explained = 1 - kernel.diagonal(dim1=1, dim2=2)
    if seed == 3:  # as in a round of a long segment: some is explained, some is taken, and any token may be first
        explained = explained.maximum(torch.rand(segments, n, generator=draw, dtype=dtype) / 2)
        kernel = kernel * (1 - explained).sqrt()[:, :, None] * (1 - explained).sqrt()[:, None]
        valid[:, 7] = False
    first = first_picks(kernel.sum(2), explained, weight, valid)
    memory = steps if exact else 0
    ours = greedy_map(lambda pick: kernel[each, pick], explained, weight, valid, steps, memory, first)
    theirs = fused(kernel, explained, weight, valid, steps, first, exact)
    real = torch.arange(steps) < torch.tensor(lengths)[:, None]
    gap = (ours[1] - theirs[1])[real].abs().max()
    return [bool(torch.equal(ours[0][real], theirs[0][real])), float(gap)]

print(json.dumps([
    case(seed, lengths, steps, exact, dtype)
    for seed, (lengths, steps) in enumerate([([5], 5), ([40, 30], 40), ([9, 6, 7], 8), ([33], 30), ([17, 16], 3)])
    for exact in (True, False)
    for dtype in (torch.float32, torch.float64)
]))
"""

_COMPILE = """
import sys
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from vllm_prune.methods._greedy_map_triton import _pick

floats = dict.fromkeys(("kernel", "before", "weight", "columns", "gains"), "*fp32")
whole = {"valid": "*i1", "first": "*i64", "picks": "*i64", "length": "i32", "steps": "i32", "noise": "fp32"}
shape = {"EXACT": sys.argv[1] == "exact", "WIDTH": 256, "ROWS": 16}
types = {**floats, **whole, **dict.fromkeys(shape, "constexpr")}
signature = {name: types[name] for name in _pick.arg_names}
print(len(compile(ASTSource(_pick, signature, shape), target=GPUTarget("cuda", 90, 32)).asm["cubin"]))
"""


def _python(code: str, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout.splitlines()[-1]


def test_it_picks_what_the_reference_picks() -> None:
    results = json.loads(_python(_INTERPRET, TRITON_INTERPRET="1"))
    assert len(results) == 20
    assert all(same for same, _ in results)
    assert max(gap for _, gap in results) < 1e-5


@pytest.mark.parametrize("mode", ["exact", "greedy"])
def test_it_compiles_for_a_gpu(mode: str, tmp_path) -> None:
    assert int(_python(_COMPILE, mode, TRITON_CACHE_DIR=str(tmp_path))) > 1000
