"""The page `/prune`, in a real browser and against a real server.

VLLM_PRUNE_PICTURES=docs/images  also writes what the browser shows, for the README
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import socket
from pathlib import Path

import httpx
import pytest
from browser import CHROMIUM, NO_CHROMIUM, Browser
from PIL import Image
from serving_media import data_url, mp4, png
from serving_server import PAGE_KEY, Server, text, video

from vllm_prune.budget import plan_counts
from vllm_prune.config import PRESETS
from vllm_prune.embedded import clips

CLIP = clips()[0]
ASKED = CLIP.questions[0]
ABOUT_CLIP = (video(data_url(CLIP.path.read_bytes())), text(ASKED.question))
TOKENS = 128
CELLS = "/v1/prune/cells"
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("browser")) as running:
        yield running


@pytest.fixture(scope="module")
def page(browser, embedded):
    """The page, with its key given."""
    browser.open(f"{embedded.root}/prune")
    browser.wait("document.querySelector('#status').innerText.includes('API key')")
    browser.run(
        f"(() => {{ const key = document.querySelector('#key'); key.value = '{PAGE_KEY}'; "
        "key.dispatchEvent(new Event('change')); })()"
    )
    browser.wait("document.querySelector('#status').innerText === 'Choose a video or a picture to begin.'")
    return browser


def post(server: Server, path: str, body: dict) -> httpx.Response:
    return httpx.post(f"{server.root}{path}", json=body, headers={"Authorization": f"Bearer {PAGE_KEY}"}, timeout=120)


def refusal(server: Server, body: dict) -> str:
    """Why the cells are refused."""
    response = post(server, CELLS, body)
    assert response.status_code == 400, response.text
    return response.json()["error"]["message"]


def fill(page: Browser, question: str, preset: str) -> None:
    page.run(f"document.querySelector('#question').value = {json.dumps(question)}")
    page.run(
        f"(() => {{ const list = document.querySelector('#preset'); list.value = {json.dumps(preset)}; "
        "list.dispatchEvent(new Event('change')); })()"
    )


def ask(page: Browser) -> None:
    done = page.run("document.documentElement.dataset.asked || '0'")
    page.click("#go")
    page.wait(f"document.documentElement.dataset.asked > {done}", seconds=120)


def numbers(page: Browser, side: str) -> dict[str, str]:
    lines = page.text(f"#{side} table").splitlines()
    return dict(line.split("\t") for line in lines if "\t" in line)


@needs_browser
def test_both_answers_stand_side_by_side(page):
    page.choose_file("#file", CLIP.path)
    page.wait("!document.querySelector('#go').disabled")
    fill(page, ASKED.question, "default")
    ask(page)
    kept = plan_counts(PRESETS["default"], TOKENS).kept
    assert page.text("#full .said") == ASKED.answer
    assert page.text("#pruned .said") == ASKED.answer
    full, pruned = numbers(page, "full"), numbers(page, "pruned")
    assert full["tokens of the video"] == f"{TOKENS} of {TOKENS}"
    assert pruned["tokens of the video"] == f"{kept} of {TOKENS}"
    for side in (full, pruned):
        assert float(side["time to the first token"].split()[-2]) > 0
    left, right = (
        page.run(f"document.querySelector('#{side}').getBoundingClientRect().x") for side in ("full", "pruned")
    )
    assert left < right


@needs_browser
def test_the_kept_cells_are_drawn_over_the_frames(page):
    view = '[data-part="view"]'
    assert "16 frames sampled by the server, a grid of 8 x 4 x 4 = 128 tokens" in page.text("#cellsFacts")
    assert f"{plan_counts(PRESETS['default'], TOKENS).kept} (20%)" in page.text('[data-part="counts"]')
    tokens = page.picture(view)
    page.click('[data-part="views"] button:nth-child(3)')
    assert tokens.std() > 5
    assert tokens.mean() < page.picture(view).mean()
    page.click('[data-part="views"] button:nth-child(2)')
    assert not page.run("document.querySelector('[data-part=\"views\"] button:nth-child(2)').disabled")
    page.run(
        "(() => { const s = document.querySelector('[data-part=\"slider\"]'); s.value = 9; "
        "s.dispatchEvent(new Event('input')); })()"
    )
    assert page.text('[data-part="clock"]').startswith("frame 10 of 16")
    if folder := os.environ.get("VLLM_PRUNE_PICTURES"):
        Image.fromarray(page.picture()).save(Path(folder) / "page.png")


@needs_browser
def test_a_dropped_video_and_another_method(page):
    """Dropped on the page, asked with a configuration of the user's own, of which no question chooses."""
    clip = base64.b64encode(clips()[1].path.read_bytes()).decode()
    page.run(
        f"(() => {{ const bytes = Uint8Array.from(atob('{clip}'), c => c.charCodeAt(0)); "
        "const dataTransfer = new DataTransfer(); "
        "dataTransfer.items.add(new File([bytes], 'dropped.mp4', {type: 'video/mp4'})); "
        "document.querySelector('#drop').dispatchEvent(new DragEvent('drop', {dataTransfer, bubbles: true})); })()"
    )
    page.wait("document.querySelector('#name').innerText.startsWith('dropped.mp4')")
    fill(page, clips()[1].questions[0].question, "custom")
    page.run("""document.querySelector('#json').value = '{"stage1": false, "method": "uniform", "keep_ratio": 0.25}'""")
    for _ in range(2):  # asked again, it is encoded again, so that it is traced again
        ask(page)
        assert numbers(page, "pruned")["tokens of the video"] == "32 of 128"
        assert "32 (25%)" in page.text('[data-part="counts"]')


@needs_browser
def test_frames_by_the_tokens_that_are_kept(page, tmp_path):
    """8 frames a second, of which vLLM samples 2; with a fifth of the tokens all of them are shown."""
    path = tmp_path / "long.mp4"
    path.write_bytes(mp4(240, 112, 112, fps=8.0))
    page.choose_file("#file", path)
    page.wait("document.querySelector('#name').innerText.startsWith('long.mp4')")
    fill(page, "What happens?", "custom")
    asked = {"preset": "default", "frames": {"tokens": 384}}
    page.run(f"document.querySelector('#json').value = {json.dumps(json.dumps(asked))}")
    ask(page)
    full, pruned = numbers(page, "full"), numbers(page, "pruned")
    assert (full["frames of the video"], full["tokens of the video"]) == ("60 of 240", "480 of 480")
    assert (pruned["frames of the video"], pruned["tokens of the video"]) == ("240 of 240", "384 of 1,920")
    assert "240 frames sampled by the server, a grid of 120 x 4 x 4 = 1,920 tokens" in page.text("#cellsFacts")


@needs_browser
def test_a_picture_is_asked_and_its_cells_are_drawn(page, tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(png(112, 168, seed=7))
    page.choose_file("#file", path)
    page.wait("!document.querySelector('#picture').hidden && document.querySelector('#picture').naturalWidth === 168")
    for choice, kept in (("dpp, 50%", 12), ("the question, 25%", 6)):
        fill(page, "What is in the picture?", choice)
        ask(page)
        assert numbers(page, "full")["tokens of the picture"] == "24 of 24"
        assert numbers(page, "pruned")["tokens of the picture"] == f"{kept} of 24"
        assert "A grid of 4 x 6 = 24 tokens" in page.text("#cellsFacts")
        assert f"{kept} ({kept / 24:.0%})" in page.text('[data-part="counts"]')


@needs_browser
def test_a_sample_clip_is_offered_played_and_asked(page):
    sample = clips()[2]
    page.run(
        f"(() => {{ const list = document.querySelector('#sample'); list.value = '{sample.name}'; "
        "list.dispatchEvent(new Event('change')); })()"
    )
    page.wait(f"document.querySelector('#name').innerText.startsWith('{sample.name}.mp4')")
    page.wait("document.querySelector('#preview').videoWidth === 112 && !document.querySelector('#preview').hidden")
    page.wait(f"document.querySelector('#question').value === {json.dumps(sample.questions[0].question)}")
    offered = page.run("[...document.querySelectorAll('#questions option')].map(option => option.value)")
    assert offered == [asked.question for asked in sample.questions]
    fill(page, sample.questions[0].question, "default")
    ask(page)
    assert page.text("#full .said") == sample.questions[0].answer


@needs_browser
def test_what_the_server_refuses_is_told(page):
    fill(page, ASKED.question, "custom")
    page.run("""document.querySelector('#json').value = '{"method": "uniform", "keep_ratio": 7}'""")
    ask(page)
    assert "keep_ratio=7" in page.text("#pruned .said")
    assert page.text("#full .said")
    page.run("""document.querySelector('#json').value = '{'""")
    page.click("#go")
    page.wait("document.querySelector('#status').innerText.includes('not valid JSON')")


@needs_browser
def test_nothing_is_fetched_from_elsewhere(page, embedded):
    own = (embedded.root, "data:", "blob:", "about:")
    assert all(address.startswith(own) for address in page.requested())
    # The server's refusals (401 without the key, 400 of the configuration) are no faults of the page.
    assert [text for text in page.complaints() if "Failed to load resource" not in text] == []


@needs_browser
def test_a_server_that_may_not_keep_everything_says_so(browser, embedded, tmp_path):
    """The page itself, told by its server that requests may only tighten."""
    settings = httpx.get(f"{embedded.root}/v1/prune/server", headers={"Authorization": f"Bearer {PAGE_KEY}"}).json()
    browser.open(f"{embedded.root}/prune")
    browser.run(
        f"page.server = {json.dumps({**settings, 'override': 'tighten'})}; describeServer(); prunings().canUnprune"
    )
    assert "--prune-override any" in browser.text("#note")


def test_a_server_with_a_selector_offers_every_preset(embedded):
    settings = httpx.get(f"{embedded.root}/v1/prune/server", headers={"Authorization": f"Bearer {PAGE_KEY}"}).json()
    assert settings["presets"] == {name: config.to_dict() for name, config in PRESETS.items()}


@needs_browser
def test_the_page_lists_what_the_server_offers(browser, embedded):
    settings = httpx.get(f"{embedded.root}/v1/prune/server", headers={"Authorization": f"Bearer {PAGE_KEY}"}).json()
    few = {**settings, "presets": {"aggressive": settings["presets"]["aggressive"]}, "keeps_everything": True}
    browser.open(f"{embedded.root}/prune")
    browser.run(f"page.server = {json.dumps(few)}; describeServer()")
    assert browser.run("[...document.querySelectorAll('#preset option')].map(option => option.value)") == [
        "",
        "aggressive",
        "custom",
    ]
    assert browser.run("document.querySelector('#preset').value") == ""


def test_the_cells_want_the_key_and_say_what_is_missing(embedded):
    body = {"video": data_url(CLIP.path.read_bytes()), "trace_key": "0" * 32}
    assert httpx.post(f"{embedded.root}{CELLS}", json=body).status_code == 401
    assert httpx.get(f"{embedded.root}/prune").status_code == 200
    assert "no trace of this request" in refusal(embedded, body)
    assert "keep_ratio=7" in refusal(embedded, body | {"prune": {"method": "uniform", "keep_ratio": 7}})


def test_samples_want_the_key_and_are_the_packages_own_clips_alone(embedded):
    samples = f"{embedded.root}/v1/prune/samples"
    own = {"Authorization": f"Bearer {PAGE_KEY}"}
    assert httpx.get(samples).status_code == httpx.get(f"{samples}/{CLIP.name}").status_code == 401
    assert [entry["name"] for entry in httpx.get(samples, headers=own).json()] == [clip.name for clip in clips()]
    assert httpx.get(f"{samples}/{CLIP.name}", headers=own).content == CLIP.path.read_bytes()
    for name in ("absent", "clips.json", "..%2Fmodel%2Fconfig.json", "%2Fetc%2Fpasswd"):
        assert httpx.get(f"{samples}/{name}", headers=own).status_code in (400, 404)


def test_a_request_without_the_page_gets_its_cells_by_its_own_key(embedded):
    key = secrets.token_hex(16)
    asked, other = ({"method": "attention", "keep_ratio": ratio} for ratio in (0.3, 0.35))
    embedded.ask(*ABOUT_CLIP, prune={**asked, "trace_key": key})
    body = {"video": data_url(CLIP.path.read_bytes()), "prune": asked, "trace_key": key}
    story = post(embedded, CELLS, body)
    assert (story.status_code, story.json()["grid"]) == (200, [8, 4, 4])
    wrong = key[1:] + ("1" if key[0] == "0" else "0")
    assert "no trace of this request" in refusal(embedded, body | {"trace_key": wrong})
    assert "not of one video with this configuration" in refusal(embedded, body | {"prune": other})


@pytest.mark.parametrize("prune", [None, {"stage1": False, "method": "uniform", "keep_ratio": 0.25}])
def test_nobody_gets_the_cells_of_a_request_without_a_key(embedded, traces_of_the_page, prune):
    """Whatever else is known of it: its video, its configuration, its prompt, its time, its file's name."""
    before = set(traces_of_the_page.glob("*.npz"))
    shown = data_url(mp4(16, 112, 112, seed=41))  # that no other test has asked about, so that it is encoded
    embedded.ask(video(shown), text(ASKED.question), prune=prune)
    (written,) = set(traces_of_the_page.glob("*.npz")) - before
    body = {"video": shown, "prune": prune, "prompt_token_ids": [], "since": 0}
    for key in (None, "", "*", "0" * 32, written.stem, f"../page/{written.stem}", "[0-9a-f]" * 4):
        refusal(embedded, body | {"trace_key": key})


def test_the_cells_open_nothing_but_data_urls(embedded, tmp_path):
    """A file, and a server that counts who comes, are there to be opened; refusals do not tell what exists."""
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(CLIP.path.read_bytes())
    key = secrets.token_hex(16)
    embedded.ask(*ABOUT_CLIP, prune={"trace_key": key})
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/clip.mp4"
        for name in (str(secret), f"file://{secret}", url, str(tmp_path / "absent"), "", "DATA:", " data:video/mp4,"):
            assert refusal(embedded, {"video": name, "trace_key": key}).startswith("video: must be a data URL")
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_it_is_off_unless_asked_for(server):
    assert httpx.get(f"{server.root}/prune").status_code == 404


def test_traces_that_cannot_be_written_are_counted_and_end_nothing(embedded, traces_of_the_page):
    """A file in the folder's place, as unwritable as a full disk; then the folder is back."""
    folder = traces_of_the_page

    def ask_keeping(ratio):
        prune = {"stage1": False, "method": "uniform", "keep_ratio": ratio}
        assert embedded.ask(*ABOUT_CLIP, prune=prune).usage.completion_tokens

    ask_keeping(0.61)
    aside = folder.rename(folder.with_name("aside"))
    folder.write_text("a file")
    for ratio in (0.62, 0.63):
        ask_keeping(ratio)
    assert embedded.metric("vllm_prune:lost_traces_total") == 2
    assert embedded.log().count("cannot be written") == 1
    folder.unlink()
    aside.rename(folder)
    before = len(list(folder.glob("*.npz")))
    ask_keeping(0.64)
    assert len(list(folder.glob("*.npz"))) == before + 1
    assert embedded.metric("vllm_prune:lost_traces_total") == 2
    assert (folder.stat().st_mode & 0o777, {path.stat().st_mode & 0o777 for path in folder.iterdir()}) == (
        0o700,
        {0o600},
    )
