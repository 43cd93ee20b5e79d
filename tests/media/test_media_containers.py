"""Formats are told by leading bytes; safe ones are taken, others are refused with a way out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from media_files import TEXTS, WRITTEN, gif, kept, picture, written, y4m

from vllm_prune.media.containers import CONTAINERS, UNKNOWN, Kind, identify
from vllm_prune.media.errors import UnusableVideo
from vllm_prune.media.policy import DEFAULT, OPTIONAL, check_container, let_in, parse_containers

EVERYTHING = parse_containers("all")


@pytest.mark.parametrize("ending", WRITTEN)
def test_formats_are_told_by_their_bytes(ending):
    assert identify(written(ending)).name == WRITTEN[ending][0]


def test_the_formats_that_are_made_otherwise():
    assert identify(gif()).name == "gif"
    assert identify(y4m()).name == "y4m"
    assert identify(written("ts")[100:]).name == "mpegts"  # a recording starts within a packet
    assert [identify(picture(kind)).name for kind in ("PNG", "JPEG", "WEBP", "BMP", "TIFF")] == [
        "png",
        "jpeg",
        "webp",
        "bmp",
        "tiff",
    ]


@given(st.binary(max_size=3000))
def test_whatever_the_bytes_they_are_taken_or_refused_in_words(data):
    assert identify(data) in (*CONTAINERS.values(), UNKNOWN)
    if identify(data).kind is Kind.VIDEO:
        assert check_container(data, EVERYTHING) is identify(data)
        return
    with pytest.raises(UnusableVideo) as refused:
        check_container(data, EVERYTHING)
    assert len(str(refused.value)) < 300
    assert refused.value.remedy or not data


@given(st.sampled_from(sorted(WRITTEN)), st.binary(max_size=200))
def test_what_lies_behind_the_leading_bytes_changes_nothing(ending, rest):
    data = written(ending)
    assert identify(data[:1024] + rest) == identify(data)


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("front", [b"", b"\n\n  "])
def test_a_text_that_names_other_files_is_never_taken(name, front):
    assert identify(front + TEXTS[name]).kind is Kind.REFERENCES
    with pytest.raises(UnusableVideo, match="names other files"):
        check_container(front + TEXTS[name], EVERYTHING)


@pytest.mark.parametrize("ending", WRITTEN)
def test_others_than_the_safe_formats_are_let_in_by_name(ending):
    data, name = written(ending), WRITTEN[ending][0]
    if name in DEFAULT:
        assert check_container(data).name == name
        return
    assert name in OPTIONAL
    with pytest.raises(UnusableVideo) as refused:
        check_container(data)
    assert CONTAINERS[name].label in str(refused.value)
    assert "ffmpeg -i INPUT" in str(refused.value)
    assert f"--prune-containers {name}" in str(refused.value)
    assert check_container(data, frozenset({name})).name == name


def test_pictures_and_sound_are_called_so():
    with pytest.raises(UnusableVideo, match="PNG picture; send it as image_url"):
        check_container(picture("PNG"))
    with pytest.raises(UnusableVideo, match="sound"):
        check_container(b"RIFF\0\0\0\0WAVEfmt ")
    with pytest.raises(UnusableVideo, match=r"begins with 74 65 78 74"):
        check_container(b"text")
    with pytest.raises(UnusableVideo, match="empty"):
        check_container(b"")


def test_what_an_operator_lets_in():
    assert let_in({}) == frozenset()
    assert let_in({"VLLM_PRUNE_CONTAINERS": "AVI , ogg,"}) == {"avi", "ogg"}
    assert parse_containers("all") == set(OPTIONAL)
    assert "references" not in parse_containers("all")
    for name in ("references", "png", "wav", "any"):
        with pytest.raises(ValueError, match=f"--prune-containers '{name}'.*avi"):
            parse_containers(f"avi,{name}")


def test_the_damaged_file_is_an_avi():
    assert identify(kept("crash.avi")).name == "avi"


@pytest.mark.parametrize("name", [b"uuid", b"pdin", b"meta", b"udta", b"free", b"skip", b"emsg", b"prft", b"PICT"])
def test_mp4_may_begin_with_other_boxes(name):
    box = (16).to_bytes(4, "big") + name + bytes(8)
    assert identify(box + written("mp4")).name == "mp4"
