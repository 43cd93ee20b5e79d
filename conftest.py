"""What pytest leaves out where an optional package is missing."""

import importlib.util

# Its doctests are collected by importing it, which needs the extra `ray`.
collect_ignore = [] if importlib.util.find_spec("ray") else ["vllm_prune/cluster/ingress.py"]
