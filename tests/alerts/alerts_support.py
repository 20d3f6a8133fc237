"""What the tests of alerts share: sinks, addresses with secrets in them, findings.

Belongs here: what knows of no single test. Does not: fixtures (`conftest.py`).
"""

from __future__ import annotations

import json
import socketserver
import threading
import time
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pydantic import SecretStr

from pulseguard_assets.alerts.channels import Channel, channels_of
from pulseguard_assets.alerts.incidents import Finding

NOON = datetime(2026, 11, 22, 12, tzinfo=timezone.utc)
UI = "http://127.0.0.1:3000"

# Each place that an address may hold a secret in. None is a word that a message would hold.
USER, PASSWORD, PATH_TOKEN, HEADER_TOKEN = "Zwerg", "p%40ss-Geheim", "t0ken-im-Pfad", "Kopf-t0ken"
HOOK = "3ccdd113474722377935511fc85d3dd4"
SLACK = "T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ"
SECRETS = (PASSWORD, "p@ss-Geheim", PATH_TOKEN, HEADER_TOKEN, HOOK, *SLACK.split("/"))


@dataclass(frozen=True)
class Received:
    """A message as it came in: `title` and `text` are what a person reads."""

    title: str
    text: str
    payload: Any = field(repr=False, default=None)


@dataclass
class Sink:
    """What came in; and how the sink behaves.

    Attributes:
        port: where it listens on 127.0.0.1.
        accepting: whether it takes messages.
        delay: seconds it takes for each.
        received: what it has accepted.
        refused: how many it has not.
    """

    port: int = 0
    accepting: bool = True
    delay: float = 0
    received: list[Received] = field(default_factory=list)
    refused: int = 0
    logins: list[tuple[str, str]] = field(default_factory=list)

    def took(self, message: Received) -> bool:
        """Whether it accepts this one, which then counts."""
        time.sleep(self.delay)
        if self.accepting:
            self.received.append(message)
        else:
            self.refused += 1
        return self.accepting

    def titles(self) -> list[str]:
        """The titles of what was accepted."""
        return [each.title for each in self.received]


@contextmanager
def serving_webhook() -> Iterator[Sink]:
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


@contextmanager
def serving_mailbox() -> Iterator[Sink]:
    """A mail server that wants a user and a password; answers 451 while it accepts nothing."""
    sink = Sink()
    handler = type("Handler", (MailHandler,), {"sink": sink})
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        sink.port = server.server_address[1]
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield sink
        server.shutdown()


def read_webhook(path: str, payload: Any) -> Received:
    if path.startswith("/hooks/"):  # Mattermost's, which has the title as its first line
        title, _, text = payload["text"].partition("\r\n")
        return Received(title, text, payload)
    if path.startswith("/services/"):  # Slack's
        shown = payload["attachments"][0]
        text = shown["text"].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
        return Received(shown["title"], text, payload)
    return Received(payload["title"], payload["message"], payload)


class MailHandler(socketserver.StreamRequestHandler):
    """As much of SMTP as a client needs that signs in and sends."""

    sink: Sink

    def handle(self) -> None:
        self.say("220 sink")
        while line := self.rfile.readline().decode().strip():
            verb = line.split(" ", 1)[0].upper()
            if verb == "EHLO":
                self.say("250-sink\r\n250 AUTH LOGIN")
            elif verb == "AUTH":
                self.sign_in(line)
            elif verb == "DATA":
                self.take()
            elif verb == "QUIT":
                self.say("221 bye")
                return
            else:
                self.say("250 ok")

    def sign_in(self, line: str) -> None:
        _, _, user = line.split(" ")
        self.say("334 UGFzc3dvcmQ6")
        secret = self.rfile.readline().decode().strip()
        self.sink.logins.append((b64decode(user).decode(), b64decode(secret).decode()))
        self.say("235 ok")

    def take(self) -> None:
        self.say("354 go on")
        lines = []
        while (line := self.rfile.readline()) != b".\r\n":
            lines.append(line.removeprefix(b"."))
        mail = message_from_bytes(b"".join(lines), policy=policy.default)
        assert isinstance(mail, EmailMessage)
        plain = mail.get_body(("plain",))
        text = "" if plain is None else plain.get_content()
        accepted = self.sink.took(
            Received(str(mail["Subject"]), text.replace("\r\n", "\n").rstrip("\n"), mail)
        )
        self.say("250 ok" if accepted else "451 try again later")

    def say(self, line: str) -> None:
        self.wfile.write(f"{line}\r\n".encode())


@dataclass(frozen=True)
class Addresses:
    """Addresses of the sinks, each with a secret in it."""

    json: str
    mattermost: str
    slack: str
    mail: str

    def all(self) -> tuple[str, ...]:
        return (self.json, self.mattermost, self.slack, self.mail)


def channels(*urls: str) -> tuple[Channel, ...]:
    """Channels as the settings would make them."""
    return channels_of([SecretStr(url) for url in urls])


def finding(cause: str = "sensor:prices:FAILING", **changed: Any) -> Finding:
    """A failing sensor."""
    known: dict[str, Any] = {
        "area": "sensors",
        "cause": cause,
        "kind": "FAILING",
        "severity": "error",
        "subject": "prices",
        "title": "prices fails",
        "message": "The provider answers 503 & says <nothing>.",
        "link": "/locations/pulseguard/sensors/prices",
        "help": "pulseguard collect --once",
    }
    return Finding(**known | changed)


def after(minutes: float) -> datetime:
    """So many minutes after noon."""
    return NOON + timedelta(minutes=minutes)
