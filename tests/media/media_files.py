"""Files of many formats, made in the tests or kept beside them."""

from __future__ import annotations

import io
import tempfile
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

FILES = Path(__file__).with_name("files")
NUM_FRAMES, SIDE = 16, 112
WRITTEN = {
    "mp4": ("mp4", "mp4v"),
    "mov": ("mp4", "mp4v"),
    "mkv": ("mkv", "mp4v"),
    "webm": ("mkv", "VP80"),
    "ts": ("mpegts", "mp4v"),
    "m2ts": ("mpegts", "mp4v"),
    "mpg": ("mpegps", "mpg1"),
    "flv": ("flv", "FLV1"),
    "avi": ("avi", "MJPG"),
    "wmv": ("asf", "WMV2"),
    "mxf": ("mxf", "mpg2"),
    "nut": ("nut", "mp4v"),
    "ivf": ("ivf", "VP80"),
}
"""By the ending of the file's name: its format and codec."""
TEXTS = {
    "sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    "sdp behind other lines": b"a=tool:x\nv=0\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
    "hls": b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1/x.ts\n",
    "hls with a mark": b"\xef\xbb\xbf#EXTM3U\nfile:///etc/passwd\n",
    "ffconcat": b"ffconcat version 1.0\nfile /etc/passwd\n",
    "dash": b'<?xml version="1.0"?><MPD><BaseURL>http://127.0.0.1/</BaseURL></MPD>',
    "smil": b"<smil><body><video src='http://127.0.0.1/x.mp4'/></body></smil>",
}
"""Texts that make FFmpeg open other files and addresses."""


def frames() -> np.ndarray:
    """uint8 [16, 112, 112, 3]: grey, brighter from frame to frame, so that no two are alike."""
    return np.repeat(np.arange(20, 20 + 12 * NUM_FRAMES, 12, np.uint8), SIDE * SIDE * 3).reshape(-1, SIDE, SIDE, 3)


@cache
def written(ending: str) -> bytes:
    """A file of `frames()` in one of WRITTEN."""
    _, codec = WRITTEN[ending]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"clip.{ending}")
        fourcc = cv2.VideoWriter_fourcc(*codec)
        writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, fourcc, 25.0, (SIDE, SIDE))
        assert writer.isOpened(), ending
        for frame in frames():
            writer.write(frame)
        writer.release()
        return path.read_bytes()


@cache
def gif() -> bytes:
    buffer = io.BytesIO()
    first, *others = (Image.fromarray(frame) for frame in frames())
    first.save(buffer, "GIF", save_all=True, append_images=others, duration=125)
    return buffer.getvalue()


def y4m(width: int = SIDE, height: int = SIDE, number: int = NUM_FRAMES) -> bytes:
    frame = b"FRAME\n" + bytes([100]) * (height * width) + bytes([128]) * (2 * height * width)
    return f"YUV4MPEG2 W{width} H{height} F8:1 Ip A1:1 C444\n".encode() + number * frame


def picture(kind: str, width: int = 56, height: int = 56) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 30)).save(buffer, kind)
    return buffer.getvalue()


def kept(name: str) -> bytes:
    """One of `files/`."""
    return (FILES / name).read_bytes()


def decoded_here(data: bytes) -> np.ndarray:
    """All frames [F, height, width, 3] in RGB, as OpenCV decodes them in this process."""
    capture = cv2.VideoCapture(io.BytesIO(data), cv2.CAP_FFMPEG, [])
    made = []
    while True:
        ok, frame = capture.read()
        if not ok:
            return np.stack(made)
        made.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
