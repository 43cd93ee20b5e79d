"""How the rows of a dense layer are cut into parts."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from vllm_prune.serving.worker.dense.parts import make_parts

requests = st.lists(st.tuples(st.integers(0, 9), st.integers(1, 40)), min_size=1, max_size=4)


@given(requests, st.integers(0, 12), st.integers(1, 60))
def test_parts_cover_every_row_once_in_order(requests, num_other, most):
    leading, lengths = [lead for lead, _ in requests], [lead + video for lead, video in requests]
    parts = make_parts(num_other, leading, lengths, most, torch.device("cpu"))
    rows = torch.cat([part.rows for part in parts])
    assert sorted(rows.tolist()) == list(range(num_other + sum(lengths)))
    assert parts[0].num_other == num_other
    assert all(part.num_other == 0 for part in parts[1:])
    first = num_other + sum(leading)
    assert len(parts[0].rows) <= max(most, first)
    assert all(len(part.rows) <= most for part in parts[1:])
    assert len(parts) <= 2 + sum(lengths) // most
    starts = itertools.accumulate([0, *lengths[:-1]])
    for index, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        own = [part.dense[(part.dense >= start) & (part.dense < start + length)] for part in parts]
        assert torch.equal(torch.cat(own), torch.arange(start, start + length))
        assert set(range(start, start + leading[index])) <= set(parts[0].dense.tolist())


@given(requests, st.integers(0, 12), st.integers(1, 60))
def test_what_is_put_is_what_was_taken(requests, num_other, most):
    leading, lengths = [lead for lead, _ in requests], [lead + video for lead, video in requests]
    values = torch.arange(num_other + sum(lengths)) * 10
    found = dense = None
    for part in make_parts(num_other, leading, lengths, most, torch.device("cpu")):
        taken = part.take(values)
        found = part.put(taken + 1, found, len(values))
        dense = part.put_dense(taken[part.num_other :], dense, sum(lengths))
    assert torch.equal(found, values + 1)
    assert torch.equal(dense, values[num_other:])
