"""`vllm-prune bench methods`: time and memory of the methods themselves, on tensors, with no server."""
