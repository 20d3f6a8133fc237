"""The merge rule: whatever way observations arrive, the open hour holds what it must."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from closes_support import (
    Closes,
    Observation,
    add_coins,
    bucket,
    clean_up,
    copy,
    correct,
    ensure,
    everything,
    evidence_of,
    expected,
    insert,
    one,
    prepared_by,
    put,
    roll_up,
    roll_up_all,
    seen_at,
    shared_connection,
    stored,
    stored_hours,
    undone,
    utc,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql

from pulseguard_assets.timeframes import DAILY, HOURLY, MINUTE, TIMEFRAMES, Timeframe

COINS = ("bitcoin", "ether", "tiny")
# Two hours of the old year and one of the new: hour, day, ISO week 53, month and year end inside.
START = utc(2026, 12, 31, 22)
MINUTES = [START + timedelta(minutes=m) for m in (0, 1, 58, 59, 60, 61, 118, 119, 120, 121, 179)]
HOUR = utc(2026, 6, 1, 10)


def prepare(connection: psycopg.Connection) -> None:
    add_coins(connection, *COINS)
    ensure(connection, START, MINUTES[-1], HOUR)


prepared = prepared_by(prepare)
shared = shared_connection
closes = undone


def minute(number: int) -> object:
    return HOUR + timedelta(minutes=number)


def the_hour(connection: psycopg.Connection, coin: str = "bitcoin") -> tuple[object, ...]:
    """Return price, close_ts, seen of the coin's only hour."""
    found = [values for (name, _), values in stored_hours(connection).items() if name == coin]
    assert len(found) == 1
    return found[0][0], found[0][-2], found[0][-1]


def at(number: int, price: int = 1, coin: str = "bitcoin", late: int = 0) -> Observation:
    """Return an observation of minute `number`, recorded 7 s into it or `late` seconds later."""
    when = HOUR + timedelta(minutes=number)
    return seen_at(coin, when, price, created_at=when + timedelta(seconds=7 + late))


# -- any order, any repetition, any way in ---------------------------------------------------------


@st.composite
def streams(draw: st.DrawFn) -> list[Observation]:
    """Observations with instants of recording that differ, and some columns missing.

    Of a coin and minute at most one is a point of history: the provider has one past.
    """
    made = []
    past = set()
    for number in range(draw(st.integers(1, 14))):
        when = draw(st.sampled_from(MINUTES))
        delay = draw(st.sampled_from([0, 5, 40, 3600, 86_400]))
        price = Decimal(draw(st.sampled_from(["2.264e-09", "1e-12", "1", "67187.3358"])))
        coin = draw(st.sampled_from(COINS))
        source = draw(st.sampled_from(["live", "correction", "history"]))
        if source == "history" and (coin, when) in past:
            continue
        if source == "history":
            past.add((coin, when))
        made.append(
            Observation(
                coin,
                when,
                price,
                draw(st.none() | st.just(price * 19)),
                draw(st.none() | st.just(price + number)),
                draw(st.none() | st.integers(1, 9)),
                when + timedelta(seconds=7 + delay, microseconds=number),
                draw(st.none() | st.just(when)),
                source,
            )
        )
    return made


@st.composite
def deliveries(draw: st.DrawFn) -> list[tuple[str, list[Observation]]]:
    """A stream, some of it twice, in any order, cut into statements of several kinds."""
    stream = draw(streams())
    again = draw(st.lists(st.sampled_from(stream), max_size=4))
    left = draw(st.permutations(stream + again))
    statements = []
    while left:
        size = draw(st.integers(1, len(left)))
        statements.append((draw(st.sampled_from(["put", "insert", "copy"])), left[:size]))
        left = left[size:]
    return statements


def deliver(connection: psycopg.Connection, kind: str, batch: list[Observation]) -> None:
    """Store a batch the given way, as far as that way allows."""
    there = stored(connection, MINUTE)
    fresh = {(seen.coin_id, seen.minute_ts): seen for seen in batch}
    if kind != "put" and len(fresh) == len(batch) and not there.keys() & fresh.keys():
        {"insert": insert, "copy": copy}[kind](connection, batch)
    elif kind == "insert" and len(batch) == 1:
        (seen,) = batch
        # An UPDATE by hand obeys no order, so only a later one is the same as a put.
        values = there[(seen.coin_id, seen.minute_ts)]
        if (seen.minute_ts, values[6] != "history", values[4]) <= seen.order:
            correct(connection, seen)
    else:
        put(connection, batch)


def _order(close: tuple[Any, ...]) -> tuple[Any, ...]:
    return close[-2], close[6] != "history", close[4]


def assert_never_back(before: Closes, after: Closes) -> None:
    for key, old in before.items():
        new = after[key]
        assert _order(new) >= _order(old)
        assert new[-1] & old[-1] == old[-1]


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(statements=deliveries())
def test_any_delivery_ends_in_the_closes_of_the_raw_stream(
    closes: psycopg.Connection, statements: list[tuple[str, list[Observation]]]
) -> None:
    observations = [seen for _, batch in statements for seen in batch]
    with closes.transaction(force_rollback=True):
        before: Closes = {}
        for kind, batch in statements:
            deliver(closes, kind, batch)
            after = stored_hours(closes)
            assert_never_back(before, after)
            before = after
        assert stored(closes, MINUTE) == expected(MINUTE, observations)
        assert stored_hours(closes) == expected(HOURLY, observations)

        versions = "SELECT array_agg((coin_id, hour_ts, ctid::text, xmin::text) ORDER BY 1) FROM {}"
        written = one(closes, versions.format("hourly_close"))
        assert put(closes, observations) == (0, 0)
        assert one(closes, versions.format("hourly_close")) == written

        roll_up_all(closes)
        for timeframe in TIMEFRAMES:
            assert stored(closes, timeframe) == expected(timeframe, observations)
        assert roll_up_all(closes) == 0


MANY = tuple(f"coin-{number}" for number in range(101))
OF_MANY = {
    "a minute": [at(5, 50, coin, late=3600) for coin in MANY],
    "a later one": [at(6, 60, coin) for coin in MANY],
    "another of some": [at(6, 61, coin, late=60) for coin in MANY[::2]],
    "a correction": [replace(at(6, 62, coin, late=90), source="correction") for coin in MANY],
    "the past": [replace(at(6, 63, coin, late=7200), source="history") for coin in MANY],
}


def test_the_minute_of_many_coins_is_merged_by_the_same_rule(closes: psycopg.Connection) -> None:
    """Its statement is planned once and kept; it has to be the rule for whatever it meets."""
    add_coins(closes, *MANY)
    for names in random.Random(1).sample(list(itertools.permutations(OF_MANY)), 20):
        delivered: list[Observation] = []
        with closes.transaction(force_rollback=True):
            for name in names:
                delivered += OF_MANY[name]
                put(closes, OF_MANY[name])
                assert stored_hours(closes) == expected(HOURLY, delivered)
            assert [put(closes, batch) for batch in OF_MANY.values()] == [(0, 0)] * len(OF_MANY)


def test_the_kept_statement_is_the_merge_rule_as_it_is_now(closes: psycopg.Connection) -> None:
    body = one(closes, "SELECT prosrc FROM pg_proc WHERE proname = 'aggregate_to_hourly'")
    rule = (
        "SELECT merge_rule('hourly', "
        "incoming_of_one_label('hourly', 'arrived', 'first', 'hour', 'bit'), 'hour', 'hour')"
    )
    assert one(closes, rule) in body


# -- the rule, clause by clause --------------------------------------------------------------------


def test_the_later_minute_wins_even_if_it_was_recorded_earlier(closes: psycopg.Connection) -> None:
    insert(closes, [at(5, 50, late=3600)])
    insert(closes, [at(6, 60)])
    assert the_hour(closes) == (60, minute(6), 1 << 5 | 1 << 6)


def test_an_older_minute_adds_its_evidence_and_nothing_else(closes: psycopg.Connection) -> None:
    insert(closes, [at(6, 60)])
    insert(closes, [at(5, 50, late=3600)])
    assert the_hour(closes) == (60, minute(6), 1 << 5 | 1 << 6)


def test_of_two_in_a_minute_the_later_recorded_wins(closes: psycopg.Connection) -> None:
    assert put(closes, [at(5, 1)]) == (1, 0)
    assert put(closes, [at(5, 2, late=1)]) == (1, 0)
    assert put(closes, [at(5, 3)]) == (0, 0)
    assert the_hour(closes) == (2, minute(5), 1 << 5)


def test_a_correction_by_update_flows_up_even_with_the_same_instant_of_recording(
    closes: psycopg.Connection,
) -> None:
    insert(closes, [at(5, 1)])
    closes.execute("UPDATE minute_close SET price_usd = 2, source = 'correction'")
    assert the_hour(closes) == (2, minute(5), 1 << 5)
    roll_up_all(closes)
    closes.execute("UPDATE minute_close SET price_usd = 3")
    assert roll_up_all(closes) == 3
    assert {close[0] for table in everything(closes).values() for close in table.values()} == {3}


def test_a_correction_of_a_minute_that_is_not_the_close_leaves_the_hour(
    closes: psycopg.Connection,
) -> None:
    insert(closes, [at(5, 1), at(6, 2)])
    correct(closes, at(5, 100, late=60))
    assert the_hour(closes) == (2, minute(6), 1 << 5 | 1 << 6)


def test_columns_of_different_observations_are_never_mixed(closes: psycopg.Connection) -> None:
    insert(closes, [at(5, 1)])
    bare = Observation("bitcoin", HOUR + timedelta(minutes=6), Decimal(2))
    insert(closes, [bare])
    ((*values, _, _),) = stored_hours(closes).values()
    assert tuple(values) == bare.values
    insert(closes, [at(4, 9)])
    ((*values, _, _),) = stored_hours(closes).values()
    assert tuple(values) == bare.values


def test_a_close_without_close_ts_is_taken_to_be_of_its_label(closes: psycopg.Connection) -> None:
    old = HOUR - timedelta(days=1)
    closes.execute(
        "INSERT INTO hourly_close (coin_id, hour_ts, price_usd, created_at) VALUES "
        "('bitcoin', %s, 7, %s), ('ether', %s, 7, %s)",
        (HOUR, HOUR + timedelta(hours=9), HOUR, old),
    )
    insert(closes, [at(0, 1), at(0, 1, "ether")])
    assert the_hour(closes, "bitcoin") == (7, HOUR, 1)
    assert the_hour(closes, "ether") == (1, HOUR, 1)
    insert(closes, [at(1, 2)])
    assert the_hour(closes, "bitcoin") == (2, minute(1), 3)


def test_a_written_close_gets_its_evidence_though_it_is_newer(closes: psycopg.Connection) -> None:
    closes.execute(
        "INSERT INTO hourly_close (coin_id, hour_ts, price_usd, close_ts, seen) "
        "VALUES ('bitcoin', %s, 7, %s, 1::bigint << 59)",
        (HOUR, HOUR + timedelta(minutes=59)),
    )
    insert(closes, [at(3, 1), at(4, 2)])
    assert the_hour(closes) == (7, minute(59), 1 << 59 | 1 << 3 | 1 << 4)


def test_minutes_outside_the_hour_leave_it_alone(closes: psycopg.Connection) -> None:
    insert(closes, [at(59, 1), at(60, 2), at(-1, 3)])
    found = {label: values[0] for (_, label), values in stored_hours(closes).items()}
    assert found == {HOUR - timedelta(hours=1): 3, HOUR: 1, HOUR + timedelta(hours=1): 2}


def test_all_sixty_minutes_fill_the_evidence(closes: psycopg.Connection) -> None:
    for number in reversed(range(60)):
        insert(closes, [at(number, number + 1)])
    assert the_hour(closes) == (60, minute(59), (1 << 60) - 1)


# -- history ---------------------------------------------------------------------------------------


def merge_point(connection: psycopg.Connection, timeframe: Timeframe, point: Observation) -> int:
    """Merge an observation into a rollup without a minute, as a point of history comes."""
    label = bucket(timeframe, point.minute_ts)
    incoming = sql.SQL(
        "SELECT {}::text AS coin_id, {}::timestamptz AS label, {}::numeric AS price_usd, "
        "{}::numeric AS market_cap_usd, {}::numeric AS volume_24h_usd, {}::integer AS coin_rank, "
        "{}::timestamptz AS created_at, {}::timestamptz AS provider_ts, {}::text AS source, "
        "{}::timestamptz AS close_ts, {}::bigint AS seen"
    ).format(
        *(
            sql.Literal(value)
            for value in (
                point.coin_id,
                label,
                *point.values,
                point.minute_ts,
                evidence_of(timeframe, point.minute_ts),
            )
        )
    )
    statement = one(
        connection,
        "SELECT merge_statement(%s, %s, %s, %s)",
        (timeframe.name, incoming.as_string(connection), label, label),
    )
    return connection.execute(statement).rowcount


LIVE = at(55, 1)
POINT = replace(at(55, 2, late=7200), source="history", coin_rank=None)
OLDER, LATER = at(54, 3, late=9000), at(56, 4)
PAST_STEPS: dict[str, Callable[[psycopg.Connection], object]] = {
    "live": lambda c: put(c, [LIVE]),
    "older": lambda c: put(c, [OLDER]),
    "history as a minute": lambda c: put(c, [POINT]),
    "history into the hour": lambda c: merge_point(c, HOURLY, POINT),
    "history into the day": lambda c: merge_point(c, DAILY, POINT),
    "roll-ups": roll_up_all,
}


@pytest.mark.parametrize("last", [[], [LATER]], ids=["", "a later minute"])
def test_it_does_not_matter_whether_history_or_a_delayed_live_row_arrives_first(
    closes: psycopg.Connection, last: list[Observation]
) -> None:
    stream = [LIVE, OLDER, POINT, *last]
    put(closes, last)
    orders = random.Random(1).sample(list(itertools.permutations(PAST_STEPS)), 25)
    for names in orders:
        with closes.transaction(force_rollback=True):
            for name in names:
                PAST_STEPS[name](closes)
            roll_up_all(closes)
            for timeframe in TIMEFRAMES:
                assert stored(closes, timeframe) == expected(timeframe, stream), names
            for name in names:
                assert PAST_STEPS[name](closes) in (0, (0, 0)), (names, name)


def test_a_point_of_history_closes_a_bucket_that_nobody_saw_and_loses_to_who_did(
    closes: psycopg.Connection,
) -> None:
    assert merge_point(closes, HOURLY, POINT) == 1
    assert the_hour(closes) == (2, minute(55), 1 << 55)
    insert(closes, [OLDER])
    assert the_hour(closes) == (2, minute(55), 0b11 << 54)
    insert(closes, [LIVE])
    assert the_hour(closes) == (1, minute(55), 0b11 << 54)
    assert merge_point(closes, HOURLY, POINT) == 0
    again = replace(POINT, created_at=HOUR + timedelta(days=9))
    assert merge_point(closes, HOURLY, again) == 0
    assert the_hour(closes)[0] == 1


def test_of_two_points_of_a_minute_the_later_recorded_closes_the_bucket(
    closes: psycopg.Connection,
) -> None:
    later = replace(POINT, price_usd=Decimal(9), created_at=HOUR + timedelta(days=1))
    for first, second in ((POINT, later), (later, POINT)):
        with closes.transaction(force_rollback=True):
            merge_point(closes, HOURLY, first)
            merge_point(closes, HOURLY, second)
            assert the_hour(closes)[0] == 9


# -- every kind of statement -----------------------------------------------------------------------


def test_one_statement_over_many_hours_coins_and_partitions(closes: psycopg.Connection) -> None:
    batch = [seen_at(coin, when, n + 1) for n, when in enumerate(MINUTES) for coin in COINS]
    copy(closes, batch[::-1])
    assert stored_hours(closes) == expected(HOURLY, batch)


def test_more_rows_than_the_small_plan_is_made_for(closes: psycopg.Connection) -> None:
    many = [f"coin-{number}" for number in range(300)]
    add_coins(closes, *many)
    first = [at(5, number + 1, coin) for number, coin in enumerate(many)]
    second = [at(6, number + 2, coin) for number, coin in enumerate(many)]
    copy(closes, first)
    copy(closes, second)
    copy(closes, [at(n, 9, coin) for n in (3, 4) for coin in many])
    ours = [*first, *second, *(at(n, 9, coin) for n in (3, 4) for coin in many)]
    assert stored_hours(closes) == expected(HOURLY, ours)


def test_insert_on_conflict_update_reaches_the_hour_by_both_its_halves(
    closes: psycopg.Connection,
) -> None:
    insert(closes, [at(5, 1)])
    closes.execute(
        "INSERT INTO minute_close (coin_id, minute_ts, price_usd) "
        "VALUES ('bitcoin', %s, 2), ('ether', %s, 3) "
        "ON CONFLICT (coin_id, minute_ts) DO UPDATE "
        "SET price_usd = excluded.price_usd, created_at = excluded.created_at",
        (minute(5), minute(5)),
    )
    assert the_hour(closes, "bitcoin") == (2, minute(5), 1 << 5)
    assert the_hour(closes, "ether") == (3, minute(5), 1 << 5)


def test_insert_on_conflict_do_nothing_changes_nothing(closes: psycopg.Connection) -> None:
    insert(closes, [at(5, 1)])
    closes.execute(
        "INSERT INTO minute_close (coin_id, minute_ts, price_usd) VALUES ('bitcoin', %s, 2) "
        "ON CONFLICT DO NOTHING",
        (minute(5),),
    )
    assert the_hour(closes) == (1, minute(5), 1 << 5)


def test_merge_reaches_the_hour(closes: psycopg.Connection) -> None:
    insert(closes, [at(5, 1)])
    closes.execute(
        "MERGE INTO minute_close m USING (VALUES ('bitcoin', 2), ('ether', 3)) v (coin, price) "
        "ON m.coin_id = v.coin AND m.minute_ts = %s "
        "WHEN MATCHED THEN UPDATE SET price_usd = v.price "
        "WHEN NOT MATCHED THEN INSERT (coin_id, minute_ts, price_usd) "
        "VALUES (v.coin, %s, v.price)",
        (minute(5), minute(5)),
    )
    assert the_hour(closes, "bitcoin")[0] == 2
    assert the_hour(closes, "ether")[0] == 3


def test_statements_over_no_row_do_nothing(closes: psycopg.Connection) -> None:
    copy(closes, [])
    closes.execute("UPDATE minute_close SET price_usd = 1")
    closes.execute("INSERT INTO minute_close SELECT * FROM minute_close")
    assert put(closes, []) == (0, 0)
    assert stored_hours(closes) == {}


def test_a_minute_moved_by_update_is_merged_where_it_arrives(closes: psycopg.Connection) -> None:
    insert(closes, [seen_at("bitcoin", utc(2026, 12, 31, 23, 59), 1)])
    closes.execute("UPDATE minute_close SET minute_ts = '2027-01-01 00:01+00', price_usd = 2")
    found = {label: values[0] for (_, label), values in stored_hours(closes).items()}
    assert found == {utc(2026, 12, 31, 23): 1, utc(2027, 1, 1): 2}


def test_deleting_minutes_takes_nothing_from_the_hour(closes: psycopg.Connection) -> None:
    insert(closes, [at(5, 1), at(6, 2)])
    closes.execute("DELETE FROM minute_close")
    assert the_hour(closes) == (2, minute(6), 1 << 5 | 1 << 6)
    assert roll_up(closes, "hourly", HOUR, HOUR + timedelta(hours=1)) == 0
    insert(closes, [at(7, 3)])
    assert the_hour(closes) == (3, minute(7), 0b111 << 5)


def test_a_minute_gets_its_hour_where_only_the_minutes_had_a_partition(
    closes: psycopg.Connection,
) -> None:
    closes.execute("SELECT create_monthly_partition('minute_close', '2021-03-01')")
    closes.execute("SELECT create_monthly_partition('minute_close', '2021-04-01')")
    copy(
        closes, [seen_at("bitcoin", utc(2021, 3, 31, 23, 59)), seen_at("bitcoin", utc(2021, 4, 1))]
    )
    assert len(stored_hours(closes)) == 2


def test_a_statement_that_fails_leaves_neither_minute_nor_hour(closes: psycopg.Connection) -> None:
    with pytest.raises(psycopg.errors.ForeignKeyViolation), closes.transaction():
        insert(closes, [at(5, 1), at(5, 1, "unknown-coin")])
    assert stored(closes, MINUTE) == {}
    assert stored_hours(closes) == {}


# -- the same bytes everywhere ---------------------------------------------------------------------


def _bytes(connection: psycopg.Connection) -> list[bytes]:
    connection.execute("SET TIME ZONE 'UTC'")
    found = []
    for timeframe in TIMEFRAMES:
        statement = f"COPY (SELECT * FROM {timeframe.table} ORDER BY 1, 2) TO STDOUT"
        with connection.cursor().copy(statement) as stream:
            found.append(b"".join(bytes(block) for block in stream))
    return found


def _live_through(connection: psycopg.Connection, observations: Sequence[Observation]) -> None:
    connection.execute(
        "TRUNCATE minute_close, hourly_close, daily_close, weekly_close, monthly_close"
    )
    copy(connection, observations[::2])
    put(connection, observations[1::2])
    correct(connection, seen_at("ether", observations[0].minute_ts, 5))
    roll_up_all(connection)
    clean_up(connection, observations[-1].minute_ts + timedelta(days=1))


def test_the_tables_come_out_byte_for_byte_the_same_in_every_zone(
    local_connection: psycopg.Connection,
) -> None:
    add_coins(local_connection, *COINS)
    days = [
        utc(2026, 3, 8, 6, 59),  # New York's clocks go forward at 07:00 UTC
        utc(2026, 3, 8, 7),
        utc(2026, 11, 1, 5, 30),  # and back at 06:00 UTC
        utc(2026, 11, 1, 6, 30),
        utc(2026, 12, 31, 18, 29),  # midnight in Kolkata is 18:30 UTC
        utc(2026, 12, 31, 18, 30),
        utc(2026, 12, 31, 23, 59),
        utc(2027, 1, 1, 0, 0),
        utc(2027, 1, 1, 4, 59),  # midnight in New York is 05:00 UTC
        utc(2027, 1, 1, 5, 0),
        utc(2027, 1, 3, 23, 59),  # ISO week 53 ends
        utc(2027, 1, 4),
        utc(2028, 2, 29, 12),
    ]
    ensure(local_connection, *days)
    stream = [seen_at(coin, day, n + 1) for n, day in enumerate(days) for coin in COINS[:2]]
    _live_through(local_connection, stream)
    there = _bytes(local_connection)  # which ends in UTC
    _live_through(local_connection, stream)
    assert there == _bytes(local_connection)
    assert all(there[1:])
