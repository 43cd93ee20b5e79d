"""Benchmarks: what `vllm-prune bench` runs. They start servers as separate processes and import no vLLM."""
