"""Manifests, Dockerfiles and scripts against the schemas and linters of those who read them."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from rayservice_schema import RAY_SERVICE

ROOT = Path(__file__).parents[2]
MANIFESTS = sorted((ROOT / "launch/ray/kubernetes").glob("*.yaml"))
DOCKERFILES = [ROOT / "launch/docker/Dockerfile.cpu", ROOT / "launch/docker/Dockerfile.cuda"]
SCRIPTS = sorted((ROOT / "launch/ray").glob("*.sh"))


def load(file):
    return yaml.safe_load(file.read_text())


def templates(manifest):
    cluster = manifest["spec"]["rayClusterConfig"]
    return [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def application(manifest):
    return yaml.safe_load(manifest["spec"]["serveConfigV2"])["applications"][0]


def tool(name):
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def test_there_is_a_manifest_for_cpus_and_one_for_gpus():
    assert [file.name for file in MANIFESTS] == ["rayservice-cpu.yaml", "rayservice-gpu.yaml"]


@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: file.stem)
def test_a_manifest_is_a_ray_service(file):
    jsonschema.validate(load(file), RAY_SERVICE)


def test_an_unknown_field_would_be_seen():
    manifest = load(MANIFESTS[0])
    manifest["spec"]["rayClusterConfig"]["workers"] = 3
    with pytest.raises(jsonschema.ValidationError, match="workers"):
        jsonschema.validate(manifest, RAY_SERVICE)


@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: file.stem)
def test_its_pods_are_pods_of_kubernetes(file):
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    version = kubernetes_validate.latest_version()
    for template in templates(load(file)):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": template["spec"]}
        kubernetes_validate.validate(pod, version, strict=True)
        wrong = {**pod, "spec": {**pod["spec"], "shm": 1}}
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(wrong, version, strict=True)


@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: file.stem)
def test_its_serve_configuration_is_one(file):
    from ray.serve.schema import ServeDeploySchema

    ServeDeploySchema.model_validate(yaml.safe_load(load(file)["spec"]["serveConfigV2"]))


@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: file.stem)
def test_its_application_is_there_and_takes_its_arguments(file):
    import importlib

    from vllm_prune.cluster.replicas import ReplicaOptions

    given = application(load(file))
    module, _, name = given["import_path"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))
    options = ReplicaOptions.parse(given["args"])
    assert options.max_replicas > options.min_replicas


def test_a_replica_fits_a_pod():
    manifest = load(ROOT / "launch/ray/kubernetes/rayservice-gpu.yaml")
    (worker,) = manifest["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    gpus = int(worker["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
    arguments = application(manifest)["args"]
    assert gpus == arguments["tensor_parallel_size"]
    assert worker["maxReplicas"] == arguments["max_replicas"]


@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: file.stem)
def test_images_are_those_of_the_dockerfiles(file):
    kinds = {path.suffix.lstrip(".") for path in DOCKERFILES}
    images = {container["image"] for template in templates(load(file)) for container in template["spec"]["containers"]}
    assert images <= {f"vllm-prune:{kind}" for kind in kinds}


def instructions(file):
    joined = re.sub(r"\\\n\s*", " ", file.read_text())
    lines = [line for line in joined.splitlines() if line and not line.startswith("#")]
    return [tuple(line.split(maxsplit=1)) for line in lines]


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.suffix)
def test_a_dockerfile_copies_what_is_there_and_sets_up_as_users_do(file):
    copied = [path for word, rest in instructions(file) if word == "COPY" for path in rest.split()[:-1]]
    assert copied
    assert [path for path in copied if not (ROOT / path).exists()] == []
    ignored = file.with_name(f"{file.name}.dockerignore").read_text().splitlines()
    assert [path for path in copied if f"!{path}" not in ignored] == []
    assert ("RUN", "bash launch/setup.sh --extras ray") in instructions(file)
    assert ("USER", "1001") in instructions(file)


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.suffix)
def test_hadolint_finds_nothing(file):
    done = subprocess.run([tool("hadolint"), str(file)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.name)
def test_shellcheck_finds_nothing(file):
    done = subprocess.run([tool("shellcheck"), str(file)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
