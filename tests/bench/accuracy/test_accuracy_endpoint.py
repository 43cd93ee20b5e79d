"""Asking a server, one that speaks just enough of the API; the real one is asked in test_serving_embedded.py."""

import http.server
import json
import threading

import pytest
from accuracy_cases import question, write_video

from vllm_prune.bench.accuracy.asking import Task
from vllm_prune.bench.accuracy.endpoint import Endpoint
from vllm_prune.bench.accuracy.videos import FileVideo
from vllm_prune.bench.throughput.configurations import parse_configurations
from vllm_prune.bench.throughput.errors import BenchmarkError

UNIFORM = 'uniform={"method": "uniform", "keep_ratio": 0.1}'


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.reply(200, {"object": "list", "data": [{"id": "tiny", "object": "model", "created": 0, "owned_by": "x"}]})

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(request)
        prune = request.get("mm_processor_kwargs", {}).get("prune")
        if self.server.refuses and prune:
            self.reply(400, {"error": {"message": "no override here", "type": "x", "code": 400}})
            return
        counts = {"video": 10 if prune else 100}
        if prune and self.server.prunes:
            counts["video_before_pruning"] = 100
        usage = {"prompt_tokens": 20, "completion_tokens": 1, "total_tokens": 21}
        if self.server.tells:
            usage["prompt_tokens_details"] = {"multimodal_tokens": counts}
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "red"}}
        completion = {"id": "1", "object": "chat.completion", "created": 0, "model": "tiny"}
        self.reply(200, {**completion, "choices": [choice], "usage": usage})

    def reply(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.requests, running.prunes, running.tells, running.refuses = [], True, True, False
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield running
    running.shutdown()
    running.server_close()


@pytest.fixture
def video(tmp_path):
    return FileVideo(write_video(tmp_path / "clip.mp4"))


def endpoint(server):
    return Endpoint(f"http://127.0.0.1:{server.server_address[1]}/v1", None, concurrency=2, max_tokens=3)


def ask(server, video, *given, count=3):
    asker = endpoint(server)
    questions = [question(str(i)) for i in range(count)]
    questions = [q.__class__(**{**vars(q), "video": video}) for q in questions]
    tasks = [Task(configuration, q) for configuration in parse_configurations(given) for q in questions]
    with asker.open(parse_configurations(given)) as opened:
        return [answer for answers in opened.ask([tasks]) for answer in answers]


def test_every_question_is_answered(server, video):
    answers = ask(server, video, "stock", UNIFORM)
    assert sorted((a.configuration == "stock", a.question) for a in answers) == [
        (stock, str(i)) for stock in (False, True) for i in range(3)
    ]
    assert all(a.right and a.prompt_tokens == 20 for a in answers)
    assert {a.video_tokens for a in answers if a.configuration == "stock"} == {100}


def test_requests_carry_video_question_and_configuration(server, video):
    ask(server, video, UNIFORM, count=1)
    (request,) = server.requests
    clip, text = request["messages"][0]["content"]
    assert clip["video_url"]["url"] == video.data_url()
    assert text["text"] == "0?"
    assert request["mm_processor_kwargs"]["prune"] == {
        "preset": "baseline",
        "image": False,
        "method": "uniform",
        "keep_ratio": 0.1,
    }
    assert (request["model"], request["max_completion_tokens"], request["temperature"]) == ("tiny", 3, 0.0)


def test_stock_asks_for_nothing(server, video):
    ask(server, video, "stock", count=1)
    assert "mm_processor_kwargs" not in server.requests[0]


def test_a_server_that_tells_no_tokens_can_be_asked_as_it_is(server, video):
    server.tells = False
    (answer,) = ask(server, video, "stock", count=1)
    assert answer.video_tokens is None


@pytest.mark.parametrize(("attribute", "value"), [("prunes", False), ("tells", False)])
def test_a_server_that_does_not_prune_is_noticed(server, video, attribute, value):
    setattr(server, attribute, value)
    with pytest.raises(BenchmarkError, match=r"does not say that it pruned .*--prune-override any"):
        ask(server, video, UNIFORM)


def test_a_refusal_is_passed_on(server, video):
    server.refuses = True
    with pytest.raises(BenchmarkError, match=r"refused, asked '0' with --prune uniform: .*no override here"):
        ask(server, video, UNIFORM, count=1)


def test_no_server_is_named():
    nobody = Endpoint("http://127.0.0.1:1/v1", None, concurrency=1, max_tokens=1)
    with pytest.raises(BenchmarkError, match=r"no server at http://127\.0\.0\.1:1/v1 .*vllm-prune serve"):
        nobody.describe()


def test_evs_needs_a_server_of_its_own(server):
    with pytest.raises(BenchmarkError, match=r"--video-pruning-rate 0\.5"):
        endpoint(server).groups(parse_configurations(["evs:0.5"]))


def test_the_model_is_named_by_the_server(server):
    assert endpoint(server).describe() == {"url": endpoint(server).url, "model": "tiny", "max_tokens": 3}


@pytest.mark.parametrize(
    ("kind", "body"), [("text/html", b"<html>hello</html>"), ("application/json", b'{"data": []}')]
)
def test_something_else_that_answers_is_noticed(kind, body):
    class Other(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Other) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        with pytest.raises(BenchmarkError, match="names no model: no OpenAI-compatible API there"):
            endpoint(other).describe()
        other.shutdown()
