"""`vllm-prune chat VIDEO QUESTION`: asks a running server about a video and shows what pruning saved."""

from __future__ import annotations

import argparse
import base64
import json
import sys
from pathlib import Path
from typing import Any

from vllm_prune.cli.address import api_url
from vllm_prune.media.kinds import is_picture, media_type

_UNAUTHORIZED, _NOT_FOUND = 401, 404


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument(
        "video", help="of a video or a picture: file, http(s) URL, data URL, or file:// URL that the server may read"
    )
    parser.add_argument("question")
    parser.add_argument(
        "--url", default="http://127.0.0.1:8000/v1", help="the server; /v1 may be left out (default: %(default)s)"
    )
    parser.add_argument("--model", help="default: the first one that the server names")
    parser.add_argument("--prune", metavar="PRESET|JSON", help="override for this request, where the server allows it")
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--api-key", default="EMPTY")
    parser.add_argument("--json", action="store_true", help="print answer, token counts and the report as JSON")


def run(args: argparse.Namespace) -> int:
    """Prints the answer; 1 if the server refuses or cannot be reached, 2 if the arguments are wrong."""
    import openai

    try:
        url, prune, args.url = video_url(args.video), parse_prune(args.prune), api_url(args.url)
    except ValueError as error:
        print(f"vllm-prune chat: {error}", file=sys.stderr)
        return 2
    client = openai.OpenAI(base_url=args.url, api_key=args.api_key)
    try:
        completion = client.chat.completions.create(
            model=args.model or client.models.list().data[0].id,
            messages=[{"role": "user", "content": _content(url, args.question)}],
            max_completion_tokens=args.max_tokens,
            temperature=0.0,
            extra_body={"mm_processor_kwargs": {"prune": prune}} if prune is not None else None,
        )
        _show(completion, args.json)
    except openai.APITimeoutError:
        print(f"vllm-prune chat: {args.url} did not answer in time", file=sys.stderr)
        return 1
    except openai.APIConnectionError as error:
        print(f"vllm-prune chat: no server at {args.url} ({error}); start one with `vllm-prune serve`", file=sys.stderr)
        return 1
    except openai.APIStatusError as error:
        print(f"vllm-prune chat: {_explain(error, args.url)}", file=sys.stderr)
        return 1
    except (AttributeError, IndexError, TypeError):  # the client takes any answer with status 200
        print(f"vllm-prune chat: {_explain_answer(args.url)}", file=sys.stderr)
        return 1
    return 0


def _explain(error: Any, url: str) -> str:
    """What the server said, with what helps where the status alone tells it."""
    if error.status_code == _UNAUTHORIZED:
        return f"{url} wants another key ({error.message}); give the server's by --api-key"
    if error.status_code == _NOT_FOUND and not _is_api_error(error.body):
        return f"there is no API at {url} ({error.message}); give the address that ends in /v1 as --url"
    return error.message


def _explain_answer(url: str) -> str:
    return f"what {url} answers is no chat completion: no OpenAI-compatible API there; give the server's as --url"


def _is_api_error(body: Any) -> bool:
    """Whether an answer has the form in which the API tells an error, such as a model that it does not know."""
    return isinstance(body, dict) and {"message", "type"} <= body.keys()


def video_url(video: str) -> str:
    """`video` as a URL: URLs as they are, a file as a base64 data URL.

    Raises:
        ValueError: There is no such file.
    """
    if video.startswith(("http://", "https://", "data:", "file://")):
        return video
    path = Path(video)
    if not path.is_file():
        raise ValueError(f"video={video!r}: no such file; give a file, an http(s) URL or a data URL")
    return f"data:{media_type(path.name, 'video/mp4')};base64,{base64.b64encode(path.read_bytes()).decode()}"


def parse_prune(text: str | None) -> Any:
    """A request's `prune` value: an object, a preset's name, or None."""
    if text is None or not text.lstrip().startswith("{"):
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"--prune {text!r}: not valid JSON: {error}") from error


def _content(url: str, question: str) -> list[Any]:
    kind = "image_url" if is_picture(url) else "video_url"
    return [{"type": kind, kind: {"url": url}}, {"type": "text", "text": question}]


def _show(completion: Any, as_json: bool) -> None:
    answer, usage = completion.choices[0].message.content, completion.usage
    details = usage.prompt_tokens_details
    tokens = (getattr(details, "multimodal_tokens", None) or {}) if details else {}
    medium = "image" if "image" in tokens else "video"
    kept, before, structure = (tokens.get(f"{medium}{part}") for part in ("", "_before_pruning", "_structure"))
    if as_json:
        counts = {"prompt_tokens": usage.prompt_tokens, f"{medium}_tokens": kept}
        counts |= {f"{medium}_tokens_before_pruning": before, f"{medium}_structure": structure or 0}
        print(json.dumps({"answer": answer, **counts, "prune": getattr(completion, "prune", None)}))
        return
    print(answer)
    if kept is not None and before:
        share = f"{kept} of {before} tokens kept, {kept / before:.0%}"
        between = f", {structure} of structure between them" if structure else ""
        print(f"[{usage.prompt_tokens} prompt tokens; {medium}: {share}{between}]")
