"""The schedules of the rollups, tick by tick, and what the runs they request leave behind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import psycopg
import pytest
from dagster._core.test_utils import freeze_time

from pulseguard_assets.assets.coin_priorities import coin_priorities
from pulseguard_assets.assets.minute_close import minute_close_asset
from pulseguard_assets.assets.rollups import rollup_assets
from pulseguard_assets.automation.rolling_up import rollup_schedules
from pulseguard_assets.automation.windows import RANGE_END, RANGE_START, spans_of
from pulseguard_assets.collecting.platform import Platform
from pulseguard_assets.simulator.server import RunningSimulator

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
COINS = ("bitcoin", "ethereum")


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=timezone.utc)


def definitions_on(platform: Platform, start: date = date(2025, 1, 1)) -> dg.Definitions:
    return dg.Definitions(
        assets=[coin_priorities, minute_close_asset(start), *rollup_assets(start)],
        schedules=rollup_schedules(start),
        resources={"platform": platform},
        executor=dg.in_process_executor,
    )


@dataclass
class Scheduler:
    """The daemon's part: evaluates a schedule, and runs what it requests."""

    definitions: dg.Definitions
    instance: dg.DagsterInstance
    provider: RunningSimulator

    def tick(self, name: str) -> Any:
        """Evaluate `<name>_close_schedule` at the simulated time."""
        repository = self.definitions.get_repository_def()
        context = dg.build_schedule_context(
            self.instance,
            scheduled_execution_time=self.provider.now,
            repository_def=repository,
            resources=self.definitions.resources,
        )
        with context:
            return repository.get_schedule_def(f"{name}_close_schedule").evaluate_tick(context)

    def asked(self, name: str) -> list[tuple[str, str]]:
        """The first and last partition of every run that a tick requests."""
        return [spanned(request) for request in self.tick(name).run_requests]

    def execute(self, requests: Sequence[dg.RunRequest]) -> None:
        """Execute the requests of a schedule in process, with its own job."""
        repository = self.definitions.get_repository_def()
        for request in requests:
            schedule = repository.get_schedule_def(request.tags["dagster/schedule_name"])
            result = repository.get_job(schedule.job_name).execute_in_process(
                run_config=request.run_config,
                tags=request.tags,
                asset_selection=list(request.asset_selection or ()),
                instance=self.instance,
            )
            assert result.success

    def tick_and_execute(self, *names: str) -> None:
        """One tick of each, with the runs it requests."""
        for name in names:
            self.execute(self.tick(name).run_requests)

    def materialized(self, name: str) -> set[str]:
        """The partitions of `<name>_close` that Dagster counts as materialized."""
        return self.instance.get_materialized_partitions(dg.AssetKey(f"{name}_close"))


def spanned(request: dg.RunRequest) -> tuple[str, str]:
    return request.tags[RANGE_START], request.tags[RANGE_END]


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """An instance that a schedule's context can hold: the one in memory has no reference."""
    quiet = {"telemetry": {"enabled": False}}
    with dg.DagsterInstance.local_temp(str(tmp_path), overrides=quiet) as instance:
        yield instance


@pytest.fixture
def scheduler(
    platform: Platform, instance: dg.DagsterInstance, provider: RunningSimulator
) -> Scheduler:
    """The schedules over empty tables, at 13:02 of a Saturday."""
    provider.set_clock(at("2025-11-22 13:02:01"))
    return Scheduler(definitions_on(platform), instance, provider)


@pytest.fixture(autouse=True)
def known_coins(connection: psycopg.Connection) -> None:
    """Two coins are known, in place of the simulator's three hundred."""
    connection.execute(
        "INSERT INTO coin_priorities (coin_id, created_at) SELECT unnest(%s::text[]), '2025-01-01'",
        (list(COINS),),
    )


def observe(connection: psycopg.Connection, *minutes: datetime, price: float = 2.0) -> None:
    """One live observation of every coin in each of the minutes."""
    for minute in minutes:
        connection.execute("SELECT ensure_partitions(%s, %s)", (minute, minute))
        connection.execute(
            "INSERT INTO minute_close (coin_id, minute_ts, price_usd, created_at) "
            "SELECT unnest(%s::text[]), %s, %s, %s",
            (list(COINS), minute, price, minute + timedelta(seconds=20)),
        )


def hours_before(now: datetime, number: int) -> list[datetime]:
    """The last minutes of the last closed hours, oldest first."""
    end = now.replace(minute=0, second=0, microsecond=0)
    return [end - n * HOUR - timedelta(minutes=1) for n in reversed(range(number))]


def prices(connection: psycopg.Connection, table: str, label: str) -> dict[str, float]:
    """What a close table holds of bitcoin: label -> price."""
    rows = connection.execute(
        f"SELECT {label}::text, price_usd FROM {table} WHERE coin_id = 'bitcoin' ORDER BY 1"
    ).fetchall()
    return {row[0].removesuffix("+00").removesuffix(" 00:00:00"): float(row[1]) for row in rows}


# --- what Dagster is told of the schedules ---


def test_each_rollup_has_a_schedule_in_utc_that_runs_by_default(scheduler: Scheduler) -> None:
    schedules = {
        each.name: (each.cron_schedule, each.execution_timezone, each.default_status)
        for each in scheduler.definitions.get_repository_def().schedule_defs
    }

    running = dg.DefaultScheduleStatus.RUNNING
    assert schedules == {
        "hourly_close_schedule": ("2 * * * *", "UTC", running),
        "daily_close_schedule": ("5 * * * *", "UTC", running),
        "weekly_close_schedule": ("10 0 * * *", "UTC", running),
        "monthly_close_schedule": ("15 0 * * *", "UTC", running),
    }


# --- nothing to do ---


@pytest.mark.parametrize("name", ["hourly", "daily", "weekly", "monthly"])
def test_where_nothing_is_stored_nothing_is_requested_and_the_tick_says_so(
    scheduler: Scheduler, name: str
) -> None:
    done = scheduler.tick(name)

    assert done.run_requests == []
    assert done.skip_message.startswith("Every ")
    assert "of which anything is stored was materialized since it closed" in done.skip_message


# --- after an outage of the schedules ---


def test_six_hours_without_schedules_heal_at_the_next_tick_and_then_nothing_is_left(
    scheduler: Scheduler, connection: psycopg.Connection
) -> None:
    observe(connection, *hours_before(scheduler.provider.now, 6))

    done = scheduler.tick("hourly")
    assert list(map(spanned, done.run_requests)) == [("2025-11-22-07:00", "2025-11-22-12:00")]
    scheduler.execute(done.run_requests)

    assert scheduler.materialized("hourly") == {f"2025-11-22-{hour:02}:00" for hour in range(7, 13)}
    assert scheduler.tick("hourly").run_requests == []


def test_hours_of_which_nothing_is_stored_are_left_to_the_repair(
    scheduler: Scheduler, connection: psycopg.Connection
) -> None:
    hours = hours_before(scheduler.provider.now, 6)
    observe(connection, *hours[:2], *hours[4:])

    assert scheduler.asked("hourly") == [
        ("2025-11-22-07:00", "2025-11-22-08:00"),
        ("2025-11-22-11:00", "2025-11-22-12:00"),
    ]


def test_the_open_hour_is_left_to_its_trigger(
    scheduler: Scheduler, connection: psycopg.Connection
) -> None:
    observe(connection, scheduler.provider.now.replace(second=0, microsecond=0))

    assert scheduler.asked("hourly") == []


def test_an_hour_materialized_by_hand_parts_the_range_and_is_not_requested_again(
    scheduler: Scheduler, connection: psycopg.Connection
) -> None:
    observe(connection, *hours_before(scheduler.provider.now, 6))
    requests = scheduler.tick("hourly").run_requests
    scheduler.execute(
        [requests[0].with_replaced_attrs(tags=requests[0].tags | only("2025-11-22-09:00"))]
    )

    assert scheduler.asked("hourly") == [
        ("2025-11-22-07:00", "2025-11-22-08:00"),
        ("2025-11-22-10:00", "2025-11-22-12:00"),
    ]


def only(key: str) -> dict[str, str]:
    return {RANGE_START: key, RANGE_END: key}


def test_six_days_without_schedules_heal_at_the_next_tick_with_the_open_day(
    scheduler: Scheduler, connection: psycopg.Connection
) -> None:
    days = [at("2025-11-22 11:59") - n * DAY for n in reversed(range(7))]
    for number, minute in enumerate(days, start=1):
        observe(connection, minute, price=number)

    scheduler.tick_and_execute("daily")

    assert scheduler.materialized("daily") == {f"2025-11-{day}" for day in range(16, 23)}
    assert prices(connection, "daily_close", "day_ts") == {
        f"2025-11-{15 + number}": number for number in range(1, 8)
    }
    assert scheduler.asked("daily") == [("2025-11-22", "2025-11-22")], "only the open day"


def test_two_months_without_schedules_lose_no_week_and_no_month(
    scheduler: Scheduler, connection: psycopg.Connection
) -> None:
    """A week that lies in two months gives both their close, each of its own days."""
    observe(connection, at("2025-10-31 23:59"), price=31)
    observe(connection, at("2025-11-02 23:59"), price=2)
    scheduler.provider.set_clock(at("2025-11-03 00:15:01"))
    scheduler.tick_and_execute("hourly", "daily", "weekly", "monthly")

    assert prices(connection, "weekly_close", "week_ts") == {"2025-10-27": 2}
    assert prices(connection, "monthly_close", "month_ts") == {"2025-10-01": 31, "2025-11-01": 2}
    assert scheduler.materialized("weekly") == {"2025-10-27"}
    assert scheduler.materialized("monthly") == {"2025-10-01", "2025-11-01"}
    scheduler.provider.set_clock(at("2025-12-20 00:15:01"))
    assert scheduler.asked("weekly") == [], "it holds nothing since"
    assert scheduler.asked("monthly") == []


@pytest.mark.parametrize(
    ("name", "oldest", "too_old"),
    [
        ("hourly", "2025-11-20 13:01", "2025-11-20 12:59"),
        ("daily", "2025-11-08 00:00", "2025-11-07 23:59"),
        ("weekly", "2025-09-22 00:00", "2025-09-21 23:59"),
        ("monthly", "2025-07-01 00:00", "2025-06-30 23:59"),
    ],
)
def test_a_window_is_found_until_it_closed_too_long_ago(
    scheduler: Scheduler, connection: psycopg.Connection, name: str, oldest: str, too_old: str
) -> None:
    carry_up(connection, at(too_old))
    assert scheduler.asked(name) == []

    carry_up(connection, at(oldest))
    assert len(scheduler.asked(name)) == 1


def carry_up(connection: psycopg.Connection, minute: datetime) -> None:
    """An observation that is rolled up into every timeframe, though nobody told Dagster."""
    observe(connection, minute)
    for timeframe in ("daily", "weekly", "monthly"):
        connection.execute("SELECT roll_up(%s, '2025-01-01', '2026-01-01')", (timeframe,))


def test_windows_before_the_first_partition_are_not_requested(
    scheduler: Scheduler, platform: Platform, connection: psycopg.Connection
) -> None:
    """The 5th is a Wednesday: neither its week nor its month begins with the partitions."""
    for day in range(3, 23):
        carry_up(connection, at(f"2025-11-{day:02} 11:59"))
    scheduler.definitions = definitions_on(platform, date(2025, 11, 19))

    assert scheduler.asked("daily") == [("2025-11-19", "2025-11-22")]
    assert scheduler.asked("weekly") == []
    assert scheduler.asked("monthly") == []


# --- the open window ---


def test_the_open_day_follows_its_hours_from_tick_to_tick(
    scheduler: Scheduler, connection: psycopg.Connection
) -> None:
    observe(connection, at("2025-11-22 12:59"), price=12)
    scheduler.tick_and_execute("daily")
    observe(connection, at("2025-11-22 13:59"), price=13)
    scheduler.provider.advance(HOUR)

    scheduler.tick_and_execute("daily")

    assert prices(connection, "daily_close", "day_ts") == {"2025-11-22": 13}


def test_the_open_week_and_month_follow_their_days(
    scheduler: Scheduler, connection: psycopg.Connection
) -> None:
    observe(connection, at("2025-11-22 12:59"), price=22)

    scheduler.tick_and_execute("daily", "weekly", "monthly")

    assert prices(connection, "weekly_close", "week_ts") == {"2025-11-17": 22}
    assert prices(connection, "monthly_close", "month_ts") == {"2025-11-01": 22}


def test_a_window_materialized_while_it_was_open_is_requested_once_more_when_it_closed(
    scheduler: Scheduler, connection: psycopg.Connection
) -> None:
    observe(connection, at("2025-11-22 12:02"))
    # Dagster stamps events with its own time, which is told to stand where the simulated one does.
    with freeze_time(scheduler.provider.now):
        scheduler.tick_and_execute("daily")
    assert scheduler.materialized("daily") == {"2025-11-22"}

    scheduler.provider.advance(2 * DAY)

    assert scheduler.asked("daily") == [("2025-11-22",) * 2]


def test_a_run_that_began_before_the_window_closed_has_not_materialized_its_close(
    scheduler: Scheduler, connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a long run merged at its beginning, it materializes at its end."""
    observe(connection, *hours_before(scheduler.provider.now, 2))
    scheduler.tick_and_execute("hourly")
    assert scheduler.asked("hourly") == []
    began = at("2025-11-22 12:00:59").timestamp()
    monkeypatch.setattr(
        dg.DagsterInstance, "get_run_record_by_id", lambda *_: SimpleNamespace(start_time=began)
    )

    assert scheduler.asked("hourly") == [("2025-11-22-11:00", "2025-11-22-12:00")]

    began = at("2025-11-22 12:01:01").timestamp()
    assert scheduler.asked("hourly") == [("2025-11-22-12:00", "2025-11-22-12:00")]


# --- no run twice ---


def test_a_repeated_tick_has_the_same_run_key_and_the_next_hour_another(
    scheduler: Scheduler, connection: psycopg.Connection
) -> None:
    observe(connection, *hours_before(scheduler.provider.now, 6))

    keys = []
    for _ in range(2):
        keys += [request.run_key for request in scheduler.tick("hourly").run_requests]
    scheduler.provider.advance(HOUR)
    keys += [request.run_key for request in scheduler.tick("hourly").run_requests]

    assert keys == [
        *["hourly_close:2025-11-22-07:00..2025-11-22-12:00@2025-11-22T13"] * 2,
        "hourly_close:2025-11-22-07:00..2025-11-22-12:00@2025-11-22T14",
    ]


@pytest.mark.parametrize(
    ("status", "left"),
    [
        (dg.DagsterRunStatus.STARTING, []),
        (dg.DagsterRunStatus.STARTED, []),
        (dg.DagsterRunStatus.FAILURE, [("2025-11-22-07:00", "2025-11-22-12:00")]),
    ],
)
def test_windows_of_a_run_under_way_are_left_to_it_and_asked_for_again_if_it_fails(
    scheduler: Scheduler, connection: psycopg.Connection, status: Any, left: list[Any]
) -> None:
    observe(connection, *hours_before(scheduler.provider.now, 6))
    (request,) = scheduler.tick("hourly").run_requests
    scheduler.instance.add_run(
        dg.DagsterRun(
            job_name="any",
            run_id="11111111-1111-1111-1111-111111111111",
            status=status,
            tags=request.tags,
            asset_selection=frozenset(request.asset_selection),
        )
    )

    assert scheduler.asked("hourly") == left


def test_a_run_of_one_partition_under_way_is_seen_too_and_another_assets_is_not(
    scheduler: Scheduler, connection: psycopg.Connection
) -> None:
    observe(connection, *hours_before(scheduler.provider.now, 2))
    for number, (asset, key) in enumerate(
        [("hourly_close", "2025-11-22-12:00"), ("minute_close", "2025-11-22-11:00")]
    ):
        scheduler.instance.add_run(
            dg.DagsterRun(
                job_name="any",
                run_id=f"{number}1111111-1111-1111-1111-111111111111",
                status=dg.DagsterRunStatus.STARTED,
                tags={"dagster/partition": key},
                asset_selection=frozenset([dg.AssetKey(asset)]),
            )
        )

    assert scheduler.asked("hourly") == [("2025-11-22-11:00", "2025-11-22-11:00")]


# --- what a scheduled run costs ---


def test_scheduled_runs_ask_the_provider_nothing(
    scheduler: Scheduler, connection: psycopg.Connection
) -> None:
    """The hours end a while after their last observation, so history would be wanted."""
    observe(
        connection,
        *[minute - timedelta(minutes=30) for minute in hours_before(at("2025-11-22 13:02"), 6)],
    )
    scheduler.provider.reset()

    scheduler.tick_and_execute("hourly", "daily", "weekly", "monthly")

    assert scheduler.provider.calls()["total"] == 0
    assert len(prices(connection, "hourly_close", "hour_ts")) == 6


# --- spans ---


def test_windows_that_follow_each_other_become_one_span_in_any_order() -> None:
    hours = [
        dg.TimeWindow(at("2025-11-22") + n * HOUR, at("2025-11-22") + (n + 1) * HOUR)
        for n in (3, 0, 1, 5, 4)
    ]

    assert spans_of(hours) == [
        dg.TimeWindow(at("2025-11-22 00:00"), at("2025-11-22 02:00")),
        dg.TimeWindow(at("2025-11-22 03:00"), at("2025-11-22 06:00")),
    ]
