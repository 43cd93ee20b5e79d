"""Frames and data URLs of video files and of folders of pictures."""

import base64

import numpy as np
import pytest
from accuracy_cases import FPS, number_of, write_pictures, write_video

from vllm_prune.bench.accuracy.videos import FileVideo, FrameFolder
from vllm_prune.bench.throughput.errors import BenchmarkError


def numbers(frames):
    return [number_of(pixels) for pixels in frames.pixels]


def decoded(url, tmp_path):
    kind, _, data = url.removeprefix("data:").partition(";base64,")
    assert kind == "video/mp4"
    path = tmp_path / "decoded.mp4"
    path.write_bytes(base64.b64decode(data))
    return FileVideo(path).frames(100)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("videos") / "clip.mp4", frames=24)


def test_frames_are_evenly_spaced(clip):
    frames = FileVideo(clip).frames(4)
    assert frames.indices == (3, 9, 15, 21)
    assert numbers(frames) == [3, 9, 15, 21]
    assert (frames.total, frames.fps) == (24, FPS)
    assert frames.pixels.dtype == "uint8"


def test_short_videos_come_whole(clip):
    assert numbers(FileVideo(clip).frames(100)) == list(range(24))


def test_a_part_is_counted_from_its_start(clip):
    frames = FileVideo(clip, start=1.0, end=2.0).frames(4)
    assert numbers(frames) == [9, 11, 13, 15]
    assert frames.indices == (1, 3, 5, 7)
    assert frames.total == FPS
    assert frames.metadata()["duration"] == 1.0


@pytest.mark.parametrize(("start", "end"), [(5.0, 6.0), (-1.0, 0.0), (2.0, 1.0)])
def test_a_part_has_one_frame_at_least(clip, start, end):
    assert len(FileVideo(clip, start=start, end=end).frames(4).pixels) == 1


def test_a_whole_file_is_sent_as_it_is(clip):
    url = FileVideo(clip).data_url()
    assert base64.b64decode(url.partition(",")[2]) == clip.read_bytes()


def test_a_part_is_sent_as_a_shorter_file(clip, tmp_path):
    sent = decoded(FileVideo(clip, start=1.0, end=2.0).data_url(), tmp_path)
    # Encoded twice: brightness is a step off here and there.
    assert np.allclose(numbers(sent), range(8, 16), atol=1)
    assert sent.fps == FPS


def test_pictures(tmp_path):
    video = FrameFolder(write_pictures(tmp_path / "frames", 12), fps=3.0, start=1.0, end=3.0)
    frames = video.frames(3)
    assert numbers(frames) == [4, 6, 8]
    assert (frames.indices, frames.total, frames.fps) == ((1, 3, 5), 6, 3.0)
    sent = decoded(video.data_url(), tmp_path)
    assert np.allclose(numbers(sent), [3, 4, 5, 6, 7, 8], atol=1)
    assert sent.fps == 3.0


def test_parts_of_a_file_are_other_videos_of_one_scene(clip):
    whole, part = FileVideo(clip), FileVideo(clip, 0.0, 1.0)
    assert whole.key != part.key
    assert whole.scene == part.scene


def test_no_video_is_named(tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_text("no video")
    with pytest.raises(BenchmarkError, match=r"broken\.mp4: not a video"):
        FileVideo(broken).frames(4)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BenchmarkError, match=r"empty: holds no \.jpg or \.png frame"):
        FrameFolder(tmp_path / "empty", 3.0).frames(4)
    (tmp_path / "empty" / "1.png").write_text("no picture")
    with pytest.raises(BenchmarkError, match=r"1\.png: not a picture"):
        FrameFolder(tmp_path / "empty", 3.0).frames(4)
