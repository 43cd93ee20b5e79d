"""The numberings of rows: batch rows, dense rows, other rows, and what is left of them after drops."""

from __future__ import annotations

import pytest
import torch

from vllm_prune.budget import TokenCounts
from vllm_prune.layout import MediumLayout
from vllm_prune.serving.worker.dense.rows import DenseRows
from vllm_prune.serving.worker.dense.step import Batch, DenseVideo, plan_step
from vllm_prune.serving.worker.medium_info import MediumInfo


def video(row: int, entering: int, kept: int) -> DenseVideo:
    counts = TokenCounts(total=entering, encoded=entering, stage1=entering, entering=entering, layers=(kept,))
    info = MediumInfo(MediumLayout((1, 1, entering)), counts=counts, config_json="{}")
    tags = torch.zeros(entering, dtype=torch.long)
    return DenseVideo(torch.zeros(entering, 2), tags, tags, 0, info, [], row)


def media(num_rows: int, *ranges: tuple[int, int]) -> torch.Tensor:
    mask = torch.zeros(num_rows, dtype=torch.bool)
    for start, end in ranges:
        mask[start:end] = True
    return mask


@pytest.fixture
def step():
    """Request 0 decodes; 1 has two videos, an image and a context of 40; 2 is text; 3 has a video; two rows of padding.

    Request 1, batch rows 1-14: text 1-2, video 3-4 (of 5), text 5, image 6-7, video 8 (of 3), text 9-14.
    Request 3, batch rows 17-20: video 17-18 (of 4), text 19-20.
    """
    batch = Batch(query_start=[0, 1, 15, 17, 21], seq_lens=[9, 54, 2, 4])
    videos = [video(3, 5, 2), video(8, 3, 1), video(17, 4, 2)]
    return plan_step(videos, media(23, (3, 5), (6, 9), (17, 19)), batch, num_batch_rows=23)


def test_other_rows_are_those_of_other_requests_and_the_padding(step):
    assert step.other_rows.tolist() == [0, 15, 16, 21, 22]
    assert step.dense_batch_rows.tolist() == [*range(1, 15), *range(17, 21)]
    assert step.num_batch_rows == 23


def test_requests_and_their_contexts(step):
    assert [(r.index, r.context, r.batch_start, r.batch_end, r.length) for r in step.requests] == [
        (1, 40, 1, 15, 14 + 3 + 2),
        (3, 0, 17, 21, 4 + 2),
    ]


def test_dense_rows_of_videos_and_their_questions(step):
    """Dense rows of request 1: text 0-1, video 2-6, text 7, image 8-9, video 10-12, text 13-18."""
    rows = [[(v.start, v.end, v.question.tolist()) for v in request.videos] for request in step.requests]
    assert rows == [
        [(2, 7, [7, 13, 14, 15, 16, 17, 18]), (10, 13, [13, 14, 15, 16, 17, 18])],
        [(0, 4, [4, 5])],
    ]


def test_leading_rows_come_before_the_first_video(step):
    assert [request.num_leading for request in step.requests] == [2, 0]
    assert step.leading_batch_rows.tolist() == [1, 2]
    assert DenseRows.of(step).leading().tolist() == [0, 1]


def test_rows_that_are_left(step):
    """Of 19 + 6 rows, the first video loses its rows 3 and 5, the last one its row 19 (of the request: 0)."""
    rows = DenseRows.of(step)
    kept = torch.tensor([i for i in range(25) if i not in (3, 5, 19)])
    left = rows.select(kept)
    assert left.alive.tolist() == kept.tolist()
    assert left.lengths == [17, 5]
    one, other = left.requests()
    assert [(live.origin, live.start, live.end) for live in (one, other)] == [(0, 0, 17), (19, 17, 22)]
    (first, second), (third,) = (request.videos for request in step.requests)
    ranges = [left.video_range(one, first), left.video_range(one, second), left.video_range(other, third)]
    assert ranges == [(2, 5), (8, 11), (17, 20)]
    assert left.rows_left(one, first).tolist() == [0, 2, 4]
    assert left.question(other, third).tolist() == [20, 21]
    again = left.select(torch.tensor([i for i in range(22) if i not in (2, 21)]))
    assert again.lengths == [16, 4]
    assert again.alive[2] == 4
    assert again.video_range(one, first) == (2, 4)


def test_a_request_that_loses_nothing_and_one_that_loses_its_last_rows(step):
    rows = DenseRows.of(step).select(torch.arange(24))
    assert rows.lengths == [19, 5]
    assert rows.select(torch.arange(20)).lengths == [19, 1]
