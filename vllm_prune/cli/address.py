"""Where a server's API is."""

from __future__ import annotations

from urllib.parse import urlsplit


def api_url(url: str) -> str:
    """The API's address on a server of which the address is given.

    Raises:
        ValueError: It is no address of HTTP.

    >>> api_url("http://127.0.0.1:8000/"), api_url("http://host/gateway/v1")
    ('http://127.0.0.1:8000/v1', 'http://host/gateway/v1')
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:  # a port that is no number, half of a bracket
        usable = False
    if not usable:
        raise ValueError(f"--url {url!r}: must be an address such as http://127.0.0.1:8000/v1")
    return f"{url.rstrip('/')}/v1" if parts.path in ("", "/") else url
