"""Two sessions, their transactions cut into steps: every order of the steps ends well.

Well means: no deadlock and no other error, no reader who waits, and the tables of a serial order;
by the merge rule they are the closes of all observations, whatever the order was. What one
session does while another is stopped inside a statement is in test_concurrent_writers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple
from datetime import datetime, timedelta
from typing import Any

import polars as pl
import psycopg
import pytest
from closes_support import (
    Observation,
    add_coins,
    clean_up,
    copy_of_prepared,
    correct,
    ensure,
    everything,
    expected,
    insert,
    one,
    prepared_by,
    put,
    roll_up,
    roll_up_all,
    seen_at,
    stored,
    utc,
)
from interleavings_support import Session, Step, orders, run_in_order
from psycopg import sql

from pulseguard_assets.timeframes import DAILY, HOURLY, MINUTE, MONTHLY, TIMEFRAMES, WEEKLY
from pulseguard_assets.warehouse.closes import MINUTES_SCHEMA, put_minutes
from pulseguard_assets.warehouse.connection import connect
from pulseguard_assets.warehouse.history import POINTS_SCHEMA, put_history

HOUR = utc(2026, 6, 24, 10)
NOW = HOUR + timedelta(hours=2, minutes=30)
COINS = ["amber", "birch", "cedar", "dune"]
ROLLUPS = (HOURLY, DAILY, WEEKLY, MONTHLY)
UNKNOWN = "nobody-knows"


def prepare(connection: psycopg.Connection) -> None:
    add_coins(connection, *COINS)
    ensure(connection, utc(2026, 6, 1), HOUR)


prepared = prepared_by(prepare)
database = copy_of_prepared


def at(number: int, price: int = 1, coin: str = COINS[0], late: int = 0) -> Observation:
    when = HOUR + timedelta(minutes=number)
    return seen_at(coin, when, price, created_at=when + timedelta(seconds=7 + late))


def each(number: int, price: int, late: int = 0, coins: Sequence[str] = COINS) -> list[Observation]:
    return [at(number, price + n, coin, late) for n, coin in enumerate(coins)]


def step(name: str, work: Callable[[psycopg.Connection], Any]) -> Step:
    return Step(name, work)


COMMIT = step("commit", lambda c: c.execute("COMMIT"))


def transaction(first: Step, *others: Step, begin: str = "BEGIN") -> list[Step]:
    """The steps of a transaction; to begin it is no step of its own, for nothing happens then."""

    def begin_with_first(connection: psycopg.Connection) -> Any:
        connection.execute(begin)
        return first.work(connection)

    return [step(first.name, begin_with_first), *others, COMMIT]


class Readers:
    """Look at every table after each step, and may not wait for anybody."""

    def __init__(self, dsn: str) -> None:
        self._connection = connect(dsn, lock_timeout=timedelta(milliseconds=1))
        self.looks = 0

    def look(self) -> None:
        for table in (*(t.table for t in TIMEFRAMES), "coin_priorities", "rejected_observations"):
            query = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table))
            self._connection.execute(query)
        self.looks += 1

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def readers(database: str) -> Iterator[Readers]:
    made = Readers(database)
    yield made
    made.close()
    assert made.looks > 0


def forget(connection: psycopg.Connection) -> None:
    """Empty the tables between two orders."""
    for table in (*(t.table for t in TIMEFRAMES), "rejected_observations", "retention_audit"):
        connection.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier(table)))


def assert_no_errors(sessions: Sequence[Session], order: Sequence[int]) -> None:
    assert [str(error) for session in sessions for error in session.errors] == [], order


def assert_closes(
    connection: psycopg.Connection, observations: Sequence[Observation], order: Sequence[int]
) -> None:
    roll_up_all(connection)
    for timeframe in ROLLUPS:
        assert stored(connection, timeframe) == expected(timeframe, observations), order
    assert roll_up_all(connection) == 0


# -- writers against writers -----------------------------------------------------------------------


def minutes_frame(observations: Sequence[Observation]) -> pl.DataFrame:
    return pl.DataFrame(list(map(astuple, observations)), schema=MINUTES_SCHEMA, orient="row")


def points_frame(observations: Sequence[Observation]) -> pl.DataFrame:
    rows = [
        (seen.coin_id, seen.minute_ts, *astuple(seen)[2:5], seen.created_at)
        for seen in observations
    ]
    return pl.DataFrame(rows, schema=POINTS_SCHEMA, orient="row")


def lock_of_hours(first: datetime, last: datetime) -> Step:
    lock = "SELECT lock_buckets('hourly', %s, %s)"
    return step("lock", lambda c: c.execute(lock, (first, last)))


def rows_put(observations: Sequence[Observation], now: datetime = NOW) -> Step:
    return step("rows", lambda c: put_minutes(c, minutes_frame(observations), now=now))


def live_put(observations: Sequence[Observation], now: datetime = NOW) -> list[Step]:
    """The put of a poll: the lock of its hours, and then the rows."""
    first, last = observations[0].minute_ts, observations[-1].minute_ts
    return transaction(lock_of_hours(first, last), rows_put(observations, now))


def history_put(grade: str, points: Sequence[Observation]) -> list[Step]:
    timeframe = MINUTE if grade == "five_minute" else HOURLY
    return transaction(
        step(
            "history",
            lambda c: put_history(
                c,
                timeframe,
                grade,
                points_frame(points),
                start=HOUR - timedelta(hours=2),
                end=NOW,
                now=NOW,
            ),
        )
    )


def history(minute: int, price: int) -> list[Observation]:
    """Points of history, the coins in the opposite order."""
    return [
        seen_at(
            coin,
            HOUR + timedelta(minutes=minute),
            price + n,
            coin_rank=None,
            created_at=NOW,
            source="history",
        )
        for n, coin in reversed(list(enumerate(COINS)))
    ]


# What history of a grade observes, as observations; and the stamps it comes with.
FIVE_MINUTES = [*history(5, 70), *history(10, 80)]
HOURLY_STAMPS = [*history(60, 90)]
HOURLY_SEEN = [*history(55, 90)]
HISTORIES: dict[str, tuple[list[Observation], list[Observation]]] = {
    "five_minute": (FIVE_MINUTES, FIVE_MINUTES),
    "hourly": (HOURLY_STAMPS, HOURLY_SEEN),
}


@pytest.mark.parametrize("grade", HISTORIES)
def test_a_live_put_and_a_put_of_history_in_opposite_order_of_coins(
    connection: psycopg.Connection, database: str, readers: Readers, grade: str
) -> None:
    points, seen = HISTORIES[grade]
    live = [*each(5, 10), *each(56, 20)]
    for order in orders(live_put(live), history_put(grade, points)):
        forget(connection)
        sessions = run_in_order(
            database,
            connection,
            order,
            live_put(live),
            history_put(grade, points),
            after_each=readers.look,
        )
        assert_no_errors(sessions, order)
        in_minutes = [*live, *(seen if grade == "five_minute" else [])]
        assert stored(connection, MINUTE) == expected(MINUTE, in_minutes), order
        assert_closes(connection, [*live, *seen], order)


def test_two_collectors_put_the_same_minute(
    connection: psycopg.Connection, database: str, readers: Readers
) -> None:
    first = [*each(5, 10), at(5, 1, UNKNOWN)]
    second = [*each(5, 50, late=20, coins=COINS[::-1]), at(5, 1, UNKNOWN, late=20)]
    puts = [transaction(rows_put(first)), transaction(rows_put(second))]
    for order in orders(*puts):
        forget(connection)
        sessions = run_in_order(database, connection, order, *puts, after_each=readers.look)
        assert_no_errors(sessions, order)
        known = [seen for seen in (*first, *second) if seen.coin_id != UNKNOWN]
        assert stored(connection, MINUTE) == expected(MINUTE, known), order
        assert_closes(connection, known, order)
        # Counted twice, and not twice one.
        assert one(connection, "SELECT sum(times) FROM rejected_observations") == 2


def test_roll_ups_and_a_put_into_what_they_read(
    connection: psycopg.Connection, database: str, readers: Readers
) -> None:
    before, late = each(5, 10), [*each(4, 40, coins=COINS[::-1]), *each(61, 60, coins=COINS[::-1])]
    roller = transaction(
        step("day", lambda c: roll_up(c, "daily", HOUR - timedelta(days=1), NOW)),
        step("month", lambda c: roll_up(c, "monthly", HOUR - timedelta(days=1), NOW)),
    )
    for order in orders(roller, live_put(late)):
        forget(connection)
        insert(connection, before)
        sessions = run_in_order(
            database, connection, order, roller, live_put(late), after_each=readers.look
        )
        assert_no_errors(sessions, order)
        assert_closes(connection, [*before, *late], order)


# -- corrections against cleanup -------------------------------------------------------------------

CORRECTED = [at(3, 900, COINS[2], late=99), at(59, 901, COINS[0], late=99)]
LATE = [at(58, 800, coin) for coin in COINS[::-1]]


def correct_all(connection: psycopg.Connection, observations: Sequence[Observation]) -> None:
    for seen in observations:
        correct(connection, seen)


HANDS: dict[str, tuple[Callable[[psycopg.Connection], object], list[Observation]]] = {
    "an UPDATE by hand": (lambda c: correct_all(c, CORRECTED), CORRECTED),
    "an INSERT by hand": (lambda c: insert(c, LATE), LATE),
    "a put of corrections": (lambda c: put(c, CORRECTED), CORRECTED),
}


@pytest.mark.parametrize("hand", HANDS)
def test_a_correction_and_a_cleanup_of_its_rows(
    connection: psycopg.Connection, database: str, readers: Readers, hand: str
) -> None:
    work, corrected = HANDS[hand]
    before = [seen for minute in (3, 4, 59) for seen in each(minute, 10 * minute)]
    correcting = transaction(step("correct", work))
    cleaning = transaction(step("clean", lambda c: clean_up(c, NOW)["minute_close"]))
    carried = 0
    for order in orders(correcting, cleaning):
        forget(connection)
        insert(connection, before)
        sessions = run_in_order(
            database, connection, order, correcting, cleaning, after_each=readers.look
        )
        assert_no_errors(sessions, order)
        clean_up(connection, NOW)
        assert stored(connection, MINUTE) == {}, order
        # An UPDATE of rows that are gone corrects nothing: that is one of the serial orders. What
        # it did find must be in every close.
        serial = [[*before, *corrected], before][: 2 if hand == "an UPDATE by hand" else 1]
        roll_up_all(connection)
        found = {t.table: stored(connection, t) for t in ROLLUPS}
        wanted = [{t.table: expected(t, seen) for t in ROLLUPS} for seen in serial]
        assert found in wanted, order
        carried += found == wanted[0]
    assert carried >= 3


# -- partitions ------------------------------------------------------------------------------------


def months() -> Iterator[datetime]:
    yield from (utc(2030 + n // 12, n % 12 + 1, 15, 10) for n in range(12 * 60))


MAKERS = {
    "ensure_partitions": "SELECT ensure_partitions(%(at)s, %(at)s)",
    "add_monthly_partition": "SELECT add_monthly_partition('minute_close', %(at)s)",
}


def partition_made(call: str, when: datetime) -> Step:
    return step("make", lambda c: c.execute(call, {"at": when}))


@pytest.mark.parametrize("maker", MAKERS)
def test_a_partition_is_made_while_a_put_needs_it(
    connection: psycopg.Connection, database: str, readers: Readers, maker: str
) -> None:
    month = months()
    for order in orders([COMMIT] * 2, [COMMIT] * 3):
        when = next(month)
        seen = [seen_at(coin, when, n + 1) for n, coin in enumerate(COINS)]
        making = transaction(partition_made(MAKERS[maker], when))
        forget(connection)
        putting = live_put(seen, when)
        sessions = run_in_order(
            database, connection, order, making, putting, after_each=readers.look
        )
        assert_no_errors(sessions, order)
        assert stored(connection, MINUTE) == expected(MINUTE, seen), order
        assert_closes(connection, seen, order)


def test_a_long_reader_and_a_drop_of_what_it_reads(
    connection: psycopg.Connection, database: str, readers: Readers
) -> None:
    may = utc(2026, 5, 11, 9)
    old = [seen_at(coin, may, n + 1) for n, coin in enumerate(COINS)]
    count = "SELECT count(*) FROM minute_close WHERE minute_ts < '2026-06-01'"
    reader = transaction(
        step("first look", lambda c: one(c, count)),
        step("second look", lambda c: one(c, count)),
        begin="BEGIN ISOLATION LEVEL REPEATABLE READ",
    )
    drop = "SELECT drop_old_partitions('minute_close', 0, %s, '0.1 s')"
    dropping = [step("drop", lambda c: one(c, drop, (NOW,)))]
    outcomes = set()
    one(connection, drop, (NOW,))  # the two old partitions that every database is made with
    for order in orders(reader, dropping):
        forget(connection)
        ensure(connection, may)
        insert(connection, old)
        sessions = run_in_order(
            database, connection, order, reader, dropping, after_each=readers.look
        )
        assert_no_errors(sessions, order)
        looks, dropped = sessions[0].results, sessions[1].results["drop"]
        assert looks["first look"] == looks["second look"], order
        assert dropped == (order[0] == 1 or order[-1] == 1), order
        outcomes.add((dropped, looks["first look"]))
        one(connection, drop, (NOW,))
        assert_closes(connection, old, order)
    assert outcomes == {(0, len(COINS)), (1, 0), (1, len(COINS))}


def test_a_put_into_an_old_month_and_a_drop_of_it(
    connection: psycopg.Connection, database: str
) -> None:
    may = utc(2026, 5, 11, 9)
    old = [seen_at(coin, may, n + 1) for n, coin in enumerate(COINS)]
    late = [seen_at(coin, may + timedelta(minutes=3), n + 50) for n, coin in enumerate(COINS)]
    putting = transaction(step("put", lambda c: put(c, late)))
    drop = "SELECT drop_old_partitions('minute_close', 0, %s, '0.1 s')"
    dropping = transaction(step("drop", lambda c: one(c, drop, (NOW,))))
    for order in orders(putting, dropping):
        forget(connection)
        ensure(connection, may)
        insert(connection, old)
        sessions = run_in_order(database, connection, order, putting, dropping)
        assert_no_errors(sessions, order)
        assert_closes(connection, [*old, *late], order)


# -- who waits too long ----------------------------------------------------------------------------

WAITERS: dict[str, Callable[[psycopg.Connection], object]] = {
    "a put": lambda c: put_minutes(c, minutes_frame(each(6, 5)), now=NOW),
    "a put of history": lambda c: put_history(
        c,
        MINUTE,
        "five_minute",
        points_frame(FIVE_MINUTES),
        start=HOUR,
        end=NOW,
        now=NOW,
    ),
    "a roll-up": lambda c: roll_up(c, "hourly", HOUR, NOW),
    "a cleanup": lambda c: clean_up(c, NOW),
    "an UPDATE by hand": lambda c: correct(c, at(5, 9, late=99)),
    "an INSERT by hand": lambda c: insert(c, [at(7, 9)]),
}


@pytest.mark.parametrize("waiter", WAITERS)
def test_a_writer_waits_no_longer_than_its_lock_timeout_and_then_says_so(
    connection: psycopg.Connection, database: str, waiter: str
) -> None:
    insert(connection, each(5, 10))
    before = everything(connection)
    with connect(database) as holder, connect(database, lock_timeout=timedelta(seconds=0.1)) as c:
        with holder.transaction(force_rollback=True):
            put(holder, each(8, 10))
            begun = time.monotonic()
            with pytest.raises(psycopg.errors.LockNotAvailable, match="lock timeout"):
                WAITERS[waiter](c)
            assert time.monotonic() - begun < 5
            assert everything(connection) == before
        WAITERS[waiter](c)


# -- the net has no holes --------------------------------------------------------------------------

WITHOUT_LOCKS = """
CREATE OR REPLACE FUNCTION lock_buckets(timeframe TEXT, first TIMESTAMPTZ, last TIMESTAMPTZ)
RETURNS VOID LANGUAGE plpgsql AS
$$ BEGIN PERFORM set_config('pulseguard.hours_locked', 'yes', true); END $$
"""


def test_without_the_locks_on_buckets_some_order_ends_badly(
    connection: psycopg.Connection, database: str
) -> None:
    connection.execute(WITHOUT_LOCKS)
    first, second = live_put([*each(5, 10), *each(9, 20)]), history_put("hourly", HOURLY_STAMPS)
    errors: set[str | None] = set()
    for order in orders(first, second):
        forget(connection)
        for session in run_in_order(database, connection, order, first, second):
            errors |= {error.sqlstate for error in session.errors}
    assert errors
