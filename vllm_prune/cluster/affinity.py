"""Which replica should see a request: the one that has seen its video.

Ray Serve's `ConsistentHashRouter` keeps all requests of a session on one replica. The session of a request about a
video is that video, unless the client names one itself.
"""

import hashlib
from collections.abc import Iterator
from typing import Any

_MEDIA = ("video_url", "image_url", "input_audio")


def media_key(body: Any) -> str | None:
    """The key of a chat completion's first video, or of its first medium if it has none.

    The first, since it begins the prefix that later turns of the conversation share. A medium is known by the `uuid`
    that the client gave it, else by its URL, which for inline media is the whole content.

    Args:
        body: The request as JSON has it; it need not be valid.

    Returns:
        A short hexadecimal string, or None for a request without media.

    >>> ask = lambda url, words: {"messages": [{"role": "user", "content": [
    ...     {"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": words}]}]}
    >>> media_key(ask("https://a/b.mp4", "Who?")) == media_key(ask("https://a/b.mp4", "Why?"))
    True
    >>> media_key(ask("https://a/b.mp4", "Who?")) == media_key(ask("https://a/c.mp4", "Who?"))
    False
    >>> media_key({"messages": [{"role": "user", "content": "Hello"}]}) is None
    True
    """
    found = list(_media(body))
    videos = [content for kind, content in found if kind == "video_url"]
    first = videos or [content for _, content in found]
    return hashlib.sha256(first[0].encode()).hexdigest()[:32] if first else None


def _media(body: Any) -> Iterator[tuple[str, str]]:
    """Kind and identifying text of each medium, in order."""
    for part in _parts(body):
        for kind in _MEDIA:
            content = part.get(kind)
            if isinstance(part.get("uuid"), str) and kind in part:
                yield kind, part["uuid"]
            elif isinstance(content, str):
                yield kind, content
            elif isinstance(content, dict):
                yield from ((kind, content[name]) for name in ("url", "data") if isinstance(content.get(name), str))


def _parts(body: Any) -> Iterator[dict[str, Any]]:
    messages = body.get("messages") if isinstance(body, dict) else None
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, list):
            yield from (part for part in content if isinstance(part, dict))
