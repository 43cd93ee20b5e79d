"""A file that was cut off is told from one with bytes behind its last part."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from media_files import WRITTEN, gif, kept, written

from vllm_prune.media.containers import identify
from vllm_prune.media.errors import UnusableVideo
from vllm_prune.media.whole import check_file_is_whole

TRAILERS = {
    "id3": b"ID3\x04\0\0\0\0\0\x76" + bytes(118),
    "text": b"recorded by a camera of the brand X\n" * 12,
    "gps": (3000).to_bytes(4, "big") + b"gps0" + bytes(1000),
    "free": (5000).to_bytes(4, "big") + b"free" + bytes(10),
    "small number": (5).to_bytes(4, "big") + b"mdat",
}


def check(data: bytes) -> None:
    check_file_is_whole(data, identify(data))


@pytest.mark.parametrize("name", ["trailing_id3.mp4", "trailing_text.mp4", "live.webm", "av1.mp4", "b_frames.ts"])
def test_kept_files_are_whole(name):
    check(kept(name))


@pytest.mark.parametrize("ending", WRITTEN)
def test_written_files_are_whole(ending):
    check(written(ending))


@pytest.mark.parametrize("trailer", TRAILERS)
def test_bytes_behind_the_last_box_are_nobodys_business(trailer):
    check(written("mp4") + TRAILERS[trailer])


@given(st.binary(max_size=300))
def test_any_bytes_behind_the_last_box_are_nobodys_business(trailer):
    check(written("mp4") + trailer)


@given(st.sampled_from(["mp4", "mov", "mkv", "webm"]), st.data())
def test_a_file_without_its_end_is_cut_off(ending, draw):
    data = written(ending)
    end = draw.draw(st.integers(len(data) // 2, len(data) - 1))
    with pytest.raises(UnusableVideo, match=r"the file is cut off: ('\w+' ends at byte \d+ of \d+|.* no index)"):
        check(data[:end])


@given(st.sampled_from(["mp4", "mkv"]), st.binary(max_size=400))
def test_damage_is_left_to_the_decoder(ending, damage):
    """The checks end, and raise nothing else, whatever the lengths in the file say."""
    data = written(ending)
    for start in (8, 40, len(data) // 2):
        with suppress(UnusableVideo):
            check(data[:start] + damage + data[start + len(damage) :])


def test_formats_without_a_length_say_nothing():
    for data in (gif()[:-100], written("ts")[:-100], written("flv")[:-100]):
        check(data)
