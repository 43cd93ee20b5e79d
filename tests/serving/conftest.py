"""One engine in this process, one answer of stock vLLM, three servers: shared by all tests in this folder."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from serving_cases import CASES
from serving_engine import ENVIRONMENT, Answer, Engine
from serving_media import mp4
from serving_plugin import write_plugin
from serving_server import FEW_BLOCKS, OPTIONS, PAGE_KEY, Server

from vllm_prune import PruneConfig, engine_args
from vllm_prune.embedded import model_path, selector_path
from vllm_prune.engine import hf_overrides

sys.path.insert(0, str(Path(__file__).parents[1]))
from oracle.micro_model import write_micro_model, write_micro_selector


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random model whose processor accepts frames as small as one token."""
    folder = write_micro_model(tmp_path_factory.mktemp("serving") / "micro")
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        fields = json.loads((folder / name).read_text())
        fields["size"]["shortest_edge"] = 28 * 28
        (folder / name).write_text(json.dumps(fields))
    return str(folder)


class OtherEngine:
    """An engine in a process of its own, started at once and read when it is needed."""

    def __init__(self, model: str, folder: Path, name: str, **options: object) -> None:
        self.name, self.file, self.log = name, folder / f"{name}.pickle", folder / f"{name}.log"
        script = Path(__file__).with_name("serving_engine.py")
        command = [sys.executable, str(script), model, str(self.file), json.dumps(options)]
        self.process = subprocess.Popen(
            command, stdout=self.log.open("w"), stderr=subprocess.STDOUT, env=os.environ | ENVIRONMENT
        )

    def answers(self) -> dict[str, Answer]:
        code = self.process.wait(timeout=400)
        assert code == 0, f"{self.name}: {self.log.read_text()[-3000:]}"
        return pickle.loads(self.file.read_bytes())


@pytest.fixture(scope="session")
def others(model: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, OtherEngine]]:
    folder = tmp_path_factory.mktemp("engines")
    pruning = hf_overrides(model, PruneConfig(), "any")
    few = ["many positions", "turns"]
    started = {
        "stock": OtherEngine(model, folder, "stock", enable_prefix_caching=False),
        "bf16": OtherEngine(model, folder, "bf16", dtype="bfloat16", hf_overrides=pruning, cases=few),
    }
    yield started
    for other in started.values():
        other.process.kill()
        other.process.wait()


@pytest.fixture(scope="session")
def stock(others: dict[str, OtherEngine]) -> dict[str, Answer]:
    """What stock vLLM answers to all CASES, unpruned, in one batch."""
    return others["stock"].answers()


@pytest.fixture(scope="session")
def bf16(others: dict[str, OtherEngine]) -> dict[str, Answer]:
    """What the variant answers in bf16 to some CASES, pruned by SCRIPT_PRUNE."""
    return others["bf16"].answers()


@pytest.fixture(scope="session")
def shared_engine(model: str, others: dict[str, OtherEngine]) -> Iterator[Engine]:
    # vLLM binds the process to cores and takes `set_num_threads` away; other tests, and what they start, need both.
    set_num_threads, threads, cores = torch.set_num_threads, torch.get_num_threads(), os.sched_getaffinity(0)
    engine = Engine(**engine_args(model, PruneConfig(), override="any"))
    torch.set_num_threads = set_num_threads
    os.sched_setaffinity(0, cores)
    yield engine
    torch.set_num_threads(threads)


@pytest.fixture
def engine(shared_engine: Engine) -> Iterator[Engine]:
    """The engine, with empty caches; all blocks must be free again afterwards."""
    shared_engine.forget()
    shared_engine.num_encoded = 0
    free = shared_engine.num_free_blocks()
    yield shared_engine
    unfinished = list(shared_engine.scheduler.requests)
    shared_engine.llm.llm_engine.abort_request(unfinished, internal=True)
    assert not unfinished
    assert shared_engine.num_free_blocks() == free


@pytest.fixture(scope="session")
def server(model: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`vllm-prune serve`: stage 1 to a half, requests may ask for less (`tighten`)."""
    folder, prune = tmp_path_factory.mktemp("server"), '{"stage1": {"cluster_ratio": 0.5}}'
    with Server(model, folder, prune=prune, options=(*OPTIONS, *FEW_BLOCKS)) as running:
        yield running


@pytest.fixture(scope="session")
def open_server(model: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`vllm-prune serve --prune-log` with the third-party method of `serving_plugin.py`; requests may ask for any."""
    folder = tmp_path_factory.mktemp("open server")
    path = [str(write_plugin(folder / "site")), *filter(None, [os.environ.get("PYTHONPATH")])]
    prune, options = '{"stage1": {"cluster_ratio": 0.5}}', (*OPTIONS, *FEW_BLOCKS, "--prune-log", "--enable-scale-out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(path))
        with Server(model, folder, prune=prune, override="any", options=options) as running:
            yield running


@pytest.fixture(scope="session")
def traces_of_the_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `embedded` writes its traces."""
    return tmp_path_factory.mktemp("cache") / "vllm-prune" / "page"


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory, traces_of_the_page: Path) -> Iterator[Server]:
    """The embedded model with its own selector, a random one behind layer 2, and the page; requests may ask for any."""
    folder = tmp_path_factory.mktemp("embedded")
    inside = write_micro_selector(model_path(), place=2, into=folder)
    selectors = ("--prune-selector", str(selector_path()), "--prune-selector", str(inside))
    options = ("--host", "127.0.0.1", "--enforce-eager", "--gpu-memory-utilization", "0.1", "--max-num-seqs", "16")
    few = ("--num-gpu-blocks-override", "1024")  # of 128 tokens
    options, cache = (*options, *few, *selectors, "--prune-page"), str(traces_of_the_page.parents[1])
    server = Server(
        "embedded", folder, prune="stage1_only", override="any", options=options, key=PAGE_KEY, XDG_CACHE_HOME=cache
    )
    with server:
        yield server


@pytest.fixture(scope="session")
def cases() -> dict[str, dict]:
    return CASES


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a web server on this machine that has `clip.mp4`."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "clip.mp4").write_bytes(mp4(16, 112, 112, seed=1))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder))) as web:
        Thread(target=web.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{web.server_port}"
        web.shutdown()
