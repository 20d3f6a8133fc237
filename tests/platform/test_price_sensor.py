"""The polling sensor, tick by tick, on a Dagster instance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dagster as dg
import psycopg
import pytest
from psycopg import sql

from pulseguard_assets.automation.polling import INTERVAL_SECONDS, SENSOR
from pulseguard_assets.coingecko.planner import PlanCannotPay
from pulseguard_assets.collecting.errors import WarehouseFailed
from pulseguard_assets.collecting.platform import Platform
from pulseguard_assets.collecting.polling import PollFailed
from pulseguard_assets.definitions import build_defs
from pulseguard_assets.warehouse.collections import CollectorBusy
from pulseguard_assets.warehouse.connection import DatabaseUnavailable

NOON_HOUR = "2025-11-22-12:00"
MANY = 3300


def count(connection: psycopg.Connection, table: str = "minute_close") -> int:
    row = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
    assert row is not None
    return int(row[0])


def metadata(record: Any) -> dict[str, Any]:
    return {key: each.value for key, each in record.asset_materialization.metadata.items()}


# --- the first sweep ---


def test_an_empty_database_gets_its_first_sweep_requested(sensor: Any) -> None:
    result, cursor = sensor.tick()

    assert [request.asset_selection for request in result.run_requests] == [
        [dg.AssetKey("coin_priorities")]
    ]
    assert result.asset_events == []
    assert cursor is None
    assert sensor.provider.calls()["total"] == 0


def test_the_first_sweep_is_requested_by_one_key_for_some_minutes(sensor: Any) -> None:
    for _ in range(30):
        sensor.tick()
        sensor.wait(seconds=INTERVAL_SECONDS)

    keys = [request.run_key for request in sensor.requested]
    assert len(keys) == 30
    assert 2 <= len(set(keys)) <= 3, "one in five minutes; Dagster starts a run once per key"


def test_after_the_requested_sweep_the_next_tick_polls(
    sensor: Any, materialize: Callable[..., Any], connection: psycopg.Connection
) -> None:
    (result, _) = sensor.tick()
    (selected,) = result.run_requests[0].asset_selection
    assert materialize(selected.to_user_string()).success
    sensor.wait(seconds=INTERVAL_SECONDS)

    sensor.tick()

    assert len(sensor.materializations()) == 1
    assert count(connection) == 295


def test_a_first_sweep_that_failed_midway_is_asked_for_again_and_polls_go_on(
    sensor: Any, materialize: Callable[..., Any], connection: psycopg.Connection
) -> None:
    assert materialize("coin_priorities").success
    connection.execute("UPDATE collection_status SET status = 'failed'")
    sensor.wait(minutes=6)

    (result, _) = sensor.tick()

    assert [request.run_key.startswith("first-sweep-") for request in result.run_requests] == [True]
    assert len(result.asset_events) == 1
    assert count(connection) == 295

    connection.execute(
        "UPDATE collection_status SET status = 'completed' "
        "WHERE collection_type = 'priority_refresh'"
    )
    sensor.wait(minutes=1)
    assert sensor.tick()[0].run_requests == []


# --- a poll ---


@pytest.mark.usefixtures("swept")
def test_a_poll_is_recorded_as_one_materialization_of_the_open_hour_without_a_run(
    sensor: Any, instance: dg.DagsterInstance
) -> None:
    result, cursor = sensor.tick()

    (event,) = result.asset_events
    assert (event.asset_key, event.partition) == (dg.AssetKey("minute_close"), NOON_HOUR)
    assert cursor == "2025-11-22T12:03:00+00:00"
    (record,) = sensor.materializations()
    assert (record.run_id, record.partition_key) == ("", NOON_HOUR)
    assert instance.get_runs() == []
    assert instance.get_materialized_partitions(dg.AssetKey("minute_close")) == {NOON_HOUR}


@pytest.mark.usefixtures("swept")
def test_the_materialization_tells_the_figures_of_the_poll_as_numbers(
    sensor: Any, connection: psycopg.Connection
) -> None:
    sensor.tick()
    sensor.wait(minutes=1)
    sensor.tick()

    told = metadata(sensor.materializations()[0])
    assert told.pop("oldest_provider_age_seconds") > 86_400
    assert told.pop("minute") == 1763813040.0
    assert told.pop("oldest_provider_time") < 1763813040.0
    assert told == {
        "dagster/row_count": 590,
        "rows_stored": 295,
        "coins_expected": 300,
        "coverage": round(295 / 300, 4),
        "rejected": 5,
        "missing": 0,
        "latency_seconds": 0.0,
        "api_calls": 1,
        "calls_left_this_minute": 999,
        "credits_left_this_month": 4_500_000 - 4,
    }
    assert count(connection) == 590
    assert all(isinstance(value, (int, float)) for value in told.values())


@pytest.mark.usefixtures("swept")
def test_a_tick_that_finds_nothing_due_is_skipped_and_says_until_when(sensor: Any) -> None:
    _, cursor = sensor.tick()
    sensor.wait(seconds=INTERVAL_SECONDS)

    result, after = sensor.tick()

    assert (
        result.skip_message == "Nothing to do until 12:04:00 UTC: this minute's prices are stored."
    )
    assert (result.asset_events, result.run_requests) == ([], [])
    assert after == cursor
    assert len(sensor.materializations()) == 1


@pytest.mark.usefixtures("swept")
def test_ticks_share_a_session_and_make_no_connection_each(
    sensor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = Platform.connect
    made: list[psycopg.Connection] = []

    def counted(platform: Platform) -> psycopg.Connection:
        made.append(connect(platform))
        return made[-1]

    monkeypatch.setattr(Platform, "connect", counted)
    for _ in range(4):
        sensor.tick()
        sensor.wait(seconds=20)

    # One of the ledger, one of the ticks.
    assert len(made) == 2


@pytest.mark.usefixtures("swept")
def test_every_minute_becomes_one_event_and_the_hour_turns_at_the_hour(sensor: Any) -> None:
    sensor.wait(minutes=55, seconds=-27.25)
    for _ in range(3 * 4):
        sensor.tick()
        sensor.wait(seconds=INTERVAL_SECONDS)

    partitions = [record.partition_key for record in reversed(sensor.materializations())]
    assert partitions == [NOON_HOUR, NOON_HOUR, "2025-11-22-13:00", "2025-11-22-13:00"]


@pytest.mark.usefixtures("swept")
def test_a_repeated_tick_whose_event_was_lost_stores_nothing_twice(
    sensor: Any, connection: psycopg.Connection
) -> None:
    """The daemon died between the tick and its events: the cursor is the old one."""
    sensor.tick()
    sensor.cursor = None

    result, _ = sensor.tick()

    assert result.skip_message is not None
    assert count(connection) == 295


# --- a poll over several ticks ---


@pytest.mark.parametrize("coins", [MANY])
@pytest.mark.usefixtures("swept")
def test_a_stretched_poll_is_recorded_tick_by_tick_with_growing_coverage(
    sensor: Any, new_platform: Callable[..., Platform]
) -> None:
    sensor.definitions = build_defs(new_platform(mode=str(MANY), calls_per_minute=5))
    sensor.wait(minutes=1)
    results = []
    for _ in range(4):
        results.append(sensor.tick()[0])
        sensor.wait(seconds=INTERVAL_SECONDS)

    assert [len(each.asset_events) for each in results] == [1, 0, 0, 1]
    assert "the rate limit frees the next call then" in results[1].skip_message
    coverage = [metadata(each)["coverage"] for each in reversed(sensor.materializations())]
    assert 0.5 < coverage[0] < coverage[1] == round(3246 / MANY, 4)


# --- failures ---


@pytest.mark.usefixtures("swept")
def test_a_provider_that_fails_fails_the_tick_and_is_never_a_skip(
    sensor: Any, connection: psycopg.Connection
) -> None:
    sensor.provider.fault("server_error", status=503)
    for _ in range(6):
        with pytest.raises(PollFailed, match="HTTP 503"):
            sensor.tick()
        sensor.wait(seconds=INTERVAL_SECONDS)

    assert sensor.materializations() == []
    assert sensor.cursor is None
    assert count(connection) == 0


@pytest.mark.usefixtures("swept")
def test_a_provider_that_came_back_is_polled_at_the_next_attempt(sensor: Any) -> None:
    sensor.provider.fault("server_error")
    with pytest.raises(PollFailed):
        sensor.tick()
    sensor.provider.clear_faults()
    sensor.wait(minutes=1)

    assert len(sensor.tick()[0].asset_events) == 1


@pytest.mark.parametrize("coins", [MANY])
@pytest.mark.usefixtures("swept")
def test_what_was_stored_before_a_failure_is_recorded_before_it_is_raised(
    sensor: Any, new_platform: Callable[..., Platform], connection: psycopg.Connection
) -> None:
    sensor.definitions = build_defs(new_platform(mode=str(MANY)))
    sensor.provider.fault("server_error", skip=2)

    with pytest.raises(PollFailed, match="HTTP 500"):
        sensor.tick()

    (record,) = sensor.materializations()
    assert record.partition_key == NOON_HOUR
    assert metadata(record)["rows_stored"] == count(connection) > 500


@pytest.mark.usefixtures("swept")
def test_answers_without_any_price_are_no_materialization(sensor: Any) -> None:
    sensor.provider.fault("null", fields=["price"])

    result, _ = sensor.tick()

    assert result.asset_events == []
    assert "no usable price for any of 300 coins" in result.skip_message


@pytest.mark.usefixtures("swept")
def test_a_plan_that_cannot_pay_fails_the_tick_with_the_setting_to_change(
    sensor: Any, new_platform: Callable[..., Platform]
) -> None:
    sensor.definitions = build_defs(new_platform(credits_per_month=20_000, cadence_minutes=1))

    with pytest.raises(PlanCannotPay, match="PULSEGUARD_CADENCE_MINUTES"):
        sensor.tick()


@pytest.mark.usefixtures("swept")
def test_a_poll_by_hand_that_is_under_way_fails_the_tick(
    sensor: Any, connection: psycopg.Connection
) -> None:
    connection.execute("SELECT pg_advisory_lock(1886678900, hashtext('poll'))")

    with pytest.raises(CollectorBusy):
        sensor.tick()


def test_a_database_that_cannot_be_reached_fails_the_tick_with_the_setting(
    sensor: Any, new_platform: Callable[..., Platform]
) -> None:
    sensor.definitions = build_defs(
        new_platform(database_url="postgresql://somebody:s3cret@127.0.0.1:1/prices")
    )

    with pytest.raises(DatabaseUnavailable, match="PULSEGUARD_DATABASE_URL") as failure:
        sensor.tick()

    assert "s3cret" not in str(failure.value)


@pytest.mark.usefixtures("swept")
def test_a_database_that_takes_no_writes_fails_the_tick_in_a_sentence_and_costs_no_call(
    sensor: Any, connection: psycopg.Connection
) -> None:
    switch = "ALTER DATABASE {} SET default_transaction_read_only = {}"
    name = sql.Identifier(connection.info.dbname)
    connection.execute(sql.SQL(switch).format(name, True))
    for _ in range(3):
        with pytest.raises(WarehouseFailed, match="takes no writes") as failure:
            sensor.tick()
        assert "PULSEGUARD_DATABASE_URL" in str(failure.value)
        sensor.wait(seconds=INTERVAL_SECONDS)
    assert sensor.provider.calls()["total"] == 0
    connection.execute(sql.SQL(switch).format(name, False))

    assert len(sensor.tick()[0].asset_events) == 1


@pytest.mark.usefixtures("swept")
def test_a_cursor_of_a_time_that_has_yet_to_come_does_not_stop_collection(
    sensor: Any, connection: psycopg.Connection
) -> None:
    began = sensor.provider.now
    sensor.wait(days=1)
    _, cursor = sensor.tick()
    assert cursor == "2025-11-23T12:03:00+00:00"
    sensor.provider.set_clock(began)

    (event,), cursor = sensor.tick()[0].asset_events, sensor.cursor

    assert event.partition == NOON_HOUR
    assert cursor == "2025-11-22T12:03:00+00:00"
    assert count(connection) == 2 * 295


# --- what Dagster is told of the sensor itself ---


def test_the_sensor_runs_by_default_every_twenty_seconds(defs: dg.Definitions) -> None:
    sensor = defs.get_repository_def().get_sensor_def(SENSOR)

    assert sensor.name == "coingecko_price_sensor"
    assert sensor.default_status is dg.DefaultSensorStatus.RUNNING
    assert sensor.minimum_interval_seconds == 20
    assert sensor.description
