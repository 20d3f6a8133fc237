"""The key is in the header of the requests and nowhere else: looked for wherever text is kept."""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import httpx
import psycopg
import pytest
from psycopg import sql

from pulseguard_assets.collecting.errors import SweepFailed
from pulseguard_assets.collecting.platform import Platform
from pulseguard_assets.collecting.polling import PollFailed
from pulseguard_assets.collecting.sweep import sweep
from pulseguard_assets.simulator.server import RunningSimulator

API_KEY = "CG-Sesam0effneDichNicht"

# What the provider may do wrong, one after the other. Some of it repeats the key.
FAULTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("api_error", {"code": 10002}),
    ("api_error", {"code": 10011}),
    ("rate_limit", {"retry_after": 1}),
    ("server_error", {}),
    ("html", {}),
    ("reset", {"after_bytes": 100}),
    ("disconnect", {}),
    ("truncated", {}),
    ("raw", {"body": json.dumps({"error": f"no such key: {API_KEY}"}), "status": 401}),
    ("raw", {"body": json.dumps({"status": {"error_code": 10005, "error_message": API_KEY}})}),
    ("raw", {"body": f"<html>{API_KEY}</html>", "status": 502, "content_type": "text/html"}),
    ("raw", {"body": f"not JSON: {API_KEY}"}),
    ("raw", {"status": 302, "headers": {"location": "https://example.org/"}}),
)


class Witness(httpx.HTTPTransport):
    """The network, and the headers that went over it."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: list[str] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.keys.append(request.headers["x-cg-pro-api-key"])
        assert API_KEY not in str(request.url)
        return super().handle_request(request)


def everything_in(connection: psycopg.Connection) -> str:
    """All rows of all tables of the database, as text."""
    tables = connection.execute(
        "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE c.relkind IN ('r', 'p') AND n.nspname NOT IN ('pg_catalog', 'information_schema')"
    ).fetchall()
    assert len(tables) > 10
    return "\n".join(
        row[0]
        for table in tables
        for row in connection.execute(
            sql.SQL("SELECT t::text FROM {} t").format(sql.Identifier(*table))
        )
    )


def test_the_key_is_in_no_table_no_log_and_no_traceback(
    new_platform: Callable[..., Platform],
    provider: RunningSimulator,
    ticks: Any,
    connection: psycopg.Connection,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    for name in ("httpx", "httpcore", "psycopg"):
        logging.getLogger(name).setLevel(logging.DEBUG)
    witness = Witness()
    platform = new_platform(transport=witness)
    said = [repr(platform), repr(platform.provider), repr(platform.settings)]
    for kind, rule in FAULTS:
        provider.fault(kind, **rule)
        now = provider.now
        with pytest.raises(SweepFailed) as swept:
            sweep(platform, connection, now=now, until=now, log=said.append)
        said.append("".join(traceback.format_exception(swept.value)))
        provider.clear_faults()
        ticks.wait(minutes=2)
    now = provider.now
    sweep(platform, connection, now=now, until=now + timedelta(minutes=5), log=said.append)
    ticks.poll(platform)
    for kind, rule in FAULTS:
        ticks.wait(minutes=1)
        provider.fault(kind, **rule)
        with pytest.raises(PollFailed) as polled:
            ticks.by_hand(platform, patience=timedelta(0))
        said.append("".join(traceback.format_exception(polled.value)))
        with pytest.raises(PollFailed) as polled:
            ticks.tick(platform)
        said.append("".join(traceback.format_exception(polled.value)))
        provider.clear_faults()
        ticks.wait(minutes=20)
        ticks.poll(platform)

    assert set(witness.keys) == {API_KEY}, "or it was never used"
    tables = everything_in(connection)
    assert "HTTP 500" in tables, "or the failures are not looked at"
    assert "HTTP Request: GET" in caplog.text, "or the logs of httpx are not looked at"
    out, err = capfd.readouterr()
    for place, text in {
        "tables": tables,
        "logs": caplog.text,
        "tracebacks": "\n".join(said),
        "output": out + err,
    }.items():
        assert API_KEY not in text, place
        assert API_KEY.removeprefix("CG-") not in text, place
