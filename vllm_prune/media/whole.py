"""Whether all of a file is there, where its format says how long its parts are."""

from __future__ import annotations

from vllm_prune.media.containers import Container
from vllm_prune.media.errors import UnusableVideo

_NEEDED_BOXES = (b"moov", b"mdat", b"moof")  # the index and the frames; bytes missing from other boxes change no frame
_EBML_HEADER, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


def check_file_is_whole(data: bytes, container: Container) -> None:
    """Raise UnusableVideo if the file ends before its last part does.

    Such a file may open, and the decoder takes the frames that are left for all there are. Bytes behind the last part
    (camera trailers, tags) are nothing to complain about.
    """
    if container.name == "mp4":
        _check_boxes(data)
    elif container.name == "mkv":
        _check_segment(data)


def _check_boxes(data: bytes) -> None:
    start, names = 0, set()
    while start + 8 <= len(data):
        length, name = int.from_bytes(data[start : start + 4], "big"), data[start + 4 : start + 8]
        if length == 1:
            length = int.from_bytes(data[start + 8 : start + 16], "big")
        if length < 8:  # 0: all the rest; other values are damage or no box at all, which the decoder will find
            return
        start += length
        names.add(name)
        if start > len(data) and name in _NEEDED_BOXES:
            raise UnusableVideo(f"the file is cut off: {name.decode()!r} ends at byte {start} of {len(data)}")
    if b"mdat" in names and b"moov" not in names:
        raise UnusableVideo("the file is cut off: it has frames ('mdat') and no index ('moov')")


def _check_segment(data: bytes) -> None:
    """Matroska: a header, then one segment with everything else; its length is unknown in live recordings."""
    header = _element_length(data, len(_EBML_HEADER))
    if header is None:
        return
    start = header[0] + header[1]
    if data[start : start + len(_SEGMENT)] != _SEGMENT:
        return
    segment = _element_length(data, start + len(_SEGMENT))
    if segment is not None and sum(segment) > len(data):
        raise UnusableVideo(f"the file is cut off: 'Segment' ends at byte {sum(segment)} of {len(data)}")


def _element_length(data: bytes, at: int) -> tuple[int, int] | None:
    """Where an EBML element's content starts and how long it is; None if the length is left open or not there.

    The number of leading zero bits of the length says how many bytes follow its first one; all ones: left open.
    """
    width = 9 - data[at].bit_length() if at < len(data) else 9
    if width > 8:
        return None
    bits = (1 << (7 * width)) - 1
    value = int.from_bytes(data[at : at + width], "big") & bits
    return None if value == bits else (at + width, value)
