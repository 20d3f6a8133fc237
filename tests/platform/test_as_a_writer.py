"""The platform as a login that is a writer and nothing else, on tables that are somebody else's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import dagster as dg
import psycopg
import pytest
from psycopg import sql
from watching_support import Sink, World, instance_on

from pulseguard_assets.collecting.platform import Platform
from pulseguard_assets.collecting.sweep import sweep
from pulseguard_assets.simulator.server import RunningSimulator
from pulseguard_assets.warehouse.connection import connect, ensure_dagster_schema
from pulseguard_assets.warehouse.roles import ROLES, install_roles

LOGIN = "collector"


@pytest.fixture
def database(postgres: Any) -> Iterator[str]:
    """The URL of a database that others brought up to date, for a login that is but a writer."""
    with connect(postgres.dsn) as admin:
        admin.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(LOGIN)))
        with postgres.new_database(postgres.migrated_template()) as dsn:
            install_roles(dsn)
            admin.execute(sql.SQL("GRANT pulseguard_writer TO {}").format(sql.Identifier(LOGIN)))
            yield dsn.replace("pulseguard@", f"{LOGIN}@")
        for role in (LOGIN, *ROLES):
            admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


@pytest.fixture
def instance(database: str) -> Iterator[dg.DagsterInstance]:
    """A Dagster instance whose tables this login makes, as the first `pulseguard up` does."""
    with instance_on(database, role=ensure_dagster_schema(database)) as instance:
        yield instance


@pytest.fixture
def platform(new_platform: Callable[..., Platform], sink: Sink) -> Platform:
    """A platform whose alerts go to `sink`."""
    return new_platform(alert_urls=sink.url)


@pytest.fixture
def run(defs: dg.Definitions, instance: dg.DagsterInstance) -> Callable[..., None]:
    """`run("maintenance", "incidents")`: one run of these assets, which must succeed."""

    def run(*assets: str, partition: str | None = None) -> None:
        done = defs.resolve_implicit_global_asset_job_def().execute_in_process(
            asset_selection=[dg.AssetKey(asset) for asset in assets],
            partition_key=partition,
            instance=instance,
            raise_on_error=False,
        )
        assert done.success, [e.step_failure_data for e in done.all_events if e.is_step_failure]

    return run


def test_it_collects_rolls_up_fills_gaps_cleans_up_and_watches(
    platform: Platform,
    instance: dg.DagsterInstance,
    provider: RunningSimulator,
    connection: psycopg.Connection,
    defs: dg.Definitions,
    sensor: Any,
    sink: Sink,
    run: Callable[..., None],
) -> None:
    me = connection.execute("SELECT current_user, pg_has_role('pulseguard_owner', 'MEMBER')")
    assert me.fetchone() == (LOGIN, False)

    # Ranks, prices, and rounds of the watchdog; then something to tell.
    connection.execute("SELECT ensure_partitions(%s, %s)", (provider.now, provider.now))
    sweep(platform, connection, now=provider.now, until=provider.now + timedelta(hours=2))
    provider.set_clock(provider.now.replace(second=0, microsecond=0))
    world = World(platform, defs, instance, provider, connection, sensor)
    world.begin()
    world.run(1)
    assert world.failures == world.rounds_failed == 0, world.said
    provider.fault("server_error")
    world.run(2)
    assert sink.received
    provider.clear_faults()

    # Windows that are over are filled from history, with their checks.
    run("hourly_close", partition="2025-11-22-09:00")
    run("daily_close", partition="2025-11-21")
    rows = connection.execute("SELECT DISTINCT source FROM daily_close").fetchall()
    assert ("history",) in rows

    # A day later what was collected is deleted, with its proof.
    provider.advance(timedelta(days=1))
    run("coin_priorities", "retention_cleanup", "maintenance", "dagster_housekeeping")
    deleted = "SELECT count(*) FILTER (WHERE table_name = 'minute_close') FROM retention_audit"
    assert connection.execute(deleted).fetchone() != (0,)
    assert connection.execute("SELECT count(*) FROM minute_close").fetchone() == (0,)


def test_dagsters_tables_can_be_altered_by_another_writer(
    instance: dg.DagsterInstance, database: str
) -> None:
    assert instance.get_runs() == []
    with connect(database) as writer:
        owners = writer.execute(
            "SELECT DISTINCT pg_get_userbyid(relowner) FROM pg_class "
            "WHERE relnamespace = 'dagster'::regnamespace"
        ).fetchall()
        assert owners == [("pulseguard_writer",)]
        writer.execute("ALTER TABLE dagster.runs ADD COLUMN of_a_newer_version text")
