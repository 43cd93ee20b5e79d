"""What is wrong with a video, for the client."""

from __future__ import annotations


class UnusableVideo(ValueError):
    """A video that the server does not take; the request is to blame, never the server.

    Args:
        reason: What is wrong with it.
        remedy: What helps, where that is not to send the file again.
    """

    def __init__(self, reason: str, remedy: str | None = None) -> None:
        super().__init__(reason if remedy is None else f"{reason}; {remedy}")
        self.reason, self.remedy = reason, remedy


class DecoderUnavailable(RuntimeError):
    """A decoding process could not be started: the server's fault, not the request's."""


def convert_line(options: str = "-c:v libx264 -pix_fmt yuv420p") -> str:
    """A command that makes a file which the server takes.

    >>> convert_line("-c copy")
    'convert it: ffmpeg -i INPUT -c copy OUTPUT.mp4'
    """
    return f"convert it: ffmpeg -i INPUT {options} OUTPUT.mp4"
