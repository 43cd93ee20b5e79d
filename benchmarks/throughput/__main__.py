"""`python -m benchmarks.throughput`."""

import argparse
import sys

from benchmarks.throughput import add_arguments, run

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput")
    add_arguments(parser)
    sys.exit(run(parser.parse_args()))
