"""Probes, against servers that answer well, badly, and not at all."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc  # type: ignore[import-untyped]
import pytest

from pulseguard_assets.running import probes
from pulseguard_assets.running.probes import NotServing, code_server_probe, http_probe


async def ask_http(answer: bytes) -> None:
    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        if not answer:
            await reader.read()  # until the probe has had enough
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(respond, "127.0.0.1", 0)
    async with server:
        try:
            await http_probe("127.0.0.1", server.sockets[0].getsockname()[1], "/server_info")()
        finally:
            # The answering side ends its connection in the loop's next turns.
            await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}))


def test_status_200_is_serving() -> None:
    asyncio.run(ask_http(b"HTTP/1.1 200 OK\r\n\r\n"))


@pytest.mark.parametrize("answer", [b"HTTP/1.1 503 Busy\r\n\r\n", b"\r\n", b"SSH-2.0\r\n"])
def test_any_other_answer_is_not(answer: bytes) -> None:
    with pytest.raises(NotServing, match="answered"):
        asyncio.run(ask_http(answer))


def test_silence_is_not_serving(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "PROBE_TIMEOUT_SECONDS", 0.05)
    with pytest.raises(NotServing, match="no answer within"):
        asyncio.run(ask_http(b""))


def test_nobody_listening_is_not_serving() -> None:
    with pytest.raises(NotServing, match="no connection"):
        asyncio.run(http_probe("127.0.0.1", 1, "/")())


def test_the_code_server_must_answer_its_ping(tmp_path: Path) -> None:
    class Api(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
            if details.method != "/api.DagsterApi/Ping":
                return None
            return grpc.unary_unary_rpc_method_handler(lambda request, _context: request)

    socket = tmp_path / "s"
    with pytest.raises(NotServing, match="UNAVAILABLE"):
        asyncio.run(code_server_probe(socket)())
    server = grpc.server(ThreadPoolExecutor(1), handlers=[Api()])
    server.add_insecure_port(f"unix:{socket}")
    server.start()
    try:
        asyncio.run(code_server_probe(socket)())
    finally:
        server.stop(None).wait()
