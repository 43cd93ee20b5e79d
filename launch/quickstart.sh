#!/usr/bin/env bash
# Sets up, serves the embedded model with pruning, asks it about its sample clips, and stops the server again.
#
# VLLM_PRUNE_PRESET=stage1_only  another pruning preset
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly BIN=${VLLM_PRUNE_VENV:-.venv}/bin
readonly PRESET=${VLLM_PRUNE_PRESET:-default}
readonly START_TIMEOUT_S=300
WORK=$(mktemp -d)
SERVER=""

stop() {
    if [[ -n $SERVER ]] && kill -0 "$SERVER" 2>/dev/null; then
        kill "$SERVER"
        wait "$SERVER" || true # it reports the signal as its status
    fi
    rm -rf "$WORK"
}
trap stop EXIT

free_port() {
    "$BIN/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

start_server() {
    # The embedded model is tiny: vLLM need not take nearly all memory, as it does by default, and compiling it would
    # take longer than it saves.
    export VLLM_CPU_KVCACHE_SPACE=${VLLM_CPU_KVCACHE_SPACE:-1}
    "$BIN/vllm-prune" serve embedded --host 127.0.0.1 --port "$1" --prune "$PRESET" --gpu-memory-utilization 0.3 \
        --enforce-eager >"$WORK/server.log" 2>&1 &
    SERVER=$!
}

give_up() {
    tail -n 40 "$WORK/server.log" >&2
    echo "quickstart: $1; its last lines are above, and \`$BIN/vllm-prune doctor\` may know why" >&2
    exit 1
}

wait_for_server() {
    local begin=$SECONDS
    until "$BIN/python" launch/reachable.py "http://127.0.0.1:$1/health"; do
        kill -0 "$SERVER" 2>/dev/null || give_up "the server ended"
        ((SECONDS - begin < START_TIMEOUT_S)) || give_up "the server was not ready after $START_TIMEOUT_S s"
        if [[ -t 1 ]]; then printf '\rstarting the server ... %d s' "$((SECONDS - begin))"; fi
        sleep 2
    done
    if [[ -t 1 ]]; then printf '\r'; fi
    printf 'the server is ready after %d s\n' "$((SECONDS - begin))"
}

ask_questions() {
    "$BIN/python" launch/sample_questions.py | while IFS=$'\t' read -r clip question answer; do
        printf '\n%s: %s (right answer: %s)\n' "$(basename "$clip")" "$question" "$answer"
        "$BIN/vllm-prune" chat "$clip" "$question" --url "http://127.0.0.1:$1/v1" </dev/null
    done
}

main() {
    local port
    bash launch/setup.sh
    port=$(free_port)
    start_server "$port"
    wait_for_server "$port"
    ask_questions "$port"
}

main
