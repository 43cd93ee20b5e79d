"""What a configuration saves, computed from a model's config.json: tokens, FLOPs, KV memory. No weights, no vLLM."""

from vllm_prune.estimate.dims import ModelDims as ModelDims
from vllm_prune.estimate.dims import read_dims as read_dims
from vllm_prune.estimate.estimate import Estimate as Estimate
from vllm_prune.estimate.estimate import estimate as estimate
from vllm_prune.estimate.video import VideoShape as VideoShape
