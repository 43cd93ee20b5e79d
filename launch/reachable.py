"""Exit with 0 if a URL answers within a few seconds: `python reachable.py URL`. Uses the standard library only."""

import sys
import urllib.request

TIMEOUT_S = 5

try:
    with urllib.request.urlopen(sys.argv[1], timeout=TIMEOUT_S):
        pass
except OSError:  # no route, no name, refused, timed out, or an HTTP error: all mean "do not use it"
    sys.exit(1)
