"""The ping of a dead-man's switch: while it comes, somebody else's clock is wound up again.

Belongs here: one GET to PULSEGUARD_HEARTBEAT_URL, and what is said when it fails. Does not: whether
all is well (`status.py`), nor when to ask (`lookout.py`).

Healthchecks, Uptime Kuma, Better Stack and their like give out an address of their own for each
thing that is watched, take a GET without anything in it for a sign of life, answer 2xx, and tell
people when no further one comes in time. So a ping that fails is not tried again: the next one is
due within two minutes, and such a service waits for several.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType

import httpx
from pydantic import SecretStr

from pulseguard_assets.alerts.complaint import Complaint, Say

AT_MOST_EVERY = timedelta(minutes=1)

# For each of connecting, sending and waiting for the answer's first line.
_SECONDS = 5.0
_MOST_REDIRECTS = 3

# The whole address is a secret: whoever knows it can keep the switch from going off.
_THE_ADDRESS = "the address in PULSEGUARD_HEARTBEAT_URL"


class Heartbeat:
    """Pings an address, and says once when that begins to fail and once when it ends.

    Args:
        url: `Settings.heartbeat_url`; None: nothing is ever sent.
        say: takes a sentence without any secret.
        clock: seconds that pass.
        transport: stands in for the network.
    """

    def __init__(
        self,
        url: SecretStr | None,
        say: Say,
        *,
        clock: Callable[[], float] = time.monotonic,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._url = url
        self._failing = Complaint(say, over="The heartbeat gets through again.")
        self._clock = clock
        self._client = None if url is None else _client(transport)
        self._last: float | None = None

    def beat(self) -> None:
        """Ping, unless that was done less than a minute ago. Never raises for a failing ping."""
        if self._client is None or self._url is None:
            return
        now = self._clock()
        if self._last is not None and now - self._last < AT_MOST_EVERY.total_seconds():
            return
        self._last = now
        complaint = _ping(self._client, self._url)
        if complaint is None:
            self._failing.ends()
        else:
            self._failing.lasts(
                f"The heartbeat does not get through: {_THE_ADDRESS} {complaint}. It is tried "
                "again every minute. See that the address is right and that the service answers."
            )

    def close(self) -> None:
        """Let go of connections."""
        if self._client is not None:
            self._client.close()

    def __enter__(self) -> Heartbeat:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _client(transport: httpx.BaseTransport | None) -> httpx.Client:
    return httpx.Client(
        timeout=_SECONDS,
        headers={"User-Agent": "pulseguard", "Accept": "*/*"},
        follow_redirects=False,
        # The next ping is a minute away, by when most servers have hung up: a reused connection
        # would fail now and then for nothing.
        limits=httpx.Limits(max_keepalive_connections=0),
        transport=transport,
    )


def _ping(client: httpx.Client, url: SecretStr) -> str | None:
    """None when the service took it; else what it did, without any piece of the address."""
    with _unheard():
        try:
            status = _status_of(client, client.build_request("GET", url.get_secret_value()))
        except httpx.TimeoutException:
            return f"did not answer within {_SECONDS:.0f} s"
        except httpx.ConnectError:
            return "cannot be connected to"
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            # Only its kind: its words may hold the address.
            return f"could not be asked ({type(error).__name__})"
    return None if 200 <= status < 300 else f"answered {status}"


def _status_of(client: httpx.Client, request: httpx.Request) -> int:
    """The status of the answer, after redirects within the same host.

    A redirect to another host is not followed: that one was never given the secret in the path.
    """
    for _ in range(_MOST_REDIRECTS + 1):
        # Streamed: nobody reads the page that comes, however long it is.
        response = client.send(request, stream=True)
        response.close()
        following = response.next_request
        if following is None or not _as_safe(request.url, following.url):
            break
        request = following
    return response.status_code


def _as_safe(asked: httpx.URL, following: httpx.URL) -> bool:
    return following.host == asked.host and following.scheme in (asked.scheme, "https")


@contextmanager
def _unheard() -> Iterator[None]:
    """Keep httpx from writing the address into a log, which it does at level INFO."""
    logger = logging.getLogger("httpx")
    nothing: Callable[[logging.LogRecord], bool] = lambda _: False  # noqa: E731
    logger.addFilter(nothing)
    try:
        yield
    finally:
        logger.removeFilter(nothing)
