"""A running platform whose time of day leaps forward, and back again."""

from __future__ import annotations

import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from crashes_support import closes, every_close_is_true, tables_agree
from up_support import HERE, OURS, Up, eventually

from pulseguard_assets.simulator.market import Market
from pulseguard_assets.warehouse.connection import connect
from pulseguard_assets.warehouse.embedded import running_dsn

LEAP = timedelta(hours=3)
RUNNING = "SELECT count(*) FROM collection_status WHERE status = 'running'"

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]


class SteppedClock:
    """The time of day of processes that are started with `environment`."""

    def __init__(self, folder: Path, compiler: str) -> None:
        library = folder / "stepped_clock.so"
        source = HERE / "stepped_clock.c"
        subprocess.run(
            [compiler, "-O2", "-Wall", "-shared", "-fPIC", "-o", library, source], check=True
        )
        self._file = folder / "ahead"
        self._file.write_bytes(struct.pack("l", 0))
        self._ahead = timedelta(0)
        self.environment = {"LD_PRELOAD": str(library), "CLOCK_OF_THIS_TEST": str(self._file)}

    def set_ahead(self, by: timedelta) -> None:
        """Let it be ahead of the true time by so much from now on."""
        with self._file.open("r+b") as file:
            file.write(struct.pack("l", int(by.total_seconds())))
        self._ahead = by

    def now(self) -> datetime:
        """What it says."""
        return datetime.now(timezone.utc) + self._ahead


@pytest.fixture
def clock(folder: Path) -> SteppedClock:
    """It tells the true time at first."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here; `apt-get install gcc libc6-dev` brings one")
    if sys.version_info < (3, 11):
        pytest.skip("Python 3.10 measures its own pauses by the time of day")
    return SteppedClock(folder, compiler)


TAKEN_FOR_DEAD = "SELECT cause FROM incidents WHERE cause ~ '^(daemon|process|watchdog):'"


def minutes_since(up: Up, instant: datetime) -> int:
    """How many minutes are stored that began after an instant, up to an hour after it."""
    return up.query(
        "SELECT count(DISTINCT minute_ts) FROM minute_close "
        f"WHERE minute_ts > '{instant}' AND minute_ts < '{instant + timedelta(hours=1)}'"
    )


def open_causes(up: Up) -> set[str]:
    """The causes of the open incidents."""
    return {cause for (cause,) in up.rows("SELECT cause FROM incidents WHERE resolved_at IS NULL")}


def test_collection_goes_on_at_once_whichever_way_the_clock_leaps(
    clock: SteppedClock, start: Callable[..., Up]
) -> None:
    up = start("demo", definitions=OURS, PULSEGUARD_MODE="20", **clock.environment)
    up.wait_until_up()
    begun = clock.now() - timedelta(minutes=2)
    eventually("a first minute", lambda: minutes_since(up, begun) >= 1)

    clock.set_ahead(LEAP)
    leapt = clock.now()
    eventually("minutes of the new time", lambda: minutes_since(up, leapt) >= 2, within=200)

    clock.set_ahead(timedelta(0))
    back = clock.now()
    eventually("it is noticed", lambda: "The clock was set back by 10800 s" in up.screen, within=60)
    # Three in a row: what waits for a time that was would be back after some of them.
    eventually("minutes of the true time", lambda: minutes_since(up, back) >= 3, within=300)
    future = "data:minute_close:FUTURE"
    eventually("prices of the future are told of", lambda: future in open_causes(up), within=150)
    assert not {cause for cause in open_causes(up) if cause.startswith("sensor:")}
    assert up.rows(TAKEN_FOR_DEAD) == []
    eventually("no cycle is left open", lambda: up.query(RUNNING) == 0, within=60)

    with connect(running_dsn(up.data_dir) or "") as connection:
        assert every_close_is_true(Market(seed=0), closes(connection)) > 0
        tables_agree(connection)
    assert "Traceback" not in up.screen
    assert up.stop(signal.SIGINT) < 20
    assert up.code == 0
