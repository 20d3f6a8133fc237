"""Hostile servers over real HTTP: whatever they send, and however slowly, a call ends small.

Belongs here: what only a socket shows, such as a head that never ends and bodies packed by any
compression. Does not: what stands in an answer (test_hostile_answers).
"""

from __future__ import annotations

import json
import socketserver
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

CALLER = Path(__file__).with_name("hostile_caller.py")
MEBIBYTE = 1 << 20
# Four calls at a time, each at most 8 MiB of body and what taking that apart takes.
MOST_MEGABYTES = 300
# A second for the answer, one for a piece of it; the rest is for a machine that is busy.
LONGEST_CALL = 30.0
PATIENCE = 240.0
JSON = b"content-type: application/json\r\n"
SOUND = b'{"bitcoin": {"usd": 1.5}, "prices": []}'

Sending = Callable[[], Iterator[bytes]]


def head(headers: bytes = b"", status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 " + status + b"\r\n" + JSON + headers + b"\r\n"


def whole(body: bytes, headers: bytes = b"") -> Sending:
    return lambda: iter([head(b"content-length: %d\r\n" % len(body) + headers) + body])


def for_ever(*pieces: bytes, first: bytes = b"", seconds: float = 0) -> Sending:
    """The pieces one after the other, and again, with a pause after each."""

    def send() -> Iterator[bytes]:
        yield first
        while True:
            for piece in pieces:
                yield piece
                time.sleep(seconds)

    return send


def gzip_without_end() -> Iterator[bytes]:
    """A kilobyte on the wire for each mebibyte of blanks; it is legal JSON so far."""
    packer = zlib.compressobj(9, wbits=31)
    yield head(b"content-encoding: gzip\r\n")
    yield packer.compress(b"{" + b" " * MEBIBYTE) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(b" " * MEBIBYTE) + packer.flush(zlib.Z_FULL_FLUSH)
    while True:
        yield block


def packed_by(encoding: bytes) -> Sending:
    return for_ever(bytes(65_536), first=head(b"content-encoding: " + encoding + b"\r\n"))


CASES: dict[str, Sending] = {
    "gzip": gzip_without_end,
    "br": packed_by(b"br"),
    "zstd": packed_by(b"zstd"),
    "deflate": packed_by(b"deflate"),
    "gzip-twice": packed_by(b"gzip, gzip"),
    "blanks": for_ever(b" " * 65_536, first=head()),
    "chunks": for_ever(
        b"10000\r\n" + b" " * 65_536 + b"\r\n", first=head(b"transfer-encoding: chunked\r\n")
    ),
    "size-of-a-chunk": for_ever(b"f" * 65_536, first=head(b"transfer-encoding: chunked\r\n")),
    "drops-of-a-body": for_ever(b" ", first=head(), seconds=0.05),
    "drops-of-a-head": for_ever(b"x", first=b"HTTP/1.1 200 OK\r\nx: ", seconds=0.05),
    "drops-of-a-status": for_ever(b" ", first=b"HTTP/1.1", seconds=0.05),
    "interim-answers": for_ever(b"HTTP/1.1 103 Early Hints\r\nx: y\r\n\r\n"),
    "drops-of-interim-answers": for_ever(b"HTTP/1.1 100 Continue\r\n\r\n", seconds=0.05),
    "headers": for_ever(b"x-header: " + b"y" * 1_000 + b"\r\n", first=b"HTTP/1.1 200 OK\r\n"),
    "one-header": for_ever(b"y" * 65_536, first=b"HTTP/1.1 200 OK\r\nx: "),
    "silence": for_ever(b"", seconds=0.05),
    "no-http": for_ever(b"\x00\xff\x00\xff" * 16_384),
    "no-length": lambda: iter([head(b"content-length: -1\r\n") + SOUND]),
    "two-lengths": lambda: iter([head(b"content-length: 1\r\ncontent-length: 2\r\n") + SOUND]),
    "too-long-a-length": lambda: iter([head(b"content-length: 99999999999\r\n") + SOUND]),
    "redirects": for_ever(head(b"location: /redirects/ping\r\n", b"302 Found")),
    "deep": whole(b"[" * (3 * MEBIBYTE)),
    "deep-objects": whole(b'{"a":' * (MEBIBYTE // 2)),
    "deep-and-whole": whole(b"[" * MEBIBYTE + b"]" * MEBIBYTE),
}


class Server(socketserver.ThreadingTCPServer):
    """Sends what the first folder of the path names, until nobody listens any more."""

    daemon_threads = True
    allow_reuse_address = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller that has hung up is what is hoped for."""


class Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        case = self.rfile.readline().split(b"/")[1].decode()
        while self.rfile.readline() not in (b"\r\n", b""):
            pass
        self.connection.settimeout(60)
        for piece in {"sound": whole(SOUND), **CASES}[case]():
            self.connection.sendall(piece)


@pytest.fixture
def address() -> Iterator[str]:
    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def asked(address: str, *cases: str) -> Any:
    """What `hostile_caller` says of these cases."""
    done = subprocess.run(
        [sys.executable, str(CALLER), address, *cases],
        stdout=subprocess.PIPE,
        timeout=PATIENCE,
        check=True,
    )
    return json.loads(done.stdout)


def test_every_call_to_a_hostile_server_ends_in_time_and_in_little_memory(address: str) -> None:
    told = asked(address, *CASES)
    assert len(told["ended"]) == 5 * len(CASES)
    for call in told["ended"]:
        assert call["took"] < LONGEST_CALL, call
        assert call["error"], call
        assert call["error"].isprintable()
        assert "geheim" not in call["error"]
    assert told["megabytes"] < MOST_MEGABYTES
