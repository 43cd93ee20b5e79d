"""`vllm-prune bench accuracy`: what pruning costs in right answers, on questions about videos.

`datasets/` reads questions, `endpoint.py` and `engine.py` ask them, `log.py` keeps every answer as it comes,
`scores.py` compares configurations question by question, `report.py` and `plot.py` show the result. Only the processes
that `engine.py` starts import vLLM.
"""
