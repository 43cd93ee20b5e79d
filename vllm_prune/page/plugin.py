"""vLLM's endpoint plugin that serves the page.

vLLM loads an endpoint plugin only where `VLLM_PLUGINS` names it; `vllm-prune serve --prune-page` does that. The page
itself holds no secrets and is served to anybody; what it asks for lies under `/v1`, which vLLM guards by `--api-key`.
"""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from pydantic import BaseModel
from starlette.datastructures import State
from vllm.plugins.endpoint_plugins.interface import EndpointPlugin

from vllm_prune.config import PRESETS, PruneConfig, PruneConfigError
from vllm_prune.embedded import clip_path
from vllm_prune.hook import Hooked, hook
from vllm_prune.media.kinds import is_picture
from vllm_prune.override import ServerSettings
from vllm_prune.page.document import HEADERS, page
from vllm_prune.page.enable import PLUGIN
from vllm_prune.page.find_trace import find_trace
from vllm_prune.page.samples import list_samples
from vllm_prune.serving.api.processor import PruningProcessorMixin
from vllm_prune.serving.wire.settings import read_settings
from vllm_prune.show.errors import ShowError

PATH, SERVER_PATH, CELLS_PATH = "/prune", "/v1/prune/server", "/v1/prune/cells"
SAMPLES_PATH = "/v1/prune/samples"
_STATE = "vllm_prune_page"
_ORDINARY_TOKENS = 4096
"""Of a video by which a preset's count is held against the server's."""


class CellsRequest(BaseModel):
    """Which request of the page's the cells are of."""

    video: str
    """The data URL that was asked about."""
    prune: Any = None
    """The request's own configuration; None: the server's."""
    trace_key: str | None = None
    """What the request gave as its `prune.trace_key`."""


def offered_presets(processor: PruningProcessorMixin) -> dict[str, PruneConfig]:
    """The presets that a request about a video of any ordinary size may ask for."""
    offered = {}
    for name, config in PRESETS.items():
        try:
            processor.settings.check_counts(processor.resolve(name), _ORDINARY_TOKENS)
        except PruneConfigError:
            continue
        offered[name] = config
    return offered


class PageState:
    """What the routes know of the server."""

    def __init__(self, model: str, settings: ServerSettings, processor: Any, media_io_kwargs: dict[str, Any]) -> None:
        """`processor`: the multimodal processor of the server's requests; `model` may be one that prunes nothing."""
        self.model, self.settings, self.media_io_kwargs = model, settings, media_io_kwargs
        self.prunes = isinstance(processor, PruningProcessorMixin)
        self.presets = offered_presets(processor) if self.prunes else {}

    def describe(self) -> dict[str, Any]:
        """For the page, JSON-ready."""
        return {
            "prunes": self.prunes,
            "config": self.settings.config.to_dict(),
            "keeps_everything": self.settings.config.keeps_everything,
            "keeps_images": not self.settings.config.prunes_images,
            "override": self.settings.override,
            "traces": self.settings.trace is not None,
            "presets": {name: config.to_dict() for name, config in self.presets.items()},
        }

    def describe_cells(self, asked: CellsRequest) -> dict[str, Any]:
        """The story of one request, as `vllm_prune.show.html` describes it.

        Raises:
            ValueError: The video is no data URL or cannot be decoded, or there is no trace of the request.
        """
        from vllm_prune.show.html import describe
        from vllm_prune.show.media import load_sampled, load_video, to_frames
        from vllm_prune.show.picture import frames_of, load_picture
        from vllm_prune.show.run import make_story
        from vllm_prune.show.story import label_of, label_of_trace, make_panel

        if not asked.video.startswith("data:"):  # before anything is opened: the text is a stranger's
            raise ShowError("video: must be a data URL; nothing else is opened for a page")
        if self.settings.trace is None:
            raise ShowError("this server writes no traces; start it with --prune-page or --prune-trace DIR")
        config = self.settings.resolve(asked.prune)
        of_picture = is_picture(asked.video)
        traced = find_trace(self.settings.trace, asked.trace_key, config, of_picture=of_picture)
        if of_picture:
            frames, label = frames_of(asked.video, load_picture(asked.video)), label_of_trace(traced)
        else:
            if config.frames is None:
                images, metadata = load_video(asked.video, self.model, self.media_io_kwargs)
            else:
                images, metadata = load_sampled(asked.video, self.model, traced.grid[0], self.media_io_kwargs)
            frames, shown = to_frames(asked.video, images, metadata), config.of_videos
            preset_name = next((name for name, preset in PRESETS.items() if preset == shown), None)
            label = preset_name or label_of(shown.to_json())
        return describe(make_story(self.model, frames, None, [make_panel(label, traced)]))


class PrunePage(Hooked, EndpointPlugin):
    """The plugin."""

    name = PLUGIN
    required_tasks = ("generate",)

    @hook
    def attach_router(self, app: FastAPI) -> None:
        """Adds the page and what it asks for."""
        app.get(PATH, response_class=HTMLResponse, include_in_schema=False)(_get_page)
        app.get(SERVER_PATH)(_get_server)
        app.post(CELLS_PATH)(_post_cells)
        app.get(SAMPLES_PATH)(list_samples)
        app.get(SAMPLES_PATH + "/{name}")(_get_sample)

    @hook
    async def init_state(self, engine_client: Any, state: State, args: Namespace) -> None:
        """Reads the server's settings off the model's configuration, where the processor reads them too."""
        hf_config = engine_client.model_config.hf_config
        page_state = PageState(
            engine_client.model_config.model,
            read_settings(hf_config),
            engine_client.renderer.mm_processor,
            getattr(args, "media_io_kwargs", None) or {},
        )
        setattr(state, _STATE, page_state)


def _get_page() -> HTMLResponse:
    return HTMLResponse(page(), headers=HEADERS)


def _get_server(request: Request) -> dict[str, Any]:
    return _state_of(request).describe()


def _get_sample(name: str) -> Any:
    try:
        return FileResponse(clip_path(name), media_type="video/mp4")
    except ValueError as error:
        return _refuse(error)


def _post_cells(request: Request, asked: CellsRequest) -> Any:
    # Not `async`: decoding and drawing take time, and Starlette gives such functions a thread of their own.
    try:
        return _state_of(request).describe_cells(asked)
    except ValueError as error:
        return _refuse(error)


def _refuse(error: ValueError) -> JSONResponse:
    return JSONResponse({"error": {"message": str(error), "type": "BadRequestError", "code": 400}}, 400)


def _state_of(request: Request) -> PageState:
    return getattr(request.app.state, _STATE)
