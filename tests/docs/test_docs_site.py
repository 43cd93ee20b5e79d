"""The documentation site: it builds without a warning, its links lead somewhere, and it needs no network to be read."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from browser import CHROMIUM, NO_CHROMIUM, Browser

from vllm_prune.cli.bench import BENCHMARKS
from vllm_prune.cli.main import COMMANDS

pytest.importorskip("sphinx", reason="the extra `docs` is not installed")
REPOSITORY = Path(__file__).parents[2]
LOADED = {"script": "src", "img": "src", "link": "href", "source": "src", "video": "src", "iframe": "src"}


class Page(HTMLParser):
    """What a page links to, loads, and can be linked at."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.feed(file.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.anchors |= {value for name in ("id", "name") if (value := given.get(name))}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"] or "")
        if address := given.get(LOADED.get(tag, "")):
            self.loaded.append(address)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as CONTRIBUTING.md says, so that any warning is an error."""
    built = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-n", "-c", "docs", ".", str(built)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return built


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {file.resolve(): Page(file) for file in site.rglob("*.html")}


def test_every_link_leads_to_a_page_and_a_place_on_it(pages: dict[Path, Page], site: Path) -> None:
    broken = defaultdict(list)
    for file, page in pages.items():
        for link in page.links + page.loaded:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            fragment = unquote(parts.fragment)
            is_there = target.is_file() and (not fragment or target not in pages or fragment in pages[target].anchors)
            if not is_there:
                broken[file.relative_to(site)].append(link)
    assert not broken


def test_nothing_is_loaded_from_elsewhere(pages: dict[Path, Page], site: Path) -> None:
    loaded = {address for page in pages.values() for address in page.loaded}
    assert not [address for address in loaded if urlsplit(address).netloc]
    styles = "\n".join(file.read_text() for file in site.rglob("*.css"))
    assert not re.findall(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//", styles)


def test_every_command_and_result_is_there(site: Path) -> None:
    commands = (site / "docs" / "cli.html").read_text()
    names = [name for name in COMMANDS if name != "bench"] + [f"bench-{name}" for name in BENCHMARKS]
    assert [name for name in names if f'id="vllm-prune-{name}"' not in commands] == []
    results = (site / "docs" / "results.html").read_text()
    measured = sorted((REPOSITORY / "benchmarks" / "results").glob("*.json"))
    assert results.count('class="highlight-') >= len(measured) > 10


@pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)
def test_search_works_from_the_folder_alone(site: Path, tmp_path: Path) -> None:
    with Browser(tmp_path) as browser:
        browser.open((site / "search.html").as_uri() + "?q=cluster_ratio")
        browser.wait("document.querySelectorAll('#search-results li a').length > 0")
        found = browser.run("[...document.querySelectorAll('#search-results li a')].map(a => a.pathname)")
        assert any(path.endswith("/docs/configuration.html") for path in found)
        assert all(address.startswith(("file:", "data:", "about:")) for address in browser.requested())
