"""What the tests of `sql/` share: making observations, storing them, and an oracle for the closes.

Belongs here: helpers that know nothing of a single rule's test. The oracle computes every close
straight from the raw observations, in Python, and shares no code with `sql/`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from psycopg import sql

from pulseguard_assets.timeframes import HOURLY, MINUTE, TIMEFRAMES, Timeframe
from pulseguard_assets.warehouse.connection import connect

MINUTE_COLUMNS = (
    "coin_id",
    "minute_ts",
    "price_usd",
    "market_cap_usd",
    "volume_24h_usd",
    "coin_rank",
    "created_at",
    "provider_ts",
    "source",
)
VALUE_COLUMNS = (
    "price_usd",
    "market_cap_usd",
    "volume_24h_usd",
    "coin_rank",
    "created_at",
    "provider_ts",
    "source",
)


def utc(*parts: int) -> datetime:
    """Return an instant in UTC: `utc(2026, 12, 31, 23, 59)`."""
    year, month, day, *clock = parts
    return datetime(year, month, day, *clock, tzinfo=timezone.utc)  # type: ignore[misc, arg-type]


@dataclass(frozen=True)
class Observation:
    """One coin as the provider reported it once, in the column order of `MINUTE_COLUMNS`."""

    coin_id: str
    minute_ts: datetime
    price_usd: Decimal | None = Decimal(1)
    market_cap_usd: Decimal | None = None
    volume_24h_usd: Decimal | None = None
    coin_rank: int | None = None
    created_at: datetime | None = None
    provider_ts: datetime | None = None
    source: str | None = "live"

    def __post_init__(self) -> None:
        if self.created_at is None:
            object.__setattr__(self, "created_at", self.minute_ts + timedelta(seconds=7))

    @property
    def order(self) -> tuple[datetime, bool, datetime]:
        """What decides which of two observations is later."""
        assert self.created_at is not None
        return self.minute_ts, self.source != "history", self.created_at

    @property
    def values(self) -> tuple[Any, ...]:
        """Everything a close takes over from its observation."""
        return astuple(self)[2:]


def seen_at(coin: str, minute: datetime, price: int = 1, **other: Any) -> Observation:
    """Return an observation whose columns all carry the price, so that a mixture shows."""
    number = Decimal(price)
    made = Observation(coin, minute, number, number * 10, number * 100, price)
    return replace(made, **other)


def not_finite(observation: Observation) -> Observation:
    """Return it without a number for a price, which passes `> 0` and must not pass us."""
    return replace(observation, price_usd=Decimal("NaN"))


# -- the oracle ------------------------------------------------------------------------------------


def bucket(timeframe: Timeframe, at: datetime) -> datetime:
    """Return the label of the bucket that holds an instant."""
    day = at.replace(hour=0, minute=0, second=0, microsecond=0)
    return {
        "minute": at.replace(second=0, microsecond=0),
        "hourly": at.replace(minute=0, second=0, microsecond=0),
        "daily": day,
        "weekly": day - timedelta(days=day.weekday()),
        "monthly": day.replace(day=1),
    }[timeframe.name]


def evidence_of(timeframe: Timeframe, minute: datetime) -> int:
    """Return the bit that a minute sets, through its hour and day, in a bucket of a timeframe."""
    number = {
        "hourly": minute.minute,
        "daily": minute.hour,
        "weekly": minute.weekday(),
        "monthly": minute.day - 1,
    }[timeframe.name]
    return 1 << number


Closes = dict[tuple[str, datetime], tuple[Any, ...]]


def expected_minutes(observations: Iterable[Observation]) -> Closes:
    """Return (coin, minute) -> values: of each coin and minute, the observation recorded last."""
    winners: dict[tuple[str, datetime], Observation] = {}
    for seen in observations:
        key = (seen.coin_id, seen.minute_ts)
        if key not in winners or seen.order >= winners[key].order:
            winners[key] = seen
    return {key: seen.values for key, seen in winners.items()}


def expected_closes(timeframe: Timeframe, observations: Iterable[Observation]) -> Closes:
    """Return (coin, label) -> (*values, close_ts, seen), from raw observations alone."""
    winners: dict[tuple[str, datetime], Observation] = {}
    evidence: dict[tuple[str, datetime], int] = {}
    for seen in observations:
        key = (seen.coin_id, bucket(timeframe, seen.minute_ts))
        evidence[key] = evidence.get(key, 0) | evidence_of(timeframe, seen.minute_ts)
        if key not in winners or seen.order >= winners[key].order:
            winners[key] = seen
    return {key: (*seen.values, seen.minute_ts, evidence[key]) for key, seen in winners.items()}


def expected(timeframe: Timeframe, observations: Iterable[Observation]) -> Closes:
    """Return what the table of a timeframe must hold."""
    if timeframe is MINUTE:
        return expected_minutes(observations)
    return expected_closes(timeframe, observations)


# -- the database ----------------------------------------------------------------------------------


def prepared_by(prepare: Callable[[psycopg.Connection], None]) -> Any:
    """Return the module's fixture `prepared`: the name of a database that `prepare` was run on.

    In the same module, `database = copy_of_prepared` gives each test a copy of it; `shared =
    shared_connection` and `closes = undone` give all tests one copy, and each a transaction.
    """

    @pytest.fixture(scope="module")
    def prepared(postgres: Any) -> Iterator[str]:
        with postgres.new_database(postgres.migrated_template()) as dsn:
            with connect(dsn, application_name="tests") as connection:
                prepare(connection)
                name = connection.info.dbname
            yield name

    return prepared


@pytest.fixture
def copy_of_prepared(postgres: Any, prepared: str) -> Iterator[str]:
    """The URL of a new copy of the module's `prepared`."""
    with postgres.new_database(prepared) as dsn:
        yield dsn


@pytest.fixture(scope="module")
def shared_connection(postgres: Any, prepared: str) -> Iterator[psycopg.Connection]:
    """One connection to one copy of `prepared`, for all tests of the module."""
    with (
        postgres.new_database(prepared) as dsn,
        connect(dsn, application_name="tests") as connection,
    ):
        yield connection


@pytest.fixture
def undone(shared: psycopg.Connection) -> Iterator[psycopg.Connection]:
    """A transaction on the module's `shared`, undone after the test: for one session, and fast.

    An error expected inside needs a savepoint, as by `refused`.
    """
    with shared.transaction(force_rollback=True):
        yield shared


@contextmanager
def refused(
    connection: psycopg.Connection, error: type[psycopg.Error], match: str
) -> Iterator[pytest.ExceptionInfo[psycopg.Error]]:
    """Expect an error, and leave the transaction around it as it was before."""
    with pytest.raises(error, match=match) as told, connection.transaction():
        yield told


def add_coins(connection: psycopg.Connection, *coins: str) -> None:
    """Make coins known, so that they may have closes."""
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO coin_priorities (coin_id) VALUES (%s) ON CONFLICT DO NOTHING",
            [(coin,) for coin in coins],
        )


def ensure(connection: psycopg.Connection, *instants: datetime) -> None:
    """Make the partitions for instants."""
    for instant in instants:
        connection.execute("SELECT ensure_partitions(%s, %s)", (instant, instant))


def insert(connection: psycopg.Connection, observations: Sequence[Observation]) -> None:
    """Store by a single plain INSERT, in the given order of rows."""
    row = sql.SQL("({})").format(sql.SQL(", ").join([sql.Placeholder()] * len(MINUTE_COLUMNS)))
    connection.execute(
        sql.SQL("INSERT INTO minute_close ({}) VALUES {}").format(
            sql.SQL(", ").join(map(sql.Identifier, MINUTE_COLUMNS)),
            sql.SQL(", ").join([row] * len(observations)),
        ),
        [value for seen in observations for value in astuple(seen)],
    )


def copy(connection: psycopg.Connection, observations: Iterable[Observation]) -> None:
    """Store by COPY, in the given order of rows."""
    _copy_into(connection, sql.Identifier("minute_close"), observations)


def _copy_into(
    connection: psycopg.Connection, table: sql.Identifier, observations: Iterable[Observation]
) -> None:
    statement = sql.SQL("COPY {} ({}) FROM STDIN").format(
        table, sql.SQL(", ").join(map(sql.Identifier, MINUTE_COLUMNS))
    )
    with connection.cursor() as cursor, cursor.copy(statement) as stream:
        for seen in observations:
            stream.write_row(astuple(seen))


def stage(connection: psycopg.Connection, observations: Iterable[Observation]) -> None:
    """Fill the session's `staged_minutes`, made anew."""
    connection.execute("DROP TABLE IF EXISTS pg_temp.staged_minutes")
    connection.execute(
        "CREATE TEMPORARY TABLE staged_minutes AS SELECT * FROM public.minute_close WITH NO DATA"
    )
    _copy_into(connection, sql.Identifier("pg_temp", "staged_minutes"), observations)


def put(
    connection: psycopg.Connection,
    observations: Iterable[Observation],
    now: datetime = utc(2200, 1, 1),  # noqa: B008 - a constant
) -> tuple[int, int]:
    """Store by the staged put; returns rows stored and rows set aside."""
    stage(connection, observations)
    row = connection.execute("SELECT * FROM put_staged_minutes(NULL, %s)", (now,)).fetchone()
    assert row is not None
    return int(row[0]), int(row[1])


def correct(connection: psycopg.Connection, seen: Observation) -> None:
    """Overwrite a stored minute by a plain UPDATE."""
    assignments = sql.SQL(", ").join(
        sql.SQL("{} = {}").format(sql.Identifier(name), sql.Placeholder()) for name in VALUE_COLUMNS
    )
    connection.execute(
        sql.SQL("UPDATE minute_close SET {} WHERE coin_id = %s AND minute_ts = %s").format(
            assignments
        ),
        [*seen.values, seen.coin_id, seen.minute_ts],
    )


def roll_up(connection: psycopg.Connection, timeframe: str, start: datetime, end: datetime) -> int:
    """Roll up children with start <= label < end; returns the rows written."""
    return int(one(connection, "SELECT roll_up(%s, %s, %s)", (timeframe, start, end)))


def roll_up_all(connection: psycopg.Connection) -> int:
    """Roll up everything stored, from hours to months; returns the rows written."""
    return sum(
        int(one(connection, "SELECT roll_up(%s, '-infinity', 'infinity')", (timeframe.name,)))
        for timeframe in TIMEFRAMES
        if timeframe.child is not None
    )


def clean_up(connection: psycopg.Connection, now: datetime) -> dict[str, int]:
    """Run the cleanup; returns table -> rows deleted."""
    rows = connection.execute("SELECT * FROM cleanup_old_data(%s)", (now,)).fetchall()
    return {str(name): int(count) for name, count in rows}


def one(connection: psycopg.Connection, statement: str, parameters: Sequence[Any] = ()) -> Any:
    """Return the single value of a statement."""
    row = connection.execute(statement, parameters).fetchone()
    assert row is not None
    return row[0]


def stored(connection: psycopg.Connection, timeframe: Timeframe) -> Closes:
    """Return what a close table holds: (coin, label) -> values, as `expected` returns them.

    A `close_ts` of NULL is read as the label, as everywhere.
    """
    columns = [*VALUE_COLUMNS] + ([] if timeframe is MINUTE else ["close_ts", "seen"])
    statement = sql.SQL("SELECT coin_id, {}, {} FROM {}").format(
        sql.Identifier(timeframe.label),
        sql.SQL(", ").join(map(sql.Identifier, columns)),
        sql.Identifier(timeframe.table),
    )
    found: Closes = {}
    for coin, label, *values in connection.execute(statement):
        if timeframe is not MINUTE and values[-2] is None:
            values[-2] = label
        found[(coin, label)] = tuple(values)
    return found


def stored_hours(connection: psycopg.Connection) -> Closes:
    """Return what `hourly_close` holds."""
    return stored(connection, HOURLY)


def everything(connection: psycopg.Connection) -> Mapping[str, Closes]:
    """Return what all five tables hold."""
    return {timeframe.table: stored(connection, timeframe) for timeframe in TIMEFRAMES}


# -- two sessions at once --------------------------------------------------------------------------


class Background:
    """A statement or a function in a thread of its own; `result()` waits and re-raises."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work
        self._value: Any = None
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._value = self._work()
        except BaseException as failure:  # noqa: BLE001 - raised again by result()
            self._failure = failure

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def result(self, patience: float = 30.0) -> Any:
        """Return what the work returned.

        Raises:
            TimeoutError: it is still running after `patience` seconds.
        """
        self._thread.join(patience)
        if self._thread.is_alive():
            raise TimeoutError("the other session is still running")
        if self._failure is not None:
            raise self._failure
        return self._value


def wait_until_blocked(watcher: psycopg.Connection, blocked: psycopg.Connection) -> None:
    """Return when a session waits for another one's lock. `watcher` is a third session."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        pid = blocked.info.backend_pid
        if one(watcher, "SELECT cardinality(pg_blocking_pids(%s))", (pid,)):
            return
        time.sleep(0.005)
    raise AssertionError("the session waits for nobody")
