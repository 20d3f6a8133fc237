"""`pulseguard status`: the verdict, and that it comes in time whatever is down."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import psycopg
import pytest
from click.testing import CliRunner
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    InstigatorType,
    ScheduleInstigatorData,
    SensorInstigatorData,
    TickData,
    TickStatus,
)
from dagster._daemon.types import DaemonHeartbeat
from dagster_shared.error import SerializableErrorInfo
from watching_support import instance_on

from pulseguard_assets.alerts import status_reading, watch_list
from pulseguard_assets.alerts.instigators import Watched
from pulseguard_assets.alerts.status import Status, take_status
from pulseguard_assets.alerts.status_screen import for_a_machine, for_a_person
from pulseguard_assets.cli import main
from pulseguard_assets.running.instance import Folders
from pulseguard_assets.running.processes import (
    ProcessList,
    ProcessRecord,
    processes_file,
    record_of,
    write_processes,
)
from pulseguard_assets.settings import load_settings
from pulseguard_assets.timeframes import TIMEFRAMES
from pulseguard_assets.warehouse.connection import connect, ensure_dagster_schema
from pulseguard_assets.warehouse.embedded import EmbeddedPostgres
from pulseguard_assets.warehouse.postmaster import processes_in

NOW = datetime(2026, 11, 22, 12, 3, 30, tzinfo=timezone.utc)
SENSOR, SCHEDULE = "coingecko_price_sensor", "watchdog_schedule"
COINS = 20

# It has to be back a second later, however little the database says.
PATIENCE = 2.0
# Where the database does answer, a slow machine may take its time.
NO_HURRY = 60.0

Take = Callable[..., Status]


def ago(**parts: float) -> datetime:
    return NOW - timedelta(**parts)


# --- a platform that is well ---


@pytest.fixture(scope="module")
def well(postgres: Any) -> Iterator[str]:
    """The name of a database of a platform that is well at NOW, with Dagster's own tables."""
    with postgres.new_database(postgres.migrated_template()) as dsn:
        ensure_dagster_schema(dsn)
        with instance_on(dsn) as instance:
            _tick_everything(instance)
        with connect(dsn) as connection:
            _collect(connection)
            watch_list.record(
                connection,
                [
                    Watched(SENSOR, "sensor", True, timedelta(seconds=20), None),
                    Watched(SCHEDULE, "schedule", True, None, "* * * * *"),
                ],
            )
            name = connection.info.dbname
        yield name


def _tick_everything(instance: dg.DagsterInstance) -> None:
    for daemon in ("SENSOR", "SCHEDULER"):
        instance.add_daemon_heartbeat(DaemonHeartbeat(ago(seconds=12).timestamp(), daemon, "a", []))
    for name, data in (
        (SENSOR, SensorInstigatorData(min_interval=20)),
        (SCHEDULE, ScheduleInstigatorData("* * * * *", ago(days=1).timestamp())),
    ):
        origin = _origin(name)
        kind = InstigatorType.SENSOR if name == SENSOR else InstigatorType.SCHEDULE
        instance.add_instigator_state(
            InstigatorState(origin, kind, InstigatorStatus.DECLARED_IN_CODE, data)
        )
    for seconds in (90, 30):
        add_tick(instance, SCHEDULE, "SKIPPED", ago(seconds=seconds))
    for seconds in (58, 38, 18):
        add_tick(instance, SENSOR, "SKIPPED", ago(seconds=seconds))


def _origin(name: str) -> RemoteInstigatorOrigin:
    location = RegisteredCodeLocationOrigin("pulseguard")
    return RemoteInstigatorOrigin(RemoteRepositoryOrigin(location, "__repository__"), name)


def add_tick(
    instance: dg.DagsterInstance, name: str, outcome: str, at: datetime, *, in_a_row: int = 0
) -> None:
    origin = _origin(name)
    selector = origin.get_selector().get_id()
    error = None
    if outcome == "FAILURE":
        error = SerializableErrorInfo("CoinGecko answers 503.", [], "ProviderError")
    instance.create_tick(
        TickData(
            instigator_origin_id=origin.get_id(),
            instigator_name=name,
            instigator_type=InstigatorType.SENSOR if name == SENSOR else InstigatorType.SCHEDULE,
            status=TickStatus[outcome],
            timestamp=at.timestamp(),
            end_timestamp=at.timestamp() + 1,
            error=error,
            selector_id=selector,
            consecutive_failure_count=in_a_row,
        )
    )


def _collect(connection: psycopg.Connection) -> None:
    connection.execute("SELECT ensure_partitions(%s, %s)", (ago(days=60), ago(days=-60)))
    connection.execute(
        "INSERT INTO coin_priorities (coin_id, market_cap_rank, last_updated) "
        "SELECT 'coin-' || n, n, %s FROM generate_series(1, %s) AS n",
        (ago(hours=12), COINS),
    )
    connection.execute("UPDATE collection_scope SET wanted = %s, always = '{}'", (COINS,))
    connection.execute(
        "INSERT INTO minute_close (coin_id, minute_ts, price_usd) "
        "SELECT 'coin-' || n, at, 1 FROM generate_series(1, %s) AS n, "
        "unnest(%s::timestamptz[]) AS at",
        (COINS, [NOW.replace(second=0), ago(hours=1).replace(second=0)]),
    )
    # Of yesterday, three quarters.
    connection.execute(
        "INSERT INTO daily_close (coin_id, day_ts, price_usd) "
        "SELECT 'coin-' || n, %s, 1 FROM generate_series(1, %s) AS n",
        (NOW.replace(hour=0, minute=0, second=0) - timedelta(days=1), COINS * 3 // 4),
    )
    connection.execute(
        "INSERT INTO api_usage_stats (date, total_calls) VALUES (%s, 1000), (%s, 5000)",
        (NOW.date(), ago(days=40).date()),
    )


@pytest.fixture
def database(postgres: Any, well: str) -> Iterator[str]:
    """A copy of it."""
    with postgres.new_database(well) as dsn:
        yield dsn


@pytest.fixture
def instance(database: str) -> Iterator[dg.DagsterInstance]:
    """Dagster on that copy."""
    with instance_on(database) as instance:
        yield instance


@pytest.fixture
def take(database: str, tmp_path: Path, only_our_settings: None) -> Take:
    """`take(**settings)`: the status at NOW, polling every minute.

    `take(patience=PATIENCE)` fails if it does not come back in time.
    """

    def take(*, now: datetime = NOW, patience: float = NO_HURRY, **settings: Any) -> Status:
        known = {
            "database_url": database,
            "data_dir": tmp_path,
            "calls_per_minute": 1_000,
            "credits_per_month": 100_000,
            "cadence_minutes": 1,
        }
        given = load_settings(**known | settings)
        begun = time.monotonic()
        status = take_status(given, now=now, patience=patience)
        assert time.monotonic() - begun < patience + 1
        return status

    return take


Here = Callable[..., None]
AN_HOUR_AGO = ago(hours=1)


@pytest.fixture
def here(tmp_path: Path) -> Here:
    """`here(started=..., daemon=..., ...)`: a platform on this machine; every process is this one.

    A child is named with a function that changes its record, or with None: it is not there.
    """

    def here(
        *, started: datetime = AN_HOUR_AGO, up: Any = lambda record: record, **children: Any
    ) -> None:
        records = {
            name.replace("_", "-"): change
            for name, change in {
                "code_server": lambda record: record,
                "webserver": lambda record: record,
                "daemon": lambda record: record,
                **children,
            }.items()
        }
        write_processes(
            processes_file(Folders(tmp_path)),
            ProcessList(
                up(_record("up", started)),
                tuple(change(_record(name, started)) for name, change in records.items() if change),
            ),
        )

    return here


def _record(name: str, started: datetime) -> ProcessRecord:
    return record_of(name, os.getpid(), at=started).now("running")


def gone(record: ProcessRecord) -> ProcessRecord:
    return replace(record, born=None)


def restarting(**since: float) -> Callable[[ProcessRecord], ProcessRecord]:
    return lambda record: replace(gone(record).now("restarting", at=ago(**since)), restarts=3)


# --- all is well ---


def test_a_platform_that_is_well_is_healthy(take: Take, here: Here, tmp_path: Path) -> None:
    here()

    status = take()

    assert (status.level, status.state, status.headline) == (0, "healthy", "PulseGuard is healthy.")
    assert status.problems == ()
    assert status.unread == {}
    assert "\n".join(for_a_person(status)).replace(str(os.getpid()).ljust(8), "PID     ") == (
        "PulseGuard is healthy.\n"
        "\n"
        "  Processes      up           running    process PID      since 11:03 UTC (1 h)\n"
        "                 code-server  running    process PID      since 11:03 UTC (1 h)\n"
        "                 webserver    running    process PID      since 11:03 UTC (1 h)\n"
        "                 daemon       running    process PID      since 11:03 UTC (1 h)\n"
        "  Daemon         gave a sign of life 12 s ago\n"
        "  Last ticks     coingecko_price_sensor  18 s ago       skipped  fine\n"
        "                 watchdog_schedule       30 s ago       skipped  fine\n"
        "  Newest closes  minute_close   30 s old\n"
        "                 hourly_close   3 min old\n"
        "                 daily_close    1 d 12 h old\n"
        "                 weekly_close   none yet\n"
        "                 monthly_close  none yet\n"
        "  Coverage       last hour (11:00)  100.0% of 20 coins\n"
        "                 last day  (2026-11-21)  75.0% of 20 coins\n"
        "  Incidents      none is open\n"
        "  Credits        1,000 of 90,000 spent this month, plan keyless\n"
        "  Alerts         go nowhere: set PULSEGUARD_ALERT_URLS, and try it with "
        "`pulseguard alert-test`\n"
        + "".join(f"{line}\n" for line in for_a_person(status)[-3:-1])
        + f"  Database       {status.database}"
    )


def test_it_is_judged_by_the_database_alone_where_no_platform_was_started(take: Take) -> None:
    status = take()

    assert status.level == 0
    assert (status.processes, status.started_at) == (None, None)
    assert "  Processes      not on this machine" in for_a_person(status)


# --- the daemon ---


@pytest.mark.parametrize(("seconds", "level"), [(44, 0), (46, 2)])
def test_a_daemon_without_a_heartbeat_for_45_s_is_dead(
    take: Take, here: Here, connection: psycopg.Connection, seconds: int, level: int
) -> None:
    here()
    connection.execute(
        "UPDATE dagster.daemon_heartbeats SET timestamp = %s", (ago(seconds=seconds),)
    )

    status = take()

    assert status.level == level
    if level:
        assert status.headline == "PulseGuard is down: the daemon is dead (since 12:02 UTC)."
        assert f"kill -KILL {os.getpid()}" in status.problems[0]


@pytest.mark.parametrize("back", [timedelta(minutes=30), timedelta(days=1)])
def test_a_clock_that_was_set_back_is_no_sign_that_all_is_well(
    take: Take, here: Here, back: timedelta
) -> None:
    """Everything was signed, ticked and stored in a time that has yet to come."""
    here(started=ago(days=3))

    status = take(now=NOW - back)

    assert status.level == 2
    told = "\n".join(status.problems)
    assert "the clock was set back" in told
    assert f"{SENSOR} does not tick" in told
    # Of the closes, only that of an hour ago is not of the future, if that.
    newest = next(each.newest for each in status.closes if each.table == "minute_close")
    assert newest is None or newest <= NOW - back


def test_a_database_that_can_only_be_read_is_told_so_and_nobody_is_sent_to_kill_the_daemon(
    take: Take, here: Here, connection: psycopg.Connection
) -> None:
    here()
    connection.execute("UPDATE dagster.daemon_heartbeats SET timestamp = %s", (ago(hours=1),))
    connection.execute(
        psycopg.sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(
            psycopg.sql.Identifier(connection.info.dbname)
        )
    )

    status = take()

    assert status.level == 2
    assert status.headline.startswith("PulseGuard is down: the database takes no writes")
    assert "PULSEGUARD_DATABASE_URL" in status.problems[0]
    assert "kill" not in "".join(status.problems)


def test_the_gravest_comes_first(take: Take, here: Here, connection: psycopg.Connection) -> None:
    here(webserver=gone)
    connection.execute("UPDATE dagster.daemon_heartbeats SET timestamp = %s", (ago(hours=1),))

    status = take()

    assert status.headline == (
        "PulseGuard is down: the daemon is dead (since 11:03 UTC), and 1 more."
    )
    assert [trouble.level for trouble in status.troubles] == [2, 1]


def test_the_newest_heartbeat_of_all_counts(
    take: Take, here: Here, connection: psycopg.Connection
) -> None:
    here()
    connection.execute(
        "UPDATE dagster.daemon_heartbeats SET timestamp = %s WHERE daemon_type = 'SENSOR'",
        (ago(hours=1),),
    )
    assert take().level == 0


def test_a_daemon_that_was_never_heard_of_is_down(
    take: Take, here: Here, connection: psycopg.Connection
) -> None:
    here()
    connection.execute("DELETE FROM dagster.daemon_heartbeats")
    assert take().headline == "PulseGuard is down: no daemon has ever reported."


# --- processes ---


@pytest.mark.parametrize(
    ("child", "change", "level", "said"),
    [
        ("code_server", gone, 2, "the code-server is gone"),
        ("daemon", gone, 2, "the daemon is gone"),
        ("webserver", gone, 1, "the webserver is gone"),
        ("code_server", None, 2, "the code-server has not been started yet"),
        ("code_server", restarting(seconds=59), 1, "the code-server is being restarted"),
        ("code_server", restarting(seconds=61), 2, "the code-server is being restarted"),
        ("daemon", restarting(seconds=61), 2, "the daemon is being restarted (since 12:02 UTC)"),
        ("webserver", restarting(hours=1), 1, "the webserver is being restarted"),
    ],
)
def test_a_child_that_is_not_there_is_named(
    take: Take, here: Here, child: str, change: Any, level: int, said: str
) -> None:
    here(**{child: change})

    status = take()

    assert status.level == level
    assert f": {said}" in status.headline
    assert len(status.troubles) == 1


def test_a_suspended_process_is_told_from_one_that_runs(
    take: Take, here: Here, connection: psycopg.Connection
) -> None:
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)"]) as p:
        p.send_signal(signal.SIGSTOP)
        os.waitpid(p.pid, os.WUNTRACED)
        # Neither a fresh start nor old heartbeats say more than that.
        here(started=ago(seconds=60), daemon=lambda _: record_of("daemon", p.pid).now("running"))
        connection.execute("UPDATE dagster.daemon_heartbeats SET timestamp = %s", (ago(hours=1),))
        status = take()
        p.kill()

    assert status.headline == "PulseGuard is down: the daemon is suspended."
    assert status.problems[0].endswith(f"kill -CONT {p.pid}")


def test_a_platform_that_was_killed_is_down_though_its_list_is_still_there(
    take: Take, here: Here
) -> None:
    here(up=gone, daemon=gone, code_server=gone, webserver=gone)

    status = take()

    assert status.headline == "PulseGuard is down: it was killed."
    assert "Start it: pulseguard up" in status.problems[0]


def test_where_nothing_runs_it_says_how_to_start_it(take: Take) -> None:
    status = take(database_url=None)

    assert status.level == 2
    assert len(status.problems) == 1
    assert "no platform runs in" in status.headline
    assert "pulseguard up" in status.problems[0]


# --- starting ---


def test_what_cannot_be_there_yet_is_no_failure(
    take: Take, here: Here, connection: psycopg.Connection
) -> None:
    connection.execute("UPDATE dagster.daemon_heartbeats SET timestamp = %s", (ago(days=1),))
    here(started=ago(seconds=119), code_server=None, daemon=None)

    status = take()

    assert (status.level, status.state) == (1, "starting")
    assert status.headline.startswith("PulseGuard is starting since 12:01 UTC: the code-server and")

    here(started=ago(seconds=121), code_server=None, daemon=None)
    assert (take().level, take().state) == (2, "down")


def test_a_database_that_is_not_up_yet_is_no_failure_at_the_start(take: Take, here: Here) -> None:
    here(started=ago(seconds=30), code_server=None, daemon=None, webserver=None)
    assert take(database_url=None).state == "starting"


def test_tables_that_are_not_made_yet_are_no_failure_at_the_start(
    take: Take, here: Here, empty_database: str
) -> None:
    here(started=ago(seconds=30), code_server=None)
    status = take(database_url=empty_database)
    assert (status.level, status.state) == (1, "starting")
    assert status.problems == ("The code-server has not been started yet.",)


def test_closes_missed_while_nothing_ran_are_no_sign_that_nothing_runs(
    take: Take, here: Here, connection: psycopg.Connection
) -> None:
    connection.execute("DELETE FROM minute_close WHERE minute_ts > %s", (ago(minutes=30),))
    here(started=ago(minutes=3))
    assert take().level == 0

    here(started=ago(minutes=3, seconds=1))
    assert take().headline == "PulseGuard is degraded: the newest close is 1 h old."


# --- late data ---


@pytest.mark.parametrize(
    ("tolerance", "late", "level"),
    [
        ("5 minutes", timedelta(minutes=3), 0),
        ("5 minutes", timedelta(minutes=3, seconds=1), 1),
        ("5 minutes", timedelta(minutes=6), 1),
        ("5 minutes", timedelta(minutes=6, seconds=1), 2),
        # As whoever polls has written it down, and not as the settings have it.
        ("45 minutes", timedelta(minutes=91), 0),
        ("45 minutes", timedelta(minutes=92), 1),
        ("45 minutes", timedelta(minutes=227), 2),
    ],
)
def test_closes_are_late_after_two_cadences_and_gone_after_five(
    take: Take,
    here: Here,
    connection: psycopg.Connection,
    tolerance: str,
    late: timedelta,
    level: int,
) -> None:
    connection.execute("UPDATE collection_scope SET tolerance = %s::interval", (tolerance,))
    now = NOW.replace(second=0) + late
    connection.execute("UPDATE dagster.daemon_heartbeats SET timestamp = %s", (now,))
    connection.execute("DELETE FROM watch_list")
    here(started=ago(days=1))

    assert take(now=now).level == level


def test_a_database_in_which_nothing_was_ever_collected_is_down(
    take: Take, connection: psycopg.Connection
) -> None:
    connection.execute("TRUNCATE minute_close")
    connection.execute("DELETE FROM dagster.job_ticks")
    connection.execute("DELETE FROM watch_list")
    assert take().headline == "PulseGuard is down: nothing has been collected yet."


# --- what the watchdog found ---


@pytest.mark.parametrize(
    ("severity", "resolved", "level"),
    [("warning", None, 0), ("error", None, 1), ("critical", None, 1), ("error", NOW, 0)],
)
def test_an_open_incident_degrades_unless_it_is_a_warning(
    take: Take,
    here: Here,
    connection: psycopg.Connection,
    severity: str,
    resolved: datetime | None,
    level: int,
) -> None:
    here()
    add_incident(connection, severity=severity, resolved=resolved)

    status = take()

    assert status.level == level
    shown = f"{severity:<8}  the API key is refused (since 10:03 UTC)"
    assert (shown in "\n".join(for_a_person(status))) == (resolved is None)
    if level:
        assert status.headline == (
            "PulseGuard is degraded: the API key is refused (since 10:03 UTC)."
        )
        assert status.problems[0].endswith("Set PULSEGUARD_API_KEY")


@pytest.mark.parametrize(
    ("help_", "link", "do"),
    [
        ("SELECT 1;", "/runs/1", "SELECT 1;"),
        ("pulseguard status", "/runs/1", "See https://pulse.example.org/runs/1"),
        (None, "/runs/1", "See https://pulse.example.org/runs/1"),
        (None, None, "More of it: pulseguard incidents"),
    ],
)
def test_whoever_asks_for_the_status_is_not_sent_to_ask_for_it(
    take: Take,
    here: Here,
    connection: psycopg.Connection,
    help_: str | None,
    link: str | None,
    do: str,
) -> None:
    here()
    incident = add_incident(connection)
    connection.execute(
        "UPDATE incidents SET help = %s, link = %s WHERE id = %s", (help_, link, incident)
    )

    status = take(ui_url="https://pulse.example.org")

    assert status.problems[0].endswith(do)


def add_incident(
    connection: psycopg.Connection,
    *,
    cause: str = "provider:ERRORS",
    severity: str = "error",
    resolved: datetime | None = None,
) -> int:
    row = connection.execute(
        "INSERT INTO incidents (cause, area, kind, severity, subject, title, message, help, "
        "first_seen, last_seen, occurrences, counted, absent_since, resolved_at) "
        "VALUES (%s, 'provider', 'ERRORS', %s, 'provider', 'the API key is refused', "
        "'CoinGecko answers 401.', 'Set PULSEGUARD_API_KEY', %s, %s, 1, 1, %s, %s) RETURNING id",
        (cause, severity, ago(hours=2), NOW, resolved, resolved),
    ).fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.parametrize(("attempts", "sent", "level"), [(0, None, 0), (2, None, 1), (2, NOW, 0)])
def test_a_channel_that_refuses_degrades(
    take: Take,
    here: Here,
    connection: psycopg.Connection,
    attempts: int,
    sent: datetime | None,
    level: int,
) -> None:
    here()
    connection.execute(
        "INSERT INTO incident_messages (incident_id, kind, channel, title, body, created_at, "
        "sent_at, attempts, next_attempt_at, last_error) "
        "VALUES (%s, 'opened', 'slack (1)', 'a', 'b', %s, %s, %s, %s, %s)",
        (
            add_incident(connection, severity="warning"),
            ago(minutes=10),
            sent,
            attempts,
            NOW,
            "slack (1): Servers are overloaded" if attempts else None,
        ),
    )

    status = take()

    assert status.level == level
    if level:
        assert status.headline == "PulseGuard is degraded: slack (1) does not accept alerts."
        assert "Slack (1): Servers are overloaded." in status.problems[0]
    if sent is None:
        assert status.outbox is not None
        assert (status.outbox[0].waiting, status.outbox[0].refused) == (1, 1 if attempts else 0)


def test_a_failing_sensor_is_named_though_no_watchdog_runs(
    take: Take, here: Here, instance: dg.DagsterInstance
) -> None:
    here()
    for seconds, failures in ((14, 1), (7, 2)):
        add_tick(instance, SENSOR, "FAILURE", ago(seconds=seconds), in_a_row=failures)

    status = take()

    assert status.level == 1
    assert status.headline.startswith(f"PulseGuard is degraded: {SENSOR} fails")
    assert status.headline.endswith("(since 12:03 UTC).")
    assert "CoinGecko answers 503." in status.problems[0]
    assert status.problems[0].endswith("pulseguard collect --once")
    assert status.instigators is not None
    assert [(each.name, each.outcome, each.verdict) for each in status.instigators] == [
        (SENSOR, "failure", "FAILING"),
        (SCHEDULE, "skipped", "fine"),
    ]


def test_what_is_an_incident_already_is_told_once(
    take: Take, here: Here, instance: dg.DagsterInstance, connection: psycopg.Connection
) -> None:
    here()
    for seconds, failures in ((14, 1), (7, 2)):
        add_tick(instance, SENSOR, "FAILURE", ago(seconds=seconds), in_a_row=failures)
    add_incident(connection, cause=f"sensor:{SENSOR}:FAILING")
    assert len(take().problems) == 1


def test_a_sensor_is_stale_only_while_something_could_have_ticked(
    take: Take, here: Here, connection: psycopg.Connection
) -> None:
    connection.execute("UPDATE dagster.job_ticks SET timestamp = timestamp - interval '10 min'")
    here()
    assert f"{SENSOR} " in take().headline

    # The daemon was started again a moment ago.
    here(daemon=lambda record: replace(record, started_at=ago(seconds=20)))
    assert take().level == 0


# --- the database is down, or does not answer ---


def test_a_database_that_nobody_serves_is_down(take: Take, here: Here) -> None:
    here()
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        status = take(database_url=f"postgresql://me:s3cret@127.0.0.1:{port}/prices")

    assert status.headline == "PulseGuard is down: the database does not answer."
    assert "PULSEGUARD_DATABASE_URL" in status.problems[0]
    assert status.heartbeats is None
    assert "s3cret" not in repr(status) + json.dumps(for_a_machine(status))


@contextmanager
def silent_server(*, swallows: bool) -> Iterator[int]:
    """Its port: it takes connections and says nothing; or it takes no packet at all."""
    with ExitStack() as stack:
        server = stack.enter_context(socket.socket())
        server.bind(("127.0.0.1", 0))
        server.listen(0 if swallows else 50)
        address = server.getsockname()
        for _ in range(4 if swallows else 0):
            # Who finds the queue full is not answered, like behind a firewall that drops.
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(address)
        yield address[1]


@pytest.mark.parametrize("swallows", [False, True])
def test_a_server_that_says_nothing_is_given_up_in_time(
    take: Take, here: Here, swallows: bool
) -> None:
    here()
    with silent_server(swallows=swallows) as port:
        # Two addresses: libpq would wait for each of them.
        status = take(
            database_url=f"postgresql://me:s3cret@127.0.0.1:{port},127.0.0.1:{port}/prices",
            patience=PATIENCE,
        )

    assert status.headline == "PulseGuard is down: the database does not answer."
    assert "it said nothing within 2 s" in status.problems[0]


def test_a_server_that_is_suspended_is_given_up_in_time(
    take: Take, here: Here, folder: Path
) -> None:
    here()
    with EmbeddedPostgres(folder) as dsn:
        everybody = processes_in(folder / "postgres")
        for process in everybody:
            process.suspend()
        try:
            status = take(database_url=dsn, patience=PATIENCE)
        finally:
            for process in everybody:
                process.resume()

    assert status.headline == "PulseGuard is down: the database does not answer."


def test_a_server_that_falls_silent_half_way_costs_what_was_not_read_yet(
    take: Take, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    here()

    def hang(connection: psycopg.Connection, _: datetime) -> None:
        connection.execute("SET statement_timeout = 0")
        connection.execute("SELECT pg_sleep(60)")

    monkeypatch.setitem(status_reading._PARTS, "coverage", hang)  # type: ignore[arg-type]

    status = take(patience=PATIENCE)

    assert status.level == 0
    assert status.unread == {
        "coverage": "there was no time left",
        "sizes": "there was no time left",
    }
    assert "could not be read: there was no time left" in "\n".join(for_a_person(status))
    # Nobody is left behind who would still be waiting when the next is sent.
    until_nobody_asks()


def until_nobody_asks() -> None:
    deadline = time.monotonic() + 10
    while any(each.name == "pulseguard status" for each in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_whoever_connects_too_late_asks_nothing_any_more(
    take: Take, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    here()
    late, asked = threading.Event(), []

    def connect_late(*given: Any, **options: Any) -> psycopg.Connection:
        late.wait(30)
        return connect(*given, **options)

    monkeypatch.setattr(status_reading, "connect", connect_late)
    monkeypatch.setattr(status_reading, "_PARTS", {"spent": lambda *_: asked.append(1)})

    assert take(patience=0.1).headline == "PulseGuard is down: the database does not answer."
    late.set()
    until_nobody_asks()
    assert asked == []


def test_asking_again_and_again_leaves_nothing_behind(take: Take, here: Here) -> None:
    here()
    me = psutil.Process()

    def held() -> tuple[int, int]:
        take()
        return me.num_fds(), threading.active_count()

    before = held()
    # Fewer may be left: what tests before this one held may go meanwhile.
    files, threads = [held() for _ in range(10)][-1]
    assert files <= before[0]
    assert threads <= before[1]


def test_a_locked_table_costs_what_needs_it(
    take: Take, here: Here, connection: psycopg.Connection
) -> None:
    here()
    with connection.transaction():
        connection.execute("LOCK TABLE minute_close IN ACCESS EXCLUSIVE MODE")
        status = take(patience=PATIENCE)

    assert status.level == 1
    assert status.headline == "PulseGuard is degraded: minute_close could not be read."
    assert status.unread["minute_close"] == "another session has locked the table"
    assert [close.table for close in status.closes] == [each.table for each in TIMEFRAMES[1:]]
    assert status.coverage is not None
    shown = "  Newest closes  hourly_close   3 min old"
    assert shown in for_a_person(status)


def test_if_every_table_is_locked_it_still_comes_back_in_time(
    take: Take, here: Here, connection: psycopg.Connection
) -> None:
    here()
    with connection.transaction():
        connection.execute(
            "SELECT set_config('lock_timeout', '0', true); "
            "DO $$ DECLARE t regclass; BEGIN FOR t IN SELECT oid FROM pg_class WHERE relkind IN "
            "('r', 'p') AND relnamespace IN ('public'::regnamespace, 'dagster'::regnamespace) LOOP "
            "EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', t); END LOOP; END $$"
        )
        status = take(patience=PATIENCE)

    assert status.level == 1
    assert status.heartbeats is None
    assert status.closes == ()
    assert status.headline.startswith(
        "PulseGuard is degraded: the heartbeats of the daemons could not be read"
    )


def test_a_database_without_our_tables_says_how_to_make_them(
    take: Take, empty_database: str
) -> None:
    status = take(database_url=empty_database)
    assert status.headline == "PulseGuard is down: the database has no tables of PulseGuard."
    assert status.problems == (
        "The database has no tables of PulseGuard. Make them: pulseguard migrate",
    )


# --- as it is called ---


@pytest.fixture
def pulseguard(only_our_settings: None, database: str, tmp_path: Path) -> Callable[..., Any]:
    """`pulseguard("status", PLAN=...)`: the command with settings from outside."""

    def run(*arguments: str, **settings: str) -> Any:
        known = {"DATABASE_URL": database, "DATA_DIR": str(tmp_path)}
        environment = {f"PULSEGUARD_{k}": v for k, v in {**known, **settings}.items()}
        return CliRunner().invoke(main, list(arguments), env=environment)

    return run


@pytest.mark.parametrize("arguments", [("status",), ("status", "--json")])
def test_the_exit_code_is_the_level(
    pulseguard: Callable[..., Any],
    here: Here,
    connection: psycopg.Connection,
    arguments: tuple[str, ...],
) -> None:
    now = datetime.now(timezone.utc)
    here(started=now - timedelta(hours=1))
    connection.execute("DELETE FROM watch_list")
    connection.execute("UPDATE dagster.daemon_heartbeats SET timestamp = %s", (now,))
    connection.execute("SELECT ensure_partitions(%s, %s)", (now, now))
    connection.execute(
        "INSERT INTO minute_close (coin_id, minute_ts, price_usd) VALUES ('coin-1', %s, 1)",
        (now.replace(second=0, microsecond=0),),
    )
    assert pulseguard(*arguments).exit_code == 0

    add_incident(connection)
    assert pulseguard(*arguments).exit_code == 1

    assert pulseguard(*arguments, DATABASE_URL="postgresql://127.0.0.1:1/x").exit_code == 2
    assert pulseguard(*arguments, DATABASE_URL="").exit_code == 2


def test_the_demo_is_looked_at_in_its_own_folder(
    pulseguard: Callable[..., Any], tmp_path: Path
) -> None:
    result = pulseguard("status", "--demo")
    assert result.exit_code == 2
    assert f"no platform runs in {tmp_path / 'demo'}" in result.output.replace("\n  ", " ")


def test_no_secret_is_ever_shown(pulseguard: Callable[..., Any], here: Here) -> None:
    here()
    secrets = {
        "DATABASE_URL": "postgresql://me:Passwort-Geheim@127.0.0.1:1/x?sslpassword=Ssl-Geheim",
        "ALERT_URLS": "json://zwerg:Kanal-Geheim@127.0.0.1/t0ken-im-Pfad",
        "HEARTBEAT_URL": "https://example.com/Ping-Geheim",
        "API_KEY": "CG-Schluessel-Geheim",
        "PLAN": "demo",
    }
    for arguments in (("status",), ("status", "--json")):
        result = pulseguard(*arguments, **secrets)
        assert result.exit_code == 2
        assert "json (1)" in result.output
        assert "Geheim" not in result.output
        assert "t0ken" not in result.output


SHAPE: dict[str, Any] = {
    "state": str,
    "level": int,
    "headline": str,
    "at": datetime,
    "problems": [{"level": int, "what": str, "why": str, "do": str}],
    "data_dir": str,
    "started_at": datetime,
    "database": {"answers": bool, "address": str},
    "processes": [
        {
            "name": str,
            "pid": int,
            "state": str,
            "condition": str,
            "alive": bool,
            "since": datetime,
            "restarts": int,
        }
    ],
    "heartbeats": [{"daemon": str, "at": datetime, "age_seconds": float}],
    "instigators": [
        {
            "name": str,
            "kind": str,
            "on": bool,
            "last_tick": datetime,
            "age_seconds": float,
            "outcome": str,
            "verdict": str,
        }
    ],
    "closes": [{"table": str, "newest": datetime, "age_seconds": float}],
    "coverage": [
        {
            "window": str,
            "start": datetime,
            "coins_expected": int,
            "coins_seen": int,
            "share": float,
        }
    ],
    "incidents": [
        {"cause": str, "title": str, "severity": str, "since": datetime, "age_seconds": float}
    ],
    "channels": [str],
    "outbox": [{"channel": str, "waiting": int, "refused": int, "since": datetime, "error": str}],
    "credits": {"plan": str, "spent": int, "allowed": int},
    "sizes": {
        "database_bytes": int,
        "table_bytes": {each.table: int for each in TIMEFRAMES},
        "dagster_bytes": int,
    },
    "unread": {},
}


def shape_of(value: Any, like: Any) -> Any:
    """`value` with each leaf replaced by its type; of lists, their first element."""
    if isinstance(like, dict):
        return {key: shape_of(value[key], like.get(key, str)) for key in value}
    if isinstance(like, list):
        return [shape_of(each, like[0]) for each in value[:1]]
    if like is datetime:
        assert datetime.fromisoformat(value).utcoffset() == timedelta(0)
        return datetime
    return type(value)


def test_a_machine_finds_the_keys_where_they_were(
    take: Take, here: Here, connection: psycopg.Connection
) -> None:
    here()
    connection.execute(
        "INSERT INTO incident_messages (incident_id, kind, channel, title, body, created_at, "
        "attempts, next_attempt_at, last_error) "
        "VALUES (%s, 'opened', 'json (1)', 'a', 'b', %s, 1, %s, 'json (1): no')",
        (add_incident(connection), NOW, NOW),
    )
    plain = for_a_machine(take(alert_urls="json://127.0.0.1/hook"))

    assert shape_of(json.loads(json.dumps(plain)), SHAPE) == SHAPE
    assert plain["at"] == "2026-11-22T12:03:30+00:00"
    assert plain["heartbeats"][0]["age_seconds"] == 12.0
    assert plain["channels"] == ["json (1)"]


def test_what_could_not_be_read_is_null_for_a_machine(take: Take, here: Here) -> None:
    here()
    plain = for_a_machine(take(database_url="postgresql://127.0.0.1:1/x"))
    unknown = ("heartbeats", "instigators", "coverage", "incidents", "outbox", "sizes")
    assert {name: plain[name] for name in unknown} == dict.fromkeys(unknown)
    assert plain["database"]["answers"] is False


def test_the_screen_fits_and_says_first_what_is_wrong(
    take: Take, here: Here, connection: psycopg.Connection
) -> None:
    here(webserver=gone)
    add_incident(connection, cause="x" * 300, severity="error")
    connection.execute(
        "UPDATE incidents SET title = repeat(E'wi\\x1bde ', 60), "
        "message = repeat(E'a\\x1b[31mb ', 300)"
    )

    lines = for_a_person(take())

    # A path to copy is not broken.
    assert max(len(line) for line in lines if "/webserver.log" not in line) <= 100
    assert "\x1b" not in "".join(lines)
    assert lines[0].startswith("PulseGuard is degraded: the webserver is gone, and 1 more.")
    assert lines[2] == "  ! The webserver is gone."
    assert next(n for n, line in enumerate(lines) if "Processes" in line) > 4


def test_nothing_heavy_is_loaded(database: str, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from pulseguard_assets.cli import main\n"
        "try:\n"
        "    main(['status'])\n"
        "except SystemExit as end:\n"
        "    assert end.code == 2, end.code\n"
        "heavy = {'dagster', 'polars', 'starlette', 'apprise', 'sqlalchemy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={
            "PATH": os.environ["PATH"],
            "PULSEGUARD_DATABASE_URL": database,
            "PULSEGUARD_ALERT_URLS": "json://127.0.0.1/x",
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # It was asked to the end.
    assert "PulseGuard is down" in done.stdout
    assert "Sizes" in done.stdout


def test_settings_that_cannot_be_used_are_said(pulseguard: Callable[..., Any]) -> None:
    result = pulseguard("status", PLAN="gold")
    assert result.exit_code == 2
    assert "PULSEGUARD_PLAN" in result.stderr
