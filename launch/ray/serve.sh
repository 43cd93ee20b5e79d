#!/usr/bin/env bash
# Serves a model with pruning over the GPUs of a Ray cluster, after checking every node.
#
#   bash launch/ray/serve.sh MODEL [-tp N] [--address HOST:PORT] [--host IP] [--port PORT] [--prune PRESET] [options of `vllm serve`]
#
# VLLM_PRUNE_VENV=DIR     another place than .venv
# VLLM_PRUNE_RAY_DIR=DIR  another folder for this node's files than /tmp/vllm-prune-ray-UID
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

readonly PYTHON=${VLLM_PRUNE_VENV:-.venv}/bin/python
if [[ ! -x $PYTHON ]]; then
    echo "ray serve: no $PYTHON; run: bash launch/setup.sh --extras ray" >&2
    exit 1
fi
exec "$PYTHON" -m vllm_prune.cluster serve "$@"
