"""Ray's token authentication: on, unless the user decided otherwise.

Ray listens on all interfaces, whatever address a node is given, and whoever reaches it can run code. So every node and
every program that connects needs the token, in Ray's own place for it: `~/.ray/auth_token`, or a place named by
`RAY_AUTH_TOKEN` or `RAY_AUTH_TOKEN_PATH`.
"""

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from vllm_prune.cluster.errors import ClusterError

_MODE, _TOKEN, _PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"


def token_file(environment: Mapping[str, str] = os.environ) -> Path:
    """Where Ray looks for the token if `RAY_AUTH_TOKEN` does not hold it."""
    return Path(environment.get(_PATH) or Path.home() / ".ray" / "auth_token")


def authenticated(environment: Mapping[str, str] = os.environ, *, create: bool = False) -> dict[str, str]:
    """The environment with token authentication on, or as it is if `RAY_AUTH_MODE` is set.

    Args:
        environment: What Ray's processes would get.
        create: Make a token, readable by its owner only, if there is none.

    Raises:
        ClusterError: There is no token, and none is to be made.
    """
    result = dict(environment)
    if result.setdefault(_MODE, "token") != "token" or result.get(_TOKEN):
        return result
    file = token_file(environment)
    if not file.is_file():
        if not create:
            remedy = f"copy the head's {file} to this machine, or put its content into {_TOKEN}"
            raise ClusterError(f"no token of the cluster in {file}", remedy)
        file.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "w") as opened:
            opened.write(secrets.token_hex(32))
    return result
