"""Throughput of servers on video requests: stock vLLM, vLLM's own EVS and vllm-prune, in one run.

`command` reads the command line, `runner` starts the servers one after the other and drives each with
`vllm bench serve`, `aggregate` turns the repeats into means, standard errors and ratios, `report` and `plot` write
them.
"""
