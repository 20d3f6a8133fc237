"""Retention: what goes is proven to be carried further, and whatever cannot be proven stays."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta

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
    everything,
    expected,
    insert,
    one,
    prepared_by,
    put,
    refused,
    roll_up,
    roll_up_all,
    seen_at,
    shared_connection,
    stored,
    undone,
    utc,
    wait_until_blocked,
)
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pulseguard_assets.timeframes import (
    DAILY,
    HOURLY,
    MINUTE,
    MONTHLY,
    TIMEFRAMES,
    WEEKLY,
    Timeframe,
)
from pulseguard_assets.warehouse.connection import connect

COINS = ("bitcoin", "ether")
FIRST = utc(2026, 5, 18)  # a Monday
NOW = utc(2026, 6, 24, 12, 30)


def prepare(connection: psycopg.Connection) -> None:
    add_coins(connection, *COINS)
    connection.execute("SELECT ensure_partitions(%s, %s)", (FIRST, NOW))


prepared = prepared_by(prepare)
shared = shared_connection
database = copy_of_prepared


closes = undone


@pytest.fixture
def warnings(closes: psycopg.Connection) -> Iterator[list[str]]:
    """What the server warns of."""
    with said_to(closes) as said:
        yield said


@contextmanager
def said_to(connection: psycopg.Connection) -> Iterator[list[str]]:
    said: list[str] = []

    def hear(notice: psycopg.errors.Diagnostic) -> None:
        said.append(str(notice.message_primary))

    connection.add_notice_handler(hear)
    yield said
    connection.remove_notice_handler(hear)


def five_weeks() -> list[Observation]:
    """Return two coins' observations, a few a day, some at the very ends of buckets."""
    times = [
        FIRST + timedelta(days=day, hours=hour, minutes=minute)
        for day in range(38)
        for hour, minute in ((0, 0), (5, 17), (5, 59), (12, 29), (23, 59))
    ]
    kept = [when for when in times if when < NOW]
    return [seen_at(coin, when, n + 1) for n, when in enumerate(kept) for coin in COINS]


KEEP = {
    MINUTE: timedelta(minutes=60),
    HOURLY: timedelta(hours=24),
    DAILY: timedelta(days=7),
    WEEKLY: timedelta(weeks=52),
}


def assert_nothing_lost(
    connection: psycopg.Connection, observations: list[Observation], now: datetime
) -> None:
    """Every table holds what the raw stream says, less exactly what is older than its period."""
    for timeframe in TIMEFRAMES:
        wanted = expected(timeframe, observations)
        if timeframe in KEEP:
            wanted = {k: v for k, v in wanted.items() if k[1] >= now - KEEP[timeframe]}
        assert stored(connection, timeframe) == wanted, timeframe.name


# -- nothing is lost -------------------------------------------------------------------------------


def test_a_month_without_any_schedule_loses_nothing(
    closes: psycopg.Connection, warnings: list[str]
) -> None:
    observations = five_weeks()
    copy(closes, observations)
    deleted = clean_up(closes, NOW)
    roll_up_all(closes)
    assert_nothing_lost(closes, observations, NOW)
    assert deleted["minute_close"] == len(observations) - len(stored(closes, MINUTE))
    assert deleted["hourly_close"] > 0
    assert deleted["daily_close"] > 0
    assert warnings == []


def test_not_even_without_the_trigger(closes: psycopg.Connection) -> None:
    observations = five_weeks()
    closes.execute("ALTER TABLE minute_close DISABLE TRIGGER ALL")
    copy(closes, observations)
    assert stored(closes, HOURLY) == {}
    clean_up(closes, NOW)
    roll_up_all(closes)
    assert_nothing_lost(closes, observations, NOW)


def test_a_second_cleanup_deletes_nothing(closes: psycopg.Connection) -> None:
    copy(closes, five_weeks())
    clean_up(closes, NOW)
    before = everything(closes)
    assert set(clean_up(closes, NOW).values()) == {0}
    assert everything(closes) == before


def test_cleaning_every_quarter_of_an_hour_loses_nothing(closes: psycopg.Connection) -> None:
    start = utc(2026, 5, 31, 21)  # over the end of a day, a week and a month
    stream = [seen_at("bitcoin", start + timedelta(minutes=m), m + 1) for m in range(0, 60 * 5, 3)]
    for index in range(0, len(stream), 5):
        copy(closes, stream[index : index + 5])
        clean_up(closes, stream[min(index + 4, len(stream) - 1)].minute_ts + timedelta(minutes=1))
    now = stream[-1].minute_ts + timedelta(minutes=1)
    roll_up_all(closes)
    assert_nothing_lost(closes, stream, now)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["put", "put", "roll_up", "clean_up"]),
        st.integers(0, 40 * 24 * 4 - 1),
        st.integers(1, 6),
    ),
    min_size=1,
    max_size=14,
)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=STEPS)
def test_weeks_and_months_are_right_whatever_came_late_was_skipped_or_cleaned_when(
    closes: psycopg.Connection, steps: list[tuple[str, int, int]]
) -> None:
    observations: list[Observation] = []
    with closes.transaction(force_rollback=True):
        for number, (step, quarter, size) in enumerate(steps):
            at = FIRST + timedelta(minutes=15 * quarter)
            if step == "put":
                # A stream that may be weeks late, and recorded in the order of its delivery.
                batch = [
                    seen_at(
                        COINS[n % 2],
                        at + timedelta(minutes=n * n * 16),
                        number * 10 + n + 1,
                        created_at=NOW + timedelta(days=30, seconds=number * 10 + n),
                    )
                    for n in range(size)
                ]
                put(closes, batch)
                observations += batch
            elif step == "roll_up":
                roll_up(closes, TIMEFRAMES[1 + size % 4].name, at - timedelta(days=size), at)
            else:
                clean_up(closes, at)
                assert_deleted_only_what_others_carry(closes, observations)
        roll_up_all(closes)
        for timeframe in (WEEKLY, MONTHLY):
            assert stored(closes, timeframe) == expected(timeframe, observations)


def assert_deleted_only_what_others_carry(
    connection: psycopg.Connection, observations: list[Observation]
) -> None:
    """Rolling up what is left, without keeping it, gives the weeks and months of the stream."""
    with connection.transaction(force_rollback=True):
        roll_up_all(connection)
        for timeframe in (WEEKLY, MONTHLY):
            assert stored(connection, timeframe) == expected(timeframe, observations)


@pytest.mark.parametrize("minute", [0, 30], ids=["between two hours", "within an hour"])
def test_a_row_as_old_as_its_period_stays_and_an_older_one_goes(
    closes: psycopg.Connection, minute: int
) -> None:
    now = utc(2026, 6, 24, 12, minute)
    insert(closes, [seen_at("bitcoin", now - timedelta(minutes=m)) for m in (60, 61)])
    assert clean_up(closes, now)["minute_close"] == 1
    assert [label for _, label in stored(closes, MINUTE)] == [now - timedelta(minutes=60)]


# -- what dominates --------------------------------------------------------------------------------


def blocked(connection: psycopg.Connection, now: datetime = NOW) -> dict[str, int]:
    """Return table -> rows that retention_blocked() reports, without the zeros."""
    rows = connection.execute("SELECT table_name, rows_kept FROM retention_blocked(%s)", (now,))
    return {table: count for table, count in rows if count}


def write(connection: psycopg.Connection, table: str, label: str, **columns: object) -> None:
    """Write a close of bitcoin by hand, as no function of ours would."""
    named = {f"{label}": None, "price_usd": 1, "created_at": utc(2026, 1, 1), **columns}
    names, values = list(named), list(named.values())
    connection.execute(
        f"INSERT INTO {table} (coin_id, {', '.join(names)}) "
        f"VALUES ('bitcoin', {', '.join(['%s'] * len(names))})",
        values,
    )


@pytest.mark.parametrize(
    ("parent", "dominated"),
    [
        ({"seen": 1 << 5, "close_ts": utc(2026, 6, 1, 10, 5)}, True),
        ({"seen": 1 << 5, "close_ts": utc(2026, 6, 1, 10, 6)}, True),
        ({"seen": 1 << 6, "close_ts": utc(2026, 6, 1, 10, 6)}, False),
        ({"seen": 1 << 5, "close_ts": utc(2026, 6, 1, 10, 4)}, False),
        ({"seen": 1 << 5, "close_ts": None}, False),
        (
            {
                "seen": 1 << 5,
                "close_ts": utc(2026, 6, 1, 10, 5),
                "created_at": utc(2025, 12, 31),
            },
            False,
        ),
        (
            {
                "seen": 1 << 5,
                "close_ts": utc(2026, 6, 1, 10, 5),
                "created_at": utc(2027, 1, 1),
                "source": "history",
            },
            False,
        ),
        (
            {"seen": 1 << 5, "close_ts": utc(2026, 6, 1, 10, 6), "source": "history"},
            True,
        ),
        (None, False),
    ],
    ids=[
        "same observation",
        "later minute",
        "no evidence",
        "older minute",
        "close of the label",
        "recorded earlier",
        "history of the same minute",
        "history of a later minute",
        "no parent",
    ],
)
def test_a_minute_is_dominated_by_evidence_and_a_close_at_least_as_new(
    closes: psycopg.Connection, parent: dict[str, object] | None, dominated: bool
) -> None:
    closes.execute("ALTER TABLE minute_close DISABLE TRIGGER ALL")
    write(closes, "minute_close", "minute_ts", minute_ts=utc(2026, 6, 1, 10, 5))
    if parent is not None:
        write(closes, "hourly_close", "hour_ts", hour_ts=utc(2026, 6, 1, 10), **parent)
    with closes.transaction(force_rollback=True):
        gone = one(closes, "SELECT delete_dominated('minute', '-infinity', %s)", (NOW,))
        assert gone == int(dominated)
    assert blocked(closes).get("minute_close", 0) == int(not dominated)
    clean_up(closes, NOW)
    assert stored(closes, MINUTE) == {}
    month = {label: values[-1] for (_, label), values in stored(closes, MONTHLY).items()}
    assert month == {utc(2026, 6, 1): 1}


def test_another_coins_hour_proves_nothing(closes: psycopg.Connection) -> None:
    closes.execute("ALTER TABLE minute_close DISABLE TRIGGER ALL")
    insert(closes, [seen_at("bitcoin", utc(2026, 6, 1, 10)), seen_at("ether", utc(2026, 6, 1, 10))])
    roll_up(closes, "hourly", FIRST, NOW)
    closes.execute("DELETE FROM hourly_close WHERE coin_id = 'ether'")
    assert blocked(closes)["minute_close"] == 1


@pytest.mark.parametrize("missing", [WEEKLY, MONTHLY])
def test_a_day_needs_its_week_and_its_month(closes: psycopg.Connection, missing: object) -> None:
    insert(closes, [seen_at("bitcoin", FIRST)])
    roll_up_all(closes)
    assert blocked(closes) == {}
    table = missing.table  # type: ignore[attr-defined]
    with closes.transaction(force_rollback=True):
        closes.execute(f"UPDATE {table} SET seen = 0")
        assert blocked(closes) == {"daily_close": 1}
    closes.execute(f"DELETE FROM {table}")
    assert blocked(closes) == {"daily_close": 1}
    assert one(closes, "SELECT delete_dominated('daily', '-infinity', %s)", (NOW,)) == 0
    clean_up(closes, NOW)
    assert stored(closes, DAILY) == {}
    assert stored(closes, WEEKLY).keys() == {("bitcoin", FIRST)}
    assert stored(closes, MONTHLY).keys() == {("bitcoin", utc(2026, 5, 1))}


@pytest.mark.parametrize("lacking", ["2026-06-01", "2026-07-01"])
def test_a_week_over_the_end_of_a_month_needs_both_months(
    closes: psycopg.Connection, warnings: list[str], lacking: str
) -> None:
    week = utc(2026, 5, 25)  # to 31 May: not over the end of a month
    split = utc(2026, 6, 29)  # to 5 July
    ensure(closes, split + timedelta(days=6))
    copy(closes, [seen_at("bitcoin", week + timedelta(days=d), d + 1) for d in range(7)])
    copy(closes, [seen_at("bitcoin", split + timedelta(days=d), d + 1) for d in range(7)])
    roll_up_all(closes)
    later = split + timedelta(weeks=60)
    copied = everything(closes)["weekly_close"]
    for table in ("minute_close", "hourly_close", "daily_close"):
        closes.execute(f"DELETE FROM {table}")
    closes.execute("DELETE FROM monthly_close WHERE month_ts = %s", (f"{lacking} 00:00+00",))
    assert clean_up(closes, later)["weekly_close"] == 1
    assert stored(closes, WEEKLY) == {("bitcoin", split): copied[("bitcoin", split)]}
    assert blocked(closes, later) == {"weekly_close": 1}
    assert len(warnings) == 1
    assert "1 rows of weekly_close are older" in warnings[0]
    assert set(clean_up(closes, later).values()) == {0}


def test_a_week_without_evidence_needs_the_day_of_its_close_in_the_month(
    closes: psycopg.Connection,
) -> None:
    insert(closes, [seen_at("bitcoin", FIRST + timedelta(days=3))])
    roll_up_all(closes)
    closes.execute("DELETE FROM weekly_close")
    write(closes, "weekly_close", "week_ts", week_ts=FIRST)
    later = FIRST + timedelta(weeks=60)
    assert blocked(closes, later)["weekly_close"] == 1
    closes.execute("UPDATE monthly_close SET seen = seen | evidence_bit('monthly', %s)", (FIRST,))
    assert "weekly_close" not in blocked(closes, later)


def test_a_week_with_a_newer_close_than_its_month_stays(closes: psycopg.Connection) -> None:
    insert(closes, [seen_at("bitcoin", FIRST)])
    roll_up_all(closes)
    later = FIRST + timedelta(weeks=60)
    assert "weekly_close" not in blocked(closes, later)
    closes.execute("UPDATE weekly_close SET created_at = created_at + interval '1 second'")
    assert blocked(closes, later)["weekly_close"] == 1


def test_a_correction_after_the_rollup_is_carried_before_it_goes(
    closes: psycopg.Connection,
) -> None:
    first = seen_at("bitcoin", FIRST, 1)
    insert(closes, [first])
    roll_up_all(closes)
    corrected = seen_at("bitcoin", FIRST, 2, created_at=NOW, source="correction")
    correct(closes, corrected)
    clean_up(closes, NOW)
    for timeframe in (WEEKLY, MONTHLY):
        assert stored(closes, timeframe) == expected(timeframe, [first, corrected])
    assert stored(closes, DAILY) == {}


# -- periods ---------------------------------------------------------------------------------------


def test_a_lengthened_period_is_kept_to_and_a_shortened_one_refused(
    closes: psycopg.Connection,
) -> None:
    observations = five_weeks()
    copy(closes, observations)
    closes.execute("UPDATE retention_policy SET keep = '3 days' WHERE table_name = 'minute_close'")
    closes.execute("UPDATE retention_policy SET keep = NULL WHERE table_name = 'daily_close'")
    clean_up(closes, NOW)
    assert min(label for _, label in stored(closes, MINUTE)) >= NOW - timedelta(days=3)
    recent = [seen for seen in observations if seen.minute_ts >= NOW - timedelta(days=3)]
    assert stored(closes, MINUTE) == expected(MINUTE, recent)
    assert stored(closes, HOURLY).keys() == {
        key for key in expected(HOURLY, observations) if key[1] >= NOW - timedelta(days=1)
    }
    roll_up_all(closes)
    assert stored(closes, DAILY).keys() == expected(DAILY, observations).keys()
    assert stored(closes, MONTHLY) == expected(MONTHLY, observations)
    for table, period in (
        ("minute_close", "59 minutes"),
        ("hourly_close", "23 hours"),
        ("daily_close", "6 days"),
        ("weekly_close", "51 weeks"),
        ("collection_status", "29 days"),
    ):
        with refused(closes, psycopg.errors.CheckViolation, "chk_keep_not_shortened"):
            closes.execute(
                "UPDATE retention_policy SET keep = %s WHERE table_name = %s", (period, table)
            )


def test_the_periods_are_those_of_the_seed(connection: psycopg.Connection) -> None:
    found = connection.execute("SELECT table_name, keep FROM retention_policy").fetchall()
    periods: dict[str, timedelta] = dict(found)
    assert {t.table: periods[t.table] for t in TIMEFRAMES} == {t.table: t.keep for t in TIMEFRAMES}
    assert periods["collection_status"] == timedelta(days=30)


def test_months_are_never_deleted(closes: psycopg.Connection) -> None:
    insert(closes, [seen_at("bitcoin", FIRST)])
    roll_up_all(closes)
    assert "monthly_close" not in clean_up(closes, utc(2199, 1, 1))
    assert stored(closes, MONTHLY).keys() == {("bitcoin", utc(2026, 5, 1))}
    assert stored(closes, WEEKLY) == {}


def test_records_of_operation_go_by_age(closes: psycopg.Connection) -> None:
    for age in (29, 31):
        at = NOW - timedelta(days=age)
        closes.execute(
            "INSERT INTO collection_status (collection_type, start_time, created_at) "
            "VALUES ('manual', %s, %s)",
            (at, at),
        )
        closes.execute(
            "INSERT INTO rejected_observations (rejected_at, reason) VALUES (%s, 'odd')", (at,)
        )
        closes.execute(
            "INSERT INTO api_calls (called_at, called_on, endpoint) VALUES (%s, %s, '/ping')",
            (at, at),
        )
    deleted = clean_up(closes, NOW)
    assert deleted["collection_status"] == 1
    assert deleted["rejected_observations"] == 1
    assert deleted["api_calls"] == 2


def test_no_reader_waits_for_a_cleanup(connection: psycopg.Connection, database: str) -> None:
    copy(connection, five_weeks())
    before = everything(connection)
    with (
        connect(database) as cleaner,
        connect(database, lock_timeout=timedelta(milliseconds=1)) as reader,
        cleaner.transaction(),
    ):
        assert clean_up(cleaner, NOW)["minute_close"] > 0
        assert everything(reader) == before


# -- set by set ------------------------------------------------------------------------------------

MANY = [f"coin-{number:02}" for number in range(50)]
# So few that the others are proven by their parents alone.
FEW = st.sampled_from(MANY[:2])
DAMAGE = [
    "seen = 0",
    "seen = seen & ~(1::bigint << 3)",
    "close_ts = NULL",
    "seen = 127, close_ts = NULL",
    "close_ts = close_ts - interval '1 minute'",
    "created_at = created_at - interval '1 second'",
    "source = 'history'",
    "created_at = created_at + interval '1 day'",
    "coin_id = 'bitcoin'",
]


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    timeframe=st.sampled_from([MINUTE, HOURLY, DAILY]),
    left_out=st.lists(st.tuples(FEW, st.integers(0, 6)), max_size=3),
    gone=st.lists(st.tuples(FEW, st.integers(0, 6)), max_size=3),
    damage=st.lists(st.tuples(FEW, st.sampled_from(DAMAGE), st.booleans()), max_size=3),
    history=st.booleans(),
)
@example(MINUTE, [], [], [(MANY[0], "seen = seen & ~(1::bigint << 3)", False)], False)
@example(MINUTE, [], [(MANY[0], 6)], [(MANY[0], "close_ts = NULL", False)], False)
@example(HOURLY, [(MANY[0], 6)], [], [(MANY[0], "seen = 127, close_ts = NULL", False)], False)
@example(DAILY, [], [], [(MANY[0], "close_ts = NULL", True)], True)
def test_all_rows_of_a_bucket_go_at_once_exactly_when_each_of_them_is_dominated(
    closes: psycopg.Connection,
    timeframe: Timeframe,
    left_out: list[tuple[str, int]],
    gone: list[tuple[str, int]],
    damage: list[tuple[str, str, bool]],
    history: bool,
) -> None:
    step = {"minute": 1, "hourly": 60, "daily": 1440}[timeframe.name]
    parents = [parent for parent in TIMEFRAMES if parent.child == timeframe.name]
    stream = [
        seen_at(
            coin,
            FIRST + timedelta(minutes=step * number),
            number + 1,
            source="history" if history else "live",
        )
        for coin in MANY
        for number in (0, 1, 2, 3, 5, 6)
        if (coin, number) not in left_out
    ]
    with closes.transaction(force_rollback=True):
        add_coins(closes, *MANY)
        copy(closes, stream)
        roll_up_all(closes)
        for coin, assignment, the_last in damage:
            parent = parents[-1 if the_last else 0]
            closes.execute(
                f"UPDATE {parent.table} SET {assignment} WHERE coin_id = %s AND NOT EXISTS "
                f"(SELECT FROM {parent.table} WHERE coin_id = 'bitcoin')",
                (coin,),
            )
        blocking = one(closes, "SELECT undominated_rows(%s, %s)", (timeframe.name, timeframe.table))
        rows = len(stored(closes, timeframe))
        labels = one(closes, "SELECT stored_labels(%s, %s, %s)", (timeframe.name, FIRST, NOW))
        assert labels == sorted({label for _, label in stored(closes, timeframe)})
        deleted = one(closes, "SELECT delete_proven(%s, %s)", (timeframe.name, labels))
        assert deleted == (0 if blocking else rows)


def test_one_row_without_proof_keeps_no_other_from_going(
    closes: psycopg.Connection, warnings: list[str]
) -> None:
    add_coins(closes, *MANY)
    copy(closes, [seen_at(coin, FIRST + timedelta(minutes=m)) for coin in MANY for m in (1, 2, 61)])
    roll_up_all(closes)
    # Of one minute the parent cannot be made to carry the evidence.
    closes.execute(
        "CREATE FUNCTION forget() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN NEW.seen := 0; RETURN NEW; END $$;"
        "CREATE TRIGGER forget BEFORE UPDATE ON hourly_close FOR EACH ROW "
        "WHEN (NEW.coin_id = 'coin-07') EXECUTE FUNCTION forget();"
    )
    closes.execute(
        "UPDATE hourly_close SET seen = 0 WHERE coin_id = 'coin-07' AND hour_ts = %s", (FIRST,)
    )
    with closes.transaction(force_rollback=True):
        closes.execute("UPDATE retention_policy SET keep = NULL WHERE table_name = 'hourly_close'")
        assert clean_up(closes, NOW)["minute_close"] == 3 * len(MANY) - 2
        assert {coin for coin, _ in stored(closes, MINUTE)} == {"coin-07"}
    assert ["2 rows of minute_close" in message for message in warnings] == [True]


def _stop_before_deleting(connection: psycopg.Connection) -> None:
    """Make a session called `stoppable` wait for lock 4711 where its cleanup deletes minutes."""
    connection.execute(
        """
        CREATE FUNCTION stop() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM pg_advisory_lock_shared(4711);
            PERFORM pg_advisory_unlock_shared(4711);
            RETURN NULL;
        END $$;
        CREATE TRIGGER stop BEFORE DELETE ON minute_close FOR EACH STATEMENT
        WHEN (current_setting('application_name') = 'stoppable') EXECUTE FUNCTION stop();
        """
    )


def test_a_correction_does_not_slip_in_between_proof_and_deletion(
    connection: psycopg.Connection, database: str
) -> None:
    first = [seen_at(coin, FIRST + timedelta(minutes=m)) for coin in COINS for m in (1, 59)]
    copy(connection, first)
    _stop_before_deleting(connection)
    corrected = [seen_at(COINS[0], FIRST + timedelta(minutes=59), 9, created_at=NOW)]
    with (
        connect(database, application_name="stoppable") as cleaner,
        connect(database) as writer,
    ):
        connection.execute("SELECT pg_advisory_lock(4711)")
        cleaning = Background(lambda: clean_up(cleaner, NOW))
        wait_until_blocked(connection, cleaner)
        correcting = Background(lambda: put(writer, corrected))
        wait_until_blocked(connection, writer)
        connection.execute("SELECT pg_advisory_unlock(4711)")
        assert cleaning.result()["minute_close"] == len(first)
        assert correcting.result() == (1, 0)
    assert clean_up(connection, NOW)["minute_close"] == 1
    for timeframe in (WEEKLY, MONTHLY):
        assert stored(connection, timeframe) == expected(timeframe, first + corrected)


def test_a_row_that_passed_the_locks_by_between_proof_and_deletion_is_not_deleted(
    connection: psycopg.Connection, database: str
) -> None:
    first = [seen_at(coin, FIRST + timedelta(minutes=m)) for coin in COINS for m in (1, 2, 59)]
    copy(connection, first)
    _stop_before_deleting(connection)
    with connect(database, application_name="stoppable") as cleaner, connect(database) as hand:
        connection.execute("SELECT pg_advisory_lock(4711)")
        cleaning = Background(lambda: clean_up(cleaner, NOW))
        wait_until_blocked(connection, cleaner)
        hand.execute("INSERT INTO coin_priorities (coin_id) VALUES ('late')")
        hand.execute(
            "INSERT INTO minute_close_y2026m05 (coin_id, minute_ts, price_usd) "
            "VALUES ('late', %(first)s + interval '2 minutes', 7), "
            "('bitcoin', %(first)s + interval '3 minutes', 7)",
            {"first": FIRST},
        )
        connection.execute("SELECT pg_advisory_unlock(4711)")
        assert cleaning.result()["minute_close"] == len(first)
    assert {coin for coin, _ in stored(connection, MINUTE)} == {"late", "bitcoin"}
    clean_up(connection, NOW)
    assert stored(connection, MINUTE) == {}
    assert stored(connection, MONTHLY)[("late", utc(2026, 5, 1))][-1] == 1 << (FIRST.day - 1)


# -- the audit -------------------------------------------------------------------------------------


def audit(connection: psycopg.Connection) -> dict[tuple[str, str, datetime], tuple[int, int]]:
    """Return (table, rollup, bucket) -> rows deleted that were in time, and that were late."""
    rows = connection.execute(
        "SELECT table_name, rollup, bucket, rows_deleted, rows_late FROM retention_audit"
    )
    return {(table, rollup, at): (deleted, late) for table, rollup, at, deleted, late in rows}


def failures(connection: psycopg.Connection, now: datetime) -> list[tuple[object, ...]]:
    statement = "SELECT * FROM retention_audit_failures(%s)"
    return connection.execute(statement, (now,)).fetchall()


def test_what_is_deleted_is_counted_by_the_bucket_that_carries_it(
    closes: psycopg.Connection,
) -> None:
    sunday = utc(2026, 5, 31)
    copy(
        closes,
        [
            seen_at(coin, sunday + timedelta(hours=h, minutes=m))
            for coin in COINS
            for h in (22, 23, 24)
            for m in (0, 30)
        ],
    )
    clean_up(closes, sunday + timedelta(hours=24, minutes=15))
    clean_up(closes, sunday + timedelta(hours=25))
    clean_up(closes, sunday + timedelta(days=9))
    assert audit(closes) == {
        **{("minute_close", "hourly", sunday + timedelta(hours=h)): (4, 0) for h in (22, 23, 24)},
        ("hourly_close", "daily", sunday): (4, 0),
        ("hourly_close", "daily", sunday + timedelta(days=1)): (2, 0),
        ("daily_close", "weekly", utc(2026, 5, 25)): (2, 0),
        ("daily_close", "weekly", utc(2026, 6, 1)): (2, 0),
        ("daily_close", "monthly", utc(2026, 5, 1)): (2, 0),
        ("daily_close", "monthly", utc(2026, 6, 1)): (2, 0),
    }
    clean_up(closes, sunday + timedelta(days=38))
    assert len(audit(closes)) > 0
    clean_up(closes, sunday + timedelta(days=40))
    assert audit(closes) == {}


def test_the_audit_finds_nothing_however_late_rows_came_or_were_repeated(
    closes: psycopg.Connection,
) -> None:
    observations = five_weeks()
    by_hour = sorted(observations, key=lambda seen: seen.minute_ts)
    for start in range(0, len(by_hour), 60):
        batch = by_hour[start : start + 60]
        put(closes, batch)
        now = batch[-1].minute_ts + timedelta(hours=3)
        clean_up(closes, now)
        # The same minutes once more, as a point of history or a correction of what is gone.
        put(closes, [replace(s, source="correction", created_at=now) for s in batch[:9]])
        assert failures(closes, now) == []
        clean_up(closes, now + timedelta(hours=1))
        assert failures(closes, now + timedelta(hours=1)) == []
    assert sum(late for _, late in audit(closes).values()) > 0


def test_the_audit_accuses_nobody_of_an_answer_that_is_delivered_again_and_again(
    closes: psycopg.Connection,
) -> None:
    answer = [seen_at(coin, FIRST) for coin in COINS]
    for delay in (timedelta(hours=2), timedelta(hours=4), timedelta(days=2), timedelta(days=9)):
        put(closes, answer)
        clean_up(closes, FIRST + delay)
        assert failures(closes, FIRST + delay) == []
    assert {table: counts for (table, _, _), counts in audit(closes).items()} == {
        "minute_close": (2, 6),
        "hourly_close": (2, 2),
        "daily_close": (2, 0),
    }


def test_what_is_recorded_late_and_never_repeated_is_judged_like_all_else(
    closes: psycopg.Connection,
) -> None:
    late = FIRST + timedelta(hours=2)
    put(closes, [replace(seen_at(coin, FIRST), created_at=late) for coin in COINS])
    clean_up(closes, late)
    closes.execute("UPDATE hourly_close SET seen = 0")
    assert failures(closes, late) == [("minute_close", "hourly", FIRST, 2, 0, 0)]


@pytest.mark.parametrize(
    ("rollup", "after"),
    [
        (HOURLY, timedelta(hours=3)),
        (DAILY, timedelta(days=2)),
        (WEEKLY, timedelta(days=9)),
        (MONTHLY, timedelta(days=9)),
    ],
)
def test_evidence_that_is_less_than_what_was_deleted_is_reported(
    closes: psycopg.Connection, rollup: Timeframe, after: timedelta
) -> None:
    now = FIRST + after
    copy(closes, [seen_at(coin, FIRST + timedelta(minutes=m)) for coin in COINS for m in (0, 61)])
    clean_up(closes, now)
    assert rollup.child is not None
    bucket = one(closes, "SELECT bucket_start(%s, %s)", (rollup.name, FIRST))
    (count, _) = audit(closes)[(f"{rollup.child}_close", rollup.name, bucket)]
    assert failures(closes, now) == []
    closes.execute(
        f"UPDATE {rollup.table} SET seen = seen & (seen - 1) "
        f"WHERE coin_id = 'bitcoin' AND {rollup.label} = %s",
        (bucket,),
    )
    told = (f"{rollup.child}_close", rollup.name, bucket, count, 0, count - 1)
    assert failures(closes, now) == [told]
    # What may itself be deleted is not there to be compared with.
    if rollup.keep is not None:
        assert failures(closes, bucket + rollup.keep + timedelta(minutes=1)) == []


def test_rows_still_stored_do_not_vouch_for_those_deleted(closes: psycopg.Connection) -> None:
    copy(closes, [seen_at("bitcoin", FIRST + timedelta(minutes=m)) for m in (0, 30)])
    now = FIRST + timedelta(minutes=75)
    assert clean_up(closes, now)["minute_close"] == 1
    assert failures(closes, now) == []
    closes.execute("UPDATE hourly_close SET seen = 1::bigint << 30")
    assert failures(closes, now) == [("minute_close", "hourly", FIRST, 1, 1, 1)]
    # A row that came late and was not merged yet vouches for nothing, and accuses nobody.
    closes.execute("UPDATE hourly_close SET seen = 1")
    assert failures(closes, now) == []


# -- dropping partitions ---------------------------------------------------------------------------


@pytest.fixture
def old_months(closes: psycopg.Connection) -> psycopg.Connection:
    """The same with partitions since February."""
    closes.execute("SELECT ensure_partitions(%s, %s)", (utc(2026, 2, 2), FIRST))
    return closes


def names(connection: psycopg.Connection, table: str) -> list[str]:
    rows = connection.execute("SELECT partition::text FROM close_partitions(%s)", (table,))
    return [name for (name,) in rows]


def drop(connection: psycopg.Connection, table: str, months: int, now: datetime = NOW) -> int:
    statement = "SELECT drop_old_partitions(%s, %s, %s, '300 ms')"
    return int(one(connection, statement, (table, months, now)))


def test_old_partitions_are_dropped_after_their_rows_were_rolled_up(
    old_months: psycopg.Connection,
) -> None:
    observations = five_weeks()
    old_months.execute("ALTER TABLE minute_close DISABLE TRIGGER ALL")
    copy(old_months, observations)
    old = [name for name in names(old_months, "minute_close") if name < "minute_close_y2026m06"]
    assert drop(old_months, "minute_close", 0) == len(old)
    assert names(old_months, "minute_close")[0] == "minute_close_y2026m06"
    assert drop(old_months, "hourly_close", 0) > 0
    assert drop(old_months, "daily_close", 0) > 0
    roll_up_all(old_months)
    for timeframe in (WEEKLY, MONTHLY):
        assert stored(old_months, timeframe) == expected(timeframe, observations)


def test_neither_this_months_partition_nor_those_asked_to_stay_are_dropped(
    old_months: psycopg.Connection,
) -> None:
    assert drop(old_months, "minute_close", 1) > 0
    assert names(old_months, "minute_close")[0] == "minute_close_y2026m05"
    assert drop(old_months, "minute_close", 0, utc(2026, 6, 30, 23, 59)) == 1
    assert names(old_months, "minute_close")[0] == "minute_close_y2026m06"
    assert drop(old_months, "minute_close", 0, utc(2026, 7, 1, 0, 30)) == 0
    assert drop(old_months, "minute_close", 0, utc(2026, 7, 1, 1)) == 1


def test_a_partition_within_the_retention_period_stays(old_months: psycopg.Connection) -> None:
    old_months.execute(
        "UPDATE retention_policy SET keep = '60 days' WHERE table_name = 'minute_close'"
    )
    drop(old_months, "minute_close", 0)
    assert names(old_months, "minute_close")[0] == "minute_close_y2026m04"
    drop(old_months, "weekly_close", 0)
    assert "weekly_close_y2026m02" in names(old_months, "weekly_close")


def test_months_keep_all_their_partitions(old_months: psycopg.Connection) -> None:
    before = names(old_months, "monthly_close")
    assert drop(old_months, "monthly_close", 0, utc(2199, 1, 1)) == 0
    assert names(old_months, "monthly_close") == before


def test_bounds_decide_and_not_names(old_months: psycopg.Connection) -> None:
    old_months.execute("ALTER TABLE minute_close_y2026m05 RENAME TO minute_close_y2099m01")
    old_months.execute("ALTER TABLE minute_close_y2026m06 RENAME TO minute_close_y2001m01")
    old_months.execute(
        'ALTER TABLE minute_close_y2026m04 RENAME TO "an ""odd"" name; DROP TABLE x"'
    )
    drop(old_months, "minute_close", 0)
    left = names(old_months, "minute_close")
    assert left[0] == "minute_close_y2001m01"
    assert "minute_close_y2099m01" not in left


def test_a_partition_with_an_undominated_row_stays_and_says_so(
    old_months: psycopg.Connection, warnings: list[str]
) -> None:
    later = FIRST + timedelta(weeks=60)
    copy(old_months, [seen_at("bitcoin", FIRST), seen_at("bitcoin", utc(2026, 4, 15))])
    roll_up_all(old_months)
    for table in ("minute_close", "hourly_close", "daily_close"):
        old_months.execute(f"DELETE FROM {table}")
    old_months.execute("DELETE FROM monthly_close WHERE month_ts = '2026-05-01 00:00+00'")
    drop(old_months, "weekly_close", 0, later)
    assert stored(old_months, WEEKLY).keys() == {("bitcoin", FIRST)}
    left = names(old_months, "weekly_close")
    assert left[0] == "weekly_close_y2026m05"
    assert "weekly_close_y2026m06" not in left
    assert [message for message in warnings if "weekly_close_y2026m05 holds 1" in message]


def test_what_cannot_be_dropped_is_named(closes: psycopg.Connection) -> None:
    with refused(closes, psycopg.errors.RaiseException, "not one of the close tables"):
        drop(closes, "coin_priorities", 1)
    for months in ("-1", "NULL"):
        with refused(closes, psycopg.errors.RaiseException, "months to keep"):
            closes.execute(f"SELECT drop_old_partitions('minute_close', {months})")


def test_dropping_gives_up_on_a_table_in_use_and_makes_nobody_wait(
    connection: psycopg.Connection, database: str
) -> None:
    copy(connection, [seen_at("bitcoin", FIRST)])
    before = names(connection, "minute_close")
    with (
        connect(database) as analyst,
        connect(database, lock_timeout=timedelta(milliseconds=100)) as reader,
        analyst.transaction(),
        said_to(connection) as said,
    ):
        assert one(analyst, "SELECT count(*) FROM minute_close") == 1
        dropping = Background(lambda: drop(connection, "minute_close", 0))
        while dropping.running:
            assert one(reader, "SELECT count(*) FROM minute_close") == 1
        assert dropping.result() == 0
    assert names(connection, "minute_close") == before
    assert any("minute_close is in use" in message for message in said)
    assert drop(connection, "minute_close", 0) > 0


def test_a_partition_that_is_written_to_is_left_for_the_next_time(
    connection: psycopg.Connection, database: str
) -> None:
    connection.execute("ALTER TABLE minute_close DISABLE TRIGGER ALL")
    with connect(database) as writer, writer.transaction(), said_to(connection) as said:
        copy(writer, [seen_at("bitcoin", FIRST)])
        connection.execute("SET statement_timeout = '20s'")
        assert drop(connection, "minute_close", 0) == 0
    assert any("minute_close_y2026m05 is in use" in message for message in said)
    assert drop(connection, "minute_close", 0) > 0
    assert len(stored(connection, HOURLY)) == 1


def test_only_one_session_drops_at_a_time(connection: psycopg.Connection, database: str) -> None:
    with connect(database) as first, said_to(connection) as said:
        with first.transaction():
            assert drop(first, "minute_close", 0) > 0
            assert drop(connection, "minute_close", 0) == 0
        assert said == ["drop_old_partitions: another session is dropping partitions"]
        assert drop(connection, "minute_close", 0) == 0


def test_a_row_written_to_a_partition_by_its_own_name_is_carried_before_it_goes(
    closes: psycopg.Connection,
) -> None:
    closes.execute(
        "INSERT INTO minute_close_y2026m05 (coin_id, minute_ts, price_usd) "
        "VALUES ('bitcoin', '2026-05-18 10:03+00', 7)"
    )
    assert stored(closes, HOURLY) == {}
    clean_up(closes, NOW)
    assert stored(closes, MINUTE) == {}
    assert [values[0] for values in stored(closes, MONTHLY).values()] == [7]
