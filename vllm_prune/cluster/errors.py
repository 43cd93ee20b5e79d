"""The error of this package."""


class ClusterError(RuntimeError):
    """Something on a node, or between nodes, is not as it has to be; it says what to do about it.

    Attributes:
        remedy: What mends it.
    """

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy
