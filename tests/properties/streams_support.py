"""A platform's life in single steps, each of them told to the oracle and checked against it.

Belongs here: what can happen to the close tables, step by step, and the faults of a row. Does not:
which steps are taken, nor what must then be in the tables (`truth_support`).
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import polars as pl
import psycopg
from closes_support import (
    Background,
    Observation,
    add_coins,
    bucket,
    clean_up,
    everything,
    one,
    roll_up,
    roll_up_all,
)
from psycopg import sql
from truth_support import Truth, empty

from pulseguard_assets.timeframes import DAILY, HOURLY, MINUTE, Timeframe
from pulseguard_assets.warehouse.closes import MINUTES_SCHEMA, Put, put_minutes
from pulseguard_assets.warehouse.connection import connect
from pulseguard_assets.warehouse.history import POINTS_SCHEMA, put_history

COINS = ("bitcoin", "cardano", "ether")
MINUTES, HOURS, DAYS = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
# How many times as long the long tests of properties run as the six minutes they usually take.
SOAK_TIMES = int(os.environ.get("SOAK_TIMES", "1"))
# What a row of MINUTES_SCHEMA or POINTS_SCHEMA may have wrong, and the reason that must be given.
VALUE_FAULTS: tuple[tuple[str, Any, str], ...] = (
    ("coin_id", "nobody", "the coin is not in coin_priorities"),
    ("coin_id", "", "the coin id is missing"),
    ("price_usd", None, "the price is missing"),
    ("price_usd", math.nan, "the price is not a number"),
    ("price_usd", 0.0, "the price is not positive"),
    ("price_usd", -1.0, "the price is not positive"),
    ("price_usd", math.inf, "the price is infinite"),
    ("market_cap_usd", math.nan, "the market cap is not a finite number"),
    ("volume_24h_usd", -math.inf, "the volume is not a finite number"),
)
MINUTE_FAULTS: tuple[tuple[str, Any, str], ...] = (
    *VALUE_FAULTS,
    ("minute_ts", timedelta(minutes=-1, seconds=30), "the label is not the start of a minute"),
    ("minute_ts", timedelta(minutes=1), "the minute lies in the future"),
    ("minute_ts", timedelta(days=400), "the minute lies in the future"),
    ("minute_ts", None, "the minute is missing"),
    ("created_at", None, "the instant of recording is missing"),
    ("source", "gossip", "the source is none of live, history, correction"),
)

RawRow = dict[str, Any]


@dataclass(frozen=True)
class Batch:
    """Rows to be put at once: the sound ones, the raw ones in their order, and the faults."""

    sound: tuple[Observation, ...]
    rows: tuple[RawRow, ...]
    faults: tuple[tuple[str, str], ...]

    def frame(self, *, backwards: bool = False) -> pl.DataFrame:
        rows = self.rows[::-1] if backwards else self.rows
        return pl.DataFrame(list(rows), schema=MINUTES_SCHEMA)


def raw(seen: Observation) -> RawRow:
    """An observation as a row of MINUTES_SCHEMA."""
    row = {name: getattr(seen, name) for name in MINUTES_SCHEMA}
    for name in ("price_usd", "market_cap_usd", "volume_24h_usd"):
        row[name] = None if row[name] is None else float(row[name])
    return row


class Stream:
    """A clock, a database in some session's time zone, and the truth about both."""

    def __init__(self, dsn: str, begins: datetime, zone: str) -> None:
        self._dsn, self._zone = dsn, zone
        self.now = begins
        self.truth = Truth()
        self.batches: list[Batch] = []
        self._numbers = 0
        self._warnings: list[str] = []
        self.connection = self._connect()
        # What is compared is read in UTC: the oracle cuts its buckets as the instants are given.
        self._reader = connect(dsn, application_name="tests")
        empty(self.connection)
        add_coins(self.connection, *COINS)

    def _connect(self) -> psycopg.Connection:
        connection = connect(self._dsn, application_name="tests")
        connection.execute(sql.SQL("SET TIME ZONE {}").format(sql.Literal(self._zone)))
        connection.add_notice_handler(self._heard)
        return connection

    def _heard(self, notice: psycopg.errors.Diagnostic) -> None:
        if notice.severity_nonlocalized == "WARNING":
            self._warnings.append(notice.message_primary or "")

    def close(self) -> None:
        self.connection.close()
        self._reader.close()

    def check(self) -> None:
        self.truth.check(self._reader)
        assert self._warnings == []

    # -- making rows -------------------------------------------------------------------------------

    def observe(
        self, coin: str, minute: datetime, *, at_once: bool = True, source: str = "live"
    ) -> Observation:
        """One more observation, unlike any other; recorded in its minute, or just now."""
        self._numbers += 1
        number = Decimal(self._numbers)
        recorded = minute + timedelta(seconds=7) if at_once else self.now
        return Observation(
            coin,
            minute,
            number,
            None if self._numbers % 5 == 0 else number * 10,
            None if self._numbers % 7 == 0 else number * 100,
            None if self._numbers % 3 == 0 else self._numbers,
            recorded + timedelta(microseconds=self._numbers),
            None if self._numbers % 4 == 0 else minute - timedelta(seconds=self._numbers % 60),
            source,
        )

    def batch(self, *observed: Observation, faults: Sequence[tuple[str, int]] = ()) -> Batch:
        """Observations and faulty rows as one batch; a fault is a coin and one of MINUTE_FAULTS."""
        rows = [raw(seen) for seen in observed]
        told = []
        for place, (coin, number) in enumerate(faults):
            name, value, reason = MINUTE_FAULTS[number]
            row = raw(self.observe(coin, bucket(MINUTE, self.now)))
            row[name] = row[name] + value if isinstance(value, timedelta) else value
            told.append((row["coin_id"], reason))
            rows.insert((place * 2) % (len(rows) + 1), row)
        return Batch(tuple(observed), tuple(rows), tuple(told))

    # -- steps -------------------------------------------------------------------------------------

    def put(self, batch: Batch) -> Put:
        put = put_minutes(self.connection, batch.frame(), now=self.now)
        assert put.rejected == len(batch.faults)
        self._accepted(batch)
        return put

    def _accepted(self, batch: Batch) -> None:
        self.truth.accept(MINUTE, batch.sound)
        self.truth.reject(batch.faults, self.now)
        if batch not in self.batches:
            self.batches.append(batch)

    def crash_before_commit(self, work: Callable[[psycopg.Connection], object]) -> None:
        """The process dies with everything written and nothing committed: nothing has happened."""
        dying = self._connect()
        with contextlib.suppress(psycopg.OperationalError), dying.transaction():
            work(dying)
            # Returns when the process is gone, and its locks with it.
            one(
                self.connection,
                "SELECT pg_terminate_backend(%s, 10000)",
                (dying.info.backend_pid,),
            )
        assert dying.broken
        dying.close()

    def crash_after_commit(self, batch: Batch) -> None:
        """The process dies after the commit; not knowing of it, its successor puts it all again."""
        self.put(batch)
        before = everything(self._reader)
        again = put_minutes(self.connection, batch.frame(backwards=True), now=self.now)
        assert again == Put(stored=0, rejected=len(batch.faults))
        self.truth.reject(batch.faults, self.now)
        assert everything(self._reader) == before

    def at_once(self, batch: Batch, other: Callable[[psycopg.Connection], object]) -> None:
        """A put, and another session's work in the same moment."""
        self._accepted(batch)
        with self._connect() as one_session, self._connect() as another:
            first = Background(
                lambda: put_minutes(one_session, batch.frame(backwards=True), now=self.now)
            )
            second = Background(lambda: other(another))
            first.result()
            second.result()

    def two_puts_at_once(self, batch: Batch, other: Batch) -> None:
        self._accepted(other)
        self.at_once(batch, lambda session: put_minutes(session, other.frame(), now=self.now))

    def put_at_once_with_cleanup(self, batch: Batch) -> None:
        self.truth.cleaned(self.now)
        self.at_once(batch, lambda session: clean_up(session, self.now))

    def put_points(
        self, timeframe: Timeframe, grade: str, points: Sequence[tuple[str, datetime, int | None]]
    ) -> None:
        """Points of history: coin, stamp, and the number of a fault in VALUE_FAULTS or None."""
        start = self.now - 20 * DAYS
        rows, accepted = [], []
        faults: list[tuple[str, str]] = []
        for coin, stamp, fault in points:
            minute = minute_of_point(grade, stamp)
            seen = self.observe(coin, minute or self.now, at_once=False, source="history")
            seen = replace(seen, coin_rank=None, provider_ts=None)
            row = {name: raw(seen).get(name) for name in POINTS_SCHEMA} | {"stamp": stamp}
            if fault is not None:
                name, value, reason = VALUE_FAULTS[fault]
                row[name] = value
                faults.append((value if name == "coin_id" else coin, reason))
            rows.append(row)
            if minute is None or not start <= minute < self.now:
                assert fault is None, "a fault outside the window is nobody's business"
            elif fault is None and not (timeframe is MINUTE and self._stored(coin, minute)):
                accepted.append(seen)
        put = put_history(
            self.connection,
            timeframe,
            grade,
            pl.DataFrame(rows, schema=POINTS_SCHEMA),
            start=start,
            end=self.now,
            now=self.now,
        )
        assert put.rejected == len(faults)
        self.truth.accept(timeframe, accepted)
        self.truth.reject(faults, self.now)

    def _stored(self, coin: str, minute: datetime) -> bool:
        # Whether retention has taken it is not for the stream to tell.
        return bool(
            one(
                self.connection,
                "SELECT count(*) FROM minute_close WHERE coin_id = %s AND minute_ts = %s",
                (coin, minute),
            )
        )

    def roll_up(self, timeframe: Timeframe, first: datetime, end: datetime) -> None:
        roll_up(self.connection, timeframe.name, first, end)

    def clean_up(self) -> None:
        clean_up(self.connection, self.now)
        self.truth.cleaned(self.now)

    def clean_up_and_check(self) -> None:
        self.clean_up()
        self.check()
        self.truth.check_cleaned(self.now)
        closes = [f"{name}_close" for name in ("minute", "hourly", "daily", "weekly")]
        again = clean_up(self.connection, self.now)
        assert [again[table] for table in closes] == [0, 0, 0, 0]

    def drop_partitions(self, timeframe: Timeframe, months: int) -> None:
        kept = self.now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        for _ in range(months):
            kept = (kept - DAYS).replace(day=1)
        one(
            self.connection,
            "SELECT drop_old_partitions(%s, %s, %s, '100 ms')",
            (timeframe.table, months, self.now),
        )
        self.truth.dropped(timeframe, kept, self.now)

    def settle(self) -> None:
        """Roll everything up, and hold every table against the stream."""
        written = [roll_up_all(self.connection) for _ in range(2)]
        assert written[1] == 0, "rolling up again wrote something"
        self.truth.check_rolled_up(self._reader, self.now)
        assert self._warnings == []

    def end(self) -> None:
        """After a settling and a cleanup in two years only months are left, and they are whole."""
        self.settle()
        self.now += 800 * DAYS
        self.clean_up_and_check()
        left = {table: len(closes) for table, closes in self.truth.before.items() if closes}
        assert set(left) <= {"monthly_close"}
        self.settle()


def minute_of_point(grade: str, stamp: datetime) -> datetime | None:
    """The minute that a point of history observed, by the law; None if it closes nothing."""
    if grade == "five_minute":
        return bucket(MINUTE, stamp)
    turn = bucket({"hourly": HOURLY, "daily": DAILY}[grade], stamp)
    return turn - 5 * MINUTES if stamp - turn <= 15 * MINUTES else None
