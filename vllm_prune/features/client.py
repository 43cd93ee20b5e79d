"""Asks a server of features, and remembers its answers."""

from __future__ import annotations

import base64
import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from vllm_prune.config import PruneConfig
from vllm_prune.features.errors import FeaturesError
from vllm_prune.features.result import WIRE_DTYPES, Features, read_answer

_URL_SCHEMES = ("http://", "https://", "data:", "file://")
_MEDIA_TYPES = {"video": "video/mp4", "image": "image/png"}
"""By modality; vLLM finds out by the bytes what a file is."""
_NOT_FOUND = (404, 405, 501)


class FeaturesClient:
    """One server, one configuration.

    Two requests with the same video, question and configuration are one to the server: the answer is kept here. A
    video is known by its bytes; one given as a URL, by the URL.
    """

    def __init__(
        self,
        url: str,
        *,
        config: PruneConfig | Mapping[str, Any] | str | None = None,
        layer: int = -1,
        text: str | Sequence[int] = "none",
        pad: bool = False,
        dtype: str | None = None,
        wire_dtype: str = "float32",
        model: str | None = None,
        remember: int = 128,
        timeout: float = 300.0,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """What every request asks for.

        Args:
            url: Of the server, without a path.
            config: By which videos are pruned, whole, as `PruneConfig.parse` reads it; what the server has and allows
                decides whether it is served. None: the server's.
            layer: Whose hidden states; 0 is what enters the first, -1 what leaves the last.
            text: "none", "question", "all", or indices into the pruned prompt.
            pad: Whether to get `target_token_num` rows of every video.
            dtype: In which the server's model has to compute, such as "float32"; None: whichever.
            wire_dtype: In which rows travel, "float32" or "float16".
            model: Its name at the server; None: the server's own.
            remember: Answers kept, the latest.
            timeout: Of a request, in seconds.
            headers: Of every request, such as an authorization.

        Raises:
            ValueError: `wire_dtype` or `config` is wrong.
        """
        if wire_dtype not in WIRE_DTYPES:
            raise ValueError(f"wire_dtype={wire_dtype!r}: must be {' or '.join(WIRE_DTYPES)}")
        self._config = None if config is None else _parse(config)
        text = text if isinstance(text, str) else list(text)
        self._asked = {"layer": layer, "text": text, "pad": pad}
        self._dtype, self._wire_dtype, self._model, self._remember = dtype, wire_dtype, model, remember
        self._http = httpx.Client(base_url=url, timeout=timeout, headers=dict(headers or {}))
        self._known: OrderedDict[str, Features] = OrderedDict()
        self.requests = 0
        """That went to the server."""

    def get(self, video: str | Path | bytes, question: str, modality: str = "video") -> Features:
        """Features of one video, or image, with a question about it.

        Args:
            video: A file, its bytes, or a URL that the server can read.
            question: What is asked, after the video.
            modality: "video", or "image": `config`, or the server's, has to say by `image` how these are pruned.

        Raises:
            ValueError: `modality` is another.
            FeaturesError: The server refuses, hands out no features, or differs in precision or configuration.
            OSError: The file cannot be read.
        """
        if modality not in _MEDIA_TYPES:
            raise ValueError(f"modality={modality!r}: must be {' or '.join(_MEDIA_TYPES)}")
        source = video if isinstance(video, bytes) else str(video)
        if isinstance(source, str) and not source.startswith(_URL_SCHEMES):
            source = Path(source).read_bytes()
        key = self._key(source, question, modality)
        if key in self._known:
            self._known.move_to_end(key)
            return self._known[key]
        features = self._ask(source, question, modality)
        self._known[key] = features
        while len(self._known) > self._remember:
            self._known.popitem(last=False)
        return features

    def close(self) -> None:
        """Ends the connection."""
        self._http.close()

    def __enter__(self) -> FeaturesClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _key(self, source: str | bytes, question: str, modality: str) -> str:
        content = source if isinstance(source, bytes) else source.encode()
        config = None if self._config is None else self._config.to_dict()
        rest = [isinstance(source, bytes), modality, question, config, self._asked, self._model]
        return hashlib.sha256(hashlib.sha256(content).digest() + json.dumps(rest, sort_keys=True).encode()).hexdigest()

    def _ask(self, source: str | bytes, question: str, modality: str) -> Features:
        if isinstance(source, bytes):
            source = f"data:{_MEDIA_TYPES[modality]};base64,{base64.b64encode(source).decode()}"
        field = f"{modality}_url"
        content = [{"type": field, field: {"url": source}}, {"type": "text", "text": question}]
        body: dict[str, Any] = {
            "messages": [{"role": "user", "content": content}],
            "add_generation_prompt": True,
            "encoding_format": "base64",
            "embed_dtype": self._wire_dtype,
            "endianness": "little",
            "features": self._asked,
        }
        if self._model is not None:
            body["model"] = self._model
        if self._config is not None:
            body["prune"] = {"preset": "baseline", **self._config.to_dict()}  # whatever the server has beside
        self.requests += 1
        answer = self._post(body)
        features = read_answer(answer, self._wire_dtype)
        self._check(answer)
        return features

    def _post(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            response = self._http.post("/pooling", json=body)
        except httpx.TransportError as error:
            raise FeaturesError(f"no answer from {self._http.base_url}: {error}") from error
        if response.status_code in _NOT_FOUND:
            raise FeaturesError(
                f"{self._http.base_url} has no /pooling ({response.status_code}): it was started for answers, not for "
                f"features; start one with `vllm-prune serve MODEL --runner pooling`"
            )
        if response.status_code != httpx.codes.OK:
            raise FeaturesError(f"{response.status_code}: {_message(response)}")
        answer: Mapping[str, Any] = response.json()
        return answer

    def _check(self, answer: Mapping[str, Any]) -> None:
        dtype, report = answer["features"]["dtype"], answer["prune"]
        if self._dtype not in (None, dtype):
            raise FeaturesError(
                f"dtype={self._dtype!r}: the server's model computes in {dtype}; start it with --dtype "
                f"{self._dtype}, or give dtype={dtype!r}"
            )
        if self._config is not None and PruneConfig.parse(report["config"]) != self._config:
            raise FeaturesError(
                f"config={self._config.to_json()}: the server pruned by {json.dumps(report['config'])}; give that one, "
                f"or start the server with --prune-override any"
            )


def _parse(config: PruneConfig | Mapping[str, Any] | str) -> PruneConfig:
    return config if isinstance(config, PruneConfig) else PruneConfig.parse(config)


def _message(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return response.text[:200]
