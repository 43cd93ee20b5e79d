"""The decoding processes that the tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from vllm_prune.media.limits import Limits
from vllm_prune.media.pool import DecoderPool


@pytest.fixture(scope="module")
def pool() -> Iterator[DecoderPool]:
    made = DecoderPool(Limits(processes=2))
    yield made
    made.close()
