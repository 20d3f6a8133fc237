"""Every object that the seed design names: it exists under its name, and does its job."""

from __future__ import annotations

import re
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import psycopg
import pytest
from closes_support import (
    add_coins,
    ensure,
    insert,
    one,
    prepared_by,
    refused,
    roll_up_all,
    seen_at,
    shared_connection,
    stored,
    stored_hours,
    undone,
    utc,
)
from psycopg import sql

from pulseguard_assets.timeframes import TIMEFRAMES, Timeframe

CLOSE = "coin_id {label} price_usd market_cap_usd volume_24h_usd coin_rank created_at"
COLUMNS = {
    **{timeframe.table: CLOSE.format(label=timeframe.label) for timeframe in TIMEFRAMES},
    "coin_priorities": "coin_id market_cap_rank market_cap_usd symbol name image_url last_updated "
    "created_at",
    "collection_status": "id collection_type start_time end_time coins_processed coins_failed "
    "api_calls_made status error_message batch_details created_at",
    "api_usage_stats": "id date total_calls successful_calls failed_calls rate_limited_calls "
    "average_response_time peak_calls_per_minute created_at updated_at",
    "schema_migrations": "version applied_at",
}
SEED_COLUMNS = {table: columns.split() for table, columns in COLUMNS.items()}
SEED_INDEXES = {
    "idx_coin_priorities_rank": "coin_priorities USING btree (market_cap_rank)",
    "idx_coin_priorities_updated": "coin_priorities USING btree (last_updated DESC)",
    "idx_coin_priorities_rank_active": "coin_priorities USING btree (market_cap_rank)",
    "idx_collection_status_start_time": "collection_status USING btree (start_time DESC)",
    "idx_collection_status_type_status": (
        "collection_status USING btree (collection_type, status)"
    ),
    "idx_api_usage_date": "api_usage_stats USING btree (date)",
    "idx_recent_minute_close": "minute_close USING btree (minute_ts DESC, coin_id)",
    "idx_recent_hourly_close": "hourly_close USING btree (hour_ts DESC, coin_id)",
    **{
        f"idx_{t.table}_coin_time": f"{t.table} USING btree (coin_id, {t.label})"
        for t in TIMEFRAMES
    },
    **{f"idx_{t.table}_time": f"{t.table} USING btree ({t.label} DESC)" for t in TIMEFRAMES},
    "idx_minute_close_time": "minute_close USING brin (minute_ts)",
}
MONDAY_THE_FIRST = utc(2026, 6, 1)  # aligned at every width at once


def prepare(connection: psycopg.Connection) -> None:
    add_coins(connection, "bitcoin")
    ensure(connection, MONDAY_THE_FIRST)


prepared = prepared_by(prepare)
shared = shared_connection
tables = undone


def test_every_column_of_the_seed_is_there_and_an_insert_of_just_these_works(
    tables: psycopg.Connection,
) -> None:
    values: dict[str, object] = {
        "coin_id": "bitcoin",
        "market_cap_rank": 2,
        "price_usd": Decimal("1.5"),
        "market_cap_usd": 10,
        "coin_rank": 1,
        "collection_type": "manual",
        "start_time": MONDAY_THE_FIRST,
        "status": "running",
        "date": MONDAY_THE_FIRST.date(),
        "version": "a version",
        "created_at": MONDAY_THE_FIRST,
        **{timeframe.label: MONDAY_THE_FIRST for timeframe in TIMEFRAMES},
    }
    # From the end: a minute would make its hour.
    for table, columns in reversed(SEED_COLUMNS.items()):
        found = one(
            tables,
            "SELECT array_agg(column_name::text) FROM information_schema.columns "
            "WHERE table_schema = 'public' AND table_name = %s",
            (table,),
        )
        assert set(columns) <= set(found)
        given = {column: values[column] for column in columns if column in values}
        if table == "coin_priorities":
            given["coin_id"] = "another"
        tables.execute(
            sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(
                sql.Identifier(table),
                sql.SQL(", ").join(map(sql.Identifier, given)),
                sql.SQL(", ").join([sql.Placeholder()] * len(given)),
            ),
            list(given.values()),
        )


def test_columns_beyond_the_seed_have_the_defaults_that_let_its_inserts_work(
    tables: psycopg.Connection,
) -> None:
    for timeframe in TIMEFRAMES[1:]:
        tables.execute(
            f"INSERT INTO {timeframe.table} (coin_id, {timeframe.label}, price_usd) "
            "VALUES ('bitcoin', %s, 7)",
            (MONDAY_THE_FIRST,),
        )
        (values,) = stored(tables, timeframe).values()
        price, _, _, _, created_at, provider_ts, source, close_ts, seen = values
        assert (price, provider_ts, source, seen) == (7, None, "live", 0)
        assert close_ts == MONDAY_THE_FIRST
        assert isinstance(created_at, datetime)


def test_every_index_of_the_seed_is_there_on_its_columns(tables: psycopg.Connection) -> None:
    rows = tables.execute(
        "SELECT relname, regexp_replace(pg_get_indexdef(oid), '.* ON (ONLY )?public.', '') "
        "FROM pg_class JOIN pg_index ON indexrelid = oid AND indisvalid "
        "WHERE relnamespace = 'public'::regnamespace"
    ).fetchall()
    found: dict[str, str] = dict(rows)
    other = {
        name: found.get(name)
        for name, definition in SEED_INDEXES.items()
        if not found.get(name, "").startswith(definition)
    }
    assert other == {}


def test_the_index_on_active_ranks_holds_only_those(tables: psycopg.Connection) -> None:
    definition = one(tables, "SELECT pg_get_indexdef('idx_coin_priorities_rank_active'::regclass)")
    assert definition.endswith("WHERE (market_cap_rank <= 1000)")


def test_every_index_of_a_close_table_is_on_every_partition(tables: psycopg.Connection) -> None:
    missing = tables.execute(
        "SELECT p.partition, i.indexrelid::regclass "
        "FROM timeframes t, close_partitions(t.table_name) p, pg_index i "
        "WHERE i.indrelid = t.table_name::regclass AND NOT EXISTS ("
        "  SELECT FROM pg_inherits h JOIN pg_index c ON c.indexrelid = h.inhrelid "
        "  WHERE h.inhparent = i.indexrelid AND c.indrelid = p.partition AND c.indisvalid)"
    ).fetchall()
    assert missing == []


def _close(timeframe: Timeframe, columns: str = "", values: str = "", price: str = "1") -> str:
    return (
        f"INSERT INTO {timeframe.table} (coin_id, {timeframe.label}, price_usd{columns}) "
        f"VALUES ('bitcoin', '2026-06-01 00:00+00', {price}{values})"
    )


REFUSED: list[tuple[str, str]] = [
    (f"INSERT INTO coin_priorities (coin_id, market_cap_rank) VALUES ('x', {rank})", name)
    for rank, name in ((0, "chk_market_cap_rank_positive"), (-1, "chk_market_cap_rank_positive"))
]
REFUSED += [
    (f"INSERT INTO coin_priorities (coin_id, market_cap_usd) VALUES ('x', {cap})", name)
    for cap, name in (
        ("-1", "chk_market_cap_positive"),
        ("'NaN'", "chk_market_cap_positive"),
        ("'Infinity'", "chk_market_cap_positive"),
    )
]
REFUSED += [
    ("INSERT INTO coin_priorities (coin_id) VALUES ('')", "chk_coin_id_present"),
    ("INSERT INTO coin_priorities (coin_id) VALUES (repeat('x', 201))", "chk_coin_id_length"),
    ("INSERT INTO coin_priorities (coin_id) VALUES ('bitcoin')", "coin_priorities_pkey"),
    (
        "INSERT INTO collection_status (collection_type, start_time, status) "
        "VALUES ('manual', now(), 'done')",
        "chk_valid_status",
    ),
    (
        "INSERT INTO collection_status (collection_type, start_time) VALUES ('hourly', now())",
        "chk_valid_collection_type",
    ),
    (
        "INSERT INTO api_usage_stats (date) VALUES ('2026-06-01'), ('2026-06-01')",
        "idx_api_usage_date",
    ),
    ("INSERT INTO schema_migrations VALUES ('001_initial_schema')", "schema_migrations_pkey"),
    (
        "INSERT INTO api_calls (called_at, called_on, endpoint, outcome) "
        "VALUES (now(), now(), '/', 'fine')",
        "chk_outcome_known",
    ),
    ("INSERT INTO api_budget DEFAULT VALUES", "api_budget_pkey"),
    ("INSERT INTO api_budget VALUES (false)", "chk_one_row"),
    (
        "UPDATE retention_policy SET keep = '59 minutes' WHERE table_name = 'minute_close'",
        "chk_keep_not_shortened",
    ),
    (
        "UPDATE retention_policy SET keep = '99 years' WHERE table_name = 'monthly_close'",
        "chk_months_kept_for_ever",
    ),
]
for _t in TIMEFRAMES:
    REFUSED += [
        (_close(_t, price=price), "chk_price_positive")
        for price in ("0", "-1", "'NaN'", "'Infinity'")
    ]
    REFUSED += [
        (_close(_t, f", {column}", f", {value}"), name)
        for column, name in (
            ("market_cap_usd", "chk_market_cap_finite"),
            ("volume_24h_usd", "chk_volume_finite"),
        )
        for value in ("'NaN'", "'Infinity'", "'-Infinity'")
    ]
    REFUSED += [
        (_close(_t, ", source", ", 'rumour'"), "chk_source_known"),
        (_close(_t, ", created_at", ", 'infinity'"), "chk_recorded_finite"),
        (_close(_t).replace("'bitcoin'", "'no-such-coin'"), f"fk_{_t.table}_coin"),
        (f"{_close(_t)}; {_close(_t)}", f"{_t.table}_y2026m06_pkey"),
        (_close(_t).replace("00:00+00", "00:00:00.000001+00"), "chk_label_aligned"),
        (_close(_t).replace("00:00+00", "00:00:30+00"), "chk_label_aligned"),
    ]
    if _t.child is not None:
        REFUSED += [
            (_close(_t, ", close_ts", ", '2026-05-31 23:59+00'"), "chk_close_in_bucket"),
            (_close(_t, ", close_ts", ", '2026-07-01 00:00+00'"), "chk_close_in_bucket"),
            (_close(_t, ", seen", ", -1"), "chk_evidence_in_bucket"),
            (_close(_t, ", seen", ", 1::bigint << 60"), "chk_evidence_in_bucket"),
        ]


def test_a_violating_row_is_refused_by_the_constraint_that_is_named_for_it(
    tables: psycopg.Connection,
) -> None:
    outcome = {}
    for statement, _ in REFUSED:
        try:
            with tables.transaction(force_rollback=True):
                tables.execute(statement)
        except psycopg.IntegrityError as refused:
            outcome[statement] = refused.diag.constraint_name
    assert outcome == dict(REFUSED)


def test_a_bucket_takes_evidence_of_all_its_children_and_of_no_more(
    tables: psycopg.Connection,
) -> None:
    for timeframe, bits in zip(TIMEFRAMES[1:], (60, 24, 7, 31)):  # noqa: B905 - Python 3.10
        tables.execute(_close(timeframe, ", seen", f", {(1 << bits) - 1}"))
        with refused(tables, psycopg.errors.CheckViolation, "chk_evidence_in_bucket"):
            tables.execute(f"UPDATE {timeframe.table} SET seen = {1 << bits}")


def test_a_price_survives_exactly_from_minute_to_month(tables: psycopg.Connection) -> None:
    prices = ("2.264e-09", "1e-12", "1E-30", "123456789012345.123456789", "1e30")
    add_coins(tables, *prices)
    insert(
        tables,
        [seen_at(price, MONDAY_THE_FIRST, price_usd=Decimal(price)) for price in prices],
    )
    roll_up_all(tables)
    for timeframe in TIMEFRAMES:
        kept = {coin: values[0] for (coin, _), values in stored(tables, timeframe).items()}
        assert kept == {price: Decimal(price) for price in prices}


def test_a_coin_may_have_no_rank_as_a_third_of_them_do(tables: psycopg.Connection) -> None:
    tables.execute("INSERT INTO coin_priorities (coin_id, market_cap_rank) VALUES ('x', NULL)")


FUNCTIONS = {
    "create_monthly_partition(table_name text, start_date date)": "void",
    "drop_old_partitions(table_name text, retention_months integer, now timestamp with time zone DEFAULT now(), patience interval DEFAULT '00:00:05'::interval)": "integer",  # noqa: E501
    "aggregate_to_hourly()": "trigger",
    "cleanup_old_data(now timestamp with time zone DEFAULT now())": "TABLE(table_name text, rows_deleted bigint)",  # noqa: E501
    'roll_up(timeframe text, "from" timestamp with time zone, "to" timestamp with time zone)': "bigint",  # noqa: E501
    'ensure_partitions("from" timestamp with time zone, "to" timestamp with time zone)': "integer",
}


def test_every_function_of_the_seed_has_its_signature(tables: psycopg.Connection) -> None:
    found: dict[str, str] = dict(
        tables.execute(
            "SELECT format('%s(%s)', proname, pg_get_function_arguments(oid)), "
            "pg_get_function_result(oid) FROM pg_proc WHERE pronamespace = 'public'::regnamespace"
        ).fetchall()
    )
    assert {name: found.get(name) for name in FUNCTIONS} == FUNCTIONS


def test_every_function_pins_its_search_path(tables: psycopg.Connection) -> None:
    loose = tables.execute(
        "SELECT oid::regprocedure::text FROM pg_proc WHERE pronamespace = 'public'::regnamespace "
        "AND NOT coalesce(proconfig, '{}') @> ARRAY['search_path=public, pg_temp']"
    ).fetchall()
    assert loose == []


def test_a_stranger_first_in_the_search_path_changes_nothing(
    tables: psycopg.Connection,
) -> None:
    tables.execute(
        "CREATE SCHEMA stranger; SET search_path = stranger, public;"
        "CREATE TABLE stranger.timeframes (); CREATE TABLE stranger.hourly_close ();"
        "CREATE TABLE stranger.retention_policy ();"
        "CREATE FUNCTION stranger.lock_buckets(text, timestamptz, timestamptz) RETURNS void "
        "LANGUAGE plpgsql AS $$ BEGIN RAISE 'the stranger was called'; END $$"
    )
    insert(tables, [seen_at("bitcoin", MONDAY_THE_FIRST)])
    assert one(tables, "SELECT count(*) FROM public.hourly_close") == 1
    one(tables, "SELECT count(*) FROM cleanup_old_data()")


def test_everything_of_ours_carries_a_comment(tables: psycopg.Connection) -> None:
    silent = tables.execute(
        """
        WITH ours AS (
            SELECT oid, relname, relkind FROM pg_class
            WHERE relnamespace = 'public'::regnamespace AND NOT relispartition
        )
        SELECT 'relation ' || relname FROM ours
        WHERE relkind IN ('r', 'p', 'v') AND obj_description(oid, 'pg_class') IS NULL
        UNION ALL
        -- The index of a constraint is told about by the constraint.
        SELECT 'index ' || relname FROM ours
        WHERE relkind IN ('i', 'I') AND obj_description(oid, 'pg_class') IS NULL
          AND NOT EXISTS (SELECT FROM pg_constraint c WHERE c.conindid = ours.oid)
        UNION ALL
        SELECT format('column %s.%s', relname, attname)
        FROM ours JOIN pg_attribute a ON attrelid = ours.oid AND attnum > 0 AND NOT attisdropped
        WHERE relkind IN ('r', 'p', 'v') AND col_description(ours.oid, attnum) IS NULL
        UNION ALL
        SELECT format('constraint %s on %s', conname, relname)
        FROM pg_constraint c JOIN ours ON ours.oid = conrelid
        WHERE contype <> 'n' AND conparentid = 0 AND obj_description(c.oid, 'pg_constraint') IS NULL
        UNION ALL
        SELECT format('trigger %s on %s', tgname, relname)
        FROM pg_trigger t JOIN ours ON ours.oid = tgrelid
        WHERE NOT tgisinternal AND obj_description(t.oid, 'pg_trigger') IS NULL
        UNION ALL
        SELECT 'function ' || oid::regprocedure FROM pg_proc
        WHERE pronamespace = 'public'::regnamespace AND obj_description(oid, 'pg_proc') IS NULL
        """
    ).fetchall()
    assert silent == []


def test_the_triggers_work_by_statement_on_insert_and_on_update(
    tables: psycopg.Connection,
) -> None:
    found = tables.execute(
        "SELECT tgname, pg_get_triggerdef(oid) FROM pg_trigger "
        "WHERE tgrelid = 'minute_close'::regclass AND NOT tgisinternal"
    ).fetchall()
    definitions: dict[str, str] = dict(found)
    assert "AFTER INSERT ON" in definitions["trigger_aggregate_hourly"]
    assert "AFTER UPDATE ON" in definitions["trigger_aggregate_hourly_update"]
    assert all("FOR EACH STATEMENT" in text for text in definitions.values())


def test_the_calls_that_the_seed_writes_down_work_as_written(
    tables: psycopg.Connection,
) -> None:
    cleaned = tables.execute("SELECT table_name, rows_deleted FROM cleanup_old_data()")
    assert [name for name, _ in cleaned][:4] == [t.table for t in TIMEFRAMES[:4]]
    tables.execute("SELECT index_name, action FROM maintain_indexes()")
    assert one(tables, "SELECT drop_old_partitions('minute_close', 120)") == 0
    for day in (
        "'2019-03-01'",
        "DATE '2019-04-01'",
        "DATE '2019-05-01' + (0 || ' months')::INTERVAL",
    ):
        tables.execute(f"SELECT create_monthly_partition('minute_close', {day})")
    assert (
        one(
            tables,
            "SELECT count(*) FROM close_partitions('minute_close') "
            "WHERE upper_bound <= '2019-06-01 00:00+00'",
        )
        == 3
    )
    tables.execute(
        "INSERT INTO schema_migrations (version) VALUES ('001_initial_schema') "
        "ON CONFLICT (version) DO NOTHING"
    )
    tables.execute(
        "SELECT schemaname, tablename, size, inserts, updates, deletes, live_tuples "
        "FROM table_stats"
    )


def test_the_two_partitions_that_the_seed_names_take_rows_by_table_and_by_name(
    tables: psycopg.Connection,
) -> None:
    insert(tables, [seen_at("bitcoin", utc(2025, 1, 31, 23, 59))])
    insert(tables, [seen_at("bitcoin", utc(2025, 2, 1))])
    assert one(tables, "SELECT count(*) FROM minute_close_y2025m01") == 1
    assert one(tables, "SELECT count(*) FROM minute_close_y2025m02") == 1
    assert len(stored_hours(tables)) == 2


def test_labels_are_aligned_in_utc_whatever_the_sessions_zone(
    local_connection: psycopg.Connection,
) -> None:
    add_coins(local_connection, "bitcoin")
    ensure(local_connection, MONDAY_THE_FIRST)
    for timeframe in TIMEFRAMES[1:]:
        local_connection.execute(_close(timeframe))
    for timeframe in TIMEFRAMES[2:]:
        # Without an offset it is midnight where the session is.
        with pytest.raises(psycopg.errors.CheckViolation, match="chk_label_aligned"):
            local_connection.execute(_close(timeframe).replace("06-01 00:00+00", "06-08 00:00"))


def test_a_coin_with_closes_cannot_be_deleted(tables: psycopg.Connection) -> None:
    insert(tables, [seen_at("bitcoin", MONDAY_THE_FIRST)])
    with pytest.raises(psycopg.errors.ForeignKeyViolation), tables.transaction():
        tables.execute("DELETE FROM coin_priorities")


def test_every_query_that_the_documentation_offers_runs(tables: psycopg.Connection) -> None:
    page = (Path(__file__).parents[2] / "docs" / "schema.md").read_text("utf-8")
    queries = re.findall(r"```sql\n(.*?)```", page, re.DOTALL)
    assert len(queries) >= 7
    for query in queries:
        tables.execute(query)
