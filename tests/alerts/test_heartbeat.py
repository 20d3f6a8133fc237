"""The ping of a dead-man's switch, against a service of our own on loopback."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from pydantic import SecretStr

from pulseguard_assets.alerts import heartbeat as module
from pulseguard_assets.alerts.heartbeat import Heartbeat

SECRET = "8f14e45f-wer-das-weiss"


class Service:
    """A service that watches for pings.

    Attributes:
        asked: method and path of each request, in their order.
        answers: status of the answer to each path; 200 to others.
        sends_to: where it redirects a path.
        delay: seconds before it answers.
    """

    def __init__(self) -> None:
        self.port = 0
        self.asked: list[str] = []
        self.agents: list[str | None] = []
        self.answers: dict[str, int] = {}
        self.sends_to: dict[str, str] = {}
        self.delay = 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/ping/{SECRET}"

    @property
    def path(self) -> str:
        return f"/ping/{SECRET}"


@pytest.fixture
def service() -> Iterator[Service]:
    known = Service()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known.asked.append(f"{self.command} {self.path}")
            known.agents.append(self.headers["User-Agent"])
            time.sleep(known.delay)
            moved = known.sends_to.get(self.path)
            self.send_response(302 if moved else known.answers.get(self.path, 200))
            if moved:
                self.send_header("Location", moved)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"OK")

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: Any) -> None:
            """Who asks hangs up as soon as it knows the status."""

    with Server(("127.0.0.1", 0), Handler) as server:
        known.port = server.server_port
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield known
        server.shutdown()


class Beating:
    """A heartbeat with a clock of its own, and what it said."""

    def __init__(self, url: str | None) -> None:
        self.said: list[str] = []
        self.seconds = 0.0
        secret = None if url is None else SecretStr(url)
        self._heart = Heartbeat(secret, self.said.append, clock=lambda: self.seconds)

    def beat(self, *, after: float = 60.0) -> None:
        self.seconds += after
        self._heart.beat()

    def close(self) -> None:
        self._heart.close()


@pytest.fixture
def beating() -> Iterator[Callable[[str | None], Beating]]:
    made: list[Beating] = []

    def make(url: str | None) -> Beating:
        made.append(Beating(url))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_a_ping_is_one_get_and_says_who_asks(
    service: Service, beating: Callable[[str | None], Beating]
) -> None:
    heart = beating(service.url)

    heart.beat()

    assert service.asked == [f"GET {service.path}"]
    assert service.agents == ["pulseguard"]
    assert heart.said == []


def test_it_pings_at_most_once_a_minute(
    service: Service, beating: Callable[[str | None], Beating]
) -> None:
    heart = beating(service.url)

    for _ in range(5):
        heart.beat(after=30)

    assert len(service.asked) == 3


def test_without_an_address_nothing_is_sent_nor_said(
    beating: Callable[[str | None], Beating],
) -> None:
    heart = beating(None)

    heart.beat()

    assert heart.said == []


@pytest.mark.parametrize(("status", "says"), [(404, "answered 404"), (503, "answered 503")])
def test_a_refusal_is_said_once_when_it_begins_and_once_when_it_ends(
    service: Service,
    beating: Callable[[str | None], Beating],
    status: int,
    says: str,
) -> None:
    heart = beating(service.url)
    service.answers[service.path] = status

    heart.beat()
    heart.beat()
    service.answers.clear()
    heart.beat()
    heart.beat()

    assert len(service.asked) == 4
    begins, ends = heart.said
    assert says in begins
    assert ends == "The heartbeat gets through again."


def test_the_address_is_never_said_nor_logged(
    service: Service,
    beating: Callable[[str | None], Beating],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    answering, refused, away = (
        beating(service.url),
        beating(service.url),
        beating(f"http://127.0.0.1:1/ping/{SECRET}"),
    )
    answering.beat()
    service.answers[service.path] = 500
    refused.beat()
    away.beat()

    told = "\n".join([*answering.said, *refused.said, *away.said, caplog.text])
    assert "cannot be connected to" in told
    assert SECRET not in told
    assert "127.0.0.1" not in "\n".join([*refused.said, *away.said])


def test_what_others_ask_by_httpx_is_logged_as_before(
    service: Service,
    beating: Callable[[str | None], Beating],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    beating(service.url).beat()

    logging.getLogger("httpx").info("somebody else's request")

    assert "somebody else's request" in caplog.text


def test_silence_is_a_failure_after_a_while(
    service: Service,
    beating: Callable[[str | None], Beating],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_SECONDS", 0.1)
    service.delay = 0.5
    heart = beating(service.url)

    heart.beat()

    assert "did not answer within" in heart.said[0]


def test_a_redirect_within_the_host_is_followed(
    service: Service, beating: Callable[[str | None], Beating]
) -> None:
    service.sends_to[service.path] = "/elsewhere"
    heart = beating(service.url)

    heart.beat()

    assert service.asked == [f"GET {service.path}", "GET /elsewhere"]
    assert heart.said == []


def test_a_redirect_to_another_host_is_a_failure_and_not_followed(
    service: Service, beating: Callable[[str | None], Beating]
) -> None:
    service.sends_to[service.path] = f"http://localhost:{service.port}/caught"
    heart = beating(service.url)

    heart.beat()

    assert service.asked == [f"GET {service.path}"]
    assert "answered 302" in heart.said[0]


def test_redirects_without_an_end_are_a_failure(
    service: Service, beating: Callable[[str | None], Beating]
) -> None:
    service.sends_to[service.path] = service.path
    heart = beating(service.url)

    heart.beat()

    assert len(service.asked) == 4
    assert "answered 302" in heart.said[0]
