from __future__ import annotations

import pytest
from hypothesis import settings

settings.register_profile("methods", deadline=None, max_examples=40)
settings.load_profile("methods")


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """For every test here."""
