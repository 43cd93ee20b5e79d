"""What `vllm-prune doctor --ray` says of nodes, from what was found on them; and of a cluster that does not answer."""

import dataclasses
import json

import pytest
from launched_cluster import free_port

from vllm_prune.cli.checks.check import Status
from vllm_prune.cli.main import main
from vllm_prune.cluster.compare import check_nodes, table
from vllm_prune.cluster.facts import PACKAGES, fingerprint, node_facts
from vllm_prune.cluster.inspect import Node
from vllm_prune.embedded import model_path
from vllm_prune.versions import find_vllm

FACTS = {
    "host": "a",
    "python": "3.11.7",
    "packages": dict.fromkeys(PACKAGES, "1.0"),
    "plugin": True,
    "startup": True,
    "gpus": [],
    "shm_free": 2**33,
    "model": "0123456789ab",
}
HEAD = Node("10.0.0.1", True, True, {"CPU": 4.0, "GPU": 1.0}, FACTS)


def worker(**facts):
    return Node("10.0.0.2", False, True, {"CPU": 4.0}, {**FACTS, **facts})


def test_nodes_that_agree():
    assert {check.status for check in check_nodes([HEAD, worker()], "/m")} == {Status.OK}


@pytest.mark.parametrize(
    ("node", "detail"),
    [
        (worker(packages={**FACTS["packages"], "torch": "2.0"}), "torch 2.0, head: 1.0"),
        (worker(packages={**FACTS["packages"], "vllm-prune": None}), "vllm-prune not installed there"),
        (worker(python="3.12.1"), "python 3.12.1, head: 3.11.7"),
        (worker(plugin=False), "vLLM would not find the plugin there"),
        (worker(startup=False), "vllm_prune.pth did not run"),
        (worker(model=""), "no /m/config.json there"),
        (worker(model="ba9876543210"), "/m differs from the head's"),
        (Node("10.0.0.2", False, True, error="did not answer: timeout"), "did not answer: timeout"),
    ],
)
def test_a_node_that_differs_is_named_with_a_remedy(node, detail):
    (found,) = [check for check in check_nodes([HEAD, node], "/m") if check.status is Status.FAIL]
    assert found.name == "node 10.0.0.2"
    assert detail in found.detail
    assert found.remedy


def test_a_node_that_left_and_one_with_little_shared_memory_are_noted():
    gone = dataclasses.replace(worker(), alive=False, facts={})
    noted = [check for check in check_nodes([HEAD, gone, worker(shm_free=2**26)]) if check.status is Status.WARN]
    assert ["has left" in noted[0].detail, "/dev/shm" in noted[1].detail] == [True, True]
    assert table([HEAD, gone]).splitlines()[2].split()[:2] == ["10.0.0.2", "gone"]


def test_facts_of_this_machine():
    found = node_facts(str(model_path()))
    assert found["startup"]
    assert found["plugin"]
    assert None not in found["packages"].values()
    assert found["packages"]["vllm"].startswith(str(find_vllm().version))
    assert found["model"] == fingerprint(str(model_path()))
    assert node_facts("Qwen/Qwen2.5-VL-7B-Instruct")["model"] is None


def test_a_fingerprint_sees_another_file(tmp_path):
    assert fingerprint(str(tmp_path)) == ""
    (tmp_path / "config.json").write_text("{}")
    before = fingerprint(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"1")
    assert fingerprint(str(tmp_path)) != before


@pytest.mark.parametrize("address", ["127.0.0.2:{free}", "nowhere", "127.0.0.2:99999"])
def test_a_cluster_that_is_not_there(capsys, address):
    assert main(["doctor", "--json", "--ray", address.format(free=free_port())]) == 1
    (check,) = json.loads(capsys.readouterr().out)["checks"]
    assert check["status"] == "fail"
    assert check["remedy"]


def test_a_model_without_a_cluster_is_refused(capsys):
    assert main(["doctor", "--model", "/m"]) == 2
    assert "give --ray HOST:PORT as well" in capsys.readouterr().err
