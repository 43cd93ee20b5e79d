"""What is raised for a selector file that cannot be used."""

from pathlib import Path


class SelectorFileError(ValueError):
    """A selector file that is damaged, or made for something else."""

    def __init__(self, path: str | Path, what: str) -> None:
        super().__init__(f"selector file {str(path)!r}: {what}")
