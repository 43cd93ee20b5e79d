#!/usr/bin/env bash
# Ends what these scripts started on this machine, and nothing else.
#
#   bash launch/ray/stop.sh [--dir DIR]
#
# VLLM_PRUNE_VENV=DIR     another place than .venv
# VLLM_PRUNE_RAY_DIR=DIR  another folder for this node's files than /tmp/vllm-prune-ray-UID
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

readonly PYTHON=${VLLM_PRUNE_VENV:-.venv}/bin/python
if [[ ! -x $PYTHON ]]; then
    echo "ray stop: no $PYTHON; run: bash launch/setup.sh --extras ray" >&2
    exit 1
fi
exec "$PYTHON" -m vllm_prune.cluster stop "$@"
