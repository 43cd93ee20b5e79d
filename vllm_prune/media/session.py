"""One video's way through a decoding process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from vllm_prune.media.capture import RemoteCapture
from vllm_prune.media.containers import Container
from vllm_prune.media.errors import UnusableVideo, convert_line
from vllm_prune.media.process import DecoderProcess

_LOST_AT_MOST = 0.1  # of the sampled frames; headers that count a frame or two too many are common
_CODECS = {
    **dict.fromkeys(("AV01", "av01"), "AV1"),
    **dict.fromkeys(("vvc1", "vvi1"), "H.266"),
    **dict.fromkeys(("hevc", "hev1", "hvc1", "HEVC"), "H.265"),
    **dict.fromkeys(("h264", "H264", "avc1", "avc3"), "H.264"),
    **dict.fromkeys(("vp90", "VP90", "vp09"), "VP9"),
    **dict.fromkeys(("VP80", "vp08"), "VP8"),
    **dict.fromkeys(("FMP4", "mp4v", "MP4V"), "MPEG-4 part 2"),
}
"""Names of codecs, by what OpenCV tells of them."""
_NOT_IN_OPENCV = ("AV1", "H.266")  # in its usual builds


class Session:
    """A file, and what its decoder found out about it.

    Args:
        count: Count the frames instead of believing the file.
    """

    def __init__(self, decoder: DecoderProcess, data: bytes, container: Container, *, count: bool = False) -> None:
        self._decoder, self._data, self._container, self._count = decoder, data, container, count
        self.capture: RemoteCapture | None = None

    def open(self) -> RemoteCapture:
        """The file, opened.

        Raises:
            UnusableVideo: It has no video stream.
        """
        self.capture = RemoteCapture(self._decoder, self._data, self._container.demuxers)
        if not self.capture.isOpened():
            raise UnusableVideo(
                f"Could not open video stream: the {self._container.label} file is damaged, or holds no pictures"
            )
        return self.capture

    def frames_from_the_start(self, stated: int) -> int:
        """The number of frames: the one `stated`, if there is one and it is to be believed; the file is opened afresh.

        vLLM finds `stated` by seeking to the end and back, which loses the first frames of some formats.

        Raises:
            UnusableVideo: There are none.
        """
        assert self.capture is not None
        self.capture.reopen()
        if self._count:
            number = self.capture.count()
            if number == 0:
                raise self.no_frame()
            return number
        return stated if stated > 0 else self.count_packets()

    def count_packets(self) -> int:
        """The number of frames by the parts that the file has, none of which is decoded.

        Raises:
            UnusableVideo: There are none.
        """
        assert self.capture is not None
        number = self.capture.count_packets()
        if number == 0:
            raise self.no_frame()
        return number

    def no_frame(self) -> UnusableVideo:
        """Why no frame can be decoded."""
        assert self.capture is not None
        fourcc = self.capture.fourcc()
        codec = _CODECS.get(fourcc, fourcc or "unknown")
        what = f"no frame can be decoded: the codec is {codec} in {self._container.label}"
        if codec in _NOT_IN_OPENCV:
            return UnusableVideo(f"{what}, which this server's OpenCV does not decode", convert_line())
        if fourcc in _CODECS:
            return UnusableVideo(f"{what}, and the file is damaged")
        return UnusableVideo(
            f"{what}; the file is damaged, or this server's OpenCV does not decode it", f"if it plays, {convert_line()}"
        )


_Decoded = TypeVar("_Decoded", bound=tuple[Any, ...])
_current: ContextVar[Session | None] = ContextVar("session", default=None)


def current_session() -> Session | None:
    """That of the video which this thread decodes."""
    return _current.get()


@contextmanager
def _session(session: Session) -> Iterator[Session]:
    token = _current.set(session)
    try:
        yield session
    finally:
        _current.reset(token)


def decode(decoder: DecoderProcess, data: bytes, container: Container, how: Callable[[], _Decoded]) -> _Decoded:
    """What `how` makes of the file: frames, source, indices sampled, indices decoded.

    Where frames are missing of a file that states no more than a duration, they are counted and sampled again.

    Raises:
        UnusableVideo: None of them can be decoded.
    """
    with _session(Session(decoder, data, container)) as session:
        decoded = how()
        if not decoded[3]:
            raise session.no_frame()
    if container.counts_frames or not frames_are_missing(decoded[2], decoded[3]):
        return decoded
    with _session(Session(decoder, data, container, count=True)):
        return how()


def frames_are_missing(sampled: Sequence[int], decoded: Sequence[int]) -> bool:
    """Whether more than a tenth of the frames, and more than one, could not be decoded.

    >>> frames_are_missing([0, 1, 2, 3], [0, 1, 2]), frames_are_missing([0, 1, 2, 3], [0, 1])
    (False, True)
    """
    return len(sampled) - len(decoded) > max(1, _LOST_AT_MOST * len(sampled))
