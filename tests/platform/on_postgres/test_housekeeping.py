"""Dagster's own tables: what goes, what stays, and a partition status that says what is stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta
from typing import Any

import dagster as dg
import psycopg
import pytest
from dagster._core.definitions.freshness import FreshnessState, FreshnessStateChange
from dagster._core.storage.partition_status_cache import (
    get_and_update_asset_status_cache_value,
)
from watching_support import instance_on

from pulseguard_assets.assets import housekeeping
from pulseguard_assets.assets.housekeeping import (
    KEEP_DAYS,
    Housekeeping,
    housekeep,
    storage_sizes,
)
from pulseguard_assets.assets.operations import operations_assets
from pulseguard_assets.assets.partitions import partitions_of
from pulseguard_assets.collecting.platform import Platform
from pulseguard_assets.timeframes import DAILY, HOURLY, MINUTE, MONTHLY, TIMEFRAMES, WEEKLY
from pulseguard_assets.warehouse.connection import (
    connect,
    ensure_dagster_schema,
)

NOW = datetime.fromisoformat("2025-11-22T12:03:27+00:00")
START = date(2024, 1, 1)
NOTHING = {"runs": 0, "old_events": 0, "expired_events": 0, "check_results": 0}

# At NOW, by the retention that the schema ships with: gone, at its very end, and kept.
HOURS = {"2025-11-22-09:00": False, "2025-11-22-10:00": False, "2025-11-22-11:00": True}
PARTITIONS = {
    MINUTE: HOURS,
    HOURLY: {"2025-11-21-11:00": False, "2025-11-21-12:00": False, "2025-11-21-13:00": True},
    DAILY: {"2025-11-14": False, "2025-11-15": False, "2025-11-16": True},
    WEEKLY: {"2024-11-11": False, "2024-11-18": False, "2024-11-25": True},
    MONTHLY: {"2024-01-01": True, "2025-11-01": True},
}


# --- an instance as in production: in the schema `dagster` of the product's database ---


@pytest.fixture(scope="module")
def database_with_dagster(postgres: Any) -> Iterator[str]:
    """The name of a migrated database that has Dagster's tables as well."""
    with postgres.new_database(postgres.migrated_template()) as dsn:
        with connect(dsn) as connection:
            for year in (2024, 2025):
                first, last = datetime(year, 1, 1), datetime(year, 12, 31)  # noqa: DTZ001
                connection.execute("SELECT ensure_partitions(%s, %s)", (first, last))
            connection.execute("INSERT INTO coin_priorities (coin_id) VALUES ('bitcoin')")
            name = connection.info.dbname
        ensure_dagster_schema(dsn)
        with instance_on(dsn):
            pass
        yield name


# --- assets that record what the real ones do, without their work ---


@dg.asset(name="coin_priorities")
def coins() -> None:
    """Not partitioned."""


@dg.asset_check(asset=coins)
def is_fresh() -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=True)


@dg.asset(name="monthly_close", partitions_def=partitions_of(MONTHLY, START))
def month() -> None: ...


@dg.asset(name="hourly_close", partitions_def=partitions_of(HOURLY, START))
def hour() -> None: ...


@dg.asset(name="hourly_close", partitions_def=partitions_of(HOURLY, START))
def broken_hour() -> None:
    raise dg.Failure("on purpose")


def run_of(instance: dg.DagsterInstance, *what: Any, partition: str | None = None) -> str:
    """Run to the end; returns the run's id."""
    result = dg.materialize(
        [*what], instance=instance, partition_key=partition, raise_on_error=False
    )
    return result.run_id


def poll(instance: dg.DagsterInstance, key: str, partition: str | None) -> None:
    """Record a materialization without a run, as the sensor does."""
    instance.report_runless_asset_event(
        dg.AssetMaterialization(key, partition=partition, tags={"dagster/data_version": "1"})
    )


# --- what there is ---


def age(connection: psycopg.Connection, *, run: str | None = None, **ago: float) -> None:
    """Make a run, or all events without one, as old as that."""
    when = (NOW - timedelta(**ago)).replace(tzinfo=None)
    run_id = run or ""
    for table, columns in {
        "event_logs": ("timestamp",),
        "runs": ("create_timestamp", "update_timestamp"),
        "asset_check_executions": ("create_timestamp", "evaluation_event_timestamp"),
    }.items():
        for column in columns:
            connection.execute(
                f"UPDATE dagster.{table} SET {column} = %s WHERE run_id = %s", (when, run_id)
            )


def count(connection: psycopg.Connection, table: str, condition: str = "true") -> int:
    row = connection.execute(f"SELECT count(*) FROM dagster.{table} WHERE {condition}").fetchone()
    assert row is not None
    return int(row[0])


def kinds(connection: psycopg.Connection, run: str) -> list[str]:
    rows = connection.execute(
        "SELECT coalesce(dagster_event_type, 'log') FROM dagster.event_logs WHERE run_id = %s "
        "ORDER BY id",
        (run,),
    ).fetchall()
    return [row[0] for row in rows]


def store(connection: psycopg.Connection, table: str, label: str, key: str) -> None:
    """A row that retention has left standing."""
    connection.execute(
        f"INSERT INTO {table} (coin_id, {label}, price_usd) "
        "VALUES ('bitcoin', %s, 1) ON CONFLICT DO NOTHING",
        (window_start(key),),
    )


def window_start(key: str) -> datetime:
    return datetime.fromisoformat(f"{key[:10]}T{key[11:] or '00:00'}:00+00:00")


def materialized(instance: dg.DagsterInstance, table: str) -> set[str]:
    return set(instance.get_materialized_partitions(dg.AssetKey(table)))


def shown(instance: dg.DagsterInstance, table: str) -> set[str]:
    """The materialized partitions by the cached status, which is what the UI shows."""
    status, partitions = _status(instance, table)
    return set(status.deserialize_materialized_partition_subsets(partitions).get_partition_keys())


def failed(instance: dg.DagsterInstance, table: str) -> set[str]:
    """The partitions shown as failed."""
    status, partitions = _status(instance, table)
    return set(status.deserialize_failed_partition_subsets(partitions).get_partition_keys())


def _status(instance: dg.DagsterInstance, table: str) -> Any:
    timeframe = next(each for each in TIMEFRAMES if each.table == table)
    partitions = partitions_of(timeframe, START)
    status = get_and_update_asset_status_cache_value(instance, dg.AssetKey(table), partitions)
    assert status is not None
    return status, partitions


def orphans(connection: psycopg.Connection) -> dict[str, int]:
    """Rows that belong to a run or an event that is gone."""
    no_run = "coalesce(run_id, '') NOT IN (SELECT run_id FROM dagster.runs UNION SELECT '')"
    return {
        "events": count(connection, "event_logs", no_run),
        "event tags": count(
            connection, "asset_event_tags", "event_id NOT IN (SELECT id FROM dagster.event_logs)"
        ),
        "run tags": count(connection, "run_tags", no_run),
        "checks": count(connection, "asset_check_executions", no_run),
        "check events": count(
            connection,
            "asset_check_executions",
            "evaluation_event_storage_id NOT IN (SELECT id FROM dagster.event_logs)",
        ),
    }


NO_ORPHANS = {"events": 0, "event tags": 0, "run tags": 0, "checks": 0, "check events": 0}
Keep = Callable[..., Housekeeping]


@pytest.fixture
def keep_house(instance: dg.DagsterInstance, connection: psycopg.Connection) -> Keep:
    """`keep_house()`: once, at `NOW`, leaving no orphan."""

    def once(**arguments: Any) -> Housekeeping:
        done = housekeep(instance, connection, **{"now": NOW} | arguments)
        assert orphans(connection) == NO_ORPHANS
        return done

    return once


# --- the tables of this version of Dagster ---


def test_runs_and_events_are_referred_to_from_the_known_tables_only(
    instance: dg.DagsterInstance, connection: psycopg.Connection
) -> None:
    """Another version that keeps them elsewhere has to be looked at, or leaves orphans."""
    rows = connection.execute(
        "SELECT table_name, column_name FROM information_schema.columns "
        "WHERE table_schema = 'dagster' AND column_name ~ 'run_id|event.*_id|storage_id'"
    ).fetchall()

    assert set(rows) == {
        ("event_logs", "run_id"),
        ("asset_event_tags", "event_id"),
        ("asset_check_executions", "run_id"),
        ("asset_check_executions", "evaluation_event_storage_id"),
        ("asset_check_executions", "materialization_event_storage_id"),
        ("runs", "run_id"),
        ("run_tags", "run_id"),
        # The newest of each asset, overwritten by the next; shown as "last materialized".
        ("asset_keys", "last_run_id"),
        # Of runs under way.
        ("concurrency_slots", "run_id"),
        ("pending_steps", "run_id"),
        ("instance_info", "run_storage_id"),
    }


def test_an_event_without_a_run_has_an_empty_run_id(
    instance: dg.DagsterInstance, connection: psycopg.Connection
) -> None:
    poll(instance, "minute_close", "2025-11-22-11:00")

    row = connection.execute(
        "SELECT run_id, asset_key, partition, dagster_event_type FROM dagster.event_logs"
    ).fetchone()

    assert row == ("", '["minute_close"]', "2025-11-22-11:00", "ASSET_MATERIALIZATION")


# --- the partition status stays true ---


@pytest.mark.parametrize("timeframe", TIMEFRAMES, ids=lambda each: each.name)
def test_a_partition_is_materialized_as_long_as_retention_keeps_its_rows(
    instance: dg.DagsterInstance, keep_house: Keep, timeframe: Any
) -> None:
    table, partitions = timeframe.table, PARTITIONS[timeframe]
    for key in partitions:
        poll(instance, table, key)
    assert shown(instance, table) == materialized(instance, table) == set(partitions)

    done = keep_house()

    alive = {key for key, kept in partitions.items() if kept}
    assert materialized(instance, table) == alive
    assert shown(instance, table) == alive, "not what was cached before"
    assert done.expired_events == len(partitions) - len(alive)


@pytest.mark.parametrize("timeframe", [MINUTE, HOURLY, DAILY, WEEKLY], ids=lambda each: each.name)
def test_a_partition_with_rows_that_could_not_be_deleted_stays_materialized(
    instance: dg.DagsterInstance,
    connection: psycopg.Connection,
    keep_house: Keep,
    timeframe: Any,
) -> None:
    old, other, _ = PARTITIONS[timeframe]
    for key in (old, other):
        poll(instance, timeframe.table, key)
    store(connection, timeframe.table, timeframe.label, old)

    keep_house()

    assert shown(instance, timeframe.table) == {old}
    connection.execute(f"DELETE FROM {timeframe.table}")
    keep_house()
    assert shown(instance, timeframe.table) == set()


def test_a_longer_retention_keeps_partitions_materialized_longer(
    instance: dg.DagsterInstance, connection: psycopg.Connection, keep_house: Keep
) -> None:
    connection.execute(
        "UPDATE retention_policy SET keep = '3 days' WHERE table_name = 'minute_close'"
    )
    for key in ("2025-11-19-10:00", "2025-11-19-12:00"):
        poll(instance, "minute_close", key)

    keep_house()

    assert materialized(instance, "minute_close") == {"2025-11-19-12:00"}


def test_a_status_that_a_page_wrote_back_late_is_wiped_the_next_time(
    instance: dg.DagsterInstance, connection: psycopg.Connection, keep_house: Keep
) -> None:
    poll(instance, "minute_close", "2025-11-22-09:00")
    poll(instance, "minute_close", "2025-11-22-11:00")
    shown(instance, "minute_close")
    read = "SELECT cached_status_data FROM dagster.asset_keys WHERE asset_key LIKE '%minute%'"
    before = connection.execute(read).fetchone()
    keep_house()
    connection.execute(
        "UPDATE dagster.asset_keys SET cached_status_data = %s WHERE asset_key LIKE '%%minute%%'",
        before,
    )
    assert shown(instance, "minute_close") == {"2025-11-22-09:00", "2025-11-22-11:00"}, "the lie"

    assert keep_house().expired_events == 0

    assert shown(instance, "minute_close") == {"2025-11-22-11:00"}


def test_a_failed_partition_that_expired_is_not_shown_as_failed_for_ever(
    instance: dg.DagsterInstance, connection: psycopg.Connection, keep_house: Keep
) -> None:
    gone, kept = "2025-11-21-11:00", "2025-11-21-13:00"
    run_of(instance, hour, partition=gone)
    for key in (gone, kept):
        run_of(instance, broken_hour, partition=key)
    assert failed(instance, "hourly_close") == {gone, kept}

    keep_house()

    assert failed(instance, "hourly_close") == {kept}
    assert shown(instance, "hourly_close") == set()
    assert count(connection, "runs") == 3, "what they logged stays"


def test_a_run_under_way_keeps_what_it_recorded(
    instance: dg.DagsterInstance, connection: psycopg.Connection, keep_house: Keep
) -> None:
    run = run_of(instance, hour, partition="2025-11-21-11:00")
    age(connection, run=run, days=30)
    connection.execute("UPDATE dagster.runs SET status = 'STARTED' WHERE run_id = %s", (run,))
    before = kinds(connection, run)

    keep_house()

    assert kinds(connection, run) == before
    connection.execute("UPDATE dagster.runs SET status = 'SUCCESS' WHERE run_id = %s", (run,))
    assert keep_house().runs == 1
    assert kinds(connection, run) == []


def test_partitions_of_another_definition_are_left_alone(
    instance: dg.DagsterInstance, keep_house: Keep
) -> None:
    poll(instance, "minute_close", "bitcoin")

    keep_house()

    assert materialized(instance, "minute_close") == {"bitcoin"}


# --- what is old ---


def test_old_runs_go_with_all_that_belongs_to_them(
    instance: dg.DagsterInstance, connection: psycopg.Connection, keep_house: Keep
) -> None:
    old, young, newest = (run_of(instance, coins, is_fresh) for _ in range(3))
    age(connection, run=old, days=KEEP_DAYS, minutes=1)
    age(connection, run=young, days=KEEP_DAYS, minutes=-1)
    rows = len(kinds(connection, old))
    untouched = kinds(connection, young)
    assert count(connection, "asset_check_executions") == 3

    done = keep_house()

    assert (done.runs, done.old_events, done.check_results) == (1, rows, 1)
    assert {run.run_id for run in instance.get_runs()} == {young, newest}
    assert kinds(connection, young) == untouched
    assert count(connection, "asset_check_executions") == 2
    assert rows > 10


def test_the_run_that_made_a_month_keeps_that_and_loses_the_rest_of_its_log(
    instance: dg.DagsterInstance, connection: psycopg.Connection, keep_house: Keep
) -> None:
    first, second = (run_of(instance, month, partition="2024-06-01") for _ in range(2))
    for run in (first, second):
        age(connection, run=run, days=400)

    done = keep_house()

    assert (done.runs, done.runs_kept) == (1, 1)
    assert [run.run_id for run in instance.get_runs()] == [second]
    assert kinds(connection, second) == ["ASSET_MATERIALIZATION"]
    assert shown(instance, "monthly_close") == {"2024-06-01"}
    (event,) = instance.fetch_materializations(dg.AssetKey("monthly_close"), limit=9).records
    assert event.run_id == second
    assert count(connection, "asset_event_tags") > 0


def test_the_newest_of_an_asset_without_partitions_stays(
    instance: dg.DagsterInstance, connection: psycopg.Connection, keep_house: Keep
) -> None:
    for _ in range(3):
        poll(instance, "coin_priorities", None)
    age(connection, days=99)

    assert keep_house().old_events == 2

    assert len(instance.fetch_materializations(dg.AssetKey("coin_priorities"), 9).records) == 1


def test_old_events_without_a_run_go_and_their_tags_with_them(
    instance: dg.DagsterInstance, connection: psycopg.Connection, keep_house: Keep
) -> None:
    for _ in range(4):
        poll(instance, "monthly_close", "2025-11-01")
    age(connection, days=15)
    poll(instance, "monthly_close", "2025-11-01")
    assert count(connection, "asset_event_tags") == 5

    assert keep_house().old_events == 4

    assert count(connection, "asset_event_tags") == count(connection, "event_logs") == 1


def test_the_newest_result_of_a_check_stays_with_its_run(
    instance: dg.DagsterInstance, connection: psycopg.Connection, keep_house: Keep
) -> None:
    runs = [run_of(instance, coins, is_fresh) for _ in range(3)]
    for run in runs:
        age(connection, run=run, days=50)

    done = keep_house()

    assert (done.runs, done.runs_kept, done.check_results) == (2, 1, 2)
    assert kinds(connection, runs[-1]) == ["ASSET_MATERIALIZATION", "ASSET_CHECK_EVALUATION"]
    key = dg.AssetCheckKey(dg.AssetKey("coin_priorities"), "is_fresh")
    (left,) = instance.event_log_storage.get_asset_check_execution_history(key, limit=9)
    assert left.run_id == runs[-1]


def test_results_of_checks_without_a_run_go_too(
    instance: dg.DagsterInstance, connection: psycopg.Connection, keep_house: Keep
) -> None:
    for _ in range(3):
        instance.report_runless_asset_event(
            dg.AssetCheckEvaluation(
                asset_key=dg.AssetKey("minute_close"), check_name="young_enough", passed=True
            )
        )
    age(connection, days=20)

    done = keep_house()

    assert (done.old_events, done.check_results) == (2, 2)
    assert count(connection, "asset_check_executions") == 1


def test_the_freshness_that_is_in_force_is_not_forgotten(
    instance: dg.DagsterInstance, connection: psycopg.Connection, keep_house: Keep
) -> None:
    key = dg.AssetKey("weekly_close")
    states = [FreshnessState.PASS, FreshnessState.FAIL, FreshnessState.PASS]
    for number, state in enumerate(states):
        instance._report_runless_asset_event(
            FreshnessStateChange(
                key=key,
                previous_state=FreshnessState.UNKNOWN,
                new_state=state,
                state_change_timestamp=float(number),
            )
        )
    age(connection, days=60)

    assert keep_house().old_events == 2

    (record,) = instance.event_log_storage.get_freshness_state_records([key]).values()
    assert record.freshness_state is FreshnessState.PASS


def test_the_period_can_be_chosen(
    instance: dg.DagsterInstance, connection: psycopg.Connection, keep_house: Keep
) -> None:
    for _ in range(2):
        age(connection, run=run_of(instance, coins), days=5)

    assert keep_house(keep_days=6).runs == 0
    assert keep_house(keep_days=4).runs == 1


def test_days_are_counted_in_utc_whatever_zone_the_database_has(
    timezone: str, database: str, instance: dg.DagsterInstance
) -> None:
    with connect(database) as connection:
        runs = [run_of(instance, coins) for _ in range(3)]
        age(connection, run=runs[0], days=KEEP_DAYS, minutes=5)
        age(connection, run=runs[1], days=KEEP_DAYS, minutes=-5)

        housekeep(instance, connection, now=NOW)

    assert [run.run_id for run in instance.get_runs()] == [runs[2], runs[1]]


# --- as it works ---


def test_a_second_time_there_is_nothing_to_delete(
    instance: dg.DagsterInstance, connection: psycopg.Connection, keep_house: Keep
) -> None:
    for key in HOURS:
        poll(instance, "minute_close", key)
    for run in [run_of(instance, coins, is_fresh) for _ in range(3)]:
        age(connection, run=run, days=30)
    first = keep_house()
    assert (first.runs, first.expired_events, first.check_results) == (2, 2, 2)

    again = keep_house()

    assert again == Housekeeping(**NOTHING, runs_kept=1)


def test_it_deletes_in_small_transactions(
    instance: dg.DagsterInstance,
    connection: psycopg.Connection,
    keep_house: Keep,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(housekeeping, "BATCH", 7)
    for number in range(20):
        poll(instance, "monthly_close", f"2025-{number % 11 + 1:02}-01")
        poll(instance, "minute_close", f"2025-11-20-{number:02}:00")
    age(connection, days=20)
    connection.execute(
        "CREATE TABLE deletions (transaction xid8, rows bigint);"
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "INSERT INTO public.deletions SELECT pg_current_xact_id(), count(*) FROM gone; "
        "RETURN NULL; END $$;"
        "CREATE TRIGGER note AFTER DELETE ON dagster.event_logs REFERENCING OLD TABLE AS gone "
        "FOR EACH STATEMENT EXECUTE FUNCTION note()"
    )

    done = keep_house()

    assert (done.expired_events, done.old_events) == (20, 9)
    sizes = connection.execute(
        "SELECT sum(rows)::int FROM deletions GROUP BY transaction"
    ).fetchall()
    assert max(size for (size,) in sizes) <= 7
    assert sum(size for (size,) in sizes) == 29


def test_the_daemon_goes_on_writing_while_a_batch_is_under_way(
    instance: dg.DagsterInstance, connection: psycopg.Connection, database: str
) -> None:
    poll(instance, "minute_close", "2025-11-22-09:00")
    with connect(database) as other, other.transaction(force_rollback=True):
        other.execute("DELETE FROM dagster.event_logs")
        other.execute("DELETE FROM dagster.asset_event_tags")

        poll(instance, "minute_close", "2025-11-22-11:00")
        run_of(instance, coins)

    assert "2025-11-22-11:00" in materialized(instance, "minute_close")


def test_what_an_interruption_leaves_has_its_run_and_goes_the_next_time(
    instance: dg.DagsterInstance,
    connection: psycopg.Connection,
    keep_house: Keep,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for run in [run_of(instance, coins) for _ in range(4)]:
        age(connection, run=run, days=30)
    delete_run, deleted = type(instance).delete_run, list[str]()

    def once(self: dg.DagsterInstance, run_id: str) -> None:
        if deleted:
            raise KeyboardInterrupt
        deleted.append(run_id)
        delete_run(self, run_id)

    with monkeypatch.context() as patch:
        patch.setattr(type(instance), "delete_run", once)
        with pytest.raises(KeyboardInterrupt):
            keep_house()
    assert orphans(connection) == NO_ORPHANS
    assert count(connection, "runs") == 3

    assert keep_house().runs == 2
    assert count(connection, "runs") == 1


def test_the_sizes_are_those_of_dagsters_own_tables(
    instance: dg.DagsterInstance, connection: psycopg.Connection
) -> None:
    sizes = storage_sizes(instance)

    assert {"event_logs", "runs", "job_ticks"} <= set(sizes)
    assert "minute_close" not in sizes
    total = connection.execute(
        "SELECT sum(pg_total_relation_size(oid)) FROM pg_class "
        "WHERE relnamespace = 'dagster'::regnamespace AND relkind = 'r'"
    ).fetchone()
    assert total == (sum(sizes.values()),)


def test_the_run_that_does_it_deletes_others_and_records_itself(
    instance: dg.DagsterInstance, connection: psycopg.Connection, platform: Platform
) -> None:
    for run in [run_of(instance, coins) for _ in range(2)]:
        age(connection, run=run, days=30)

    result = dg.materialize(
        operations_assets(),
        selection=["dagster_housekeeping"],
        resources={"platform": platform},
        instance=instance,
    )

    (event,) = result.asset_materializations_for_node("dagster_housekeeping")
    figures = {key: each.value for key, each in event.metadata.items()}
    assert (figures["runs_deleted"], figures["runs_kept_for_their_state"]) == (1, 1)
    assert figures["bytes_total"] > figures["bytes_event_logs"] > 0
    assert result.run_id in {run.run_id for run in instance.get_runs()}


def test_it_also_works_on_an_instance_that_forgets(connection: psycopg.Connection) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        for key in HOURS:
            poll(instance, "minute_close", key)

        done = housekeep(instance, connection, now=NOW)

        assert done.expired_events == 2
        assert materialized(instance, "minute_close") == {"2025-11-22-11:00"}
        assert storage_sizes(instance) == {}


def test_storage_that_is_no_sql_database_is_refused_with_the_way_out() -> None:
    class Elsewhere:
        event_log_storage = object()

    with pytest.raises(TypeError, match=r"Name PostgreSQL as the storage in dagster\.yaml"):
        storage_sizes(Elsewhere())  # type: ignore[arg-type]
