"""Answer media that cannot be fetched or decoded with HTTP 422 and a message that names them and says what to do."""

import functools
from typing import Any

from vllm_prune.media.errors import UnusableVideo
from vllm_prune.patches.base import Patch
from vllm_prune.patches.checks import require_leading, require_source

_MODULE = "vllm.multimodal.media.connector"
_TARGET = f"{_MODULE}:MediaConnector.fetch_video_async"
_MARK = "_vllm_prune_explains_errors"
_SHOWN = 60  # characters of a URL
_SAID = 600  # characters of what is wrong

_FRAME_LIST = "data:video/jpeg"
_REMEDIES = {
    _FRAME_LIST: "send frames of one size as data:video/jpeg;base64,FRAME,FRAME,... with each one in base64",
    "data": "send the whole of {a_file} as {example};base64,...",
    "http": "use an address from which this server can load {a_file}, or send the file as a base64 data URL",
    "file": "start the server with --allowed-local-media-path and name {a_file} below it, or use a data URL",
    "": "use an http(s), file or base64 data URL of {a_file}",
}
_WORDS = {
    "video_url": {"a_file": "a video file", "example": "data:video/mp4"},
    "image_url": {"a_file": "a picture file", "example": "data:image/png"},
}


_PICTURE_REMEDIES = {
    "exceeds limit of": "send it smaller",  # Pillow's, before anything is decoded
    "cannot identify image file": "send a PNG, JPEG, WebP, GIF, AVIF, TIFF or BMP file; draw others (SVG, PDF) as one",
}


def _picture_remedy(reason: str) -> str | None:
    """What helps where sending the same file again does not."""
    return next((remedy for said, remedy in _PICTURE_REMEDIES.items() if said in reason), None)


def explain(url: str, error: Exception, field: str = "video_url") -> Exception:
    """The error that the client is to see in place of `error`: field, value, what is wrong, remedy."""
    from vllm.exceptions import VLLMUnprocessableEntityError

    from vllm_prune.config import shorten

    scheme = next(scheme for scheme in _REMEDIES if url[: len(scheme)].lower() == scheme)
    shown = url if len(url) <= _SHOWN else f"{url[:_SHOWN]}... ({len(url)} characters)"
    reason = error.args[0] if isinstance(error, VLLMUnprocessableEntityError) else str(error) or type(error).__name__
    reason = shorten(str(reason), _SAID)  # some libraries repeat the whole address
    if field == "image_url" and (remedy := _picture_remedy(reason)):
        reason = f"{reason}; {remedy}"
    elif not (isinstance(error, UnusableVideo) and error.remedy):
        reason = f"{reason}; {_REMEDIES[scheme].format(**_WORDS[field])}"
    return VLLMUnprocessableEntityError(f"{field}={shown!r}: {reason}", parameter=field)


def _connector() -> Any:
    from vllm.multimodal.media.connector import MediaConnector

    return MediaConnector


def _client_errors() -> tuple[type[Exception], ...]:
    """What vLLM raises where the request is at fault; whatever else comes is the server's and stays as it is."""
    import aiohttp
    from vllm.exceptions import VLLMUnprocessableEntityError

    unsupported = NotImplementedError  # a data URL that is not base64
    unreachable = (OSError, aiohttp.ClientError)  # timeouts, refused connections, unknown hosts, missing files
    return (VLLMUnprocessableEntityError, ValueError, unsupported, *unreachable)


def _verify() -> None:
    connector = _connector()
    for name, field in (("video", "video_url"), ("image", "image_url")):
        for method in (f"fetch_{name}", f"fetch_{name}_async"):
            require_leading(getattr(connector, method), ("self", field), f"{_MODULE}:MediaConnector.{method}")
    refused = ("if allowed_local_media_path is None: raise RuntimeError(",)
    require_source(connector._load_file_url, refused, f"{_MODULE}:MediaConnector._load_file_url")


def _install() -> None:
    connector = _connector()
    connector.fetch_video = _explained(connector.fetch_video, "video_url")
    connector.fetch_image = _explained(connector.fetch_image, "image_url")
    connector.fetch_image_async = _explained_async(connector.fetch_image_async, "image_url")
    connector.fetch_video_async = _explained_async(connector.fetch_video_async, "video_url")
    setattr(connector.fetch_video_async, _MARK, True)


def _explained(fetch: Any, field: str) -> Any:
    from vllm_prune.config import PruneConfigError

    client_errors = _client_errors()

    @functools.wraps(fetch)
    def explained(self: Any, *args: Any, **kwargs: Any) -> Any:
        url = kwargs[field] if field in kwargs else args[0]
        try:
            _require_local_files_allowed(self, url)
            return fetch(self, *args, **kwargs)
        except PruneConfigError as error:
            _count_refusal(error)
            raise
        except client_errors as error:
            raise explain(url, error, field) from error

    return explained


def _explained_async(fetch: Any, field: str) -> Any:
    from vllm_prune.config import PruneConfigError

    client_errors = _client_errors()

    @functools.wraps(fetch)
    async def explained(self: Any, *args: Any, **kwargs: Any) -> Any:
        url = kwargs[field] if field in kwargs else args[0]
        try:
            _require_local_files_allowed(self, url)
            return await fetch(self, *args, **kwargs)
        except PruneConfigError as error:
            _count_refusal(error)
            raise
        except client_errors as error:
            raise explain(url, error, field) from error

    return explained


def _count_refusal(error: Any) -> None:
    """Of a request that a configuration refuses as soon as the file is open: the file is not to blame."""
    from vllm_prune.serving.api.metrics import observe_refusal

    observe_refusal(error)


def _require_local_files_allowed(connector: Any, url: str) -> None:
    # vLLM raises RuntimeError for it, which cannot be told from a failure of the server.
    if url[:5].lower() == "file:" and connector.allowed_local_media_path is None:
        raise ValueError("this server loads no local files")


PATCH = Patch(
    name="server_media_url_errors",
    target=_TARGET,
    process="API server",
    trigger=_MODULE,
    why=(
        "An unreachable address, a local file where none are allowed and a data URL without base64 end in HTTP 500 or "
        "501; what is refused with 4xx says no more than `Could not open video stream` or `cannot identify image file "
        "<_io.BytesIO object>`, or blames `image_url` for a video."
    ),
    how=(
        "Wraps fetch_video, fetch_image and their asynchronous forms: errors that the request is to blame for become "
        "HTTP 422 with field, value, reason and remedy. Audio is answered as before."
    ),
    upstream=(
        "https://github.com/vllm-project/vllm/issues/21254",
        "https://github.com/vllm-project/vllm/pull/48092",
    ),
    remove_when="vllm>=0.33",
    needed=lambda: True,
    applied=lambda: hasattr(_connector().fetch_video_async, _MARK),
    verify=_verify,
    install=_install,
)
