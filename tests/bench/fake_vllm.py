"""Stands in for vLLM: `serve MODEL --port P ...` answers as a server, `bench serve ...` writes a result.

`FAKE_LOG` names a file to which every start is appended. A prune option makes the server and its prompts smaller.
"""

import http.server
import json
import os
import sys

FULL, PRUNED = 1000, 250  # prompt tokens


def option(name, default=None):
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else default


def log(line):
    with open(os.environ["FAKE_LOG"], "a") as file:
        file.write(f"{os.getpid()} {line}\n")


class Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        tokens = PRUNED if "--prune" in sys.argv else FULL
        bodies = {
            "/health": "",
            "/tokens": str(tokens),
            "/metrics": f'vllm:kv_cache_usage_perc{{engine="0"}} {tokens / 10000}\n'
            'vllm:cache_config_info{block_size="32",num_gpu_blocks="101"} 1.0\n',
        }
        self.send_response(200)
        self.end_headers()
        self.wfile.write(bodies[self.path].encode())

    def log_message(self, *args):
        pass


def serve():
    log("serve " + ("pruned" if "--prune" in sys.argv else "stock"))
    if os.environ.get("FAKE_FAILURE") == "serve":
        sys.exit("cannot serve")
    http.server.ThreadingHTTPServer(("127.0.0.1", int(option("--port"))), Server).serve_forever()


def bench():
    import time
    import urllib.request

    log(f"bench {option('--max-concurrency')}")
    if os.environ.get("FAKE_FAILURE") == "hang":
        time.sleep(600)
    tokens = int(urllib.request.urlopen(option("--base-url") + "/tokens").read())
    count = int(option("--num-prompts"))
    time.sleep(0.3)
    done = count - 1 if os.environ.get("FAKE_FAILURE") == "request" else count
    result = {f"{s}_{m}_ms": tokens / 10 for m in ("ttft", "tpot", "itl") for s in ("mean", "median", "p99")}
    result |= {"request_throughput": 1000 / tokens, "total_input_tokens": tokens * done, "completed": done}
    result |= {"duration": 1.0, "ttfts": [0.1] * count, "errors": ["boom"] if done < count else [""]}
    with open(os.path.join(option("--result-dir"), option("--result-filename")), "w") as file:
        json.dump(result, file)


if __name__ == "__main__":
    serve() if sys.argv[1] == "serve" else bench()
