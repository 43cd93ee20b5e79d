"""Whether a server will get the port it is told to listen on."""

from __future__ import annotations

import argparse
import errno
import socket

DEFAULT_PORT = 8000
"""vLLM's."""


def check_port(passed_on: list[str]) -> None:
    """Looks at `vllm serve` options; vLLM itself would fail with a traceback, after seconds of imports.

    Raises:
        ValueError: Something else listens there.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--host", default="")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT)
    parser.add_argument("--uds")
    parser.add_argument("--headless", action="store_true")
    try:
        options, _ = parser.parse_known_args(passed_on)
    except argparse.ArgumentError:  # vLLM will say what is wrong with it
        return
    if options.uds or options.headless:
        return
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((options.host, options.port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise ValueError(
                    f"port={options.port}: something else listens there; end it, or give another --port"
                ) from error
