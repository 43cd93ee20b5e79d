"""`vllm-prune bench sweep`: every combination of parameters, and which of them nothing else beats.

`points.py` makes the combinations, `probe.py` measures what each costs and does to one answer, the machinery of
`bench accuracy` asks a dataset, `entries.py` keeps what is known, `results.py` and `plot.py` show it.
"""
