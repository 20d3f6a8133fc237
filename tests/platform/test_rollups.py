"""Materializing past partitions: what a run reports, and when it has failed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

import dagster as dg
import psycopg
import pytest
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
)

from pulseguard_assets.definitions import build_defs
from pulseguard_assets.simulator.server import RunningSimulator
from pulseguard_assets.timeframes import TIMEFRAMES

Run = Callable[..., dg.ExecuteInProcessResult]
Failure = Callable[[dg.ExecuteInProcessResult], str]

COINS = 20

pytestmark = [pytest.mark.usefixtures("swept"), pytest.mark.parametrize("coins", [COINS])]


@pytest.fixture
def run(defs: dg.Definitions, instance: dg.DagsterInstance) -> Run:
    """`run("hourly_close", first, last=None, **config)`: a range, as a backfill of the UI would."""

    def execute(
        asset: str, first: str, last: str | None = None, **config: Any
    ) -> dg.ExecuteInProcessResult:
        tags = {
            ASSET_PARTITION_RANGE_START_TAG: first,
            ASSET_PARTITION_RANGE_END_TAG: last or first,
        }
        return defs.resolve_implicit_global_asset_job_def().execute_in_process(
            asset_selection=[dg.AssetKey(asset)],
            instance=instance,
            raise_on_error=False,
            tags=tags,
            run_config={"ops": {asset: {"config": config}}} if config else None,
        )

    return execute


def told(result: dg.ExecuteInProcessResult, asset: str) -> dict[str, Any]:
    """The metadata of the last materialization of a run."""
    assert result.success
    event = result.asset_materializations_for_node(asset)[-1]
    return {key: each.value for key, each in event.metadata.items()}


def failure_data(result: dg.ExecuteInProcessResult) -> Mapping[str, Any]:
    """The metadata that a failed step leaves."""
    (failed,) = [event for event in result.all_events if event.is_step_failure]
    data: Any = failed.step_failure_data
    assert data.user_failure_data is not None
    return {key: each.value for key, each in data.user_failure_data.metadata.items()}


def count(connection: psycopg.Connection, table: str) -> int:
    row = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
    assert row is not None
    return int(row[0])


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=timezone.utc)


# --- one run over a range ---


def test_a_range_is_one_run_with_one_call_per_coin_and_an_event_per_partition(
    run: Run, provider: RunningSimulator, connection: psycopg.Connection
) -> None:
    provider.fault("null", coins=["tron"], endpoint="market_chart_range")

    result = run("hourly_close", "2025-11-22-05:00", "2025-11-22-10:00")

    figures = told(result, "hourly_close")
    without = figures.pop("without_close")
    assert figures == {
        "dagster/row_count": 6 * (COINS - 1),
        "rows_written": 0,
        "history_written": 6 * (COINS - 1),
        "rows_held": 6 * (COINS - 1),
        "coins_expected": 6 * COINS,
        "coins_seen": 6 * (COINS - 1),
        "coverage": 0.95,
        "from_live": 0,
        "from_history": 6 * (COINS - 1),
        "api_calls": COINS,
        "still_lacking": 0,
        "credits_left": figures["credits_left"],
    }
    assert without.startswith("| coin | why |")
    assert "| tron |" in without
    assert provider.calls()["total"] == COINS
    events = result.asset_materializations_for_node("hourly_close")
    assert [event.partition for event in events] == [
        f"2025-11-22-{hour:02}:00" for hour in range(5, 11)
    ]
    assert count(connection, "hourly_close") == 6 * (COINS - 1)


def test_a_range_of_days_across_months_is_one_call_per_coin(
    run: Run, provider: RunningSimulator
) -> None:
    figures = told(run("daily_close", "2025-05-01", "2025-10-31"), "daily_close")

    assert provider.calls()["total"] == figures["api_calls"] == COINS
    assert figures["rows_held"] == 184 * COINS


def test_a_single_partition_tells_its_own_rows(run: Run) -> None:
    figures = told(run("weekly_close", "2025-11-10"), "weekly_close")

    assert figures["dagster/partition_row_count"] == figures["rows_held"] == COINS


def test_a_second_run_of_the_same_partition_asks_nothing(
    run: Run, provider: RunningSimulator
) -> None:
    run("daily_close", "2025-11-10", "2025-11-16")
    provider.reset()

    figures = told(run("daily_close", "2025-11-10", "2025-11-16"), "daily_close")

    assert provider.calls()["total"] == figures["api_calls"] == 0
    assert (figures["rows_written"], figures["history_written"]) == (0, 0)
    assert figures["rows_held"] == 7 * COINS


def test_a_week_of_backfilled_days_ends_in_the_same_close_as_the_week_itself(
    run: Run, connection: psycopg.Connection, provider: RunningSimulator
) -> None:
    run("daily_close", "2025-11-10", "2025-11-16")

    figures = told(run("weekly_close", "2025-11-10"), "weekly_close")

    assert figures["api_calls"] == 0
    row = connection.execute(
        "SELECT price_usd::float8, close_ts FROM weekly_close WHERE coin_id = 'bitcoin'"
    ).fetchone()
    truth = provider.market.close("bitcoin", at("2025-11-17"), "history")
    assert truth is not None
    assert row == (truth.price, truth.close_ts)


# --- when it has failed ---


def test_a_partition_beyond_the_plans_reach_fails_with_what_can_be_had_instead(
    run: Run, defs: dg.Definitions, new_platform: Any, failure: Failure, instance: Any
) -> None:
    platform = new_platform(history_days=100)
    job = build_defs(platform).resolve_implicit_global_asset_job_def()

    result = job.execute_in_process(
        asset_selection=[dg.AssetKey("daily_close")],
        instance=instance,
        raise_on_error=False,
        tags={
            ASSET_PARTITION_RANGE_START_TAG: "2025-08-01",
            ASSET_PARTITION_RANGE_END_TAG: "2025-08-31",
        },
    )

    assert not result.success
    assert "100 days" in failure(result)
    figures = failure_data(result)
    assert figures["rows_held"] == figures["from_history"] > 0, "what could be had is stored"
    assert figures["still_lacking"] > 0
    assert instance.get_materialized_partitions(dg.AssetKey("daily_close")) == set()


def test_a_provider_that_fails_fails_the_run_and_names_the_reason(
    run: Run, failure: Failure, provider: RunningSimulator
) -> None:
    provider.fault("server_error", status=503, skip=10)

    result = run("daily_close", "2025-11-10")

    assert "HTTP 503" in failure(result)
    assert failure_data(result)["still_lacking"] > 0


def test_a_partition_in_which_no_coin_has_a_close_fails_and_says_why(
    run: Run, failure: Failure, provider: RunningSimulator
) -> None:
    provider.fault("not_found")

    result = run("daily_close", "2025-11-10")

    assert "Nothing is stored of 2025-11-10" in failure(result)
    assert "no such coin" in failure(result)


def test_most_calls_of_a_run_are_kept_to_and_reaching_them_is_no_failure(
    run: Run, provider: RunningSimulator
) -> None:
    figures = told(run("daily_close", "2025-11-10", max_calls=7), "daily_close")

    assert provider.calls()["total"] == figures["api_calls"] == 7
    assert "max_calls" in figures["stopped"]
    assert figures["still_lacking"] == COINS - 7


def test_a_run_allowed_no_call_only_rolls_up(
    run: Run, provider: RunningSimulator, connection: psycopg.Connection
) -> None:
    connection.execute(
        "INSERT INTO hourly_close (coin_id, hour_ts, price_usd) "
        "VALUES ('bitcoin', '2025-11-10 07:00+00', 5)"
    )

    figures = told(run("daily_close", "2025-11-10", max_calls=0), "daily_close")

    assert (figures["rows_written"], figures["api_calls"], provider.calls()["total"]) == (1, 0, 0)
    assert figures["still_lacking"] == COINS


def test_spending_the_reserve_is_a_choice_of_the_run(
    run: Run, new_platform: Any, failure: Failure, connection: psycopg.Connection
) -> None:
    connection.execute(
        "INSERT INTO api_usage_stats (date, total_calls) VALUES ('2025-11-01', 4495000)"
    )

    assert "spend_reserve: true" in failure(run("daily_close", "2025-11-10"))
    assert run("daily_close", "2025-11-10", spend_reserve=True).success


# --- fresh and open windows ---


def test_an_hour_too_fresh_for_history_is_no_failure_and_tells_from_when_on(run: Run) -> None:
    figures = told(run("hourly_close", "2025-11-22-11:00"), "hourly_close")

    assert figures["history_from"] == at("2025-11-22 12:30").timestamp()
    assert (figures["api_calls"], figures["still_lacking"]) == (0, COINS)


def test_an_open_bucket_of_which_nothing_is_stored_fails(
    run: Run, failure: Failure, provider: RunningSimulator
) -> None:
    assert "Nothing is stored of 2025-11-22" in failure(run("daily_close", "2025-11-22"))
    assert provider.calls()["total"] == 0


# --- minutes ---


def test_past_hours_of_the_last_day_are_filled_with_five_minute_points(
    run: Run, provider: RunningSimulator, connection: psycopg.Connection
) -> None:
    figures = told(run("minute_close", "2025-11-22-08:00", "2025-11-22-09:00"), "minute_close")

    assert provider.calls()["total"] == figures["api_calls"] == COINS
    assert count(connection, "minute_close") == figures["rows_held"] == 24 * COINS
    assert count(connection, "hourly_close") == 2 * COINS


def test_an_hour_beyond_five_minute_reach_is_refused_and_hourly_close_is_named(
    run: Run, failure: Failure, provider: RunningSimulator
) -> None:
    result = run("minute_close", "2025-11-20-08:00")

    assert "hourly_close" in failure(result)
    assert "24 hours" in failure(result)
    assert provider.calls()["total"] == 0


def test_a_range_that_holds_the_open_hour_is_refused(
    run: Run, failure: Failure, provider: RunningSimulator
) -> None:
    result = run("minute_close", "2025-11-22-10:00", "2025-11-22-12:00")

    assert "hold the open one" in failure(result)
    assert provider.calls()["total"] == 0


# --- what Dagster is told ---


def test_backfills_are_runs_of_a_bounded_number_of_partitions(defs: dg.Definitions) -> None:
    graph: Any = defs.resolve_asset_graph()

    assert {
        timeframe.name: graph.get(
            dg.AssetKey(timeframe.table)
        ).backfill_policy.max_partitions_per_run
        for timeframe in TIMEFRAMES
    } == {"minute": 24, "hourly": 168, "daily": 400, "weekly": 60, "monthly": 36}


def test_progress_is_in_the_log_of_the_run(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    run("daily_close", "2025-11-10")

    assert f"{COINS} of {COINS} coins asked for by {COINS} calls" in capfd.readouterr().err


def test_a_month_of_missed_schedules_is_filled_by_one_run_when_somebody_asks(
    run: Run, provider: RunningSimulator
) -> None:
    provider.advance(timedelta(days=40))

    figures = told(run("daily_close", "2025-11-22", "2025-12-31"), "daily_close")

    assert (figures["api_calls"], figures["still_lacking"]) == (COINS, 0)
