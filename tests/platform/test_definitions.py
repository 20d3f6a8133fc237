"""What Dagster finds when it loads the code location."""

from __future__ import annotations

import importlib
import itertools
import re
import subprocess
import sys
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.partitions.context import partition_loading_context

from pulseguard_assets.assets.partitions import key_at, partitions_of
from pulseguard_assets.definitions import build_defs
from pulseguard_assets.settings import SettingsError
from pulseguard_assets.timeframes import DAILY, HOURLY, MINUTE, MONTHLY, TIMEFRAMES, WEEKLY

ROOT = Path(__file__).parents[2]
CHAIN = [
    "coingecko/coins_markets",
    "coin_priorities",
    "minute_close",
    "hourly_close",
    "daily_close",
    "monthly_close",
]


@pytest.fixture
def graph(defs: dg.Definitions) -> Any:
    """The asset graph."""
    return defs.resolve_asset_graph()


def parents(graph: Any, asset: str) -> set[str]:
    key = dg.AssetKey.from_user_string(asset)
    return {each.to_user_string() for each in graph.get(key).parent_keys}


# --- loading ---


def test_assets_of_ones_own_stand_beside_ours_as_the_documentation_shows(
    only_our_settings: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shown = (ROOT / "docs" / "running.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", shown, re.DOTALL)
    (tmp_path / "prices_as_shown.py").write_text(code, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)

    defs = importlib.import_module("prices_as_shown").defs

    dg.Definitions.validate_loadable(defs)
    assert parents(defs.resolve_asset_graph(), "portfolio_value") == {"daily_close"}
    ours = build_defs()
    assert {each.name for each in defs.sensors} == {each.name for each in ours.sensors or ()}
    assert defs.executor is dg.in_process_executor


def test_the_definitions_load_in_a_new_process_with_warnings_as_errors(
    only_our_settings: None, tmp_path: Path
) -> None:
    """As the code server does it, without a database, a key or a network."""
    result = subprocess.run(
        [
            sys.executable,
            "-W",
            "error:::pulseguard_assets",
            "-c",
            "import warnings, dagster as dg\n"
            "warnings.simplefilter('error')\n"
            "from pulseguard_assets.definitions import defs\n"
            "dg.Definitions.validate_loadable(defs)\n"
            "print(len(defs.resolve_all_asset_specs()))",
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )

    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "13\n"


def test_a_wrong_setting_is_told_by_its_name_when_the_definitions_load(
    only_our_settings: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PULSEGUARD_PLAN", "platinum")

    with pytest.raises(SettingsError, match="PULSEGUARD_PLAN"):
        build_defs()


def test_the_code_location_has_one_name() -> None:
    """The on/off state of a sensor is filed under it."""
    names = re.findall(
        r"(?:location_name: |code_location_name = )\"?([a-z]+)",
        (ROOT / "workspace.yaml").read_text() + (ROOT / "pyproject.toml").read_text(),
    )

    assert names == ["pulseguard", "pulseguard"]


# --- lineage ---


def test_lineage_runs_from_the_provider_to_the_month(graph: Any) -> None:
    for parent, child in itertools.pairwise(CHAIN):
        assert parent in parents(graph, child)
    history = "coingecko/market_chart_range"
    live = {"coin_priorities", "coingecko/simple_price"}
    assert parents(graph, "minute_close") == {*live, history}
    assert parents(graph, "weekly_close") == {"daily_close", history}, "never a month from weeks"
    assert parents(graph, "monthly_close") == {"daily_close", history}


def test_the_provider_is_external_and_all_else_can_be_materialized(graph: Any) -> None:
    external = {key.to_user_string() for key in graph.external_asset_keys}

    assert external == {
        "coingecko/coins_markets",
        "coingecko/market_chart_range",
        "coingecko/simple_price",
    }
    assert {key.to_user_string() for key in graph.materializable_asset_keys} == {
        "coin_priorities",
        *(timeframe.table for timeframe in TIMEFRAMES),
        "dagster_housekeeping",
        "incidents",
        "maintenance",
        "retention_cleanup",
    }


# --- partitions ---


def test_every_close_is_partitioned_from_one_start_in_utc(graph: Any) -> None:
    for timeframe in TIMEFRAMES:
        partitions = graph.get(dg.AssetKey(timeframe.table)).partitions_def
        assert isinstance(partitions, dg.TimeWindowPartitionsDefinition)
        assert partitions.timezone == "UTC"
        assert partitions.start == datetime(2025, 1, 1, tzinfo=timezone.utc)
        assert partitions.end_offset == 1, "the open one exists"


@pytest.mark.parametrize(
    ("timeframe", "instant", "key", "start", "end"),
    [
        (MINUTE, "2025-11-22 12:03", "2025-11-22-12:00", "2025-11-22 12:00", "2025-11-22 13:00"),
        (HOURLY, "2025-11-22 12:59", "2025-11-22-12:00", "2025-11-22 12:00", "2025-11-22 13:00"),
        (DAILY, "2025-11-22 23:59", "2025-11-22", "2025-11-22 00:00", "2025-11-23 00:00"),
        (WEEKLY, "2025-11-23 23:59", "2025-11-17", "2025-11-17 00:00", "2025-11-24 00:00"),
        (WEEKLY, "2025-11-24 00:00", "2025-11-24", "2025-11-24 00:00", "2025-12-01 00:00"),
        (MONTHLY, "2025-11-30 23:59", "2025-11-01", "2025-11-01 00:00", "2025-12-01 00:00"),
    ],
)
def test_a_partition_is_the_utc_bucket_that_holds_its_instants(
    timeframe: Any, instant: str, key: str, start: str, end: str
) -> None:
    partitions = partitions_of(timeframe, date(2025, 1, 1))

    found = key_at(partitions, at(instant))

    assert found == key
    window = partitions.time_window_for_partition_key(found)
    assert (window.start, window.end) == (at(start), at(end))


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=timezone.utc)


def test_the_open_bucket_is_the_newest_partition() -> None:
    with partition_loading_context(effective_dt=at("2025-11-22 12:03")):
        newest = {
            timeframe.name: partitions_of(timeframe, date(2025, 1, 1)).get_last_partition_key()
            for timeframe in TIMEFRAMES
        }

    assert newest == {
        "minute": "2025-11-22-12:00",
        "hourly": "2025-11-22-12:00",
        "daily": "2025-11-22",
        "weekly": "2025-11-17",
        "monthly": "2025-11-01",
    }


def test_a_day_has_24_hours_also_where_clocks_are_changed() -> None:
    hours = partitions_of(HOURLY, date(2025, 1, 1)).get_partition_keys()

    for day in ("2025-03-09", "2025-03-30", "2025-10-26", "2025-11-02"):
        assert len([key for key in hours if key.startswith(day)]) == 24


def test_the_start_is_a_setting(new_platform: Any) -> None:
    graph: Any = build_defs(new_platform(history_start=date(2025, 5, 6))).resolve_asset_graph()

    hours = graph.get(dg.AssetKey("minute_close")).partitions_def
    assert hours.get_first_partition_key() == "2025-05-06-00:00"


# --- automation ---


def test_ranks_are_swept_daily_at_midnight_utc(defs: dg.Definitions) -> None:
    schedule = defs.get_repository_def().get_schedule_def("coin_priorities_schedule")

    assert (schedule.cron_schedule, schedule.execution_timezone) == ("0 0 * * *", "UTC")
    assert schedule.default_status is dg.DefaultScheduleStatus.RUNNING


def test_the_schedule_requests_a_sweep_and_nothing_else(
    defs: dg.Definitions, instance: dg.DagsterInstance
) -> None:
    repository = defs.get_repository_def()
    schedule = repository.get_schedule_def("coin_priorities_schedule")
    context = dg.build_schedule_context(
        instance, scheduled_execution_time=at("2025-11-23 00:00"), repository_def=repository
    )

    data = schedule.evaluate_tick(context)

    assert len(data.run_requests or []) == 1
    job = repository.get_job(schedule.job_name)
    assert {key.to_user_string() for key in job.asset_layer.executable_asset_keys} == {
        "coin_priorities"
    }
