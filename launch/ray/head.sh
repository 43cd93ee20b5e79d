#!/usr/bin/env bash
# Starts a Ray cluster on this machine, which becomes its head.
#
#   bash launch/ray/head.sh [--node-ip IP] [--port PORT] [--dir DIR] [options of `ray start`]
#
# VLLM_PRUNE_VENV=DIR     another place than .venv
# VLLM_PRUNE_RAY_DIR=DIR  another folder for this node's files than /tmp/vllm-prune-ray-UID
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

readonly PYTHON=${VLLM_PRUNE_VENV:-.venv}/bin/python
if [[ ! -x $PYTHON ]]; then
    echo "ray head: no $PYTHON; run: bash launch/setup.sh --extras ray" >&2
    exit 1
fi
exec "$PYTHON" -m vllm_prune.cluster head "$@"
