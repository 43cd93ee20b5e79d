"""A model's config.json from a folder, the hub's cache or the hub, without minutes of retries where no hub answers."""

from __future__ import annotations

import socket
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_ANSWER_S = 5.0


def read_config_fields(model: str) -> dict[str, Any]:
    """The fields of the config.json of a folder or hub name; {} where there is none.

    Raises:
        OSError: It cannot be read, or the hub is out of reach and the file not in its cache.
    """
    from huggingface_hub import constants
    from transformers import PretrainedConfig

    # huggingface_hub would try six times, with longer and longer waits between.
    out_of_reach = not (Path(model).is_dir() or constants.HF_HUB_OFFLINE or _answers(constants.ENDPOINT))
    try:
        return PretrainedConfig.get_config_dict(model, local_files_only=out_of_reach)[0]
    except OSError as error:
        if out_of_reach:
            raise OSError(f"{constants.ENDPOINT} is out of reach, and its cache has no such model") from error
        raise


def _answers(endpoint: str) -> bool:
    """Whether something listens at `endpoint`; taken for granted behind a proxy."""
    address = urlsplit(endpoint)
    if address.hostname is None or address.scheme in urllib.request.getproxies():
        return True
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname, port), timeout=_ANSWER_S).close()
    except OSError:
        return False
    return True
