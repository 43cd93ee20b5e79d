#!/usr/bin/env bash
# Makes this machine a worker of a Ray cluster, if its packages are those of the head.
#
#   bash launch/ray/join.sh HOST:PORT [--node-ip IP] [--dir DIR] [options of `ray start`]
#
# VLLM_PRUNE_VENV=DIR     another place than .venv
# VLLM_PRUNE_RAY_DIR=DIR  another folder for this node's files than /tmp/vllm-prune-ray-UID
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

readonly PYTHON=${VLLM_PRUNE_VENV:-.venv}/bin/python
if [[ ! -x $PYTHON ]]; then
    echo "ray join: no $PYTHON; run: bash launch/setup.sh --extras ray" >&2
    exit 1
fi
exec "$PYTHON" -m vllm_prune.cluster join "$@"
