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
from pulseguard_assets.timeframes import TIMEFRAMES
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


def test_it_collects_rolls_up_fills_gaps_cleans_up_and_watches(
    platform: Platform,
    instance: dg.DagsterInstance,
    provider: RunningSimulator,
    connection: psycopg.Connection,
    defs: dg.Definitions,
    sensor: Any,
    sink: Sink,
    materialize: Callable[..., dg.ExecuteInProcessResult],
    failure: Callable[[dg.ExecuteInProcessResult], str],
) -> None:
    me = connection.execute("SELECT current_user, pg_has_role('pulseguard_owner', 'MEMBER')")
    assert me.fetchone() == (LOGIN, False)

    # Ranks, prices, and rounds of the watchdog.
    connection.execute("SELECT ensure_partitions(%s, %s)", (provider.now, provider.now))
    sweep(platform, connection, now=provider.now, until=provider.now + timedelta(hours=2))
    provider.set_clock(provider.now.replace(second=0, microsecond=0))
    world = World(platform, defs, instance, provider, connection, sensor)
    world.begin()
    world.run(3)
    assert world.failures == world.rounds_failed == 0, world.said
    stored = connection.execute("SELECT count(*) FROM minute_close").fetchone()
    assert stored is not None
    assert stored[0] > 250

    # Something to tell, and to take back.
    provider.fault("server_error")
    world.run(6)
    assert world.incidents()
    assert sink.received
    provider.clear_faults()

    # Every asset, with its checks; what is over is filled from history.
    for asset, partition in (
        ("coin_priorities", None),
        ("minute_close", f"{provider.now:%Y-%m-%d-%H:00}"),
        ("hourly_close", "2025-11-22-09:00"),
        ("daily_close", "2025-11-21"),
        ("weekly_close", "2025-11-10"),
        ("monthly_close", "2025-10-01"),
        ("retention_cleanup", None),
        ("maintenance", None),
        ("dagster_housekeeping", None),
    ):
        done = materialize(asset, partition)
        assert done.success, failure(done)
    for timeframe in TIMEFRAMES[:3]:
        rows = connection.execute(
            sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(timeframe.table))
        ).fetchone()
        assert rows is not None
        assert rows[0] > 0, timeframe.table

    # A day later what was collected is deleted, with its proof.
    provider.advance(timedelta(days=1))
    done = materialize("retention_cleanup")
    assert done.success, failure(done)
    audited = connection.execute("SELECT count(*) FROM retention_audit").fetchone()
    assert audited is not None
    assert audited[0] > 0


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
