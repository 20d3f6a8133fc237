"""The provider's past in the tables: what lacks its end, putting points, and what cannot be had.

Belongs here: the calls of the rules in `sql/`. Does not: the rules, nor asking the provider, nor
deciding what is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import polars as pl
from psycopg import Connection, sql

from pulseguard_assets.timeframes import Timeframe
from pulseguard_assets.warehouse.copying import copy_frame
from pulseguard_assets.warehouse.statements import one_row

POINTS_SCHEMA = pl.Schema(
    {
        "coin_id": pl.String(),
        "stamp": pl.Datetime("ms", "UTC"),
        "price_usd": pl.Float64(),
        "market_cap_usd": pl.Float64(),
        "volume_24h_usd": pl.Float64(),
        "created_at": pl.Datetime("us", "UTC"),
    }
)

# Where a point of history lies before the end of its bucket; a finer wish could never be granted.
_FINEST_TOLERANCE = timedelta(minutes=5)


def set_scope(
    connection: Connection, *, wanted: int | None, always: Sequence[str], tolerance: timedelta
) -> None:
    """Say which coins are expected in every bucket, and how near to its end they must be seen.

    Writes only what changes, so that it may be called with every plan of a poll.

    Args:
        wanted: how many coins, by rank; None for all the provider lists.
        always: ids to include whatever their rank.
        tolerance: the cadence of polls; less than 5 minutes counts as 5.

    Raises:
        psycopg.errors.CheckViolation: `wanted` is negative.
    """
    connection.execute(
        "UPDATE public.collection_scope SET wanted = %(wanted)s, always = %(always)s, "
        "tolerance = %(tolerance)s WHERE (wanted, always, tolerance) IS DISTINCT FROM "
        "(%(wanted)s::integer, %(always)s::text[], %(tolerance)s::interval)",
        {
            "wanted": wanted,
            "always": list(always),
            "tolerance": max(tolerance, _FINEST_TOLERANCE),
        },
    )


@dataclass(frozen=True)
class Lacking:
    """A coin with buckets that lack their end: how many, and the first and last label of them.

    Of the timeframe minute the buckets are hours.
    """

    coin_id: str
    first: datetime
    last: datetime
    buckets: int


def lacking(
    connection: Connection,
    timeframe: Timeframe,
    start: datetime,
    end: datetime,
    *,
    now: datetime,
    known_only: bool = False,
) -> list[Lacking]:
    """The expected coins with closes in `[start, end)` that lack their end.

    A bucket that is over lacks its end when it has no row, or one that was observed before its end
    less the tolerance of `set_scope`. What retention has taken, and a wider table still carries,
    does not lack it, nor what `record_unrecoverable` has filed. Of the timeframe minute the
    buckets are hours, and an hour lacks minutes when some five minutes of it have none.

    Args:
        start, end: only buckets that lie wholly between them are looked at.
        now: buckets that end later are still open.
        known_only: leave out buckets that ended before a sweep first saw their coin.

    Returns:
        By first label, then rank (coins without one last), then coin_id.
    """
    rows = connection.execute(
        "SELECT coin_id, first, last, buckets FROM lacking_closes(%s, %s, %s, %s, %s)",
        (timeframe.name, start, end, now, known_only),
    )
    return [Lacking(*row) for row in rows]


@dataclass(frozen=True)
class HistoryPut:
    """What a put of history did.

    Attributes:
        written: closes written to the table of the timeframe asked for.
        usable: sound points that are observations of a minute in the window asked for.
        rejected: points of the window that are in `rejected_observations`.
    """

    written: int
    usable: int
    rejected: int


def put_history(
    connection: Connection,
    timeframe: Timeframe,
    grade: str,
    points: pl.DataFrame,
    *,
    start: datetime,
    end: datetime,
    now: datetime,
    collection_id: int | None = None,
) -> HistoryPut:
    """Store points of history in the closes of a timeframe and of every wider one.

    One transaction (a savepoint, inside an open one). By the merge rule, so what was seen later
    than a point stays, and what was seen earlier loses to it. Minutes are only added: a point never
    replaces a stored one.

    Args:
        grade: `five_minute`, `hourly` or `daily`: which minute a point observed; see
            `history_minute()` in `sql/`. Points that close nothing are left alone.
        points: of `POINTS_SCHEMA`, of any number of coins, in any order; `created_at` is when the
            answer arrived. Many coins at once take a fraction of the time of one by one.
        start, end: only observations of minutes in `[start, end)` are stored.
        now: a minute after this instant is faulty, and rejections carry it.
        collection_id: the cycle that rejections are filed under.

    Raises:
        psycopg.errors.RaiseException: the timeframe or the grade is unknown, or the grade too
            coarse for minutes.
        psycopg.Error: nothing was stored.
    """
    staged = points.match_to_schema(POINTS_SCHEMA)
    with connection.transaction():
        connection.execute(
            "CREATE TEMPORARY TABLE staged_history (coin_id text, stamp timestamptz, "
            "minute_ts timestamptz, price_usd numeric, market_cap_usd numeric, "
            "volume_24h_usd numeric, created_at timestamptz) ON COMMIT DROP"
        )
        copy_frame(connection, sql.Identifier("pg_temp", "staged_history"), staged)
        put = one_row(
            connection,
            "SELECT written, usable, rejected FROM put_staged_history(%s, %s, %s, %s, %s, %s)",
            (timeframe.name, grade, start, end, now, collection_id),
        )
        connection.execute("DROP TABLE pg_temp.staged_history")
    return HistoryPut(*put)


def record_unrecoverable(
    connection: Connection,
    timeframe: Timeframe,
    coin_id: str,
    reason: str,
    start: datetime,
    end: datetime,
    *,
    now: datetime,
) -> int:
    """File the buckets of `[start, end)` that a coin still lacks as not to be had.

    `lacking` leaves them out from then on. One row for each timeframe, coin and reason, so a
    reason should name no instant.

    Returns:
        How many buckets were new.
    """
    return int(
        one_row(
            connection,
            "SELECT record_unrecoverable(%s, %s, %s, %s, %s, %s)",
            (timeframe.name, coin_id, reason, start, end, now),
        )[0]
    )


def forget_unrecoverable_ahead(connection: Connection, *, now: datetime) -> int:
    """Take out what a clock that was ahead has filed of buckets that are not over yet.

    Returns:
        How many coins and reasons had any.
    """
    return int(one_row(connection, "SELECT forget_unrecoverable_ahead(%s)", (now,))[0])


@dataclass(frozen=True)
class Held:
    """What is stored of a stretch.

    Attributes:
        rows: closes.
        coins_expected: expected coins times buckets.
        coins_seen: those pairs of a coin and a bucket that have a row.
        live: rows whose close was seen live, or corrected.
        history: rows whose close is a point of history.
    """

    rows: int
    coins_expected: int
    coins_seen: int
    live: int
    history: int


def held(connection: Connection, timeframe: Timeframe, start: datetime, end: datetime) -> Held:
    """Count the closes with `start <= label < end`, by where they come from."""
    return Held(
        *one_row(
            connection,
            "SELECT rows, coins_expected, coins_seen, live, history FROM held_closes(%s, %s, %s)",
            (timeframe.name, start, end),
        )
    )


def without_close(
    connection: Connection,
    timeframe: Timeframe,
    start: datetime,
    end: datetime,
    *,
    limit: int = 20,
) -> list[tuple[str, str]]:
    """Expected coins that lack a close with `start <= label < end`, or whose end cannot be had.

    Of minutes, only the coins without any. Closes that retention has taken count as lacking here.

    Returns:
        At most `limit` of `(coin_id, why)`, by rank.
    """
    rows = connection.execute(
        "SELECT coin_id, why FROM coins_without_close(%s, %s, %s) LIMIT %s",
        (timeframe.name, start, end, limit),
    )
    return [(coin_id, why) for coin_id, why in rows]
