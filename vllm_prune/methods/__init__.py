"""The algorithms: which tokens of a video stay, and which are merged.

Pure torch on tensors; nothing here imports vLLM or the rest of the package, so each method is usable on its own:

    tokens = VideoTokens.from_features(features, (T, H, W))
    assignment = create("prunevid", tau=0.8).assign(tokens, budget=512)
    merged = compact(tokens, assignment)
"""

from vllm_prune.methods._checks import check_budget as check_budget
from vllm_prune.methods.base import Assignment as Assignment
from vllm_prune.methods.base import Method as Method
from vllm_prune.methods.base import VideoTokens as VideoTokens
from vllm_prune.methods.base import compact as compact
from vllm_prune.methods.registry import create as create
from vllm_prune.methods.registry import names as names
