"""The HTTP side of several replicas: Ray Serve's own OpenAI endpoint, which learns here what a session is.

Importing this module needs `ray[serve]` and vLLM.
"""

from typing import Any

from fastapi import HTTPException, Request, Response
from ray.exceptions import RayActorError
from ray.serve._private.constants import SERVE_SESSION_ID
from ray.serve._private.http_util import session_id_from_headers
from ray.serve.llm.ingress import OpenAiIngress
from ray.serve.llm.openai_api_models import ChatCompletionRequest

from vllm_prune.cluster.affinity import media_key

_TRIES = 2
"""How often a request whose replica died before the first token is given to a replica. A request that kills whoever
computes it must not go round all replicas."""


class MediaAffinityIngress(OpenAiIngress):
    """Sends chat completions about the same video to the same replica, and on to another one if that dies."""

    async def chat(self, body: ChatCompletionRequest, request: Request) -> Response:
        """`/v1/chat/completions`, with the video as the session unless the client names one."""
        request = await _with_session(request)
        for _ in range(_TRIES):
            try:
                return await super().chat(body, request)
            except RayActorError:
                continue
        raise HTTPException(503, f"{_TRIES} replicas ended while they worked on this request; send it again later")


async def _with_session(request: Request) -> Request:
    if session_id_from_headers(request.headers):
        return request
    key = media_key(await request.json())
    if key is None:
        return request
    header = (SERVE_SESSION_ID.encode(), key.encode())
    scope: dict[str, Any] = {**request.scope, "headers": [*request.scope["headers"], header]}
    return Request(scope, request.receive)
