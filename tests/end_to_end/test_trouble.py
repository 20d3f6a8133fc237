"""A running platform whose server has no room, or no connection left: it says so, and goes on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from full_disk_support import full, make_said, said, small_disk, write_until_it_ends
from up_support import OURS, Up, eventually, utc_now

from pulseguard_assets.collecting.polling import minute_of
from pulseguard_assets.simulator.limits import Limits
from pulseguard_assets.simulator.server import RunningSimulator, running_simulator
from pulseguard_assets.warehouse.embedded import running_dsn

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]

MINUTES = "SELECT count(DISTINCT minute_ts) FROM minute_close"
RUNNING = "SELECT count(*) FROM collection_status WHERE status = 'running'"
WITHIN = 200.0


@pytest.fixture
def provider() -> Iterator[RunningSimulator]:
    """A simulator on loopback."""
    with running_simulator(coins=50, limits=Limits(host="pro")) as provider:
        yield provider


def collecting(start: Callable[..., Up], provider: RunningSimulator) -> Up:
    """A platform that has stored its first minute."""
    up = start(
        "up",
        definitions=OURS,
        PULSEGUARD_PLAN="pro",
        PULSEGUARD_API_KEY="CG-NurFuerDieseProbe",
        PULSEGUARD_BASE_URL=provider.url,
        PULSEGUARD_MODE="20",
    )
    up.wait_until_up()
    eventually("a first minute", lambda: up.query(MINUTES) >= 1, within=WITHIN)
    return up


@pytest.fixture
def disk(folder: Path) -> Iterator[Path]:
    """The data folder, on a filesystem of its own."""
    with small_disk(folder / "data", 400) as disk:
        yield disk


def test_a_full_disk_is_told_of_and_everything_goes_on_when_there_is_room(
    disk: Path, start: Callable[..., Up], provider: RunningSimulator
) -> None:
    up = collecting(start, provider)
    dsn = running_dsn(up.folders.root)
    assert dsn is not None
    with psycopg.connect(dsn, autocommit=True) as connection:
        make_said(connection)
        with full(disk):
            acknowledged = write_until_it_ends(connection)
            eventually("it is seen", lambda: "is full: make room on it" in up.screen, within=90)
            # Between two tries to start, the server may be there for a moment.
            eventually(
                "the status is down, and says why",
                lambda: (told := up.status())[0] == 2 and "is full: make room on it" in told[1],
                within=90,
            )

    eventually("the database is back", lambda: "The database is back" in up.screen, within=90)
    with psycopg.connect(dsn) as connection:
        assert said(connection) == acknowledged
    goes_on_as_if_nothing_was(up, provider)


@contextmanager
def crowd(dsn: str) -> Iterator[None]:
    """Others take every connection of the server, and each that becomes free, during the block."""
    with ExitStack() as taken:
        full, ended = threading.Event(), threading.Event()

        def take() -> None:
            while not ended.is_set():
                try:
                    taken.enter_context(psycopg.connect(dsn, application_name="crowd"))
                except psycopg.OperationalError:
                    full.set()
                    ended.wait(0.05)

        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        try:
            assert full.wait(60), "there are always more connections"
            yield
        finally:
            ended.set()
            thread.join(60)


def test_a_server_without_a_free_connection_is_told_of_and_everything_goes_on_when_there_is_one(
    start: Callable[..., Up], provider: RunningSimulator
) -> None:
    up = collecting(start, provider)
    dsn = running_dsn(up.folders.root)
    assert dsn is not None
    with crowd(dsn):
        eventually(
            "the status is down, and says why",
            lambda: (told := up.status())[0] == 2 and "connections of the server" in told[1],
            within=90,
        )
        later = minute_of(utc_now()) + timedelta(minutes=2)
        eventually("two minutes are over", lambda: utc_now() >= later, within=180)
        assert up.code is None, up.screen
    goes_on_as_if_nothing_was(up, provider)


def goes_on_as_if_nothing_was(up: Up, provider: RunningSimulator) -> None:
    """It collects again, has counted every call, stored nothing twice, and stops cleanly."""
    before = up.query(MINUTES)
    eventually("it collects", lambda: up.query(MINUTES) > before >= 0, within=WITHIN)
    eventually("no cycle is left open", lambda: up.query(RUNNING) == 0, within=60)
    ledger = "SELECT sum(total_calls) FROM api_usage_stats"
    assert up.query(ledger) >= provider.calls()["total"], "no call was made that is not counted"
    twice = "SELECT count(*) - count(DISTINCT (coin_id, minute_ts)) FROM minute_close"
    assert up.query(twice) == 0
    assert "Traceback" not in up.screen
    assert up.stop(signal.SIGINT) < 20
    assert up.code == 0
