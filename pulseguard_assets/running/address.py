"""Where the web interface listens: is the address free, and who has it if not.

Belongs here: asking before anything is started. Does not: listening.
"""

from __future__ import annotations

import contextlib
import errno
import socket

import psutil  # type: ignore[import-untyped]


class AddressUnusable(RuntimeError):  # noqa: N818 - reads as what it says
    """The web interface cannot listen there; the message says why and what to change."""


def require_free(host: str, port: int) -> None:
    """Check that `host:port` can be listened on.

    Raises:
        AddressUnusable: it is taken, forbidden, or not an address of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise AddressUnusable(
            f"{host} is not known here ({error.strerror}). Set PULSEGUARD_HOST (or --host) to an "
            "address of this machine, such as 127.0.0.1."
        ) from error
    with socket.socket(family, kind, protocol) as probe:
        # As the webserver does: connections of the last one that still linger are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
            probe.listen(1)
        except OSError as error:
            raise AddressUnusable(_sentence(host, port, error)) from error


def _sentence(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"Port {port} on {host} is taken by {_occupant(port)}. Stop that, or set "
            "PULSEGUARD_PORT (or --port) to a free one."
        )
    if error.errno == errno.EACCES:
        return (
            f"Port {port} may not be used without more rights ({error.strerror}). Set "
            "PULSEGUARD_PORT (or --port) to one above 1023."
        )
    return (
        f"{host} cannot be listened on ({error.strerror}). Set PULSEGUARD_HOST (or --host) to an "
        "address of this machine, such as 127.0.0.1."
    )


def _occupant(port: int) -> str:
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections(kind="tcp"):
            if connection.status != psutil.CONN_LISTEN or connection.laddr.port != port:
                continue
            if connection.pid is None:
                break
            process = psutil.Process(connection.pid)
            return f"process {process.pid} ({process.name()} of user {process.username()})"
    return f"another program (`ss -ltnp 'sport = :{port}'` as root names it)"
