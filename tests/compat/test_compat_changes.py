"""A change in a copy of vLLM is found by reading it."""

import functools
import os
import shutil
from pathlib import Path

import pytest
from compat_check import base_version, check_tree
from compat_reached import found_in, reached
from compat_tree import Tree
from compat_wheels import NoIndexError, python_files, supported_releases


@pytest.fixture(scope="module")
def whole() -> Path:
    try:
        return python_files(supported_releases()[-1])
    except NoIndexError as error:
        pytest.skip(f"the package index cannot be reached: {error}")


@functools.cache
def before(whole: Path) -> set[str]:
    """What is found without a change."""
    return set(map(str, check_tree(Tree(whole))))


class Copy:
    """vLLM's files as links, of which some are replaced."""

    def __init__(self, whole: Path, folder: Path) -> None:
        shutil.copytree(whole, folder, copy_function=os.symlink)
        self.whole, self.folder = whole, folder

    def replace(self, file: str, old: str, new: str) -> None:
        path = self.folder / "vllm" / file
        text = path.read_text()
        assert old in text
        path.unlink()
        path.write_text(text.replace(old, new))

    def findings(self) -> list[str]:
        """What is found because of the change."""
        return [str(found) for found in check_tree(Tree(self.folder)) if str(found) not in before(self.whole)]


@pytest.fixture
def copy(whole, tmp_path):
    return Copy(whole, tmp_path / "vllm")


def test_a_renamed_method_is_a_break(copy):
    copy.replace("multimodal/processing/inputs.py", "def get_mm_hashes(", "def get_media_hashes(")
    copy.replace("v1/core/sched/scheduler.py", "def update_from_output(", "def update_from_outputs(")
    breaks = [found for found in copy.findings() if found.startswith("BREAK")]
    assert len(breaks) >= 2
    assert any("Inputs.get_mm_hashes: overrides a method that is not there" in found for found in breaks)
    assert any("Scheduler.update_from_output: patch core_step_notes: cannot patch" in found for found in breaks)


def test_a_renamed_attribute_is_a_break(copy):
    assert found_in(Tree(python_files(base_version()))) > 0.6 * len(reached())
    copy.replace("v1/core/sched/scheduler.py", "self.current_step", "self.step_number")
    found = "BREAK vllm.v1.core.sched.scheduler:Scheduler.current_step: is reached in serving/core/scheduling.py"
    assert any(line.startswith(found) for line in copy.findings())


def test_a_reordered_argument_is_a_break(copy):
    scheduler, method = "v1/core/sched/scheduler.py", "def _try_schedule_encoder_inputs(\n        self,\n        "
    first, second = "request: Request,\n", "num_computed_tokens: int,\n"
    copy.replace(scheduler, f"{method}{first}        {second}", f"{method}{second}        {first}")
    processor = "multimodal/processing/processor.py"
    method = "def _apply_hf_processor_main(\n        self,\n        "
    items, kwargs = "mm_items: MultiModalDataItems,\n", "hf_kwargs: Mapping[str, object],\n"
    copy.replace(processor, f"{method}{items}        {kwargs}", f"{method}{kwargs}        {items}")
    breaks = [found for found in copy.findings() if found.startswith("BREAK")]
    assert any("core_span_scheduling: cannot patch" in found for found in breaks)
    assert any("_apply_hf_processor_main: takes (self, mm_items, hf_kwargs), and is given" in found for found in breaks)


def test_a_body_that_changed_is_to_be_read(copy):
    target = "vllm.v1.core.kv_cache_manager:KVCacheManager.truncate_computed_blocks"
    text = (copy.folder / "vllm/v1/core/kv_cache_manager.py").read_text()
    start = text.index("def truncate_computed_blocks(")
    old = text[start : text.index("return", start) + len("return")]
    copy.replace("v1/core/kv_cache_manager.py", old, old.replace("return", "pass\n        return"))
    assert copy.findings() == [f"changed {target}: is other code, compared with the version that the suite runs on"]


def test_comments_and_annotations_are_no_change(copy):
    file = "multimodal/processing/inputs.py"
    copy.replace(file, "def get_mm_hashes(\n        self,", "def get_mm_hashes(  # of media\n        self: object,")
    assert copy.findings() == []


def test_a_name_that_moved_is_a_break(copy):
    copy.replace("multimodal/processing/context.py", "class TimingContext", "class Timings")
    assert any(
        found.startswith(
            "BREAK vllm.multimodal.processing.context:TimingContext: is imported in serving/api/processor.py"
        )
        for found in copy.findings()
    )
