"""Whether a server that runs here could write its traces."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def warn_of_unwritable(folder: Path) -> None:
    """Says so if `folder` cannot be made or written to; the server itself goes on without traces and counts them.

    With workers on other machines it may be writable there, so it is no reason to refuse.
    """
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        print(
            f"vllm-prune serve: no trace can be written to {folder} from here: {place} is no folder or may not be "
            "written; without traces the page at /prune shows no cells; give another folder by --prune-trace",
            file=sys.stderr,
        )
