"""Putting minutes, and rolling up what is stored.

Belongs here: the calls of the rules in `sql/`. Does not: the rules. What a close is, which row
wins and what is faulty is decided there, once.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import polars as pl
import psycopg
from psycopg import Connection, sql

from pulseguard_assets.timeframes import Timeframe
from pulseguard_assets.warehouse.copying import copy_frame
from pulseguard_assets.warehouse.statements import one_row

MINUTES_SCHEMA = pl.Schema(
    {
        "coin_id": pl.String(),
        "minute_ts": pl.Datetime("us", "UTC"),
        "price_usd": pl.Float64(),
        "market_cap_usd": pl.Float64(),
        "volume_24h_usd": pl.Float64(),
        "coin_rank": pl.Int32(),
        "created_at": pl.Datetime("us", "UTC"),
        "provider_ts": pl.Datetime("us", "UTC"),
        "source": pl.String(),
    }
)


@dataclass(frozen=True)
class Put:
    """What a put did: rows written, and rows set aside in `rejected_observations`."""

    stored: int
    rejected: int


def put_minutes(
    connection: Connection,
    minutes: pl.DataFrame,
    *,
    now: datetime,
    collection_id: int | None = None,
) -> Put:
    """Store observations as minute closes, and with them the closes of their hours.

    One transaction (a savepoint, inside an open one). Sound and new rows go by a plain COPY. Should
    PostgreSQL refuse a single one of them, all go the careful way instead: each row is judged, the
    faulty are set aside with their reason, the rest is merged with what is stored.

    Args:
        minutes: one row per coin and minute, of `MINUTES_SCHEMA`.
        now: a minute after this instant is faulty, and rejections carry it.
        collection_id: the cycle that rejections are filed under.

    Raises:
        psycopg.Error: nothing was stored, for a reason that lies in no row (a lock time-out, a
            lost connection, a full disk).
    """
    if minutes.is_empty():
        return Put(0, 0)
    if minutes.schema != MINUTES_SCHEMA:
        minutes = minutes.match_to_schema(MINUTES_SCHEMA)
    first, last = _span(minutes, fallback=now)
    ordered = _in_order(minutes, one_label=first == last)
    if last <= now:
        try:
            with connection.transaction():
                _lock_hours(connection, first, last)
                copy_frame(connection, sql.Identifier("public", "minute_close"), ordered)
        except (psycopg.IntegrityError, psycopg.DataError, psycopg.errors.ProgramLimitExceeded):
            # Some row is faulty (the last: an id that no index can hold). The careful way says
            # which, and keeps the others.
            pass
        else:
            return Put(stored=ordered.height, rejected=0)
    with connection.transaction():
        _lock_hours(connection, first, last)
        return _put_carefully(connection, ordered, now, collection_id)


def _lock_hours(connection: Connection, first: datetime, last: datetime) -> None:
    # Before the first row, as every writer does: see lock_buckets() in sql/.
    connection.execute("SELECT lock_buckets('hourly', %s, %s)", (first, last), prepare=False)


def _in_order(minutes: pl.DataFrame, *, one_label: bool) -> pl.DataFrame:
    """By coin and minute; a poll's answer of one minute comes so, and needs only a look at it."""
    if one_label and minutes["coin_id"].is_sorted():
        return minutes
    return minutes.sort("coin_id", "minute_ts")


def _span(minutes: pl.DataFrame, fallback: datetime) -> tuple[datetime, datetime]:
    first, last = minutes["minute_ts"].min(), minutes["minute_ts"].max()
    if isinstance(first, datetime) and isinstance(last, datetime):
        return first, last
    return fallback, fallback


def _put_carefully(
    connection: Connection, minutes: pl.DataFrame, now: datetime, collection_id: int | None
) -> Put:
    connection.execute(
        "CREATE TEMPORARY TABLE staged_minutes ON COMMIT DROP AS "
        "SELECT * FROM public.minute_close WITH NO DATA"
    )
    copy_frame(connection, sql.Identifier("pg_temp", "staged_minutes"), minutes)
    put = one_row(
        connection,
        "SELECT stored, rejected FROM put_staged_minutes(%s, %s)",
        (collection_id, now),
    )
    connection.execute("DROP TABLE pg_temp.staged_minutes")
    return Put(*put)


def roll_up(connection: Connection, timeframe: Timeframe, start: datetime, end: datetime) -> int:
    """Merge the stored children with `start <= label < end` into their parents.

    Returns:
        Rows written; 0 when all of it was there already.
    """
    return int(one_row(connection, "SELECT roll_up(%s, %s, %s)", (timeframe.name, start, end))[0])


def count_rows(connection: Connection, timeframe: Timeframe) -> int:
    """Count all rows of a close table."""
    statement = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier("public", timeframe.table))
    return int(one_row(connection, statement)[0])


@dataclass(frozen=True)
class Window:
    """What a close table holds between two labels."""

    rows: int
    coins: int
    first: datetime | None
    last: datetime | None


def window(connection: Connection, timeframe: Timeframe, start: datetime, end: datetime) -> Window:
    """Count the closes with `start <= label < end`."""
    statement = sql.SQL(
        "SELECT count(*), count(DISTINCT coin_id), min({label}), max({label}) "
        "FROM {table} WHERE {label} >= %s AND {label} < %s"
    ).format(label=sql.Identifier(timeframe.label), table=sql.Identifier("public", timeframe.table))
    return Window(*one_row(connection, statement, (start, end)))
