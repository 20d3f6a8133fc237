"""An end for every exchange, however slowly its head comes.

Belongs here: cutting each wait of the network at one deadline. Does not: how long an exchange may
take, nor its body, which the client looks at piece by piece.

httpx bounds the wait for each piece of an answer, and not for all of them together. Status and
headers are read inside it: a server that sends a byte of them every few seconds, or one interim
answer after the other, would hold its caller for ever.
"""

from __future__ import annotations

import math
import ssl
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import httpcore
import httpx


class Deadline(threading.local):
    """When the exchange that this thread is at must be over; each thread has its own."""

    def __init__(self) -> None:
        self._at = math.inf

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Cut what the network is waited for inside the block after so many seconds."""
        self._at = time.monotonic() + seconds
        try:
            yield
        finally:
            self._at = math.inf

    def left(self, timeout: float | None, error: type[httpcore.TimeoutException]) -> float | None:
        """`timeout` as far as there is time for it. Raises `error` if there is none."""
        left = self._at - time.monotonic()
        if left <= 0:
            raise error
        return timeout if left == math.inf else min(left, timeout or left)

    def watch(self, client: httpx.Client) -> None:
        """Keep all connections of a client to this deadline, those through a proxy too.

        httpx has no door for this: what is reached for here is its own, and a test that talks to a
        slow server shows that it is still there.
        """
        for transport in (client._transport, *client._mounts.values()):
            if isinstance(transport, httpx.HTTPTransport):
                pool = transport._pool
                pool._network_backend = _Backend(pool._network_backend, self)


class _Backend(httpcore.NetworkBackend):
    """A network whose connections keep to a deadline."""

    def __init__(self, inner: httpcore.NetworkBackend, deadline: Deadline) -> None:
        self._inner, self._deadline = inner, deadline

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        left = self._deadline.left(timeout, httpcore.ConnectTimeout)
        stream = self._inner.connect_tcp(host, port, left, local_address, socket_options)
        return _Stream(stream, self._deadline)

    def sleep(self, seconds: float) -> None:
        self._inner.sleep(seconds)


class _Stream(httpcore.NetworkStream):
    """A connection that keeps to a deadline."""

    def __init__(self, inner: httpcore.NetworkStream, deadline: Deadline) -> None:
        self._inner, self._deadline = inner, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, self._deadline.left(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, self._deadline.left(timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        left = self._deadline.left(timeout, httpcore.ConnectTimeout)
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, left), self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)
