"""vLLM's own loaders over the decoding processes: the frames they took before, and those they lost."""

from __future__ import annotations

import base64

import numpy as np
import pytest
from media_files import NUM_FRAMES, WRITTEN, decoded_here, gif, kept, picture, written, y4m

from vllm_prune.patches import apply_all
from vllm_prune.show.errors import ShowError
from vllm_prune.show.media import load_video

LOADERS = ["opencv", "qwen2_vl", "qwen3_vl", "opencv_dynamic"]


@pytest.fixture(scope="module")
def connector():
    from vllm.multimodal.media.connector import MediaConnector

    apply_all()
    return MediaConnector({})


def data_url(data: bytes, kind: str = "video/mp4") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def frame_list(*frames: bytes) -> str:
    return "data:video/jpeg;base64," + ",".join(base64.b64encode(frame).decode() for frame in frames)


def refusal(connector, url: str) -> str:
    from vllm.exceptions import VLLMUnprocessableEntityError

    with pytest.raises(VLLMUnprocessableEntityError) as refused:
        connector.fetch_video(url, video_processor="Qwen2VLVideoProcessor")
    return refused.value.args[0]


def test_addresses_may_be_given_by_name(connector):
    from vllm.exceptions import VLLMUnprocessableEntityError

    assert connector.fetch_image(image_url=data_url(picture("PNG"), "image/png")).media.mode == "RGB"
    with pytest.raises(VLLMUnprocessableEntityError, match="video_url='data:video/mp4,abc'"):
        connector.fetch_video(video_url="data:video/mp4,abc")


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("recovery", [False, True])
def test_every_loader_takes_the_frames_it_took_before(connector, loader, recovery):
    from vllm.multimodal.video import VIDEO_LOADER_REGISTRY
    from vllm.multimodal.video_decoders import VideoTargetMetadata, opencv

    loader_class = VIDEO_LOADER_REGISTRY.load(loader)
    frames, metadata = loader_class.load_bytes(written("mp4"), num_frames=5, frame_recovery=recovery)
    target = VideoTargetMetadata(5, loader_class.load_bytes.__defaults__[1], 300)
    unpatched = opencv.decode_opencv.__wrapped__
    expected, source, _, valid = unpatched(loader_class, written("mp4"), target, {}, frame_recovery=recovery)
    assert np.array_equal(frames, expected)
    assert metadata["frames_indices"] == valid
    assert metadata["total_num_frames"] == source.total_frames_num == NUM_FRAMES


@pytest.mark.parametrize("name", ["b_frames.ts", "live.webm", "trailing_id3.mp4", "trailing_text.mp4"])
def test_whole_files_are_answered_whole(connector, name):
    frames, metadata = connector.fetch_video(data_url(kept(name)), video_processor="Qwen2VLVideoProcessor").media
    assert metadata["total_num_frames"] == NUM_FRAMES
    assert np.array_equal(frames, decoded_here(kept(name))[metadata["frames_indices"]])


@pytest.mark.parametrize("ending", [ending for ending in WRITTEN if WRITTEN[ending][0] in ("mp4", "mkv", "mpegts")])
def test_written_files_are_answered_whole(connector, ending):
    frames, metadata = connector.fetch_video(data_url(written(ending)), video_processor="Qwen2VLVideoProcessor").media
    assert metadata["total_num_frames"] == NUM_FRAMES
    assert np.array_equal(frames, decoded_here(written(ending))[metadata["frames_indices"]])


def test_frames_are_counted_where_a_duration_promises_too_many(connector):
    """A recording of which the end is missing, in a format that is made to be cut anywhere."""
    whole = written("ts")
    data = whole[: 188 * (len(whole) // 188 // 2)] + whole[-188:]
    frames, metadata = connector.fetch_video(data_url(data), video_processor="Qwen2VLVideoProcessor").media
    assert 2 <= len(frames) <= metadata["total_num_frames"] < NUM_FRAMES


@pytest.mark.parametrize("data", [gif(), y4m()], ids=["gif", "y4m"])
def test_other_formats_that_are_taken(connector, data):
    frames, _ = connector.fetch_video(data_url(data), video_processor="Qwen2VLVideoProcessor").media
    assert len(frames) >= 4


def test_a_codec_that_cannot_be_decoded_is_named(connector):
    message = refusal(connector, data_url(kept("av1.mp4")))
    assert "codec is AV1 in MP4" in message
    assert message.endswith("convert it: ffmpeg -i INPUT -c:v libx264 -pix_fmt yuv420p OUTPUT.mp4")


def test_a_crash_is_a_refusal(connector, monkeypatch):
    monkeypatch.setenv("VLLM_PRUNE_CONTAINERS", "avi")
    assert "damaged" in refusal(connector, data_url(kept("crash.avi")))
    frames, _ = connector.fetch_video(data_url(written("avi")), video_processor="Qwen2VLVideoProcessor").media
    assert len(frames) == 4


LISTS = {
    "two sizes": (frame_list(picture("JPEG"), picture("JPEG", 28, 56)), "frame 1 of the list has 28x56 pixels"),
    "empty": (frame_list(), "the list of frames is empty"),
    "a gap": (frame_list(picture("JPEG"), b"", picture("JPEG")), "frame 1 of the list is empty"),
    "no picture": (frame_list(picture("JPEG"), b"text"), "frame 1 of the list is no picture"),
}


@pytest.mark.parametrize("name", LISTS)
def test_a_list_of_frames_says_which_one_is_wrong(connector, name):
    url, said = LISTS[name]
    message = refusal(connector, url)
    assert said in message
    assert "data:video/jpeg;base64,FRAME,FRAME" in message
    assert "video/mp4" not in message


def test_lists_of_frames_are_answered_as_before(connector):
    for kind in ("JPEG", "PNG"):
        frames, _ = connector.fetch_video(frame_list(picture(kind), picture(kind))).media
        assert frames.shape == (2, 56, 56, 3)


def test_a_picture_in_place_of_a_video(connector):
    message = refusal(connector, data_url(picture("PNG"), "video/png"))
    assert "PNG picture; send it as image_url" in message
    assert "video/mp4" not in message


SHOWN = {
    "one_frame.mp4": "the file has 1 frame(s) and a video needs 2",
    "av1.mp4": "codec is AV1",
    "crash.avi": "AVI, which is not let in",
}


@pytest.mark.parametrize("name", SHOWN)
def test_show_goes_through_the_same_checks(tmp_path, name):
    from vllm_prune.embedded import model_path

    file = tmp_path / name
    file.write_bytes(kept(name))
    with pytest.raises(ShowError) as refused:
        load_video(str(file), str(model_path()))
    message = str(refused.value)
    assert message.startswith(f"video='{name}': cannot be decoded: ")
    assert SHOWN[name] in message
    assert "video_url" not in message
    assert "--allowed-local-media-path" not in message


def test_show_takes_a_recording_without_a_duration(tmp_path):
    from vllm_prune.embedded import model_path

    file = tmp_path / "live.webm"
    file.write_bytes(kept("live.webm"))
    frames, _ = load_video(str(file), str(model_path()))
    assert len(frames) == NUM_FRAMES
