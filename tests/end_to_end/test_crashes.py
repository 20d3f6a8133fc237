"""Killed at any moment, under load: nothing confirmed is lost, half there or left over."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import psutil
import psycopg
import pytest
from crashes_support import (
    Closes,
    Demo,
    Load,
    SharedMemory,
    alive,
    closes,
    every_close_is_true,
    everything_rolls_up_once,
    kill,
    kill_all,
    nothing_acknowledged_is_lost,
    nothing_went_back,
    tables_agree,
    temporary_files,
)
from up_support import OURS, PATIENCE, Up, eventually, utc_now

from pulseguard_assets.simulator.market import Market
from pulseguard_assets.timeframes import TIMEFRAMES
from pulseguard_assets.warehouse.connection import connect
from pulseguard_assets.warehouse.embedded import EmbeddedPostgres, running_dsn
from pulseguard_assets.warehouse.migrations import migrate
from pulseguard_assets.warehouse.postmaster import processes_in


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """Of every choice of a test; printed, and taken from PULSEGUARD_TEST_SEED to do it again."""
    given = os.environ.get("PULSEGUARD_TEST_SEED")
    chosen = int(given) if given else random.SystemRandom().randrange(1 << 32)
    print(f"PULSEGUARD_TEST_SEED={chosen}")  # noqa: T201 - pytest shows it when the test fails
    return chosen


# Keeps a server as `pulseguard up` does, with the settings it has there.
OWNER = """
import sys
from pathlib import Path
from pulseguard_assets.warehouse.embedded import EmbeddedPostgres
with EmbeddedPostgres(Path(sys.argv[1])):
    print(flush=True)
    sys.stdin.read()
"""


@contextmanager
def _owner(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def test_what_was_confirmed_before_a_power_cut_is_there_after_it(folder: Path, seed: int) -> None:
    luck = random.Random(seed)
    pgdata = folder / "postgres"
    memory = SharedMemory(pgdata)
    load = Load(lambda: running_dsn(folder), Market(seed=0), seed)
    with EmbeddedPostgres(folder) as dsn, connect(dsn) as connection:
        migrate(dsn)
        load.introduce(connection)
        for setting in ("fsync", "full_page_writes", "synchronous_commit"):
            assert connection.execute(f"SHOW {setting}".encode()).fetchone() == ("on",)
        before = closes(connection)
    for _ in range(2):
        with _owner(folder) as owner, load.going_on():
            memory.look()
            puts = load.acknowledged + luck.randrange(1, 40)
            eventually("puts are confirmed", lambda puts=puts: load.acknowledged > puts)  # type: ignore[misc]
            kill_all(lambda owner=owner: [*alive(owner.pid), *processes_in(pgdata)])  # type: ignore[misc]
        with EmbeddedPostgres(folder) as dsn, connect(dsn) as connection:
            stored = closes(connection)
            nothing_acknowledged_is_lost(load, stored)
            nothing_went_back(before, stored)
            assert every_close_is_true(load.market, stored)
            tables_agree(connection)
            before = stored
    with EmbeddedPostgres(folder) as dsn, connect(dsn) as connection:
        everything_rolls_up_once(connection)
    assert memory.left() == set()


# Whom a round kills.
VICTIMS: dict[str, Callable[[Demo], list[psutil.Process]]] = {
    "the head of PostgreSQL": lambda demo: demo.server()[:1],
    "PostgreSQL": lambda demo: demo.server(),
    "a backend": lambda demo: demo.backends()[:1],
    "the code server": lambda demo: demo.child("code-server"),
    "the daemon": lambda demo: demo.child("daemon"),
    "a run": lambda demo: demo.runs()[:1],
    "up": lambda demo: alive(demo.up.process.pid),
    "up and its guardian": lambda demo: [*demo.guardian(), *alive(demo.up.process.pid)],
    "everything": lambda demo: demo.everything(),
}
MINUTES = "SELECT count(DISTINCT minute_ts) FROM minute_close"
BACKFILLS = "SELECT count(*) FROM dagster.bulk_actions WHERE status IN ('REQUESTED', 'CANCELING')"
STOPS_WITHIN = 10.0
# Of backfills one run at a time; one that was killed while it started holds that place until the
# instance gives it up (`run_monitoring` in dagster.yaml).
RUN_WITHIN = 180.0 + 2 * 30.0 + PATIENCE


@pytest.mark.soak
@pytest.mark.timeout(1500)
def test_whoever_is_killed_under_load_the_platform_goes_on_and_every_promise_holds(
    start: Callable[..., Up], folder: Path, seed: int
) -> None:
    Rounds(start, folder, seed).all_of_them()


class Rounds:
    """A demo under load, in which one after the other is killed."""

    def __init__(self, start: Callable[..., Up], folder: Path, seed: int) -> None:
        self._start, self._luck = start, random.Random(seed)
        self._temporary = folder / "temporary"
        self._temporary.mkdir()
        self._demo = self._started()
        self._data = self._demo.up.data_dir
        self._memory = SharedMemory(self._data / "postgres")
        self._load = Load(lambda: running_dsn(self._data), Market(seed=0), seed, pause=0.1)
        self._before: Closes = {each.table: {} for each in TIMEFRAMES}
        # Counted by simulators that are gone.
        self._calls = 0

    def _started(self) -> Demo:
        up = self._start(
            "demo", definitions=OURS, PULSEGUARD_MODE="100", TMPDIR=str(self._temporary)
        )
        up.wait_until_up()
        return Demo(up)

    def all_of_them(self) -> None:
        # Later, or the platform, which sweeps when it knows no coin, would poll those of the load.
        eventually("a first minute", lambda: self._demo.up.query(MINUTES) >= 1)
        with connect(running_dsn(self._data) or "") as connection:
            self._load.introduce(connection)
        victims = list(VICTIMS)
        self._luck.shuffle(victims)
        for victim in victims:
            self._round(victim)
        self._all_that_began_has_ended()
        self._stop_under_load()
        self._nothing_is_left()
        with EmbeddedPostgres(self._data) as dsn, connect(dsn) as connection:
            self._check(connection)
            everything_rolls_up_once(connection)

    def _round(self, victim: str) -> None:
        demo, load = self._demo, self._load
        print(f"{utc_now():%H:%M:%S} killed is {victim}")  # noqa: T201 - shown with a failure
        self._ask_for_runs()
        with load.going_on(), demo.collector() as collector:
            puts = load.acknowledged + self._luck.randrange(1, 30)
            eventually("puts are confirmed", lambda: load.acknowledged > puts)
            eventually(f"there is {victim}", lambda: self._found(victim), within=RUN_WITHIN)
            self._memory.look()
            counted = demo.calls_counted()
            kill(VICTIMS[victim](demo))
            if victim == "everything":
                kill_all(demo.everything)
            self._recover(counted)
            puts = load.acknowledged
            eventually("puts go on", lambda: load.acknowledged > puts + 2)
            said, _ = collector.communicate(timeout=120)
            assert collector.returncode in (0, 2, -signal.SIGKILL), said
            assert "Traceback" not in said, said
        with connect(running_dsn(self._data) or "") as connection:
            self._check(connection)

    def _found(self, victim: str) -> list[psutil.Process]:
        """The processes to kill; asks for runs anew should those asked for be over already."""
        self._ask_for_runs()
        return VICTIMS[victim](self._demo)

    def _ask_for_runs(self) -> None:
        """Take a few hours, or days, from history, unless some are being taken."""
        if self._demo.up.query(BACKFILLS) == 0:
            now, back = utc_now(), self._luck.sample(range(1, 20), 4)
            if self._luck.random() < 0.5:
                hours = (f"{now - timedelta(hours=n):%Y-%m-%d-%H:00}" for n in back)
                self._demo.backfill("hourly_close", hours)
            else:
                days = (f"{now - timedelta(days=n):%Y-%m-%d}" for n in back)
                self._demo.backfill("daily_close", days)

    def _recover(self, counted: int) -> None:
        """Wait until what was killed is back by itself, or start it again."""
        gone = self._demo.up
        if gone.code is None:
            eventually("the database answers", lambda: gone.ticks() >= 0)
            gone.ticks_go_on()
            return
        self._calls += counted
        eventually("the folder is free", gone.lock_is_free)
        self._demo = self._started()
        assert [line for line in gone.processes() if not line.endswith(" postgres")] == []

    def _check(self, connection: psycopg.Connection) -> None:
        stored = closes(connection)
        nothing_acknowledged_is_lost(self._load, stored)
        nothing_went_back(self._before, stored)
        assert every_close_is_true(self._load.market, stored)
        tables_agree(connection)
        self._before = stored

    def _all_that_began_has_ended(self) -> None:
        """No cycle, run or tick says of itself for ever that it is under way."""
        up, now = self._demo.up, utc_now()
        # The next one to take something from history finds what the killed ones left.
        self._demo.backfill("daily_close", [f"{now - timedelta(days=30):%Y-%m-%d}"])
        eventually("the backfills' end", lambda: up.query(BACKFILLS) == 0, within=300)
        for what, began in (
            ("collection_status WHERE status = 'running'", "start_time"),
            (
                "dagster.runs WHERE status IN ('STARTING', 'STARTED', 'CANCELING')",
                "create_timestamp",
            ),
            ("dagster.job_ticks WHERE status = 'STARTED'", "timestamp"),
        ):
            left = f"SELECT count(*) FROM {what} AND {began} < '{now.replace(tzinfo=None)}'"
            eventually(f"nothing in {what}", lambda left=left: up.query(left) == 0, within=300)  # type: ignore[misc]
        calls = self._calls + self._demo.calls_counted()
        assert up.query("SELECT sum(total_calls) FROM api_usage_stats") >= calls > 0

    def _stop_under_load(self) -> None:
        eventually("there is a run", lambda: self._found("a run"), within=RUN_WITHIN)
        with self._load.going_on(), self._demo.collector() as collector:
            took = self._demo.up.stop(signal.SIGINT)
            collector.communicate(timeout=120)
        assert self._demo.up.code == 0, self._demo.up.screen
        # Twice the promise: here it competes with the load, and with whatever else runs.
        assert took < 2 * STOPS_WITHIN, self._demo.up.screen

    def _nothing_is_left(self) -> None:
        assert self._demo.up.processes() == []
        assert self._demo.up.lock_is_free()
        assert self._memory.left() == set()
        assert temporary_files(self._demo.up, self._temporary) == []
