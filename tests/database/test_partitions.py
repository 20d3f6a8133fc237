"""Partitions: months of UTC for every session, made by anyone at any time, in nobody's way."""

from __future__ import annotations

from datetime import datetime, timedelta

import psycopg
import pytest
from closes_support import (
    Background,
    add_coins,
    ensure,
    insert,
    one,
    prepared_by,
    put,
    refused,
    seen_at,
    shared_connection,
    stored_hours,
    undone,
    utc,
    wait_until_blocked,
)

from pulseguard_assets.timeframes import TIMEFRAMES
from pulseguard_assets.warehouse.connection import connect


def prepare(connection: psycopg.Connection) -> None:
    """Nothing but the migrations."""


prepared = prepared_by(prepare)
shared = shared_connection
tables = undone


def bounds(connection: psycopg.Connection, table: str) -> dict[str, tuple[datetime, datetime]]:
    rows = connection.execute(
        "SELECT partition::text, lower_bound, upper_bound FROM close_partitions(%s)", (table,)
    ).fetchall()
    return {name: (lower, upper) for name, lower, upper in rows}


def test_this_month_and_the_next_twelve_are_there_for_all_five_tables(
    tables: psycopg.Connection,
) -> None:
    # A month may have begun since.
    migrated = one(tables, "SELECT min(applied_at) FROM schema_migrations")
    for timeframe in TIMEFRAMES:
        months = one(
            tables,
            "SELECT count(*) FROM close_partitions(%s) "
            "WHERE lower_bound BETWEEN date_trunc('month', %s, 'UTC') "
            "AND date_trunc('month', %s, 'UTC') + interval '12 months'",
            (timeframe.table, migrated, migrated),
        )
        assert months == 13
    named = bounds(tables, "minute_close")
    assert named["minute_close_y2025m01"] == (utc(2025, 1, 1), utc(2025, 2, 1))
    assert named["minute_close_y2025m02"] == (utc(2025, 2, 1), utc(2025, 3, 1))


def test_bounds_are_utc_months_whatever_the_sessions_zone(
    local_connection: psycopg.Connection,
) -> None:
    for day in ("'2019-03-01'", "DATE '2019-04-30'", "DATE '2019-05-01' + interval '1 month'"):
        local_connection.execute(f"SELECT create_monthly_partition('daily_close', {day})")
    ensure(local_connection, utc(2019, 7, 31, 23, 59))
    found = bounds(local_connection, "daily_close")
    assert {name: found[name] for name in found if "y2019" in name} == {
        "daily_close_y2019m03": (utc(2019, 3, 1), utc(2019, 4, 1)),
        "daily_close_y2019m04": (utc(2019, 4, 1), utc(2019, 5, 1)),
        "daily_close_y2019m06": (utc(2019, 6, 1), utc(2019, 7, 1)),
        "daily_close_y2019m07": (utc(2019, 7, 1), utc(2019, 8, 1)),
    }


def test_a_range_gets_all_its_months_over_the_end_of_the_year(
    tables: psycopg.Connection,
) -> None:
    made = one(tables, "SELECT ensure_partitions('2019-11-15 00:00+00', '2020-02-01 00:00+00')")
    assert made == 5 * 4
    for timeframe in TIMEFRAMES:
        labels = [lower for lower, _ in bounds(tables, timeframe.table).values()]
        assert [label for label in labels if label < utc(2021, 1, 1)] == [
            utc(2019, 11, 1),
            utc(2019, 12, 1),
            utc(2020, 1, 1),
            utc(2020, 2, 1),
        ]
    again = "SELECT ensure_partitions('2019-11-30 23:59+00', '2020-02-29 23:59+00')"
    assert one(tables, again) == 0


def test_the_week_of_the_first_day_lies_in_the_month_before(tables: psycopg.Connection) -> None:
    assert one(tables, "SELECT ensure_partitions('2019-05-01Z', '2019-05-01Z')") == 5 + 1
    assert "weekly_close_y2019m04" in bounds(tables, "weekly_close")


@pytest.mark.parametrize(
    ("first", "last"),
    [("2020-01-02", "2020-01-01"), (None, "2020-01-01"), ("-infinity", "2020-01-01")],
)
def test_a_range_without_end_or_content_is_refused(
    tables: psycopg.Connection, first: str | None, last: str
) -> None:
    with refused(tables, psycopg.errors.RaiseException, "is not a range"):
        tables.execute("SELECT ensure_partitions(%s, %s)", (first, last))


def test_a_table_that_is_not_ours_and_a_day_that_is_none_are_refused(
    tables: psycopg.Connection,
) -> None:
    for table in ("coin_priorities", "no_such; DROP TABLE minute_close", None):
        with refused(tables, psycopg.errors.RaiseException, "not one of the close tables"):
            tables.execute("SELECT create_monthly_partition(%s, '2020-01-01')", (table,))
    for day in (None, "infinity"):
        with refused(tables, psycopg.errors.RaiseException, "is not a day"):
            tables.execute("SELECT create_monthly_partition('minute_close', %s::date)", (day,))


def test_a_month_that_a_partition_of_another_name_covers_is_left_to_it(
    tables: psycopg.Connection,
) -> None:
    tables.execute(
        "CREATE TABLE odd PARTITION OF minute_close "
        "FOR VALUES FROM ('2019-01-01 00:00+00') TO ('2019-07-01 00:00+00')"
    )
    tables.execute("ALTER TABLE minute_close_y2025m01 RENAME TO renamed")
    ensure(tables, utc(2019, 3, 1), utc(2025, 1, 9))
    assert "minute_close_y2019m03" not in bounds(tables, "minute_close")
    add_coins(tables, "bitcoin")
    put(tables, [seen_at("bitcoin", utc(2019, 3, 5)), seen_at("bitcoin", utc(2025, 1, 5))])
    assert len(stored_hours(tables)) == 2


def test_a_name_that_is_taken_by_something_else_is_told(tables: psycopg.Connection) -> None:
    tables.execute("ALTER TABLE minute_close DETACH PARTITION minute_close_y2025m01")
    with refused(tables, psycopg.errors.RaiseException, "not the partition") as told:
        ensure(tables, utc(2025, 1, 1))
    repair = str(told.value.diag.message_hint).split(": ")[1].rstrip(".")
    tables.execute(repair)
    ensure(tables, utc(2025, 1, 1))
    assert "minute_close_y2025m01" in bounds(tables, "minute_close")


def test_a_partition_has_what_its_table_has(tables: psycopg.Connection) -> None:
    ensure(tables, utc(2019, 1, 1))
    for timeframe in TIMEFRAMES:
        table = timeframe.table
        differing = one(
            tables,
            "SELECT count(*) FROM pg_constraint p WHERE p.conrelid = %s::regclass "
            "AND NOT EXISTS (SELECT FROM pg_constraint c WHERE c.conrelid = %s::regclass "
            "AND c.contype = p.contype AND (c.conname = p.conname OR c.conparentid = p.oid))",
            (table, f"{table}_y2019m01"),
        )
        assert differing == 0
        storage = "SELECT reloptions FROM pg_class WHERE relname = %s"
        expected = None if table == "minute_close" else ["fillfactor=45"]
        assert one(tables, storage, (f"{table}_y2019m01",)) == expected


def test_many_creators_at_once_make_each_partition_once(
    connection: psycopg.Connection, database: str
) -> None:
    def create(months: list[int]) -> int:
        made = 0
        with connect(database) as other, other.transaction():
            for month in months:
                at = utc(2019, month, 15)
                made += int(one(other, "SELECT ensure_partitions(%s, %s)", (at, at)))
        return made

    # Opposite orders, in one transaction each: by a lock per month they would deadlock.
    orders = [[1, 2, 3], [3, 2, 1], [2, 1, 3], [3, 1, 2]]
    creators = [Background(lambda months=months: create(months)) for months in orders]  # type: ignore[misc]
    assert sum(creator.result() for creator in creators) == 5 * 3
    for timeframe in TIMEFRAMES:
        labels = [lower for lower, _ in bounds(connection, timeframe.table).values()]
        assert len(labels) == len(set(labels))


def test_readers_and_writers_go_on_while_a_partition_is_created(
    connection: psycopg.Connection, database: str
) -> None:
    add_coins(connection, "bitcoin")
    ensure(connection, utc(2026, 6, 1))
    with (
        connect(database) as other,
        connect(database, lock_timeout=timedelta(milliseconds=1)) as live,
    ):
        with other.transaction():
            ensure(other, utc(2019, 6, 1))
            for timeframe in TIMEFRAMES:
                one(live, f"SELECT count(*) FROM {timeframe.table}")
            insert(live, [seen_at("bitcoin", utc(2026, 6, 1, 10))])
            assert put(live, [seen_at("bitcoin", utc(2026, 6, 1, 11))]) == (1, 0)
            assert one(live, "SELECT roll_up('daily', '-infinity', 'infinity')") == 1
        assert len(stored_hours(live)) == 2


def test_a_partition_can_be_created_while_others_read_and_write(
    connection: psycopg.Connection, database: str
) -> None:
    add_coins(connection, "bitcoin")
    ensure(connection, utc(2026, 6, 1))
    with connect(database) as busy, busy.transaction():
        for timeframe in TIMEFRAMES:
            one(busy, f"SELECT count(*) FROM {timeframe.table}")
        insert(busy, [seen_at("bitcoin", utc(2026, 6, 1, 10))])
        connection.execute("SET lock_timeout = '1ms'")
        ensure(connection, utc(2019, 6, 1))


def test_a_second_creator_waits_and_finds_the_partition_there(
    connection: psycopg.Connection, database: str
) -> None:
    with connect(database) as first, connect(database) as second:
        with first.transaction():
            ensure(first, utc(2019, 6, 3))
            waiting = Background(
                lambda: one(second, "SELECT ensure_partitions('2019-06-03Z', '2019-06-03Z')")
            )
            wait_until_blocked(connection, second)
        assert waiting.result() == 0


def test_puts_from_two_sessions_into_a_month_that_nobody_prepared_are_both_stored(
    connection: psycopg.Connection, database: str
) -> None:
    add_coins(connection, "bitcoin", "ether")
    with connect(database) as first, connect(database) as second:
        with first.transaction():
            put(first, [seen_at("bitcoin", utc(2019, 6, 3, 10))])
            waiting = Background(lambda: put(second, [seen_at("ether", utc(2019, 6, 3, 11))]))
            wait_until_blocked(connection, second)
        assert waiting.result() == (1, 0)
    assert len(stored_hours(connection)) == 2
