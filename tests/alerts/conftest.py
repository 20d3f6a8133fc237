"""Sinks on loopback, by HTTP and by SMTP: they receive what a person would read."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import psycopg
import pytest
from alerts_support import (
    HEADER_TOKEN,
    HOOK,
    PASSWORD,
    PATH_TOKEN,
    SLACK,
    UI,
    USER,
    Addresses,
    MailHandler,
    Sink,
    after,
    read_webhook,
)
from apprise.plugins.email import NotifyEmail
from apprise.plugins.mattermost import NotifyMattermost
from apprise.plugins.slack import NotifySlack

from pulseguard_assets.alerts.channels import Channel
from pulseguard_assets.alerts.incidents import Finding, Round, observe


@pytest.fixture
def webhook() -> Iterator[Sink]:
    """Takes what `json://`, Mattermost and Slack post; answers 503 while it accepts nothing.

    Below `/moved` it sends to another page, which would answer 200 to anybody.
    """
    sink = Sink()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path.startswith("/moved"):
                self.send_response(302)
                self.send_header("Location", "/somewhere")
            else:
                accepted = sink.took(read_webhook(self.path, payload))
                # What a service says of a request may well repeat it.
                self.send_response(200 if accepted else 503, f"no {self.path}")
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        sink.port = server.server_port
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield sink
        server.shutdown()


@pytest.fixture
def mailbox() -> Iterator[Sink]:
    """A mail server that wants a user and a password; answers 451 while it accepts nothing."""
    sink = Sink()
    handler = type("Handler", (MailHandler,), {"sink": sink})
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        sink.port = server.server_address[1]
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield sink
        server.shutdown()


@pytest.fixture
def addresses(webhook: Sink, mailbox: Sink, monkeypatch: pytest.MonkeyPatch) -> Addresses:
    """What a user would write into PULSEGUARD_ALERT_URLS."""
    monkeypatch.setattr(NotifySlack, "webhook_url", f"http://127.0.0.1:{webhook.port}/services")
    # Apprise spares real services, by seconds between two messages.
    for service in (NotifyEmail, NotifyMattermost, NotifySlack):
        monkeypatch.setattr(service, "request_rate_per_sec", 0)
    return Addresses(
        json=f"json://{USER}:{PASSWORD}@127.0.0.1:{webhook.port}/{PATH_TOKEN}"
        f"?+X-Token={HEADER_TOKEN}",
        mattermost=f"mmost://127.0.0.1:{webhook.port}/{HOOK}",
        slack=f"slack://{SLACK}",
        mail=f"mailto://{USER}:{PASSWORD}@127.0.0.1:{mailbox.port}"
        "?from=pulse@example.com&to=me@example.com",
    )


@pytest.fixture
def watch(connection: psycopg.Connection) -> Callable[..., Round]:
    """`watch(minutes, finding(), channels=[...])`: a round, so many minutes after noon."""

    def watch(minutes: float, *findings: Finding, channels: Sequence[Channel] = ()) -> Round:
        return observe(
            connection,
            findings,
            ["sensors"],
            channels=[channel.label for channel in channels],
            now=after(minutes),
            reminder=timedelta(hours=6),
            ui_url=UI,
        )

    return watch
