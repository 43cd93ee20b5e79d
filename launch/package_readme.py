"""The README as a package index shows it: where the build is told the repository's address, no link is relative.

A hook of hatchling (`[tool.hatch.metadata.hooks.custom]` in pyproject.toml). An index renders the README apart from its
repository, so that pictures and links to files would lead nowhere; launch/release.sh gives the address and the tag.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

ADDRESS, TAG = "VLLM_PRUNE_REPOSITORY", "VLLM_PRUNE_TAG"
"""Environment variables: the repository's page, https://HOST/OWNER/NAME, and the tag that the links point at."""
_LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^]]*)\]\((?P<target>[^)\s]+)\)")
_ELSEWHERE = re.compile(r"[a-z]+:|#|/", re.IGNORECASE)


class ReadmeHook(MetadataHookInterface):
    """Fills in `readme`, and `urls` where the address is known."""

    def update(self, metadata: dict[str, Any]) -> None:
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        address = os.environ.get(ADDRESS, "").removesuffix("/")
        if address:
            text = absolute_links(text, address, os.environ.get(TAG, "HEAD"))
            metadata["urls"] = {"Repository": address, "Changelog": f"{address}/blob/HEAD/CHANGELOG.md"}
        metadata["readme"] = {"content-type": "text/markdown", "text": text}


def absolute_links(text: str, address: str, tag: str) -> str:
    """Markdown whose links to files are links into the repository at `tag`.

    >>> absolute_links("![a](b.png) [c](d.md#e) [f](#g) [h](https://i)", "https://host/me/it", "v1")
    '![a](https://host/me/it/raw/v1/b.png) [c](https://host/me/it/blob/v1/d.md#e) [f](#g) [h](https://i)'
    """

    def replaced(link: re.Match[str]) -> str:
        if _ELSEWHERE.match(link["target"]):
            return link[0]
        view = "raw" if link["image"] else "blob"
        return f"{link['image']}[{link['text']}]({address}/{view}/{tag}/{link['target']})"

    return _LINK.sub(replaced, text)
