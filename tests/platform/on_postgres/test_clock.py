"""A clock that was ahead and is set back, as Dagster's own tables show it."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import dagster as dg
import psycopg
import pytest
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    InstigatorTick,
    ScheduleInstigatorData,
    SensorInstigatorData,
    TickData,
    TickStatus,
)
from dagster._daemon.sensor import get_elapsed
from watching_support import origin_of

from pulseguard_assets.alerts.instigators import WATCHDOG
from pulseguard_assets.automation.polling import SENSOR
from pulseguard_assets.running.clock import free_dagster

NOW = datetime.fromisoformat("2026-11-22T12:03:27+00:00")
KINDS = {SENSOR: InstigatorType.SENSOR, WATCHDOG: InstigatorType.SCHEDULE}


def tick(instance: dg.DagsterInstance, name: str, at: datetime) -> None:
    """What the daemon leaves of a tick at an instant."""
    origin, seconds = origin_of(name), at.timestamp()
    selector = origin.get_selector().get_id()
    data = (
        SensorInstigatorData(
            seconds + 1, None, 20, "2026-11-22", seconds, seconds - 600, None, seconds
        )
        if name == SENSOR
        else ScheduleInstigatorData("* * * * *", seconds - 600, seconds)
    )
    state = InstigatorState(origin, KINDS[name], InstigatorStatus.DECLARED_IN_CODE, data)
    if instance.get_instigator_state(origin.get_id(), selector) is None:
        instance.add_instigator_state(state)
    else:
        instance.update_instigator_state(state)
    instance.create_tick(
        TickData(
            origin.get_id(),
            name,
            KINDS[name],
            TickStatus.SKIPPED,
            seconds,
            skip_reason="Nothing to do.",
            selector_id=selector,
            end_timestamp=seconds + 1,
        )
    )


def state_of(instance: dg.DagsterInstance, name: str) -> Any:
    origin = origin_of(name)
    found = instance.get_instigator_state(origin.get_id(), origin.get_selector().get_id())
    assert found is not None
    return found


def ticks_of(instance: dg.DagsterInstance, name: str) -> list[InstigatorTick]:
    origin = origin_of(name)
    return list(instance.get_ticks(origin.get_id(), origin.get_selector().get_id()))


@pytest.mark.parametrize("ahead", [timedelta(minutes=3), timedelta(days=1), timedelta(days=365)])
def test_dagster_waits_for_no_time_that_has_yet_to_come(
    instance: dg.DagsterInstance, connection: psycopg.Connection, ahead: timedelta
) -> None:
    for name in KINDS:
        tick(instance, name, NOW - timedelta(seconds=30))
        tick(instance, name, NOW + ahead)

    assert free_dagster(connection, NOW) == 2

    now = NOW.timestamp()
    sensor = state_of(instance, SENSOR).instigator_data
    assert (sensor.last_tick_timestamp, sensor.last_tick_start_timestamp) == (now, now)
    assert (sensor.cursor, sensor.min_interval) == ("2026-11-22", 20), "the rest is as it was"
    assert (get_elapsed(state_of(instance, SENSOR)) or 0) + now == pytest.approx(
        datetime.now(NOW.tzinfo).timestamp(), abs=5
    ), "as Dagster reads it"
    assert state_of(instance, WATCHDOG).instigator_data.last_iteration_timestamp == now
    for name in KINDS:
        assert [each.timestamp for each in ticks_of(instance, name)] == [now, now - 30]
        assert {each.skip_reason for each in ticks_of(instance, name)} == {"Nothing to do."}
        assert state_of(instance, name).status is InstigatorStatus.DECLARED_IN_CODE
    assert free_dagster(connection, NOW) == 0, "nothing is left of it"


def test_what_lies_behind_or_a_moment_ahead_is_left_alone(
    instance: dg.DagsterInstance, connection: psycopg.Connection
) -> None:
    tick(instance, SENSOR, NOW + timedelta(seconds=45))
    tick(instance, WATCHDOG, NOW - timedelta(hours=1))

    assert free_dagster(connection, NOW) == 0

    assert [each.timestamp for each in ticks_of(instance, SENSOR)] == [NOW.timestamp() + 45]


def test_before_dagster_has_made_its_tables_there_is_nothing_to_free(
    postgres: Any,
) -> None:
    with postgres.new_database() as dsn, psycopg.connect(dsn, autocommit=True) as connection:
        assert free_dagster(connection, NOW) == 0
