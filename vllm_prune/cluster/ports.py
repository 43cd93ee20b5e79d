"""Addresses and ports: are they free, does something answer there."""

import socket

from vllm_prune.cluster.errors import ClusterError

_CONNECT_TIMEOUT_S = 5.0


def parse_address(address: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT`.

    Raises:
        ClusterError: It has another form.

    >>> parse_address("10.0.0.1:6379")
    ('10.0.0.1', 6379)
    """
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 65536:
        remedy = "give the head's HOST:PORT, such as 10.0.0.1:6379, as `launch/ray/head.sh` printed it"
        raise ClusterError(f"{address!r} is not an address of a Ray cluster", remedy)
    return host, int(port)


def require_free(host: str, port: int, option: str) -> None:
    """Check that a server could listen there.

    Raises:
        ClusterError: It could not.
    """
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            remedy = f"see what listens there (`ss -ltnp sport = :{port}`) and end it, or give another {option}"
            raise ClusterError(f"cannot listen on {host}:{port}: {error.strerror}", remedy) from error


def require_reachable(address: str) -> str:
    """Check that something accepts connections there, and say from which address of this machine it was reached.

    Raises:
        ClusterError: Nothing did, within seconds.
    """
    host, port = parse_address(address)
    try:
        with socket.create_connection((host, port), timeout=_CONNECT_TIMEOUT_S) as connection:
            return str(connection.getsockname()[0])
    except OSError as error:
        remedy = (
            "start the head with `bash launch/ray/head.sh`, and see that its address is right and no firewall is in "
            f"between; after a restart of the head, every node has to join again (`bash launch/ray/join.sh {address}`)"
        )
        raise ClusterError(f"no Ray cluster answers at {address}: {error}", remedy) from error
