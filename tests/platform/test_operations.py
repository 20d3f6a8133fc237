"""The assets of the platform's own upkeep, on a simulated platform and a real database."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import dagster as dg
import psycopg
import pytest

from pulseguard_assets.assets import operations
from pulseguard_assets.assets.operations import operations_assets
from pulseguard_assets.automation.upkeep import upkeep_schedules
from pulseguard_assets.collecting.platform import Platform
from pulseguard_assets.timeframes import TIMEFRAMES
from pulseguard_assets.warehouse.connection import connect
from pulseguard_assets.warehouse.upkeep import IndexUpkeep

NOW = datetime.fromisoformat("2025-11-22T12:03:27+00:00")
ASSETS = ["retention_cleanup", "maintenance", "dagster_housekeeping"]
Run = Callable[..., dg.ExecuteInProcessResult]


@pytest.fixture
def run(platform: Platform, instance: dg.DagsterInstance) -> Run:
    """`run("maintenance")`, as its schedule does."""

    def once(asset: str) -> dg.ExecuteInProcessResult:
        return dg.materialize(
            operations_assets(),
            selection=[asset],
            resources={"platform": platform},
            instance=instance,
            raise_on_error=False,
        )

    return once


@pytest.fixture
def ready(connection: psycopg.Connection) -> psycopg.Connection:
    """Partitions of two months back, and a coin."""
    connection.execute(
        "SELECT ensure_partitions(%s, %s)", (NOW - timedelta(days=70), NOW + timedelta(days=40))
    )
    connection.execute("INSERT INTO coin_priorities (coin_id) VALUES ('bitcoin')")
    return connection


def told(result: dg.ExecuteInProcessResult, asset: str) -> dict[str, Any]:
    assert result.success, [str(event) for event in result.all_events if event.is_step_failure]
    (event,) = result.asset_materializations_for_node(asset)
    return {key: each.value for key, each in event.metadata.items()}


def one(connection: psycopg.Connection, statement: str, *parameters: Any) -> Any:
    row = connection.execute(statement, parameters).fetchone()
    assert row is not None
    return row[0]


def see(connection: psycopg.Connection, *minutes: datetime) -> None:
    for minute in minutes:
        connection.execute(
            "INSERT INTO minute_close (coin_id, minute_ts, price_usd, created_at) "
            "VALUES ('bitcoin', date_trunc('minute', %s::timestamptz, 'UTC'), 1, %s)",
            (minute, minute),
        )


def kept_for_a_while(connection: psycopg.Connection) -> list[str]:
    rows = connection.execute("SELECT table_name FROM retention_policy WHERE keep IS NOT NULL")
    return [row[0] for row in rows]


def warned_in_the_log(instance: dg.DagsterInstance, result: dg.ExecuteInProcessResult) -> str:
    return "\n".join(
        entry.user_message for entry in instance.all_logs(result.run_id) if entry.level == 30
    )


# --- cleanup ---


def test_cleanup_deletes_what_is_old_and_tells_how_much_of_each_table(
    run: Run, ready: psycopg.Connection
) -> None:
    old = [NOW - timedelta(minutes=61 + n) for n in range(5)]
    see(ready, *old, NOW - timedelta(minutes=59))
    ready.execute(
        "INSERT INTO collection_status (collection_type, start_time, created_at, heartbeat_at) "
        "VALUES ('continuous', %(at)s, %(at)s, %(at)s)",
        {"at": NOW - timedelta(days=31)},
    )

    figures = told(run("retention_cleanup"), "retention_cleanup")

    assert figures.pop("duration_seconds") >= 0
    assert {key: figure for key, figure in figures.items() if figure} == {
        "rows_deleted": 6,
        "deleted_minute_close": 5,
        "deleted_collection_status": 1,
    }
    assert set(figures) == {
        "rows_deleted",
        "rows_blocked",
        "warnings",
        *(f"deleted_{table}" for table in kept_for_a_while(ready)),
        *(f"blocked_{each.table}" for each in TIMEFRAMES if each.keep is not None),
    }
    assert one(ready, "SELECT count(*) FROM minute_close") == 1
    assert one(ready, "SELECT count(*) FROM hourly_close") == 2, "nothing was lost"


def test_ages_are_measured_from_the_platforms_clock(
    run: Run, ready: psycopg.Connection, provider: Any
) -> None:
    see(ready, NOW - timedelta(minutes=30))
    assert told(run("retention_cleanup"), "retention_cleanup")["rows_deleted"] == 0

    provider.advance(timedelta(minutes=31))

    assert told(run("retention_cleanup"), "retention_cleanup")["rows_deleted"] == 1


def test_rows_that_nothing_carries_are_counted_and_the_warning_is_told(
    run: Run, ready: psycopg.Connection, instance: dg.DagsterInstance
) -> None:
    see(ready, NOW - timedelta(hours=3))
    # A rollup that does nothing: what nobody can carry has to stay.
    ready.execute("DELETE FROM hourly_close")
    ready.execute(
        'CREATE OR REPLACE FUNCTION roll_up_parents(timeframe text, "from" timestamptz, '
        "\"to\" timestamptz) RETURNS bigint LANGUAGE sql AS 'SELECT 0::bigint'"
    )

    result = run("retention_cleanup")

    figures = told(result, "retention_cleanup")
    assert (figures["rows_deleted"], figures["rows_blocked"]) == (0, 1)
    assert figures["blocked_minute_close"] == figures["warnings"] == 1
    assert "1 rows of minute_close" in figures["warned"]
    assert "retention_blocked()" in figures["warned"], "the hint comes along"
    assert "1 rows of minute_close" in warned_in_the_log(instance, result)


def test_a_cleanup_that_has_to_wait_too_long_says_that_nothing_is_lost(
    run: Run,
    ready: psycopg.Connection,
    database: str,
    platform: Platform,
    monkeypatch: pytest.MonkeyPatch,
    failure: Callable[[dg.ExecuteInProcessResult], str],
) -> None:
    see(ready, NOW - timedelta(hours=3))

    def impatient(self: Platform) -> psycopg.Connection:
        return connect(database, lock_timeout=timedelta(milliseconds=100))

    monkeypatch.setattr(Platform, "connect", impatient)

    with ready.transaction(force_rollback=True):
        ready.execute("LOCK TABLE minute_close IN ACCESS EXCLUSIVE MODE")
        said = failure(run("retention_cleanup"))

    assert "nothing was deleted" in said
    assert one(ready, "SELECT count(*) FROM minute_close") == 1


# --- maintenance ---


def partitions(connection: psycopg.Connection, table: str) -> list[str]:
    rows = connection.execute(
        "SELECT to_char(lower_bound, 'YYYY-MM') FROM close_partitions(%s)", (table,)
    ).fetchall()
    return [row[0] for row in rows]


def test_maintenance_makes_partitions_ahead_and_drops_the_months_retention_has_emptied(
    run: Run, connection: psycopg.Connection
) -> None:
    connection.execute("SET timezone = 'UTC'")
    for (partition,) in connection.execute(
        "SELECT p.partition::text FROM timeframes t, close_partitions(t.table_name) p"
    ).fetchall():
        connection.execute(f"DROP TABLE {partition}")
    connection.execute("SELECT ensure_partitions('2024-10-01', '2024-11-30')")
    connection.execute("SELECT ensure_partitions('2025-10-01', '2025-11-30')")

    figures = told(run("maintenance"), "maintenance")

    ahead = ["2025-11", "2025-12", *(f"2026-{month:02}" for month in range(1, 12))]
    for table in ("minute_close", "hourly_close", "daily_close"):
        assert partitions(connection, table)[-13:] == ahead
        assert partitions(connection, table)[:-13] == [], table
    # 364 days ago was 2024-11-23; the week of the 1st of October begins in September.
    assert partitions(connection, "weekly_close")[:-13] == ["2024-11", "2025-09", "2025-10"]
    assert partitions(connection, "monthly_close")[:-13] == ["2024-10", "2024-11", "2025-10"]
    assert figures["partitions_made"] == 5 * 12
    assert figures["partitions_dropped"] == 3 * 3 + 2


def test_a_month_with_a_close_that_nothing_carries_is_not_dropped(
    run: Run, ready: psycopg.Connection, instance: dg.DagsterInstance
) -> None:
    see(ready, NOW - timedelta(days=50))
    ready.execute("DELETE FROM hourly_close")
    ready.execute(
        'CREATE OR REPLACE FUNCTION roll_up_parents(timeframe text, "from" timestamptz, '
        "\"to\" timestamptz) RETURNS bigint LANGUAGE sql AS 'SELECT 0::bigint'"
    )

    result = run("maintenance")

    assert "2025-10" in partitions(ready, "minute_close")
    assert "that no rollup carries yet" in told(result, "maintenance")["warned"]
    assert "that no rollup carries yet" in warned_in_the_log(instance, result)


def test_a_close_of_an_old_month_is_carried_up_before_its_month_is_dropped(
    run: Run, ready: psycopg.Connection
) -> None:
    see(ready, NOW - timedelta(days=50))

    assert run("maintenance").success

    assert "2025-10" not in partitions(ready, "minute_close")
    assert one(ready, "SELECT count(*) FROM monthly_close") == 1


def test_the_sizes_of_all_tables_are_told_as_numbers_and_as_a_table(
    run: Run, connection: psycopg.Connection
) -> None:
    figures = told(run("maintenance"), "maintenance")

    known = [name for (name,) in connection.execute("SELECT tablename FROM table_stats")]
    assert {f"bytes_{name}" for name in known} <= set(figures)
    assert figures["bytes_total"] == sum(figures[f"bytes_{name}"] for name in known) > 0
    lines = figures["tables"].splitlines()
    assert lines[0] == "| table | bytes | of which indexes | rows, estimated |"
    assert len(lines) == len(known) + 2


def test_a_bloated_index_is_rebuilt(run: Run, ready: psycopg.Connection) -> None:
    # Long keys make a large index of few rows.
    ready.execute("CREATE TABLE notes (note text PRIMARY KEY)")
    ready.execute(
        "INSERT INTO notes SELECT string_agg(md5(n::text || m), '') "
        "FROM generate_series(1, 20000) n, generate_series(1, 14) m GROUP BY n"
    )
    ready.execute("DELETE FROM notes")
    ready.execute("INSERT INTO notes VALUES ('one')")
    ready.execute("VACUUM (ANALYZE, TRUNCATE off) notes")
    before = one(ready, "SELECT pg_relation_size('notes_pkey')")
    assert before > 8 * 1024 * 1024

    figures = told(run("maintenance"), "maintenance")

    assert figures["indexes_rebuilt"] == 1
    assert "notes_pkey" in figures["rebuilt"]
    assert one(ready, "SELECT pg_relation_size('notes_pkey')") < before / 100
    assert figures["index_bytes_freed"] >= before * 0.99
    assert told(run("maintenance"), "maintenance")["indexes_rebuilt"] == 0


def test_what_fails_is_named_at_the_end_and_the_rest_is_done(
    run: Run,
    ready: psycopg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    failure: Callable[[dg.ExecuteInProcessResult], str],
) -> None:
    half = IndexUpkeep(9, {"good": (10, 1)}, (), {"one": "lock timeout", "two": "disk full"}, ())
    monkeypatch.setattr(operations, "rebuild_indexes", lambda _: half)
    ready.execute("ALTER FUNCTION ensure_partitions RENAME TO no_longer_there")

    result = run("maintenance")

    said = failure(result)
    assert "- index one: lock timeout" in said
    assert "- index two: disk full" in said
    assert "- partitions ahead: PostgreSQL failed:" in said
    assert "2025-10" not in partitions(ready, "minute_close"), "that came after"
    (event,) = (event for event in result.all_events if event.is_step_failure)
    metadata = event.step_failure_data.user_failure_data.metadata  # type: ignore[union-attr]
    assert metadata["indexes_rebuilt"].value == 1
    assert metadata["bytes_total"].value > 0


def test_an_index_that_somebody_else_left_invalid_is_told_of(
    run: Run, ready: psycopg.Connection, instance: dg.DagsterInstance
) -> None:
    see(ready, NOW, NOW - timedelta(minutes=1))
    with pytest.raises(psycopg.errors.UniqueViolation):
        ready.execute("CREATE UNIQUE INDEX CONCURRENTLY mine ON minute_close_y2025m11 (price_usd)")

    result = run("maintenance")

    assert told(result, "maintenance")["indexes_invalid"] == 1
    assert "The index mine is invalid" in warned_in_the_log(instance, result)


def test_two_maintenances_do_not_rebuild_at_once(
    run: Run,
    ready: psycopg.Connection,
    failure: Callable[[dg.ExecuteInProcessResult], str],
) -> None:
    with ready.transaction():
        ready.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended('pulseguard.rebuild_indexes', 0))"
        )

        assert "Another session is rebuilding indexes" in failure(run("maintenance"))


# --- Dagster's own tables ---


def test_dagsters_housekeeping_tells_what_it_deleted(
    run: Run, instance: dg.DagsterInstance
) -> None:
    for hour in ("09", "10", "11"):
        instance.report_runless_asset_event(
            dg.AssetMaterialization("minute_close", partition=f"2025-11-22-{hour}:00")
        )

    figures = told(run("dagster_housekeeping"), "dagster_housekeeping")

    assert figures.pop("duration_seconds") >= 0
    assert figures == {
        "runs_deleted": 0,
        "runs_kept_for_their_state": 0,
        "old_events_deleted": 0,
        "expired_events_deleted": 2,
        "check_results_deleted": 0,
        "bytes_total": 0,
    }
    assert instance.get_materialized_partitions(dg.AssetKey("minute_close")) == {"2025-11-22-11:00"}


# --- as they are shown, and when they run ---


@pytest.mark.parametrize("asset", operations_assets(), ids=lambda each: each.key.to_user_string())
def test_each_is_shown_with_its_group_kinds_owners_and_a_query_that_runs(
    asset: dg.AssetsDefinition, connection: psycopg.Connection
) -> None:
    spec = asset.get_asset_spec()
    (query,) = re.findall(r"```sql\n(.+?)\n```", spec.description or "", re.DOTALL)
    connection.execute("CREATE SCHEMA dagster")

    connection.execute(query)

    assert spec.group_name == "operations"
    assert spec.kinds == {"postgresql"}
    assert spec.owners == ["team:data"]
    assert spec.partitions_def is None


def test_the_query_of_the_cleanup_finds_every_table(connection: psycopg.Connection) -> None:
    spec = operations_assets()[0].get_asset_spec()
    (query,) = re.findall(r"```sql\n(.+?)\n```", spec.description or "", re.DOTALL)

    tables = {row[0] for row in connection.execute(query)}

    assert {timeframe.table for timeframe in TIMEFRAMES} <= tables


@pytest.mark.parametrize(
    ("name", "cron", "assets"),
    [
        ("retention_cleanup_schedule", "*/15 * * * *", {"retention_cleanup"}),
        ("maintenance_schedule", "20 0 * * *", {"maintenance", "dagster_housekeeping"}),
    ],
)
def test_upkeep_is_scheduled_in_utc_and_on_by_default(
    instance: dg.DagsterInstance, name: str, cron: str, assets: set[str]
) -> None:
    defs = dg.Definitions(
        assets=operations_assets(),
        schedules=upkeep_schedules(),
        resources={"platform": dg.ResourceDefinition.none_resource()},
    )
    repository = defs.get_repository_def()
    schedule = repository.get_schedule_def(name)
    context = dg.build_schedule_context(
        instance, scheduled_execution_time=NOW, repository_def=repository
    )

    requests = schedule.evaluate_tick(context).run_requests or []

    assert (schedule.cron_schedule, schedule.execution_timezone) == (cron, "UTC")
    assert schedule.default_status is dg.DefaultScheduleStatus.RUNNING
    assert len(requests) == 1
    job = repository.get_job(schedule.job_name)
    found = {key.to_user_string() for key in job.asset_layer.executable_asset_keys}
    assert found == assets
