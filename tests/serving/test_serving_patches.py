"""Edges of the patches that answer bad input, which no request over HTTP reaches."""

from __future__ import annotations

import io

import pytest
import torch
from PIL import Image
from serving_media import index_in_front, mp4

from vllm_prune.bench.clips import real_clips
from vllm_prune.embedded import clips
from vllm_prune.media.containers import identify
from vllm_prune.media.whole import check_file_is_whole
from vllm_prune.patches.server_damaged_videos import check_frame_size, check_frames_are_there
from vllm_prune.patches.server_media_url_errors import explain
from vllm_prune.serving.api.embeddings_check import check_embeddings


@pytest.mark.parametrize(("lost", "fine"), [(0, True), (1, True), (2, False), (10, False)])
def test_one_lost_frame_of_ten_is_a_header_that_counts_badly(lost, fine):
    if fine:
        check_frames_are_there(range(10), range(10 - lost))
    else:
        with pytest.raises(ValueError, match=f"only {10 - lost} of 10 sampled frames"):
            check_frames_are_there(range(10), range(10 - lost))


def test_a_tenth_may_be_lost_of_many():
    check_frames_are_there(range(100), range(90))
    with pytest.raises(ValueError, match="only 89 of 100"):
        check_frames_are_there(range(100), range(89))


def check_whole(data: bytes) -> None:
    check_file_is_whole(data, identify(data))


def test_whole_files_are_whole():
    for path in (*real_clips().values(), *(clip.path for clip in clips())):
        check_whole(path.read_bytes())
    check_whole(index_in_front(mp4()))


@pytest.mark.parametrize("missing", [1, 100])
def test_files_cut_off_are_not(missing):
    for data in (mp4(), index_in_front(mp4())):
        with pytest.raises(ValueError, match=r"the file is cut off: '\w{4}' ends at byte"):
            check_whole(data[:-missing])


def test_lengths_of_the_other_two_kinds():
    kind = (16).to_bytes(4, "big") + b"ftypisom" + bytes(4) + (8).to_bytes(4, "big") + b"moov"
    check_whole(kind + (0).to_bytes(4, "big") + b"mdat" + bytes(50))  # all the rest
    long = (1).to_bytes(4, "big") + b"mdat" + (66).to_bytes(8, "big") + bytes(50)
    check_whole(kind + long)
    with pytest.raises(ValueError, match="'mdat' ends at byte 90 of 89"):
        check_whole(kind + long[:-1])


def test_other_containers_are_the_decoders_business():
    for data in (b"", b"RIFF", b"\x1aE\xdf\xa3" + bytes(50), bytes(100)):
        check_whole(data)


@pytest.mark.parametrize(("height", "width", "fine"), [(2, 2, True), (1, 50, False), (2, 400, True), (2, 401, False)])
def test_frame_sizes(height, width, fine):
    if fine:
        check_frame_size(height, width)
    else:
        with pytest.raises(ValueError, match=f"frames of {width}x{height} pixels"):
            check_frame_size(height, width)


def test_a_long_address_is_not_repeated():
    error = explain("data:video/mp4;base64," + "A" * 10_000, ValueError("Could not open video stream"))
    assert "(10022 characters)" in str(error)
    assert len(str(error)) < 300
    repeated = explain("http://" + "h" * 10**6, ValueError("cannot resolve " + "h" * 10**6))
    assert len(str(repeated)) < 1000


def test_what_decoders_of_pictures_raise_is_about_the_file():
    import vllm.plugins
    from vllm.multimodal.media.image import ImageEmbeddingMediaIO, ImageMediaIO

    vllm.plugins.load_general_plugins()
    vast = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(vast, "PNG")
    broken = io.BytesIO()
    Image.new("RGB", (64, 64)).save(broken, "AVIF")
    for data in (vast.getvalue(), broken.getvalue()[:-4]):
        with pytest.raises(ValueError, match="Failed to load image: "):
            ImageMediaIO().load_bytes(data)
    with pytest.raises(ValueError, match="Failed to load image embeddings: "):
        ImageEmbeddingMediaIO().load_bytes(bytes(3))


GRID = torch.tensor([[1, 4, 6]])


@pytest.mark.parametrize(
    ("embeddings", "grid", "said"),
    [
        (torch.zeros(6, 4), GRID, r"image_embeds: has shape \[6, 4\] of torch.float32; .* of shape \[6, 8\]"),
        (torch.zeros(5, 8), GRID, r"image_embeds: has shape \[5, 8\]"),
        (torch.zeros(1, 6, 8), GRID, r"image_embeds: has shape \[1, 6, 8\]"),
        (torch.zeros(6, 8, dtype=torch.int64), GRID, r"of torch.int64; .*floating-point"),
        (torch.zeros(6, 8), torch.tensor([[1, 3, 6]]), r"grid=\[1, 3, 6\]: height and width must be multiples of 2"),
        (torch.zeros(6, 8), torch.tensor([[1, -4, -6]]), r"grid=\[1, -4, -6\]: must be three integers of 1 or more"),
        (torch.zeros(6, 8), torch.tensor([[4, 6]]), r"grid=\[4, 6\]: must be three integers"),
        (torch.zeros(0, 8), torch.tensor([[1, 2**40, 2**40]]), r"image_embeds: has shape \[0, 8\]"),
    ],
)
def test_embeddings_fit_the_model_and_their_grid(embeddings, grid, said):
    check_embeddings({}, "image_embeds", "grid", width=8, merge=2)
    check_embeddings({"image_embeds": torch.zeros(6, 8), "grid": GRID}, "image_embeds", "grid", width=8, merge=2)
    with pytest.raises(ValueError, match=said):
        check_embeddings({"image_embeds": embeddings, "grid": grid}, "image_embeds", "grid", width=8, merge=2)


@pytest.mark.parametrize("prune", [{"prune": {"keep_ratio": 0.5}}, {"prune": {}, "max_pixels": 5}])
def test_a_server_of_another_model_refuses_prune_as_before(prune):
    import vllm.plugins
    from vllm.exceptions import VLLMValidationError
    from vllm.renderers.online_renderer import validate_request_mm_kwargs

    vllm.plugins.load_general_plugins()
    with pytest.raises(VLLMValidationError, match="--trust-request-mm-kwargs"):
        validate_request_mm_kwargs(mm_processor_kwargs=prune, media_io_kwargs=None, trust_request_mm_kwargs=False)
    validate_request_mm_kwargs(mm_processor_kwargs=prune, media_io_kwargs=None, trust_request_mm_kwargs=True)
