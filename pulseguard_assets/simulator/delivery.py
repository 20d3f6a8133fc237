"""How an answer goes over the wire, and what faults do to it on the way.

Belongs here: delays, trickles, resets, cut and swollen bodies. Does not: the answer itself.

Silences end early when the caller hangs up or the server stops, so no fault outlives either.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import zlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from starlette.types import Receive, Scope, Send

from pulseguard_assets.simulator.answers import Answer
from pulseguard_assets.simulator.faults import Rule

_MEGABYTE: Final = 1 << 20
# l_onoff=1, l_linger=0: closing then sends RST instead of FIN.
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


class HungUpError(Exception):
    """The connection ended before the answer did.

    Attributes:
        answered: whether status and headers were sent before.
    """

    def __init__(self, *, answered: bool) -> None:
        super().__init__(answered)
        self.answered = answered


@dataclass
class _Wire:
    """One exchange: where to send, and a task that ends when the caller is gone."""

    scope: Scope
    send: Send
    gone: asyncio.Task[None]
    answered: bool = False

    async def begin(self, answer: Answer) -> None:
        """Send status and headers."""
        await _send_head(answer, self.send)
        self.answered = True

    async def pause(self, seconds: float) -> None:
        """Wait, but not for a caller who has left. Raises HungUpError."""
        await asyncio.wait({self.gone}, timeout=seconds)
        if self.gone.done():
            raise HungUpError(answered=self.answered)

    async def cut(self, *, reset: bool) -> None:
        """End the connection under the answer. Always raises HungUpError."""
        transport: asyncio.Transport = self.scope["state"]["transport"]
        if reset:
            sock: socket.socket = transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            transport.abort()
        else:
            transport.close()
        await self.gone
        raise HungUpError(answered=self.answered)


async def deliver(
    answer: Answer, rules: list[Rule], scope: Scope, receive: Receive, send: Send
) -> None:
    """Send an answer, spoilt by the faults of stage `wire` in their order.

    Raises HungUpError when the connection ended first, by a fault or by the caller.
    """
    if not rules:
        await _send_head(answer, send)
        await _send_part(answer.body, send, more=False)
        return
    by_kind: dict[str, Mapping[str, Any]] = {rule.kind: rule.params for rule in rules}
    for kind, params in by_kind.items():
        _reshape(answer, kind, params)
    async with _watched(scope, receive, send) as wire:
        if "delay" in by_kind:
            await wire.pause(by_kind["delay"]["seconds"])
        if "disconnect" in by_kind:
            await wire.cut(reset=False)
        reset = by_kind.get("reset")
        if reset is not None and reset["after_bytes"] is None:
            await wire.cut(reset=True)
        await wire.begin(answer)
        if reset is not None:
            await _send_part(answer.body[: reset["after_bytes"]], send)
            await wire.cut(reset=True)
        await _send_body(answer.body, by_kind.get("trickle"), wire)


def _reshape(answer: Answer, kind: str, params: Mapping[str, Any]) -> None:
    if kind == "truncated":
        answer.body = answer.body[: int(len(answer.body) * params["part"])]
    elif kind == "empty":
        answer.body = b""
    elif kind == "wrong_content_type":
        answer.content_type = str(params["content_type"])
    elif kind == "bomb":
        answer.body = _bomb(int(params["megabytes"]))
        answer.headers["content-encoding"] = "gzip"


@lru_cache(maxsize=2)
def _bomb(megabytes: int) -> bytes:
    """Valid JSON, `{}` with so many megabytes of blanks inside, as one gzip stream."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    blanks = b" " * _MEGABYTE
    parts = [packer.compress(b"{"), *(packer.compress(blanks) for _ in range(megabytes))]
    return b"".join([*parts, packer.compress(b"}"), packer.flush()])


@contextlib.asynccontextmanager
async def _watched(scope: Scope, receive: Receive, send: Send) -> AsyncIterator[_Wire]:
    gone = asyncio.create_task(_hang_up(receive))
    try:
        yield _Wire(scope, send, gone)
    finally:
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)


async def _hang_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send_head(answer: Answer, send: Send) -> None:
    headers = {"content-type": answer.content_type, **answer.headers}
    if answer.status not in (204, 304):
        headers["content-length"] = str(len(answer.body))
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": answer.status, "headers": raw})


async def _send_part(part: bytes, send: Send, *, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": part, "more_body": more})


async def _send_body(body: bytes, trickle: Mapping[str, Any] | None, wire: _Wire) -> None:
    if trickle is not None:
        size = max(1, -(-len(body) // max(1, int(trickle["chunks"]))))
        while len(body) > size:
            await _send_part(body[:size], wire.send)
            body = body[size:]
            await wire.pause(trickle["seconds"])
    await _send_part(body, wire.send, more=False)
