"""Options of the whole suite."""

import os
import sys
from pathlib import Path

import hypothesis
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import runner

runner.select()
# Models here are small, and several engines share the cores: threads of one that wait for each other, all of them bound
# to the same first core, take several times as long as one thread on any core.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
collect_ignore = ["v2_on_cpu"]  # looked into for doctests, it would select a runner

# How long an example takes says more of the machine than of the code. A run without --long draws the same examples each
# time, so that what fails there was broken by the change at hand.
hypothesis.settings.register_profile("same examples", deadline=None, derandomize=True)
hypothesis.settings.register_profile("new examples", deadline=None)
hypothesis.settings.load_profile("same examples")


@pytest.fixture
def one_thread():
    """PyTorch computes in one thread: sums come out the same, and engines beside the test have the other cores."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="also run tests that take minutes each")


def pytest_configure(config):
    if config.getoption("--long", default=False):
        hypothesis.settings.load_profile("new examples")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--long"):
        return
    skip = pytest.mark.skip(reason="takes minutes; run with --long")
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(skip)


_last_of_folder = {}


def pytest_collection_finish(session):
    _last_of_folder.update({item.path.parent: item for item in session.items})


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item):
    """Ends a folder's engines with its last test: those of all folders together have no room in 24 GB."""
    result = yield
    engines = sys.modules.get("dense_engine")
    if engines is not None and item is _last_of_folder.get(item.path.parent):
        engines.close_engines(f"{item.nodeid.partition('::')[0].rpartition('/')[0]}/")
    return result
