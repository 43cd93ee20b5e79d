"""What `vllm-prune doctor` checks, one module for each part of an installation.

A check is a function that returns a list of `Check`. Those in environment.py need no vLLM; the others are run by
probe.py in a process of their own, since importing vLLM may fail, hang or take its time.
"""
