#!/usr/bin/env bash
# Sets up, serves the embedded model with pruning, asks it about its sample clips, and stops the server again.
#
# VLLM_PRUNE_PRESET=stage1_only  another pruning preset
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly BIN=${VLLM_PRUNE_VENV:-.venv}/bin
readonly PRESET=${VLLM_PRUNE_PRESET:-stage1_only}
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
    "$BIN/vllm-prune" serve embedded --host 127.0.0.1 --port "$1" --prune "$PRESET" >"$WORK/server.log" 2>&1 &
    SERVER=$!
}

give_up() {
    tail -n 40 "$WORK/server.log" >&2
    echo "quickstart: $1; its last lines are above, and \`$BIN/vllm-prune doctor\` may know why" >&2
    exit 1
}

wait_for_server() {
    local waited=0
    until "$BIN/python" launch/reachable.py "http://127.0.0.1:$1/health"; do
        kill -0 "$SERVER" 2>/dev/null || give_up "the server ended"
        ((waited < START_TIMEOUT_S)) || give_up "the server was not ready after $START_TIMEOUT_S s"
        printf '\rstarting the server ... %d s' "$waited"
        sleep 2
        waited=$((waited + 2))
    done
    printf '\rthe server is ready after %d s\n' "$waited"
}

# Each sample question is a line `clip<TAB>question` from the embedded clips' own list.
ask_questions() {
    "$BIN/python" launch/sample_questions.py | while IFS=$'\t' read -r clip question; do
        printf '\n%s: %s\n' "$(basename "$clip")" "$question"
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
