"""The error that ends a benchmark with a message for its user."""


class BenchmarkError(RuntimeError):
    """A benchmark that cannot go on; the message says what to change."""
