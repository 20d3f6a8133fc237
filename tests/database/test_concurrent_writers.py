"""Sessions at once: put, correction, roll-up, cleanup and drop, in every order, and no deadlock.

A session is stopped inside its statement by an advisory lock, at the one point that matters: its
rows are written and locked, and the trigger that locks their hours has not run yet.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal

import polars as pl
import psycopg
import pytest
from closes_support import (
    Background,
    Observation,
    add_coins,
    clean_up,
    copy,
    copy_of_prepared,
    correct,
    ensure,
    expected,
    insert,
    one,
    prepared_by,
    put,
    roll_up,
    roll_up_all,
    seen_at,
    stored,
    stored_hours,
    utc,
    wait_until_blocked,
)

from pulseguard_assets.coingecko.frames import REJECTED_SCHEMA
from pulseguard_assets.timeframes import DAILY, HOURLY, MINUTE, MONTHLY, WEEKLY, Timeframe
from pulseguard_assets.warehouse.closes import Put
from pulseguard_assets.warehouse.coins import COINS_SCHEMA, put_coins
from pulseguard_assets.warehouse.collections import reject
from pulseguard_assets.warehouse.connection import connect
from pulseguard_assets.warehouse.history import POINTS_SCHEMA, put_history

HOUR = utc(2026, 6, 24, 10)
NOW = HOUR + timedelta(hours=2, minutes=30)
COINS = [f"coin-{number}" for number in range(6)]
STOP = 4711


def prepare(connection: psycopg.Connection) -> None:
    """Coins, partitions, and a trigger at which sessions called `stoppable` can be stopped."""
    add_coins(connection, *COINS)
    ensure(connection, utc(2026, 5, 1), HOUR)
    connection.execute(
        f"""
        CREATE FUNCTION stop() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM pg_advisory_lock_shared({STOP});
            PERFORM pg_advisory_unlock_shared({STOP});
            RETURN NULL;
        END $$;
        CREATE TRIGGER stop AFTER INSERT OR UPDATE ON minute_close FOR EACH ROW
        WHEN (current_setting('application_name') = 'stoppable') EXECUTE FUNCTION stop();
        """
    )


prepared = prepared_by(prepare)
database = copy_of_prepared


@pytest.fixture
def others(database: str) -> Iterator[Callable[..., psycopg.Connection]]:
    """Makes further sessions, closed after the test."""
    made: list[psycopg.Connection] = []

    def another(name: str = "other") -> psycopg.Connection:
        made.append(connect(database, application_name=name))
        return made[-1]

    yield another
    for connection in made:
        connection.close()


@contextmanager
def stopped(watcher: psycopg.Connection, session: psycopg.Connection) -> Iterator[None]:
    """Hold whatever `stoppable` session writes a minute, until the end of the block."""
    watcher.execute("SELECT pg_advisory_lock(%s)", (STOP,))
    try:
        yield
    finally:
        watcher.execute("SELECT pg_advisory_unlock(%s)", (STOP,))


def at(number: int, price: int = 1, coin: str = COINS[0], late: int = 0) -> Observation:
    when = HOUR + timedelta(minutes=number)
    return seen_at(coin, when, price, created_at=when + timedelta(seconds=7 + late))


def assert_all_there(connection: psycopg.Connection, observations: list[Observation]) -> None:
    roll_up_all(connection)
    for timeframe in (HOURLY, DAILY, WEEKLY, MONTHLY):
        assert stored(connection, timeframe) == expected(timeframe, observations), timeframe.name


# -- stopped between the rows and the hours --------------------------------------------------------

Writer = Callable[[psycopg.Connection], object]
SECOND: dict[str, Writer] = {
    "a put of the same minutes": lambda c: put(
        c, [at(5, 2, coin, late=30) for coin in reversed(COINS)]
    ),
    "a put of an older minute": lambda c: put(c, [at(4, 3, coin) for coin in COINS]),
    "an insert of another minute": lambda c: insert(c, [at(6, 4, coin) for coin in COINS[::-1]]),
    "a correction by hand": lambda c: correct(c, at(3, 9, late=99)),
}
OBSERVED: dict[str, list[Observation]] = {
    "a put of the same minutes": [at(5, 2, coin, late=30) for coin in COINS],
    "a put of an older minute": [at(4, 3, coin) for coin in COINS],
    "an insert of another minute": [at(6, 4, coin) for coin in COINS],
    "a correction by hand": [at(3, 9, late=99)],
}
FIRST: dict[str, Writer] = {
    "an insert": lambda c: insert(c, [at(5, 1, coin) for coin in COINS]),
    "a copy": lambda c: copy(c, [at(5, 1, coin) for coin in COINS]),
    "a put": lambda c: put(c, [at(5, 1, coin) for coin in COINS]),
}


@pytest.mark.parametrize("second", SECOND)
@pytest.mark.parametrize("first", FIRST)
def test_two_writers_of_an_hour_both_get_in(
    connection: psycopg.Connection,
    others: Callable[..., psycopg.Connection],
    first: str,
    second: str,
) -> None:
    before = [at(3, 5, coin) for coin in COINS]
    insert(connection, before)
    one_session, another = others("stoppable"), others()
    with stopped(connection, one_session):
        writing = Background(lambda: FIRST[first](one_session))
        wait_until_blocked(connection, one_session)
        waiting = Background(lambda: SECOND[second](another))
        wait_until_blocked(connection, another)
    writing.result()
    waiting.result()
    observations = before + [at(5, 1, coin) for coin in COINS] + OBSERVED[second]
    assert stored(connection, MINUTE) == expected(MINUTE, observations)
    assert_all_there(connection, observations)


def test_a_correction_by_hand_and_a_cleanup_of_its_row_do_not_wait_in_a_circle(
    connection: psycopg.Connection, others: Callable[..., psycopg.Connection]
) -> None:
    before = [at(minute, 5, coin) for minute in (3, 4, 59) for coin in COINS]
    insert(connection, before)
    roll_up_all(connection)
    hand, cleaner = others("stoppable"), others()
    corrected = at(3, 9, late=99)
    with stopped(connection, hand):
        correcting = Background(lambda: correct(hand, corrected))
        wait_until_blocked(connection, hand)
        cleaning = Background(lambda: clean_up(cleaner, NOW))
        wait_until_blocked(connection, cleaner)
    correcting.result()
    assert cleaning.result()["minute_close"] == len(before)
    assert_all_there(connection, [*before, corrected])


def test_a_correction_waits_for_a_cleanup_and_is_not_lost(
    connection: psycopg.Connection, others: Callable[..., psycopg.Connection]
) -> None:
    before = [at(minute, 5, coin) for minute in (3, 59) for coin in COINS]
    insert(connection, before)
    corrected = [at(59, 9, coin, late=99) for coin in reversed(COINS)]
    cleaner, writer = others(), others()
    with cleaner.transaction():
        assert clean_up(cleaner, NOW)["minute_close"] == len(before)
        waiting = Background(lambda: put(writer, corrected))
        wait_until_blocked(connection, writer)
    assert waiting.result() == (len(COINS), 0)
    assert_all_there(connection, before + corrected)
    assert clean_up(connection, NOW)["minute_close"] == len(COINS)
    assert_all_there(connection, before + corrected)


def test_a_cleanup_waits_for_a_correction_and_carries_it(
    connection: psycopg.Connection, others: Callable[..., psycopg.Connection]
) -> None:
    before = [at(minute, 5, coin) for minute in (3, 59) for coin in COINS]
    insert(connection, before)
    roll_up_all(connection)
    corrected = [at(59, 9, coin, late=99) for coin in reversed(COINS)]
    cleaner, writer = others(), others()
    with writer.transaction():
        put(writer, corrected)
        waiting = Background(lambda: clean_up(cleaner, NOW + timedelta(days=30)))
        wait_until_blocked(connection, cleaner)
    deleted = waiting.result()
    assert (deleted["minute_close"], deleted["hourly_close"]) == (len(before), len(COINS))
    for timeframe in (WEEKLY, MONTHLY):
        assert stored(connection, timeframe) == expected(timeframe, before + corrected)


# -- roll-ups --------------------------------------------------------------------------------------


def test_a_roll_up_and_a_put_of_the_hour_wait_for_each_other_and_lose_nothing(
    connection: psycopg.Connection, others: Callable[..., psycopg.Connection]
) -> None:
    roller, writer = others(), others()
    first = [at(5, 1, coin) for coin in COINS]
    second = [at(6, 2, coin) for coin in COINS]
    connection.execute("ALTER TABLE minute_close DISABLE TRIGGER trigger_aggregate_hourly")
    insert(connection, first)
    connection.execute("ALTER TABLE minute_close ENABLE TRIGGER trigger_aggregate_hourly")
    with roller.transaction():
        assert roll_up(roller, "hourly", HOUR, NOW) == len(COINS)
        waiting = Background(lambda: put(writer, second))
        wait_until_blocked(connection, writer)
    waiting.result()
    assert stored_hours(connection) == expected(HOURLY, first + second)


def test_two_roll_ups_of_a_day_write_it_once(
    connection: psycopg.Connection, others: Callable[..., psycopg.Connection]
) -> None:
    first, second = others(), others()
    observations = [at(5, 1, coin) for coin in COINS]
    insert(connection, observations)
    with first.transaction():
        assert roll_up(first, "daily", HOUR, NOW) == len(COINS)
        waiting = Background(lambda: roll_up(second, "daily", HOUR, NOW))
        wait_until_blocked(connection, second)
    assert waiting.result() == 0
    assert_all_there(connection, observations)


def test_writers_of_different_hours_do_not_wait_for_each_other(
    connection: psycopg.Connection, others: Callable[..., psycopg.Connection]
) -> None:
    first, second = others(), others()
    second.execute("SET lock_timeout = '1ms'")
    with first.transaction():
        put(first, [at(5, 1, coin) for coin in COINS])
        assert put(second, [at(65, 1, coin) for coin in COINS]) == (len(COINS), 0)
        assert roll_up(second, "daily", HOUR, NOW) == len(COINS)
    assert len(stored_hours(connection)) == 2 * len(COINS)


def test_a_statement_by_hand_waits_for_puts_and_puts_for_it(
    connection: psycopg.Connection, others: Callable[..., psycopg.Connection]
) -> None:
    hand, writer = others(), others()
    writer.execute("SET lock_timeout = '1ms'")
    with hand.transaction():
        insert(hand, [at(5)])
        with pytest.raises(psycopg.errors.LockNotAvailable):
            put(writer, [at(65)])
    assert put(writer, [at(65)]) == (1, 0)
    hand.execute("SET lock_timeout = '1ms'")
    with writer.transaction():
        put(writer, [at(66)])
        with pytest.raises(psycopg.errors.LockNotAvailable):
            insert(hand, [at(6)])
    insert(hand, [at(6)])


def test_the_gate_is_passed_once_and_not_left_open(connection: psycopg.Connection) -> None:
    with connection.transaction():
        put(connection, [at(5)])
        assert one(connection, "SELECT current_setting('pulseguard.hours_locked')") == "yes"
    assert one(connection, "SELECT current_setting('pulseguard.hours_locked', true)") in ("", None)
    held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
    assert one(connection, held) == 0


# -- drop ------------------------------------------------------------------------------------------


def test_dropping_a_partition_with_late_rows_and_a_live_insert_do_not_wait_in_a_circle(
    connection: psycopg.Connection, others: Callable[..., psycopg.Connection]
) -> None:
    connection.execute("ALTER TABLE minute_close DISABLE TRIGGER trigger_aggregate_hourly")
    # So many hours that their locks are all of the slots, the live hour's among them.
    old = [
        seen_at(COINS[0], utc(2026, 5, 1) + timedelta(hours=h), h + 1) for h in range(0, 31 * 24, 7)
    ]
    copy(connection, old)
    connection.execute("ALTER TABLE minute_close ENABLE TRIGGER trigger_aggregate_hourly")
    live, dropper = others("stoppable"), others()
    fresh = [at(5, 1, coin) for coin in COINS]
    drop = "SELECT drop_old_partitions('minute_close', 0, %s, '20 s')"
    with stopped(connection, live):
        writing = Background(lambda: insert(live, fresh))
        wait_until_blocked(connection, live)
        dropping = Background(lambda: one(dropper, drop, (NOW,)))
        wait_until_blocked(connection, dropper)
    writing.result()
    assert dropping.result() >= 1
    assert_all_there(connection, old + fresh)


# -- what is set aside -----------------------------------------------------------------------------

FUTURE = utc(2031, 3, 3, 10)  # a month without partitions


def _minutes_with_a_fault(session: psycopg.Connection) -> object:
    late = FUTURE + timedelta(minutes=1)
    faulty = replace(at(1), minute_ts=late, market_cap_usd=Decimal("NaN"))
    return put(session, [replace(at(1), minute_ts=FUTURE), faulty], FUTURE + timedelta(hours=1))


def _history_with_a_fault(timeframe: Timeframe) -> Writer:
    points = pl.DataFrame(
        [
            (COINS[0], FUTURE + timedelta(minutes=number), 1.0, cap, None, FUTURE)
            for number, cap in enumerate((None, float("nan")))
        ],
        schema=POINTS_SCHEMA,
        orient="row",
    )
    day = timedelta(days=1)

    def write(session: psycopg.Connection) -> object:
        window = {"start": FUTURE - day, "end": FUTURE + day, "now": FUTURE + day}
        done = put_history(session, timeframe, "five_minute", points, **window)  # type: ignore[arg-type]
        return done.usable, done.rejected

    return write


MAKES_A_PARTITION: dict[str, Writer] = {
    "minutes": _minutes_with_a_fault,
    "minutes of history": _history_with_a_fault(MINUTE),
    "hours of history": _history_with_a_fault(HOURLY),
}


@pytest.mark.parametrize("writer", MAKES_A_PARTITION)
def test_a_put_that_makes_a_partition_and_a_sweep_that_set_the_same_aside_both_get_in(
    connection: psycopg.Connection, others: Callable[..., psycopg.Connection], writer: str
) -> None:
    connection.execute(
        "CREATE TRIGGER stop AFTER INSERT ON rejected_observations FOR EACH ROW "
        "WHEN (current_setting('application_name') = 'stoppable') EXECUTE FUNCTION stop()"
    )
    maker, sweeper = others("stoppable"), others()
    page = pl.DataFrame(
        [(COINS[0], 1, float("nan"), "b", "B", None, None), ("new", 2, 1.0, "n", "N", None, None)],
        schema=COINS_SCHEMA,
        orient="row",
    )
    with stopped(connection, maker):
        putting = Background(lambda: MAKES_A_PARTITION[writer](maker))
        wait_until_blocked(connection, maker)
        sweeping = Background(lambda: put_coins(sweeper, page, now=FUTURE))
        wait_until_blocked(connection, sweeper)
    assert putting.result() == (1, 1)
    assert sweeping.result() == Put(stored=1, rejected=1)
    filed = one(connection, "SELECT sum(times) FROM rejected_observations WHERE coin_id = 'coin-0'")
    assert filed == 2


def test_rejections_of_two_transactions_in_opposite_order_are_all_filed(
    connection: psycopg.Connection, others: Callable[..., psycopg.Connection]
) -> None:
    one_session, another = others(), others()

    def file(session: psycopg.Connection, *coins: str) -> int:
        rows = pl.DataFrame(
            [(coin, "no price", "{}") for coin in coins], schema=REJECTED_SCHEMA, orient="row"
        )
        return reject(session, rows, collection_id=None, now=NOW)

    def file_both(session: psycopg.Connection) -> None:
        with session.transaction():
            assert (file(session, "y"), file(session, "x", "z")) == (1, 2)

    with one_session.transaction():
        file(one_session, "x")
        waiting = Background(lambda: file_both(another))
        wait_until_blocked(connection, another)
        file(one_session, "z", "y")
    waiting.result()
    filed = connection.execute("SELECT coin_id, times FROM rejected_observations ORDER BY 1")
    assert filed.fetchall() == [("x", 2), ("y", 2), ("z", 2)]


def test_who_files_nothing_waits_for_nobody_who_files(
    connection: psycopg.Connection, others: Callable[..., psycopg.Connection]
) -> None:
    filing, writer = others(), others()
    writer.execute("SET lock_timeout = '1ms'")
    with filing.transaction():
        filing.execute("SELECT set_aside(NULL, %s, 'x', 'no price', NULL)", (NOW,))
        assert put(writer, [at(5)]) == (1, 0)
        assert (
            reject(writer, pl.DataFrame(schema=REJECTED_SCHEMA), collection_id=None, now=NOW) == 0
        )
        with pytest.raises(psycopg.errors.LockNotAvailable):
            put(writer, [at(6), replace(at(7), price_usd=None)])


# -- a storm ---------------------------------------------------------------------------------------

Session = psycopg.Connection


def _put_many(session: Session, number: int) -> list[Observation]:
    chance, mine = random.Random(number), []
    for step in range(30):
        batch = [
            at(minute, number * 100 + step + 1, coin, late=number * 100 + step)
            for minute in chance.sample(range(0, 180, 20), 3)
            for coin in chance.sample(COINS, 4)
        ]
        chance.shuffle(batch)
        put(session, batch)
        mine += batch
    return mine


def _insert_many(session: Session, number: int) -> list[Observation]:
    chance, mine = random.Random(number), []
    for step in range(30):
        # Minutes that nobody else writes, in a random order of coins.
        batch = [at(181 + step, number, coin) for coin in chance.sample(COINS, len(COINS))]
        insert(session, batch)
        mine += batch
    return mine


def _roll_up_many(session: Session, number: int) -> list[Observation]:
    chance = random.Random(number)
    for _ in range(30):
        name = chance.choice(["hourly", "daily", "weekly", "monthly"])
        roll_up(session, name, HOUR - timedelta(days=3), NOW + timedelta(days=3))
    return []


def _clean_many(session: Session, number: int) -> list[Observation]:
    for step in range(20):
        clean_up(session, HOUR + timedelta(minutes=15 * step))
        one(session, "SELECT drop_old_partitions('minute_close', 0, %s, '0 s')", (NOW,))
    return []


def _storm(others: Callable[..., psycopg.Connection]) -> list[Background]:
    workers = []
    work = (_put_many, _put_many, _insert_many, _roll_up_many, _clean_many, _clean_many)
    for number, storm in enumerate(work, start=1):
        session = others()
        workers.append(Background(lambda f=storm, c=session, n=number: f(c, n)))  # type: ignore[misc]
    return workers


def test_a_storm_of_all_of_them_ends_in_the_closes_of_the_raw_stream(
    connection: psycopg.Connection, others: Callable[..., psycopg.Connection]
) -> None:
    observations = [seen for worker in _storm(others) for seen in worker.result()]
    roll_up_all(connection)
    for timeframe in (DAILY, WEEKLY, MONTHLY):
        assert stored(connection, timeframe) == expected(timeframe, observations)


def test_a_reader_of_any_table_never_sees_a_close_go_back_in_a_storm(
    others: Callable[..., psycopg.Connection],
) -> None:
    reader, workers = others(), _storm(others)
    newest: dict[tuple[str, str, datetime], tuple[datetime, datetime]] = {}
    looks = 0
    while any(worker.running for worker in workers) or not looks:
        looks += 1
        for timeframe in (HOURLY, DAILY, WEEKLY, MONTHLY):
            rows = reader.execute(
                f"SELECT coin_id, {timeframe.label}, close_ts, created_at FROM {timeframe.table}"
            ).fetchall()
            for coin, label, *order in rows:
                bucket = (timeframe.name, coin, label)
                assert tuple(order) >= newest.get(bucket, tuple(order)), bucket
                newest[bucket] = (order[0], order[1])
    for worker in workers:
        worker.result()
    assert looks > 3
    assert {name for name, _, _ in newest} == {"hourly", "daily", "weekly", "monthly"}
