#!/usr/bin/env bash
# Sets up and runs the tests; arguments go to pytest (`bash launch/test.sh -m "not slow"`).
#
# PRUNE_TEST_RUNNER=v2  with vLLM's V2 model runner and asynchronous scheduling, its defaults on a GPU, as far as a
#                       folder of tests starts engines
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash launch/setup.sh --extras test,bench,ray,docs
exec "${VLLM_PRUNE_VENV:-.venv}/bin/python" -m pytest "$@"
