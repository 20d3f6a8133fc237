"""Sizes and index upkeep: figures that are true, and advice that is measured."""

from __future__ import annotations

from datetime import timedelta

import psycopg
import pytest
from closes_support import add_coins, ensure, insert, one, seen_at, utc

from pulseguard_assets.timeframes import TIMEFRAMES

HOUR = utc(2026, 6, 1, 10)
WORTH = 64 * 1024


@pytest.fixture
def fresh(connection: psycopg.Connection) -> psycopg.Connection:
    """20,000 minutes of as many coins, vacuumed, with every index as REINDEX leaves it."""
    ensure(connection, HOUR)
    connection.execute(
        "INSERT INTO coin_priorities (coin_id, market_cap_rank) "
        "SELECT 'coin-' || md5(n::text), n FROM generate_series(1, 20000) n"
    )
    connection.execute(
        "INSERT INTO minute_close (coin_id, minute_ts, price_usd) "
        "SELECT coin_id, %s, market_cap_rank FROM coin_priorities",
        (HOUR,),
    )
    connection.execute("VACUUM ANALYZE minute_close_y2026m06")
    connection.execute("REINDEX TABLE minute_close_y2026m06")
    return connection


def advice(
    connection: psycopg.Connection, table: str = "minute_close_y2026m06"
) -> dict[str, tuple[str, float | None]]:
    """Return index -> action and bloat, for the indexes of a table."""
    rows = connection.execute(
        "SELECT index_name, action, bloat FROM maintain_indexes(%s) "
        "JOIN pg_indexes ON indexname = index_name WHERE tablename = %s",
        (WORTH, table),
    ).fetchall()
    return {name: (action, bloat) for name, action, bloat in rows}


def test_each_table_has_one_row_with_the_size_of_all_its_partitions(
    fresh: psycopg.Connection,
) -> None:
    fresh.execute("SELECT ensure_partitions(%s, %s)", (HOUR, HOUR + timedelta(days=60)))
    found = fresh.execute(
        "SELECT tablename, total_bytes, partitions, size = pg_size_pretty(total_bytes) "
        "FROM table_stats"
    ).fetchall()
    sizes = {name: (total, partitions) for name, total, partitions, _ in found}
    assert len(sizes) == len(found)
    assert all(same for *_, same in found)
    for timeframe in TIMEFRAMES:
        total, number = one(
            fresh,
            "SELECT ARRAY[sum(pg_total_relation_size(partition)), count(*)] "
            "FROM close_partitions(%s)",
            (timeframe.table,),
        )
        assert sizes[timeframe.table] == (total, number)
    assert sizes["minute_close"][0] > 20_000 * 60
    assert sizes["coin_priorities"] == (
        one(fresh, "SELECT pg_total_relation_size('coin_priorities')"),
        0,
    )
    assert not any("_y20" in name for name in sizes)
    assert {"collection_status", "api_usage_stats", "schema_migrations"} <= set(sizes)


def test_it_counts_rows_over_all_partitions(connection: psycopg.Connection) -> None:
    add_coins(connection, "bitcoin")
    ensure(connection, HOUR, HOUR + timedelta(days=31))
    insert(connection, [seen_at("bitcoin", HOUR), seen_at("bitcoin", HOUR + timedelta(days=31))])
    connection.execute("UPDATE minute_close SET price_usd = 2")
    connection.execute("DELETE FROM minute_close WHERE minute_ts = %s", (HOUR,))
    connection.execute("SELECT pg_stat_force_next_flush()")
    one(connection, "SELECT 1")
    figures = connection.execute(
        "SELECT inserts, updates, deletes, live_tuples FROM table_stats "
        "WHERE tablename = 'minute_close'"
    ).fetchone()
    assert figures == (2, 2, 1, 1)


def test_the_largest_table_comes_first(fresh: psycopg.Connection) -> None:
    sizes = [size for (size,) in fresh.execute("SELECT total_bytes FROM table_stats")]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) > 2


def test_a_fresh_index_is_kept(fresh: psycopg.Connection) -> None:
    found = advice(fresh)
    assert len(found) >= 3
    assert {action for action, _ in found.values()} == {"keep"}
    assert all(bloat is not None and bloat < 0.3 for _, bloat in found.values())


def test_a_bloated_index_is_flagged_and_after_its_reindex_it_is_kept(
    fresh: psycopg.Connection,
) -> None:
    fresh.execute("DELETE FROM minute_close WHERE price_usd > 1000")
    fresh.execute("VACUUM (ANALYZE, TRUNCATE off) minute_close_y2026m06")
    judged = advice(fresh)
    flagged = {name: bloat for name, (action, bloat) in judged.items() if action == "reindex"}
    assert len(flagged) >= 2
    assert all(bloat is not None and bloat > 0.8 for bloat in flagged.values()), judged
    for name in flagged:
        fresh.execute(f"REINDEX INDEX CONCURRENTLY {name}")
    assert {action for action, _ in advice(fresh).values()} == {"keep"}


def test_a_small_index_is_not_worth_it_and_the_limit_can_be_moved(
    fresh: psycopg.Connection,
) -> None:
    fresh.execute("DELETE FROM minute_close WHERE price_usd > 5000")
    fresh.execute("VACUUM (ANALYZE, TRUNCATE off) minute_close_y2026m06")
    count = "SELECT count(*) FROM maintain_indexes(%s, %s) WHERE action = 'reindex'"
    assert one(fresh, count, (WORTH, 0.5)) >= 2
    assert one(fresh, count, (1 << 40, 0.5)) == 0
    assert one(fresh, count, (WORTH, 0.99)) == 0
    assert one(fresh, "SELECT count(*) FROM maintain_indexes() WHERE action = 'reindex'") == 0


def test_lost_statistics_are_no_reason_to_rebuild_everything(fresh: psycopg.Connection) -> None:
    # As after a crash, when the counters of live rows start from 0.
    fresh.execute("SELECT pg_stat_reset()")
    assert {action for action, _ in advice(fresh).values()} == {"keep"}


def test_an_index_is_not_judged_before_its_table_was_analyzed(
    connection: psycopg.Connection,
) -> None:
    connection.execute("ALTER TABLE coin_priorities SET (autovacuum_enabled = off)")
    connection.execute(
        "INSERT INTO coin_priorities (coin_id) SELECT md5(n::text) FROM generate_series(1, 9999) n"
    )
    connection.execute("DELETE FROM coin_priorities")
    assert advice(connection, "coin_priorities")["coin_priorities_pkey"] == ("keep", None)


def test_judging_changes_nothing(fresh: psycopg.Connection) -> None:
    files = "SELECT array_agg(relfilenode ORDER BY oid) FROM pg_class WHERE relkind = 'i'"
    before = one(fresh, files)
    fresh.execute("DELETE FROM minute_close WHERE price_usd > 1000")
    fresh.execute("VACUUM ANALYZE minute_close_y2026m06")
    advice(fresh)
    assert one(fresh, files) == before
