"""Is it really serving? Probes for the children that answer requests.

Belongs here: asking over the wire, briefly. Does not: what follows from the answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc  # type: ignore[import-untyped]  # ships no types

Probe = Callable[[], Awaitable[None]]
"""Returns when the child serves; raises `NotServing` when it does not."""

# Ping runs in the code server's Python threads. The standard health service and a bare connect
# are answered below them and stay green while our code hangs.
_PING = "/api.DagsterApi/Ping"
PROBE_TIMEOUT_SECONDS = 10.0


class NotServing(Exception):  # noqa: N818 - reads as what it says
    """The child does not answer as it should; the message says how."""


def http_probe(host: str, port: int, path: str) -> Probe:
    """Expect status 200 of `GET http://host:port/path`."""

    async def probe() -> None:
        try:
            status = await asyncio.wait_for(_status(host, port, path), PROBE_TIMEOUT_SECONDS)
        except asyncio.TimeoutError as error:
            raise NotServing(f"no answer within {PROBE_TIMEOUT_SECONDS:.0f} s") from error
        except OSError as error:
            raise NotServing(f"no connection ({error.strerror or error})") from error
        if " 200 " not in status:
            raise NotServing(f"answered {status!r}")

    return probe


async def _status(host: str, port: int, path: str) -> str:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(f"GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n".encode("ascii"))
        return (await reader.readline()).decode("latin-1").strip()
    finally:
        writer.close()


def code_server_probe(socket: Path) -> Probe:
    """Expect an answer to the `Ping` of Dagster's own gRPC service on a unix socket."""

    def ask() -> None:
        with grpc.insecure_channel(f"unix:{socket}") as channel:
            ping = channel.unary_unary(_PING)
            # An empty message is a valid PingRequest: all its fields have defaults.
            ping(b"", timeout=PROBE_TIMEOUT_SECONDS)

    async def probe() -> None:
        try:
            await asyncio.to_thread(ask)
        except grpc.RpcError as error:
            raise NotServing(f"gRPC answered {error.code().name}") from error

    return probe
