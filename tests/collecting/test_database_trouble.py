"""PostgreSQL away, read-only, out of connections or disk: what a tick says, costs and leaves."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from click.testing import CliRunner
from full_disk_support import full, small_disk
from psycopg import sql

from pulseguard_assets.cli import main
from pulseguard_assets.collecting.errors import WarehouseFailed
from pulseguard_assets.collecting.platform import TICK_BUDGET, Platform
from pulseguard_assets.collecting.polling import NotDue, PollFailed, PollReport, poll_when_due
from pulseguard_assets.collecting.sweep import SweepFailed, sweep
from pulseguard_assets.simulator.server import RunningSimulator
from pulseguard_assets.warehouse.account import (
    bundled_installation,
    choose_account,
    usable_installation,
)
from pulseguard_assets.warehouse.connection import DatabaseUnavailable, connect
from pulseguard_assets.warehouse.embedded import DATABASE, EmbeddedPostgres

PlatformFactory = Callable[..., Platform]
MANY = 3300
many_coins = pytest.mark.parametrize("coins", [MANY])
CONNECTIONS = 12

pytestmark = pytest.mark.usefixtures("swept")


@pytest.fixture(scope="module")
def postgres(run_server: Callable[..., AbstractContextManager[Any]]) -> Iterator[Any]:
    """A server of its own that forgets nothing it has acknowledged, with few connections."""
    with run_server(
        "troubled", max_connections=str(CONNECTIONS), synchronous_commit="on"
    ) as server:
        yield server


@pytest.fixture
def kill(postgres: Any) -> Iterator[Callable[[], None]]:
    """`kill()` ends the server at once, as a crash does. It runs again after the test."""

    def kill() -> None:
        os.kill(postgres.embedded.pid, signal.SIGQUIT)
        assert postgres.embedded.wait(30)

    yield kill
    if not postgres.embedded.running:
        postgres.embedded.start()


def tick(platform: Platform) -> PollReport | NotDue:
    """A tick of the sensor, with a connection of its own."""
    now = platform.clock()
    with platform.connect() as connection:
        return poll_when_due(platform, connection, now=now, until=now + TICK_BUDGET)


def asked(ticks: Any) -> int:
    total: int = ticks.provider.calls()["total"]
    return total


def rows(dsn: str, statement: str) -> list[tuple[Any, ...]]:
    with connect(dsn) as connection:
        return connection.execute(statement.encode()).fetchall()


def minutes(dsn: str) -> list[tuple[Any, ...]]:
    return rows(
        dsn, "SELECT coin_id, minute_ts, price_usd, created_at FROM minute_close ORDER BY 1,2"
    )


def ledger_is_right(dsn: str, ticks: Any) -> None:
    """Every call that was made is counted, once; nothing is left under way."""
    total, outcomes = rows(
        dsn,
        "SELECT total_calls, successful_calls + failed_calls + rate_limited_calls "
        "FROM api_usage_stats",
    )[0]
    assert total == outcomes == asked(ticks)
    assert rows(dsn, "SELECT count(*) FROM collection_status WHERE status = 'running'") == [(0,)]


# --- read-only ---


@pytest.fixture
def read_only(database: str, postgres: Any) -> Callable[[bool], None]:
    """`read_only(True)`: sessions that begin from now on can only read."""

    def switch(on: bool) -> None:
        with connect(postgres.dsn) as admin:
            admin.execute(
                sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = {}").format(
                    sql.Identifier(database.rpartition("/")[2].partition("?")[0]), sql.Literal(on)
                )
            )

    return switch


def test_a_server_that_takes_no_writes_is_told_so_before_a_call_is_paid(
    platform: Platform, ticks: Any, database: str, read_only: Callable[[bool], None]
) -> None:
    read_only(True)
    with pytest.raises(WarehouseFailed, match=r"takes no writes.*PULSEGUARD_DATABASE_URL"):
        tick(platform)
    with platform.connect() as connection, pytest.raises(WarehouseFailed, match="takes no writes"):
        sweep(platform, connection, now=platform.clock(), until=platform.clock() + TICK_BUDGET)
    assert asked(ticks) == 0
    read_only(False)
    ticks.wait(seconds=20)

    done = tick(platform)

    assert isinstance(done, PollReport)
    assert done.cycle.status == "completed"
    ledger_is_right(database, ticks)


def test_on_the_command_line_it_is_a_sentence_and_exit_code_2(
    ticks: Any, database: str, read_only: Callable[[bool], None]
) -> None:
    read_only(True)
    for command in (["collect", "--once"], ["collect", "--once", "--sweep"]):
        done = CliRunner().invoke(
            main,
            command,
            env={
                "PULSEGUARD_DATABASE_URL": database,
                "PULSEGUARD_BASE_URL": ticks.provider.url,
                "PULSEGUARD_PLAN": "pro",
                "PULSEGUARD_API_KEY": "CG-Sesam0effneDichNicht",
            },
        )
        assert done.exit_code == 2, done.output
        assert done.stderr.startswith("pulseguard: PostgreSQL failed: cannot execute ")
        assert "takes no writes" in done.stderr
        assert "Traceback" not in done.output
    assert asked(ticks) == 0


@contextmanager
def hot_standby(primary: EmbeddedPostgres, dsn: str, folder: Path) -> Iterator[str]:
    """A server that follows the primary; yields the URL that `dsn`'s database has on it."""
    account = choose_account(primary.pgdata)
    copies = primary.data_dir / "postgres-programs"
    programs = usable_installation(bundled_installation(), account, copies=copies) / "bin"
    standby = EmbeddedPostgres(folder)
    standby.pgdata.mkdir(mode=0o700)
    if account.switch:
        os.chown(standby.pgdata, account.uid, account.gid)
    copied = account.run(
        str(programs / "pg_basebackup"),
        *(f"--pgdata={standby.pgdata}", f"--dbname={dsn}"),
        *("--write-recovery-conf", "--checkpoint=fast", "--no-sync"),
    )
    assert copied.returncode == 0, copied.stderr
    with standby as there:
        yield there.replace(
            f"/{DATABASE}?", f"/{psycopg.conninfo.conninfo_to_dict(dsn)['dbname']}?"
        )


def test_a_standby_is_told_of_and_collects_on_where_the_primary_was_when_it_takes_over(
    platform: Platform,
    new_platform: PlatformFactory,
    ticks: Any,
    database: str,
    postgres: Any,
    folder: Path,
) -> None:
    tick(platform)
    before = minutes(database)
    ticks.wait(minutes=1)
    with hot_standby(postgres.embedded, database, folder) as standby:
        platform = new_platform(database_url=standby)
        with pytest.raises(WarehouseFailed, match=r"it is a standby.*Name the primary"):
            tick(platform)
        assert asked(ticks) == 1
        assert minutes(standby) == before
        assert rows(standby, "SELECT pg_promote()") == [(True,)]
        ticks.wait(seconds=20)

        done = tick(platform)

        assert isinstance(done, PollReport)
        after = minutes(standby)
        assert [row for row in after if row[1] < done.minute] == before
        assert len(after) == 2 * len(before)
        ledger_is_right(standby, ticks)


# --- out of connections ---


@contextmanager
def all_taken(dsn: str, *, but: int = 0) -> Iterator[None]:
    """Take every connection that the server gives, and end so many of them again."""
    with ExitStack() as taken:
        connections = []
        while True:
            try:
                connections.append(psycopg.connect(dsn))
            except psycopg.OperationalError:
                break
            taken.callback(connections[-1].close)
        for each in connections[:but]:
            each.close()
        yield


def test_no_connection_left_is_told_so_before_a_call_is_paid(
    platform: Platform, ticks: Any, database: str
) -> None:
    with (
        all_taken(database),
        pytest.raises(DatabaseUnavailable, match=r"too many clients.*raise its max_connections"),
    ):
        tick(platform)
    assert asked(ticks) == 0

    assert isinstance(tick(platform), PollReport)
    ledger_is_right(database, ticks)


def test_connections_kept_for_superusers_are_told_of_alike(database: str, postgres: Any) -> None:
    with connect(postgres.dsn) as admin:
        admin.execute("CREATE ROLE humble LOGIN")
    humble = database.replace("pulseguard@", "humble@")
    with (
        all_taken(humble),
        pytest.raises(DatabaseUnavailable, match=r"reserved.*raise its max_connections"),
    ):
        connect(humble)


class _ServerSide(httpx.HTTPTransport):
    """The network; while the call of this number is waited for, something happens to PostgreSQL."""

    def __init__(self, number: int, happens: Callable[[], object]) -> None:
        super().__init__()
        self._left, self._happens = number, happens

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self._left -= 1
        if self._left == 0:
            self._happens()
        return super().handle_request(request)


@many_coins
def test_a_ledger_that_gets_no_connection_in_the_middle_fails_the_poll_and_not_our_code(
    new_platform: PlatformFactory, ticks: Any, database: str
) -> None:
    with ExitStack() as taking:
        platform = new_platform(
            mode=str(MANY),
            transport=_ServerSide(
                2,
                lambda: (platform.ledger.close(), taking.enter_context(all_taken(database))),
            ),
        )
        with pytest.raises(PollFailed, match=r"too many clients") as failure:
            tick(platform)
    assert "PulseGuard itself" not in str(failure.value)
    assert failure.value.report is not None
    assert 0 < failure.value.report.stored <= 500
    assert ticks.statuses() == ["failed"], "its own connection could still write how it ended"

    ticks.wait(minutes=6)
    done = tick(new_platform(mode=str(MANY)))

    assert isinstance(done, PollReport)
    assert done.cycle.status == "completed"
    ledger_is_right(database, ticks)


# --- away ---


def test_a_server_that_was_away_for_minutes_costs_no_call_and_one_poll_follows(
    platform: Platform, database: str, kill: Callable[[], None], postgres: Any, ticks: Any
) -> None:
    tick(platform)
    before = minutes(database)
    kill()
    for _ in range(3 * 10):
        ticks.wait(seconds=20)
        with pytest.raises(DatabaseUnavailable, match="PULSEGUARD_DATABASE_URL"):
            tick(platform)
    assert asked(ticks) == 1
    postgres.embedded.start()

    done = tick(platform)

    assert isinstance(done, PollReport)
    ticks.wait(seconds=20)
    assert isinstance(tick(platform), NotDue)
    assert asked(ticks) == 2, "what was missed is not made up for by prices of now"
    after = minutes(database)
    assert [row for row in after if row[1] < done.minute] == before
    assert len(after) == 2 * len(before)
    ledger_is_right(database, ticks)


@many_coins
def test_a_server_that_crashes_while_an_answer_is_waited_for_loses_that_answer_alone(
    new_platform: PlatformFactory,
    ticks: Any,
    database: str,
    kill: Callable[[], None],
    postgres: Any,
) -> None:
    platform = new_platform(mode=str(MANY), transport=_ServerSide(3, kill))
    with pytest.raises(PollFailed, match="PULSEGUARD_DATABASE_URL") as failure:
        tick(platform)
    assert failure.value.report is not None
    acknowledged = failure.value.report.stored
    assert acknowledged > 500, "two chunks were"
    postgres.embedded.start()
    assert len(minutes(database)) == acknowledged

    done = tick(platform)

    assert isinstance(done, PollReport)
    assert (done.cycle.status, done.calls) == ("completed", 8 - 2), "it goes on behind them"
    assert len(minutes(database)) == acknowledged + done.stored
    # Its call was sent, so it counts; nobody could tell the ledger how it ended.
    ticks.wait(minutes=6)
    tick(platform)
    ledger_is_right(database, ticks)


def test_a_sweep_whose_server_crashes_leaves_no_row_that_says_running(
    new_platform: PlatformFactory,
    ticks: Any,
    database: str,
    kill: Callable[[], None],
    postgres: Any,
) -> None:
    platform = new_platform(transport=_ServerSide(1, kill))
    now = platform.clock()
    with platform.connect() as lost, pytest.raises(SweepFailed, match="PULSEGUARD_DATABASE_URL"):
        sweep(platform, lost, now=now, until=now + TICK_BUDGET)
    postgres.embedded.start()
    ticks.wait(minutes=11)

    tick(platform)

    kinds = rows(database, "SELECT collection_type, status FROM collection_status ORDER BY id")
    assert kinds == [("priority_refresh", "failed"), ("continuous", "completed")]
    ledger_is_right(database, ticks)


def test_a_server_that_is_suspended_is_given_up_in_time_and_goes_on(
    database: str, postgres: Any
) -> None:
    os.kill(postgres.embedded.pid, signal.SIGSTOP)
    try:
        with pytest.raises(DatabaseUnavailable, match="PULSEGUARD_DATABASE_URL"):
            connect(database, connect_timeout=timedelta(seconds=2))
    finally:
        os.kill(postgres.embedded.pid, signal.SIGCONT)
    with connect(database) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


# --- the disk is full ---


@pytest.fixture
def disk(folder: Path, database: str, postgres: Any) -> Iterator[Path]:
    """A small disk that the tables of `database` lie on; the journal has room elsewhere."""
    with small_disk(folder / "small", 64) as disk, lying_on(disk, database, postgres):
        yield disk


@contextmanager
def lying_on(disk: Path, database: str, postgres: Any) -> Iterator[None]:
    name = database.rpartition("/")[2].partition("?")[0]
    home = disk / "tables"
    home.mkdir(mode=0o700)
    server = postgres.embedded.pgdata.stat()
    os.chown(home, server.st_uid, server.st_gid)

    def move(tablespace: str) -> None:
        everybody = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        admin.execute(f"{everybody} WHERE datname = %s", (name,))
        admin.execute(
            sql.SQL("ALTER DATABASE {} SET TABLESPACE {}").format(
                sql.Identifier(name), sql.Identifier(tablespace)
            )
        )

    with connect(postgres.dsn) as admin:
        admin.execute(sql.SQL("CREATE TABLESPACE small LOCATION {}").format(str(home)))
        move("small")
        yield
        move("pg_default")
        admin.execute("DROP TABLESPACE small")


def test_a_full_disk_is_told_so_and_what_was_stored_stays(
    disk: Path, platform: Platform, provider: RunningSimulator, database: str
) -> None:
    assert isinstance(tick(platform), PollReport)
    before = minutes(database)
    provider.advance(timedelta(minutes=1))
    with full(disk):
        said = ""
        for _ in range(40):
            try:
                tick(platform)
            except PollFailed as failure:
                said = str(failure)
                break
            provider.advance(timedelta(minutes=1))
        assert "No space left on device" in said
        assert "make room on it" in said
        spent = provider.calls()["total"]
        provider.advance(timedelta(seconds=20))
        with pytest.raises(PollFailed, match="make room on it"):
            tick(platform)
        assert provider.calls()["total"] == spent, "the pause after a failure costs nothing"
        acknowledged = minutes(database)
        assert [row for row in acknowledged if row in set(before)] == before
    provider.advance(timedelta(minutes=2))

    done = tick(platform)

    assert isinstance(done, PollReport)
    assert done.cycle.status == "completed"
    assert [row for row in minutes(database) if row[1] < done.minute] == acknowledged
