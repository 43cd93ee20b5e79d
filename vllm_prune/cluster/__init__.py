"""Operating vllm-prune on Ray: nodes that agree, one server over several GPUs, several servers behind one endpoint.

`launch/ray/` has the commands; docs/ray.md says how to use them. Ray is imported only where it is needed.
"""
