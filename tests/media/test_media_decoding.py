"""A process that decodes: the same frames as OpenCV here, and nothing a file does to it reaches the server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from media_files import NUM_FRAMES, TEXTS, WRITTEN, decoded_here, gif, kept, written, y4m

from vllm_prune.media.capture import RemoteCapture
from vllm_prune.media.containers import CONTAINERS, identify
from vllm_prune.media.errors import DecoderUnavailable, UnusableVideo
from vllm_prune.media.limits import Limits
from vllm_prune.media.pool import DecoderPool
from vllm_prune.media.process import DecoderProcess

GOOD = written("mp4")


def read(pool: DecoderPool, data: bytes, indices: range = range(NUM_FRAMES)) -> np.ndarray:
    with pool.lend() as decoder:
        return RemoteCapture(decoder, data, identify(data).demuxers).read_rgb(indices)[0]


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 60
    while not gone(pid):
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.05)


@pytest.mark.parametrize("ending", WRITTEN)
def test_frames_are_those_of_opencv(pool, ending):
    data = written(ending)
    assert np.array_equal(read(pool, data), decoded_here(data))


@pytest.mark.parametrize("name", ["b_frames.ts", "live.webm", "trailing_id3.mp4"])
def test_frames_of_kept_files_are_those_of_opencv(pool, name):
    assert np.array_equal(read(pool, kept(name)), decoded_here(kept(name)))


@pytest.mark.parametrize("data", [gif(), y4m()], ids=["gif", "y4m"])
def test_frames_of_other_files_are_those_of_opencv(pool, data):
    assert np.array_equal(read(pool, data), decoded_here(data))


def test_some_frames_in_any_order_and_number(pool):
    with pool.lend() as decoder:
        frames, there = RemoteCapture(decoder, GOOD, "mov").read_rgb([9, 3, 3, 40])
    assert there == [3, 9]
    assert np.array_equal(frames, decoded_here(GOOD)[[3, 9]])


def test_the_methods_of_a_capture(pool):
    with pool.lend() as decoder:
        capture = RemoteCapture(decoder, GOOD, "mov")
        assert capture.isOpened()
        assert capture.get(7) == NUM_FRAMES
        assert capture.count() == capture.count_packets() == NUM_FRAMES
        assert capture.grab()
        ok, second = capture.read()
        assert ok
        assert np.array_equal(second[..., ::-1], decoded_here(GOOD)[1])
        assert capture.set(1, 5)
        assert capture.get(1) == 5
        assert [capture.grab() for _ in range(NUM_FRAMES)].count(True) == NUM_FRAMES - 5
        assert capture.read() == (False, None)


def test_frames_stay_as_they_are_while_others_are_decoded(pool):
    """Memory is used again, but not before its frames are gone."""
    with ThreadPoolExecutor(2) as threads:
        kept_frames = list(threads.map(lambda ending: read(pool, written(ending)), ["mp4", "webm", "ts"] * 4))
    parts = [frames[2:5] for frames in kept_frames]
    del kept_frames
    again = [read(pool, y4m()) for _ in range(4)]
    for part, ending in zip(parts, ["mp4", "webm", "ts"] * 4, strict=True):
        assert np.array_equal(part, decoded_here(written(ending))[2:5])
    assert all(np.array_equal(frames, decoded_here(y4m())) for frames in again)


def test_memory_is_used_again_and_given_up_with_its_decoder():
    def descriptors() -> int:
        return sum("memfd:" in os.readlink(f"/proc/self/fd/{name}") for name in _open_descriptors())

    before, pool = descriptors(), DecoderPool(Limits(processes=1))
    for size in (64, 32, 128, 64):
        frames = read(pool, y4m(size, size))
        assert descriptors() == before + 3  # the file's, the frames' and that of the frames' mapping
        del frames
        assert descriptors() == before + 2  # kept for the next ones
    frames = read(pool, y4m())
    pool.close()
    assert descriptors() == before + 2
    del frames
    assert descriptors() == before


def _open_descriptors() -> list[str]:
    return [name for name in os.listdir("/proc/self/fd") if Path(f"/proc/self/fd/{name}").is_symlink()]


def test_a_shorter_file_holds_nothing_of_the_one_before(pool):
    with pool.lend() as decoder:
        for data in (y4m(number=20), y4m(number=3), y4m(number=9)):
            assert RemoteCapture(decoder, data, "yuv4mpegpipe").count() == (len(data) - 40) // (len(y4m(number=1)) - 40)


def test_a_crash_is_one_videos_end(pool):
    with pool.lend() as decoder:
        pid = decoder.pid
        with pytest.raises(UnusableVideo, match=r"damaged.*SIG"):
            RemoteCapture(decoder, kept("crash.avi"), "avi").read_rgb(range(NUM_FRAMES))
    wait_until_gone(pid)
    assert np.array_equal(read(pool, GOOD), decoded_here(GOOD))


def test_ctrl_c_is_not_for_a_decoder(pool):
    with pool.lend() as decoder:
        assert os.getpgid(decoder.pid) != os.getpgid(0)  # a terminal sends it to the whole group


def test_a_decoder_is_kept_for_the_next_video(pool):
    pids = set()
    for data in (GOOD, b"no video", written("webm"), GOOD):
        with pool.lend() as decoder:
            pids.add(decoder.pid)
            assert RemoteCapture(decoder, data, "mov,matroska").isOpened() == (data != b"no video")
    assert len(pids) == 1


def test_a_decoder_is_replaced_after_its_last_video():
    pool, pids = DecoderPool(Limits(processes=1, videos=2)), []
    for _ in range(5):
        with pool.lend() as decoder:
            pids.append(decoder.pid)
            assert RemoteCapture(decoder, GOOD, "mov").isOpened()
    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [2, 2, 1]
    assert gone(pids[0])
    pool.close()


def test_a_decoder_that_hangs_is_replaced():
    pool = DecoderPool(Limits(processes=1, silent_seconds=0.5))
    with pool.lend() as decoder:
        pid = decoder.pid
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(UnusableVideo, match=r"takes too long: .* 0\.5 s without a frame"):
            RemoteCapture(decoder, GOOD, "mov")
    wait_until_gone(pid)
    assert len(read(DecoderPool(Limits(processes=1)), GOOD)) == NUM_FRAMES
    pool.close()


def test_a_video_has_its_time():
    pool = DecoderPool(Limits(processes=1, seconds=0.0))
    with pool.lend() as decoder, pytest.raises(UnusableVideo, match="takes too long"):
        RemoteCapture(decoder, GOOD, "mov")


def test_a_decoder_has_its_memory():
    """One frame of this file takes more than there is: the libraries find out, or it ends the decoder.

    Which of the two depends on how many threads they have. The next file is decoded all the same.
    """
    pool = DecoderPool(Limits(processes=1, memory_bytes=400 << 20))
    with pool.lend() as decoder:
        try:
            capture = RemoteCapture(decoder, y4m(8_000, 8_000, 1), "yuv4mpegpipe")
            frames = capture.read_rgb([0])[1] if capture.isOpened() else []
        except UnusableVideo:
            frames = []
        assert not frames
    assert len(read(pool, y4m())) == NUM_FRAMES
    pool.close()


@pytest.mark.parametrize(
    ("file", "wanted", "message"),
    [
        (y4m(9_000, 8_000, 1), 1, "frames of 9000x8000 pixels; they may have 67108864"),
        (y4m(8_000, 8_000, 1), 40, "40 frames of 8000x8000 pixels take 7680000000 bytes; they may take 5368709120"),
    ],
    ids=["frame", "all"],
)
def test_frames_have_their_memory(pool, file, wanted, message):
    """Nothing is allocated for what a small file claims to hold."""
    with pool.lend() as decoder:
        capture = RemoteCapture(decoder, file, "yuv4mpegpipe")
        with pytest.raises(UnusableVideo, match=message):
            capture.read_rgb(range(wanted))


def test_many_at_a_time_share_the_decoders(pool):
    def decode(_: int) -> tuple[int, np.ndarray]:
        with pool.lend() as decoder:
            return decoder.pid, RemoteCapture(decoder, GOOD, "mov").read_rgb(range(NUM_FRAMES))[0]

    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(decode, range(24)))
    assert len({pid for pid, _ in made}) <= 2
    assert all(np.array_equal(frames, decoded_here(GOOD)) for _, frames in made)


def test_a_caller_that_gives_up_frees_its_place(pool):
    for _ in range(5):
        with pytest.raises(KeyError), pool.lend():
            raise KeyError
    assert len(read(pool, GOOD)) == NUM_FRAMES


@pytest.mark.parametrize("name", TEXTS)
def test_no_demuxer_opens_what_a_text_names(pool, name):
    """A second fence behind the check of the leading bytes: no demuxer of a list, no protocol."""
    for demuxers in sorted({container.demuxers for container in CONTAINERS.values()} - {""}):
        with pool.lend() as decoder:
            begin = time.monotonic()
            assert not RemoteCapture(decoder, TEXTS[name], demuxers).isOpened() or "h264" in demuxers
            assert time.monotonic() - begin < 8  # FFmpeg waits ten seconds for an address to answer


def test_a_decoder_knows_no_keys(monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    monkeypatch.setenv("HF_TOKEN", "secret")
    decoder = DecoderProcess(Limits())
    assert b"secret" not in Path(f"/proc/{decoder.pid}/environ").read_bytes()
    decoder.end()


def test_a_decoder_that_cannot_start_is_the_servers_fault(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(DecoderUnavailable, match=r"exit status 1\).*import cv2"):
        DecoderProcess(Limits())


@pytest.mark.parametrize("busy", [False, True])
def test_decoders_end_with_a_server_that_is_killed(busy):
    code = f"""
import threading, time
from vllm_prune.media.limits import Limits
from vllm_prune.media.process import DecoderProcess
decoder = DecoderProcess(Limits())
decoder.begin()
if {busy}:
    from vllm_prune.media.capture import RemoteCapture
    size = 2000
    frame = b"FRAME\\n" + bytes(size * size * 3)
    data = f"YUV4MPEG2 W{{size}} H{{size}} F8:1 Ip A1:1 C444\\n".encode() + 20 * frame
    capture = RemoteCapture(decoder, data, "yuv4mpegpipe")
    threading.Thread(target=lambda: [capture.count() for _ in range(1000)], daemon=True).start()
    time.sleep(0.3)
print(decoder.pid, flush=True)
time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    assert not gone(pid)
    parent.kill()
    parent.wait()
    wait_until_gone(pid)
