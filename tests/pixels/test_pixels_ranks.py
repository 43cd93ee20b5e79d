"""The vision encoder shared out among tensor-parallel ranks (`--mm-encoder-tp-mode data`): frames, not whole videos."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from dense_cases import compare
from dense_engine import RemoteEngine
from pixel_cases import PIXELS, ask, busy, page_cases, random_cases
from pixel_clips import to_cells
from pixel_encoder import read_encoder, watch_encoder

from vllm_prune.methods.still_cells import plan_runs
from vllm_prune.serving.worker.partial_encoder import split_frames


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("per_frame", [[16] + [0] * 7, [16, 1, 0, 3, 0, 0, 9, 9], [16] * 8, [4]])
def test_parts_are_whole_frames_of_about_one_size(per_frame, count):
    cells = torch.cat([torch.arange(n) + 16 * frame for frame, n in enumerate(per_frame)])
    parts = list(split_frames((len(per_frame), 8, 8), cells, 4, count))
    assert torch.equal(torch.cat([part.cells for part in parts]), cells)
    assert [part[0] for part in parts] == [4 * len(part.cells) for part in parts]
    assert len({frame for part in parts for frame in set((part.cells // 16).tolist())}) == sum(
        len(set((part.cells // 16).tolist())) for part in parts
    )
    assert 1 <= len(parts) <= count
    assert max(len(part.cells) for part in parts) <= len(cells) / count + max(per_frame)


@pytest.fixture(scope="module")
def two_ranks(pixel_model: str) -> Iterator[RemoteEngine]:
    bind = {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}
    options = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp", "mm_encoder_tp_mode": "data"}
    with RemoteEngine(pixel_model, "baseline", bind, **options) as engine:
        yield engine


@pytest.mark.long
def test_two_ranks_equal_the_oracle_and_share_the_encoding(two_ranks, pixel_oracle):
    cases = random_cases()
    compare(cases, two_ranks.run([case.prompt() for case in cases]), pixel_oracle)
    pages = page_cases()
    compare(pages, two_ranks.run([case.prompt() for case in pages]), pixel_oracle)
    two_ranks.call("on_ranks", watch_encoder)
    clip = busy(30)
    compare([case := ask({"stage1": PIXELS}, clip)], two_ranks.run([case.prompt()]), pixel_oracle)
    patches = [encoded for encoded, _ in two_ranks.call("on_ranks", read_encoder)]
    per_frame = plan_runs(to_cells(clip[0]), 0.8).per_frame
    assert sum(patches) == 4 * sum(per_frame)
    assert max(patches) <= 2 * sum(per_frame) + 4 * max(per_frame)
    assert min(patches) > 0
