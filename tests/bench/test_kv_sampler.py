"""Reading KV blocks from Prometheus text."""

import http.server
import threading
import time

import pytest

from vllm_prune.bench.throughput.kv_sampler import KvSampler, parse_metrics

CACHE = 'vllm:cache_config_info{block_size="32",engine="0",num_gpu_blocks="101",num_cpu_blocks="None"} 1.0'


def metrics_text(*usages):
    lines = ["# TYPE vllm:kv_cache_usage_perc gauge"]
    lines += [f'vllm:kv_cache_usage_perc{{engine="{i}",model_name="m"}} {usage}' for i, usage in enumerate(usages)]
    return "\n".join([*lines, CACHE])


def test_blocks_are_the_share_of_all_but_the_null_block():
    reading = parse_metrics(metrics_text(0.25))
    assert (reading.blocks_held, reading.block_size) == (25, 32)


def test_engines_are_added_up():
    assert parse_metrics(metrics_text(0.25, 0.5)).blocks_held == 75


@pytest.mark.parametrize("text", ["", CACHE, metrics_text(0.1).replace('"101"', '"None"')])
def test_nothing_before_the_engine_reports(text):
    assert parse_metrics(text) is None


@pytest.fixture
def metrics_server():
    """Serves the usages 0.1, 0.6, 0.2, and 0 for ever after."""
    usages = iter([0.1, 0.6, 0.2])

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(metrics_text(next(usages, 0.0)).encode())

        def log_message(self, *args):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def wait_for_samples(sampler, count):
    deadline = time.monotonic() + 20
    while sampler.samples < count and time.monotonic() < deadline:
        time.sleep(0.01)
    return sampler


def test_sampler_keeps_the_peak(metrics_server):
    with KvSampler(metrics_server, interval_s=0.01) as sampler:
        wait_for_samples(sampler, 5)
    assert sampler.samples >= 5
    assert (sampler.peak, sampler.block_size) == (60, 32)
    assert not sampler.is_alive()


def test_sampler_without_a_server_sees_nothing():
    with KvSampler(1, interval_s=0.01) as sampler:
        time.sleep(0.1)
    assert (sampler.peak, sampler.samples) == (None, 0)
