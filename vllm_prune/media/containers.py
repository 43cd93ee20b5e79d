"""The format of a file, by its leading bytes, as FFmpeg's demuxers tell them apart."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """What a file of a format holds, as far as it matters to a video server."""

    VIDEO = "video"
    PICTURE = "picture"
    SOUND = "sound"
    REFERENCES = "references"
    """A text that names other files or addresses, which FFmpeg would open."""
    UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True)
class Container:
    """A file format."""

    name: str
    """As an operator names it."""
    label: str
    """As people know it."""
    kind: Kind = Kind.VIDEO
    demuxers: str = ""
    """FFmpeg's names of the demuxers that may read it, separated by commas."""
    default: bool = False
    """Whether a server takes it without being told to."""
    counts_frames: bool = False
    """Whether its index counts the frames; others hold at most a duration, from which FFmpeg estimates their number."""


_MP4_BOXES = (
    *(b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot", b"styp", b"moof", b"sidx", b"ssix", b"uuid"),
    *(b"pdin", b"meta", b"udta", b"mfra", b"prft", b"emsg", b"junk", b"pict", b"PICT"),
)
"""What the first one may be, as ISO/IEC 14496-12 and QuickTime's format have them."""
_TS_SYNC, _TS_PACKETS, _TS_SIZES = 0x47, 5, (188, 192, 204)  # plain, m2ts with a time in front, with error correction
_TEXT_LOOKED_AT = 4096  # bytes
_REFERENCES = re.compile(
    rb"\A\s*(\xef\xbb\xbf)?\s*(v=0|#EXTM3U|ffconcat|<smil|<MPD|<\?xml|\[playlist\]|\[reference\]|RTSPtext)"
    rb"|^\s*c=IN IP|<MPD\b|<smil\b",
    re.IGNORECASE | re.MULTILINE,
)


def _is_mp4(data: bytes) -> bool:
    return data[4:8] in _MP4_BOXES


def _is_mpegts(data: bytes) -> bool:
    for size in _TS_SIZES:
        for start in range(size):
            packets = data[start : start + size * _TS_PACKETS : size]
            whole = len(packets) == _TS_PACKETS or start + size * len(packets) >= len(data)
            if len(packets) > 1 and whole and set(packets) == {_TS_SYNC}:
                return True
    return False


def _riff(form: bytes) -> Callable[[bytes], bool]:
    return lambda data: data[:4] in (b"RIFF", b"RIFX") and data[8:12] == form


def _starts(*leading: bytes) -> Callable[[bytes], bool]:
    return lambda data: data.startswith(leading)


def _is_annex_b(data: bytes) -> bool:
    return data.startswith((b"\0\0\0\1", b"\0\0\1")) and len(data) > 4


def _names_files(data: bytes) -> bool:
    return _REFERENCES.search(data[:_TEXT_LOOKED_AT]) is not None


def _video(name: str, label: str, demuxers: str, *, default: bool = False, counts_frames: bool = False) -> Container:
    return Container(name=name, label=label, demuxers=demuxers, default=default, counts_frames=counts_frames)


def _picture(name: str) -> Container:
    return Container(name=name.lower(), label=name, kind=Kind.PICTURE)


def _sound(name: str, label: str) -> Container:
    return Container(name=name, label=label, kind=Kind.SOUND)


# In this order: a signature of four bytes or more at the start says more than a pattern further on.
_FORMATS: tuple[tuple[Container, Callable[[bytes], bool]], ...] = (
    (_video("mkv", "Matroska or WebM", "matroska", default=True), _starts(b"\x1a\x45\xdf\xa3")),
    (_video("gif", "GIF", "gif", default=True), _starts(b"GIF87a", b"GIF89a")),
    (_video("flv", "Flash video", "flv", default=True), _starts(b"FLV\x01")),
    (_video("y4m", "YUV4MPEG2", "yuv4mpegpipe", default=True), _starts(b"YUV4MPEG2")),
    (_video("mpegps", "MPEG program stream", "mpeg", default=True), _starts(b"\0\0\1\xba")),
    (_video("avi", "AVI", "avi", counts_frames=True), lambda data: _riff(b"AVI ")(data) or _riff(b"AVIX")(data)),
    (_video("asf", "ASF (wmv)", "asf"), _starts(bytes.fromhex("3026b2758e66cf11"))),
    (_video("ogg", "Ogg", "ogg"), _starts(b"OggS")),
    (_video("ivf", "IVF", "ivf"), _starts(b"DKIF")),
    (_video("mxf", "MXF", "mxf"), _starts(bytes.fromhex("060e2b34"))),
    (_video("rm", "RealMedia", "rm"), _starts(b".RMF")),
    (_video("nut", "NUT", "nut"), _starts(b"nut/multimedia container\0")),
    (_video("mpegvideo", "bare MPEG video", "mpegvideo"), _starts(b"\0\0\1\xb3")),
    (_picture("PNG"), _starts(b"\x89PNG\r\n\x1a\n")),
    (_picture("JPEG"), _starts(b"\xff\xd8\xff")),
    (_picture("WebP"), _riff(b"WEBP")),
    (_picture("BMP"), lambda data: data.startswith(b"BM") and data[6:10] == bytes(4)),
    (_picture("TIFF"), _starts(b"II*\0", b"MM\0*")),
    (_sound("wav", "WAV"), _riff(b"WAVE")),
    (_sound("flac", "FLAC"), _starts(b"fLaC")),
    (_sound("mp3", "MP3"), _starts(b"ID3", b"\xff\xfb", b"\xff\xf3")),
    (_video("mp4", "MP4 or QuickTime", "mov", default=True, counts_frames=True), _is_mp4),
    (_video("mpegts", "MPEG transport stream", "mpegts", default=True), _is_mpegts),
    (
        Container(name="references", label="SDP, playlist or other list of files", kind=Kind.REFERENCES),
        _names_files,
    ),
    (_video("annexb", "bare H.264 or H.265", "h264,hevc"), _is_annex_b),
)

CONTAINERS = {container.name: container for container, _ in _FORMATS}
"""By name."""

UNKNOWN = Container(name="unknown", label="unknown", kind=Kind.UNKNOWN)


def identify(data: bytes) -> Container:
    r"""The format of a file; UNKNOWN if it begins like none of CONTAINERS.

    >>> identify(b"GIF89a...").name, identify(b"#EXTM3U\n").kind.value, identify(b"").name
    ('gif', 'references', 'unknown')
    """
    return next((container for container, matches in _FORMATS if matches(data)), UNKNOWN)
