"""Rolling a day up, and cleaning an hour of minutes, each beside the plainest statement there is.

* Rolling up: `roll_up('daily', day, next day)` over 24 hours of every coin, first into an empty
  table, then again. Beside it the last hour of each coin with all its columns, as `SELECT DISTINCT
  ON` finds it, kept by CREATE TEMPORARY TABLE AS: both read the same closes and produce a row of
  the same columns per coin. The roll-up also unites the evidence of all hours, and stores its rows
  under constraints and indexes.
* Cleaning: `cleanup_old_data(now)` of an hour of every coin's minutes that its hours carry,
  with the proof and the audit. Beside it a plain DELETE of the same rows by age.

Every round gives each way a fresh copy of the same database. Ratios are taken within a round, and
their median is what counts: other work on the machine then weighs on both sides.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import TypeVar

import polars as pl
from psycopg import Connection, conninfo, sql

from pulseguard_assets.warehouse.connection import connect
from pulseguard_assets.warehouse.copying import copy_frame
from pulseguard_assets.warehouse.embedded import EmbeddedPostgres
from pulseguard_assets.warehouse.migrations import migrate

T = TypeVar("T")
DAY = datetime(2026, 11, 10, tzinfo=timezone.utc)
HOUR = timedelta(hours=1)
COINS, ROUNDS = 18_000, 7

_VALUES = """
    (random() * power(10, random() * 14 - 9))::float8::numeric, (random() * 1e12)::float8::numeric,
    (random() * 1e9)::float8::numeric, row_number() OVER (ORDER BY coin_id)
"""
# One statement per label, in the order of coins: so the rows lie as the platform leaves them.
_AN_HOUR = f"""
INSERT INTO hourly_close (coin_id, hour_ts, price_usd, market_cap_usd, volume_24h_usd, coin_rank,
                          created_at, provider_ts, close_ts, seen)
SELECT coin_id, %(at)s, {_VALUES}, %(at)s + INTERVAL '59 minutes 7 seconds',
       %(at)s + INTERVAL '59 minutes', %(at)s + INTERVAL '59 minutes', (1::bigint << 60) - 1
FROM coin_priorities ORDER BY coin_id
"""
_A_MINUTE = f"""
INSERT INTO minute_close (coin_id, minute_ts, price_usd, market_cap_usd, volume_24h_usd, coin_rank,
                          created_at, provider_ts)
SELECT coin_id, %(at)s, {_VALUES}, %(at)s + INTERVAL '7 seconds', %(at)s
FROM coin_priorities ORDER BY coin_id
"""
_LAST_HOURS = """
CREATE TEMPORARY TABLE last_hours AS
SELECT DISTINCT ON (coin_id) * FROM hourly_close WHERE hour_ts >= {} AND hour_ts < {}
ORDER BY coin_id, hour_ts DESC
"""


@dataclass(frozen=True)
class RollingUp:
    """Medians: times in milliseconds, and ratios of the rounds.

    Attributes:
        coins: how many; the day has 24 closes of each.
        roll_up_ms: into an empty table.
        again_ms: once more.
        distinct_on_ms: the plain query.
        roll_up_ratio: the roll-up's time by the plain query's.
        again_ratio: the same, of the repetition.
        again_written: rows the repetition wrote, 0.
    """

    coins: int
    roll_up_ms: float
    again_ms: float
    distinct_on_ms: float
    roll_up_ratio: float
    again_ratio: float
    again_written: int


@dataclass(frozen=True)
class Cleaning:
    """Medians: times in milliseconds, and the ratio of the rounds.

    Attributes:
        rows: minutes deleted by either.
        cleanup_ms: with proof and audit.
        delete_ms: by age alone.
        ratio: the first by the second.
    """

    rows: int
    cleanup_ms: float
    delete_ms: float
    ratio: float


def measure(coins: int = COINS, rounds: int = ROUNDS) -> tuple[RollingUp, Cleaning]:
    """Measure both, at so many coins and in so many rounds."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        with EmbeddedPostgres(Path(folder)) as dsn:
            _make(dsn, "day", coins)
            _make(dsn, "hour", coins)
            with connect(_of(dsn, "day")) as connection:
                for hour in range(24):
                    connection.execute(_AN_HOUR, {"at": DAY + hour * HOUR})
                connection.execute("VACUUM ANALYZE hourly_close")
            with connect(_of(dsn, "hour")) as connection:
                for minute in range(60):
                    connection.execute(_A_MINUTE, {"at": DAY + timedelta(minutes=minute)})
                connection.execute("VACUUM ANALYZE minute_close, hourly_close")
            return _rolling_up(dsn, coins, rounds), _cleaning(dsn, coins, rounds)


def _rolling_up(dsn: str, coins: int, rounds: int) -> RollingUp:
    plain = sql.SQL(_LAST_HOURS).format(sql.Literal(DAY), sql.Literal(DAY + 24 * HOUR))
    taken: list[tuple[float, float, float]] = []
    written = -1

    for number in range(rounds):
        with _fresh(dsn, "day") as connection:
            plain_ms = first_ms = again_ms = 0.0
            # In turns, since the first to come finds the cache cold.
            for way in ("plain", "ours") if number % 2 else ("ours", "plain"):
                if way == "plain":
                    plain_ms, _ = _timed(partial(connection.execute, plain))
                    continue
                first_ms, rows = _timed(partial(_rolled_up, connection))
                _require(rows, coins)
                again_ms, written = _timed(partial(_rolled_up, connection))
            taken.append((first_ms, again_ms, plain_ms))
    first, again, plainly = (statistics.median(times) for times in zip(*taken, strict=True))
    return RollingUp(
        coins,
        first,
        again,
        plainly,
        statistics.median(ours / theirs for ours, _, theirs in taken),
        statistics.median(ours / theirs for _, ours, theirs in taken),
        written,
    )


def _cleaning(dsn: str, coins: int, rounds: int) -> Cleaning:
    rows = coins * 60
    taken: list[tuple[float, float]] = []
    delete = sql.SQL("DELETE FROM minute_close WHERE minute_ts < {}").format(
        sql.Literal(DAY + HOUR)
    )
    for _ in range(rounds):
        with _fresh(dsn, "hour") as connection:
            plain_ms, gone = _timed(partial(connection.execute, delete))
            _require(gone.rowcount, rows)
        with _fresh(dsn, "hour") as connection:
            ours_ms, deleted = _timed(partial(_cleaned, connection))
            _require(deleted, rows)
        taken.append((ours_ms, plain_ms))
    ours, plainly = (statistics.median(times) for times in zip(*taken, strict=True))
    return Cleaning(rows, ours, plainly, statistics.median(a / b for a, b in taken))


def _rolled_up(connection: Connection) -> int:
    return _count(connection, "SELECT roll_up('daily', %s, %s)", DAY, DAY + 24 * HOUR)


def _cleaned(connection: Connection) -> int:
    return _count(
        connection,
        "SELECT rows_deleted FROM cleanup_old_data(%s) WHERE table_name = 'minute_close'",
        DAY + 2 * HOUR,
    )


def _count(connection: Connection, statement: str, *parameters: datetime) -> int:
    row = connection.execute(statement.encode(), parameters).fetchone()
    return -1 if row is None else int(row[0])


def _require(rows: int, expected: int) -> None:
    if rows != expected:
        raise AssertionError(f"{rows} rows were written or deleted, and not {expected}")


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    begun = time.perf_counter()
    done = work()
    return (time.perf_counter() - begun) * 1000, done


def _of(dsn: str, name: str) -> str:
    return conninfo.make_conninfo(dsn, dbname=name)


@contextmanager
def _fresh(dsn: str, name: str) -> Iterator[Connection]:
    """A copy of a database, dropped afterwards; nothing is waiting to be written to disk."""
    names = {"copy": sql.Identifier(f"{name}_copy"), "name": sql.Identifier(name)}
    with connect(dsn) as admin:
        admin.execute(
            sql.SQL("CREATE DATABASE {copy} TEMPLATE {name} STRATEGY file_copy").format(**names)
        )
        try:
            with connect(_of(dsn, f"{name}_copy")) as connection:
                connection.execute("CHECKPOINT")
                yield connection
        finally:
            admin.execute(sql.SQL("DROP DATABASE {copy} WITH (FORCE)").format(**names))


def _make(dsn: str, name: str, coins: int) -> None:
    """A migrated database with coins whose ids are as long as real ones."""
    with connect(dsn) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    migrate(_of(dsn, name))
    chosen = random.Random(1)
    ids = sorted(f"coin-{chosen.getrandbits(36):x}-{number}" for number in range(coins))
    with connect(_of(dsn, name)) as connection:
        connection.execute("SELECT ensure_partitions(%s, %s)", (DAY, DAY))
        copy_frame(
            connection, sql.Identifier("public", "coin_priorities"), pl.DataFrame({"coin_id": ids})
        )
        connection.execute("VACUUM ANALYZE coin_priorities")
