"""Whether a file or URL is a picture or a video: one rule for all commands, by its name or a data URL's kind."""

from __future__ import annotations

import mimetypes

_TYPES = mimetypes.MimeTypes(filenames=())  # what this machine registers besides must not decide
_ADDED = {".webp": "image/webp", ".avif": "image/avif", ".apng": "image/apng", ".jfif": "image/jpeg"}
for _ending, _type in _ADDED.items():  # what not every Python's own table has
    _TYPES.add_type(_type, _ending)


def media_type(medium: str, default: str) -> str:
    """The MIME type of a file or URL by its name, or as a data URL states it; `default` where neither tells.

    >>> media_type("a/page.WEBP", "video/mp4"), media_type("http://a/b.gif?c=d.mp4#e", "video/mp4")
    ('image/webp', 'image/gif')
    >>> media_type("data:image/avif;base64,AAAA", "video/mp4"), media_type("clip", "video/mp4")
    ('image/avif', 'video/mp4')
    """
    if medium[:5].lower() == "data:":
        return medium[5:].partition(",")[0].partition(";")[0].strip().lower() or default
    is_url = "://" in medium
    name = medium.partition("?")[0].partition("#")[0] if is_url else medium
    return _TYPES.guess_type("/" + name.rpartition("/")[2], strict=False)[0] or default


def is_picture(medium: str) -> bool:
    """Whether a file, URL or data URL is a picture: its type is an image's, animated or not.

    >>> is_picture("page.PNG"), is_picture("moving.gif"), is_picture("clip.mp4"), is_picture("data:video/gif;base64,R0")
    (True, True, False, False)
    """
    return media_type(medium, "video/mp4").startswith("image/")
