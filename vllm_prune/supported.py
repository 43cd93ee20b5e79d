"""The versions of vLLM that this release supports. Only here; a test compares what has to repeat it.

Read at every interpreter start (patches/startup.py), so it imports nothing.
"""

OLDEST, NEWEST = (0, 31), (0, 33)
"""First and last minor version that is tested, and supported with all patch releases."""

SUPPORTED_VLLM = f">={OLDEST[0]}.{OLDEST[1]},<{NEWEST[0]}.{NEWEST[1] + 1}"

MINORS = tuple(f"{NEWEST[0]}.{minor}" for minor in range(OLDEST[1], NEWEST[1] + 1))
"""Every supported minor version, "0.31", oldest first."""

UNTESTED = "VLLM_PRUNE_UNTESTED_VLLM"
"""Environment variable that lets vllm-prune start, when it is 1, with a vLLM newer than the range."""
