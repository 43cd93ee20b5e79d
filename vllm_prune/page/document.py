"""The page as one HTML document: nothing is fetched but answers."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from vllm_prune.show.html import with_viewer

_FOLDER = Path(__file__).parent

HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    # All of it is in the page itself; it may ask its own server, and show what it was given.
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; media-src data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
}


@lru_cache(maxsize=1)
def page() -> str:
    """The document."""
    template, code = ((_FOLDER / name).read_text(encoding="utf-8") for name in ("prune.html", "prune.js"))
    return with_viewer(template).replace("@PAGE@", code, 1)
