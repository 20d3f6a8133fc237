"""The repair sensor, tick by tick, and what the runs it requests bring back from history."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import dagster as dg
import psycopg
import pytest

from pulseguard_assets.assets.coin_priorities import coin_priorities
from pulseguard_assets.assets.minute_close import minute_close_asset
from pulseguard_assets.assets.rollups import rollup_assets
from pulseguard_assets.automation import repair as sensor_module
from pulseguard_assets.automation.repair import (
    ASKED_TAG,
    LACKING_TAG,
    SENSOR,
    first_sweep_lacking,
    repair_sensor,
)
from pulseguard_assets.automation.windows import RANGE_END, RANGE_START
from pulseguard_assets.coingecko.planner import PlanCannotPay
from pulseguard_assets.collecting.budget import history_allowance
from pulseguard_assets.collecting.errors import SweepFailed
from pulseguard_assets.collecting.platform import Platform
from pulseguard_assets.collecting.polling import poll_by_hand
from pulseguard_assets.collecting.sweep import sweep
from pulseguard_assets.simulator.charts import five_minute_stamp
from pulseguard_assets.simulator.server import RunningSimulator
from pulseguard_assets.timeframes import DAILY, Timeframe
from pulseguard_assets.warehouse.connection import DatabaseUnavailable
from pulseguard_assets.warehouse.history import lacking

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
# Two of them never have a price, neither live nor in charts.
COINS, PRICED = 100, 98


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=timezone.utc)


def definitions_on(platform: Platform) -> dg.Definitions:
    start = platform.settings.history_start
    return dg.Definitions(
        assets=[coin_priorities, minute_close_asset(start), *rollup_assets(start)],
        sensors=[repair_sensor()],
        resources={"platform": platform},
        executor=dg.in_process_executor,
    )


@dataclass
class Repair:
    """The daemon's part: evaluates the sensor, and runs what it requests."""

    definitions: dg.Definitions
    instance: dg.DagsterInstance
    provider: RunningSimulator
    runs: int = 0
    cursor: str | None = None

    def use(self, platform: Platform) -> None:
        """Go on with another platform, of other settings."""
        self.definitions = definitions_on(platform)

    def tick(self) -> Any:
        """Evaluate the sensor at the simulated time."""
        context = dg.build_sensor_context(
            instance=self.instance,
            cursor=self.cursor,
            definitions=self.definitions,
            resources=self.definitions.resources,
            sensor_name=SENSOR,
        )
        sensor = self.definitions.get_repository_def().get_sensor_def(SENSOR)
        with context:
            done = sensor.evaluate_tick(context)
        self.cursor = done.cursor
        return done

    def request(self) -> dg.RunRequest:
        """The one run that a tick requests."""
        done = self.tick()
        assert done.skip_message is None, done.skip_message
        (request,) = done.run_requests
        assert isinstance(request, dg.RunRequest)
        return request

    def skipped(self) -> str:
        """Why a tick requests nothing."""
        done = self.tick()
        assert done.run_requests == []
        assert isinstance(done.skip_message, str)
        return done.skip_message

    def execute(self, request: dg.RunRequest) -> dg.ExecuteInProcessResult:
        """Execute a request in process."""
        job = self.definitions.resolve_implicit_global_asset_job_def()
        return job.execute_in_process(
            asset_selection=list(request.asset_selection or ()),
            run_config=request.run_config,
            tags=request.tags,
            instance=self.instance,
            raise_on_error=False,
        )

    def pretend(
        self, request: dg.RunRequest, status: dg.DagsterRunStatus, **tags: str
    ) -> dg.DagsterRun:
        """Record a run of a request without executing it."""
        self.runs += 1
        return self.instance.add_run(
            dg.DagsterRun(
                job_name="any",
                run_id=f"{self.runs:08}-1111-1111-1111-111111111111",
                status=status,
                tags={**request.tags, **tags},
                asset_selection=frozenset(request.asset_selection or ()),
            )
        )


def spanned(request: dg.RunRequest) -> tuple[str, str, str]:
    (key,) = request.asset_selection or ()
    return key.to_user_string(), request.tags[RANGE_START], request.tags[RANGE_END]


def max_calls(request: dg.RunRequest) -> int:
    ((_, op),) = request.run_config["ops"].items()
    return int(op["config"]["max_calls"])


@pytest.fixture
def coins() -> int:
    """How many coins the simulator has."""
    return COINS


@pytest.fixture
def repair(platform: Platform, instance: dg.DagsterInstance, provider: RunningSimulator) -> Repair:
    """The sensor on `instance`."""
    return Repair(definitions_on(platform), instance, provider)


@pytest.fixture
def collected(platform: Platform, provider: RunningSimulator) -> None:
    """Swept at 05:40, polled at 05:59, and nothing since."""
    provider.set_clock(at("2025-11-22 05:40:10"))
    with platform.connect() as connection:
        connection.execute("SELECT ensure_partitions(%s, %s)", (provider.now, provider.now))
        sweep(platform, connection, now=provider.now, until=provider.now + HOUR)
        provider.set_clock(at("2025-11-22 05:59:30"))
        poll_by_hand(platform, connection, now=provider.now, until=provider.now + MINUTE)
    provider.reset()


def closes(
    connection: psycopg.Connection, table: str, label: str
) -> dict[tuple[str, datetime], tuple[Decimal, datetime, str]]:
    """(coin, label) -> price, minute of the close, source."""
    rows = connection.execute(
        f"SELECT coin_id, {label}, price_usd, close_ts, source FROM {table}"
    ).fetchall()
    return {(row[0], row[1]): (row[2], row[3], row[4]) for row in rows}


def decimal(price: float) -> Decimal:
    return Decimal(repr(price))


def finest(
    provider: RunningSimulator, coin: str, bucket_end: datetime
) -> tuple[Decimal, datetime, str]:
    """The close that five-minute points have of a bucket."""
    stamp = five_minute_stamp(provider.market, coin, bucket_end - MINUTE)
    assert stamp is not None
    seen = provider.market.observation(coin, stamp)
    assert seen is not None
    assert seen.price is not None
    return decimal(seen.price), stamp.replace(second=0, microsecond=0), "history"


def priced(provider: RunningSimulator) -> list[str]:
    market, now = provider.market, provider.now
    seen = market.observations(market.listed(now), now)
    return [coin for coin, each in seen.items() if each.price is not None]


# --- what Dagster is told of the sensor ---


def test_the_sensor_runs_by_default_every_five_minutes(repair: Repair) -> None:
    sensor = repair.definitions.get_repository_def().get_sensor_def("close_repair_sensor")

    assert sensor.default_status is dg.DefaultSensorStatus.RUNNING
    assert sensor.minimum_interval_seconds == 300
    assert sensor.description


# --- nothing to repair ---


def test_before_the_first_sweep_there_is_nothing_to_repair(repair: Repair) -> None:
    assert repair.skipped() == "No closed hour or day lacks a close that can be had by now."
    assert repair.provider.calls()["total"] == 0


@pytest.mark.usefixtures("collected")
def test_the_hour_in_which_the_platform_started_is_left_alone_until_it_closed(
    repair: Repair,
) -> None:
    assert repair.skipped() == "No closed hour or day lacks a close that can be had by now."


# --- an outage of hours ---


@pytest.mark.usefixtures("collected")
def test_after_six_hours_of_downtime_every_hour_equals_the_truth(
    repair: Repair, connection: psycopg.Connection
) -> None:
    provider = repair.provider
    provider.set_clock(at("2025-11-22 12:40:00"))

    request = repair.request()
    # Coins without any price lack the hour that was polled, too.
    assert spanned(request) == ("hourly_close", "2025-11-22-05:00", "2025-11-22-11:00")
    assert repair.execute(request).success

    held = closes(connection, "hourly_close", "hour_ts")
    for coin in priced(provider):
        for hour in (at("2025-11-22 06:00") + n * HOUR for n in range(6)):
            assert held[coin, hour] == finest(provider, coin, hour + HOUR)
    assert len(held) == 7 * PRICED
    assert provider.calls()["total"] == COINS, "one call a coin"
    materialized = repair.instance.get_materialized_partitions(dg.AssetKey("hourly_close"))
    assert materialized == {f"2025-11-22-{hour:02}:00" for hour in range(5, 12)}


@pytest.mark.usefixtures("collected")
def test_what_could_not_be_had_is_not_asked_for_again(repair: Repair) -> None:
    repair.provider.set_clock(at("2025-11-22 12:40:00"))
    assert repair.execute(repair.request()).success

    assert repair.skipped() == "No closed hour or day lacks a close that can be had by now."


@pytest.mark.usefixtures("collected")
def test_a_new_coin_lacks_nothing_of_the_time_before_it_was_seen(
    repair: Repair, connection: psycopg.Connection
) -> None:
    repair.provider.set_clock(at("2025-11-22 12:40:00"))
    assert repair.execute(repair.request()).success

    connection.execute(
        "INSERT INTO coin_priorities (coin_id, created_at) VALUES ('new', '2025-11-22 12:41+00')"
    )

    assert repair.skipped() == "No closed hour or day lacks a close that can be had by now."


@pytest.mark.usefixtures("collected")
def test_an_hour_is_not_asked_for_before_history_has_its_end(repair: Repair) -> None:
    repair.provider.set_clock(at("2025-11-22 12:29:59"))
    assert spanned(repair.request())[2] == "2025-11-22-10:00"

    repair.provider.set_clock(at("2025-11-22 12:30:00"))
    assert spanned(repair.request())[2] == "2025-11-22-11:00"


# --- an outage of days ---


@pytest.mark.usefixtures("collected")
def test_after_six_days_of_downtime_hours_come_first_and_then_every_day_equals_the_truth(
    repair: Repair, connection: psycopg.Connection
) -> None:
    provider = repair.provider
    provider.set_clock(at("2025-11-28 12:40:00"))

    hours = repair.request()
    assert spanned(hours) == ("hourly_close", "2025-11-27-13:00", "2025-11-28-11:00")
    assert repair.execute(hours).success
    days = repair.request()
    assert spanned(days) == ("daily_close", "2025-11-22", "2025-11-27")
    assert repair.execute(days).success

    held = closes(connection, "daily_close", "day_ts")
    weeks = closes(connection, "weekly_close", "week_ts")
    compared = 0
    for coin in priced(provider):
        assert held[coin, at("2025-11-27")] == finest(provider, coin, at("2025-11-28"))
        assert weeks[coin, at("2025-11-17")] == held[coin, at("2025-11-23")]
        for day in (at("2025-11-22") + n * DAY for n in range(5)):
            truth = provider.market.close(coin, day + DAY, "history")
            assert truth is not None
            assert truth.price is not None
            assert held[coin, day] == (decimal(truth.price), truth.close_ts, "history")
            compared += 1
    assert compared >= 5 * PRICED
    assert repair.skipped() == "No closed hour or day lacks a close that can be had by now."


@pytest.mark.usefixtures("collected")
def test_a_day_is_not_asked_for_before_history_has_its_end(repair: Repair) -> None:
    repair.provider.set_clock(at("2025-11-24 00:44:59"))
    repair.pretend(repair.request(), dg.DagsterRunStatus.FAILURE)
    assert spanned(repair.request()) == ("daily_close", "2025-11-22", "2025-11-22")

    repair.provider.set_clock(at("2025-11-24 00:45:00"))
    assert spanned(repair.request()) == ("daily_close", "2025-11-22", "2025-11-23")


@pytest.mark.parametrize(("complete", "looked"), [(True, 2), (False, 12)])
@pytest.mark.usefixtures("collected")
def test_days_are_looked_at_once_an_hour_while_none_lacks_its_close(
    repair: Repair, monkeypatch: pytest.MonkeyPatch, complete: bool, looked: int
) -> None:
    """With all coins that takes seconds."""
    looks: list[str] = []

    def look(
        connection: Any, timeframe: Timeframe, start: datetime, end: datetime, **options: Any
    ) -> Any:
        looks.append(timeframe.name)
        assert start >= at("2025-11-22"), "never at the time before the first sweep"
        found = lacking(connection, timeframe, start, end, **options)
        return [] if complete and timeframe is DAILY else found

    monkeypatch.setattr(sensor_module, "lacking", look)
    repair.provider.set_clock(at("2025-11-23 01:00:00"))
    for _ in range(12):
        repair.tick()
        repair.provider.advance(10 * MINUTE)

    assert (looks.count("hourly"), looks.count("daily")) == (12, looked)


@pytest.mark.parametrize(
    ("settings", "oldest"),
    [
        ({}, "2025-12-04"),
        ({"history_days": 10}, "2026-02-20"),
        ({"history_start": date(2026, 2, 25)}, "2026-02-25"),
    ],
)
@pytest.mark.usefixtures("collected")
def test_days_are_asked_for_as_far_back_as_points_are_hourly_and_the_plan_reaches(
    repair: Repair,
    new_platform: Callable[..., Platform],
    connection: psycopg.Connection,
    settings: dict[str, Any],
    oldest: str,
) -> None:
    """89 days; and not before the partitions begin."""
    repair.provider.set_clock(at("2026-03-02 12:40:00"))
    repair.use(new_platform(**settings))
    repair.pretend(repair.request(), dg.DagsterRunStatus.FAILURE)

    assert spanned(repair.request()) == ("daily_close", oldest, "2026-03-01")


# --- how much at a time ---


@pytest.mark.usefixtures("collected")
def test_a_run_is_allowed_the_calls_of_ten_minutes(
    repair: Repair, new_platform: Callable[..., Platform], connection: psycopg.Connection
) -> None:
    repair.provider.set_clock(at("2025-11-22 12:40:00"))
    platform = new_platform(calls_per_minute=12)
    repair.use(platform)

    allowance = history_allowance(platform, connection, now=repair.provider.now)
    assert 1 < allowance.calls_per_minute < 12
    assert max_calls(repair.request()) == 10 * allowance.calls_per_minute


@pytest.mark.usefixtures("collected")
def test_a_run_is_allowed_no_more_calls_than_credits_are_free(
    repair: Repair, new_platform: Callable[..., Platform], connection: psycopg.Connection
) -> None:
    repair.provider.set_clock(at("2025-11-22 12:40:00"))
    spare(repair, new_platform, connection, 40)

    assert max_calls(repair.request()) == 40


def spare(
    repair: Repair,
    new_platform: Callable[..., Platform],
    connection: psycopg.Connection,
    credits: int,
) -> None:
    """Let only so many credits be free: all others of the month are spent."""
    platform = new_platform(credits_per_month=100_000, cadence_minutes=10)
    repair.use(platform)
    free = history_allowance(platform, connection, now=repair.provider.now).credits_free
    assert free is not None
    connection.execute(
        "INSERT INTO api_usage_stats (date, total_calls) VALUES ('2025-11-01', %s)",
        (free - credits,),
    )


@pytest.mark.usefixtures("collected")
def test_runs_that_cannot_do_all_at_once_go_on_where_the_last_one_ended(
    repair: Repair, connection: psycopg.Connection
) -> None:
    repair.provider.set_clock(at("2025-11-22 12:40:00"))
    request = repair.request()
    config = {"ops": {"hourly_close": {"config": {"max_calls": 40}}}}
    for done in (40, 80, COINS):
        assert repair.execute(repair.request().with_replaced_attrs(run_config=config)).success
        assert repair.provider.calls()["total"] == done

    assert "No closed hour" in repair.skipped()
    assert spanned(request)[0] == "hourly_close"


@pytest.mark.usefixtures("collected")
def test_without_free_credits_the_tick_says_who_waits_and_what_would_allow_it(
    repair: Repair, new_platform: Callable[..., Platform], connection: psycopg.Connection
) -> None:
    repair.provider.set_clock(at("2025-11-22 12:40:00"))
    spare(repair, new_platform, connection, 0)

    said = repair.skipped()

    assert said.startswith(
        f"{COINS} coins lack closes in hourly_close between 2025-11-22 05:00 and 2025-11-22 12:00 "
        "UTC. They wait: of this month's credits"
    )
    assert "PULSEGUARD_PLAN" in said


# --- one at a time, and not in vain ---


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED])
@pytest.mark.usefixtures("collected")
def test_while_a_repair_is_under_way_no_other_is_requested(
    repair: Repair, status: dg.DagsterRunStatus
) -> None:
    repair.provider.set_clock(at("2025-11-22 12:40:00"))
    repair.pretend(repair.request(), status)

    assert repair.skipped().startswith("A repair is under way")


@pytest.mark.usefixtures("collected")
def test_runs_of_others_do_not_hold_a_repair_up(repair: Repair) -> None:
    repair.provider.set_clock(at("2025-11-22 12:40:00"))
    repair.pretend(dg.RunRequest(tags={"somebody": "else"}), dg.DagsterRunStatus.STARTED)

    assert repair.request()


@pytest.mark.usefixtures("collected")
def test_a_repeated_tick_has_the_same_run_key_and_the_next_one_another(repair: Repair) -> None:
    repair.provider.set_clock(at("2025-11-22 12:40:00"))
    keys = [repair.request().run_key for _ in range(2)]
    repair.provider.advance(5 * MINUTE)
    keys.append(repair.request().run_key)

    assert keys[0] == keys[1] != keys[2]


@pytest.mark.usefixtures("collected")
def test_after_each_failure_the_pause_is_twice_as_long_up_to_an_hour(repair: Repair) -> None:
    repair.provider.set_clock(at("2025-11-22 12:40:00"))
    pauses = []
    for _ in range(6):
        repair.pretend(repair.request(), dg.DagsterRunStatus.FAILURE)
        failed = repair.provider.now
        while repair.tick().skip_message:
            repair.provider.advance(5 * MINUTE)
        pauses.append((repair.provider.now - failed) // MINUTE)

    assert pauses == [10, 20, 40, 60, 60, 60]


@pytest.mark.usefixtures("collected")
def test_the_tick_says_how_often_it_was_in_vain_and_when_the_next_is_due(repair: Repair) -> None:
    repair.provider.set_clock(at("2025-11-22 12:40:00"))
    repair.pretend(repair.request(), dg.DagsterRunStatus.FAILURE)

    assert "attempts in vain: 1, the next is due at 12:50:00 UTC." in repair.skipped()


@pytest.mark.usefixtures("collected")
def test_an_attempt_in_vain_by_a_clock_that_was_ahead_pauses_nobody(repair: Repair) -> None:
    repair.provider.set_clock(at("2025-11-22 12:40:00"))
    request = repair.request()
    tomorrow = (repair.provider.now + DAY).isoformat()
    repair.pretend(request, dg.DagsterRunStatus.FAILURE, **{ASKED_TAG: tomorrow})

    assert spanned(repair.request()) == spanned(request)


@pytest.mark.usefixtures("collected")
def test_a_run_that_succeeded_and_changed_nothing_was_in_vain_too(repair: Repair) -> None:
    repair.provider.set_clock(at("2025-11-22 12:40:00"))
    request = repair.request()
    repair.pretend(request, dg.DagsterRunStatus.SUCCESS)

    assert "attempts in vain: 1" in repair.skipped()


@pytest.mark.usefixtures("collected")
def test_a_run_that_got_somewhere_is_followed_by_the_next_at_once(repair: Repair) -> None:
    repair.provider.set_clock(at("2025-11-22 12:40:00"))
    request = repair.request()
    more = str(int(request.tags[LACKING_TAG]) + 1)
    repair.pretend(request, dg.DagsterRunStatus.FAILURE)
    repair.pretend(request, dg.DagsterRunStatus.SUCCESS, **{LACKING_TAG: more})

    assert spanned(repair.request()) == spanned(request)


@pytest.mark.usefixtures("collected")
def test_after_a_run_that_failed_on_its_way_there_is_a_pause_too(repair: Repair) -> None:
    repair.provider.set_clock(at("2025-11-22 12:40:00"))
    request = repair.request()
    more = str(int(request.tags[LACKING_TAG]) + 1)
    repair.pretend(request, dg.DagsterRunStatus.FAILURE, **{LACKING_TAG: more})

    assert "attempts in vain: 1" in repair.skipped()


@pytest.mark.usefixtures("collected")
def test_days_are_repaired_while_hours_pause(repair: Repair) -> None:
    repair.provider.set_clock(at("2025-11-28 12:40:00"))
    repair.pretend(repair.request(), dg.DagsterRunStatus.FAILURE)

    assert spanned(repair.request())[0] == "daily_close"


@pytest.mark.usefixtures("collected")
def test_a_provider_that_fails_fails_the_run_and_the_next_attempt_succeeds(
    repair: Repair,
) -> None:
    repair.provider.set_clock(at("2025-11-22 12:40:00"))
    repair.provider.fault("server_error", status=503)
    assert not repair.execute(repair.request()).success
    assert "attempts in vain: 1" in repair.skipped()

    repair.provider.clear_faults()
    repair.provider.advance(20 * MINUTE)

    assert repair.execute(repair.request()).success
    assert "No closed hour" in repair.skipped()


# --- failures are raised ---


@pytest.mark.usefixtures("collected")
def test_a_plan_that_cannot_pay_for_the_polls_fails_the_tick(
    repair: Repair, new_platform: Callable[..., Platform]
) -> None:
    repair.provider.set_clock(at("2025-11-22 12:40:00"))
    repair.use(new_platform(credits_per_month=20_000, cadence_minutes=1))

    with pytest.raises(PlanCannotPay, match="PULSEGUARD_CADENCE_MINUTES"):
        repair.tick()


def test_a_database_that_cannot_be_reached_fails_the_tick(
    repair: Repair, new_platform: Callable[..., Platform]
) -> None:
    repair.use(new_platform(database_url="postgresql://somebody@127.0.0.1:1/prices"))

    with pytest.raises(DatabaseUnavailable):
        repair.tick()


# --- a first sweep that ended midway ---


def sweeps(connection: psycopg.Connection, *statuses: tuple[str, str]) -> None:
    """Sweeps that began a minute before, and had their last sign of life at, the given time."""
    for status, ended in statuses:
        connection.execute(
            "INSERT INTO collection_status "
            "(collection_type, status, start_time, heartbeat_at, end_time) VALUES "
            "('priority_refresh', %(status)s, %(ended)s - interval '1 minute', %(ended)s, "
            "CASE WHEN %(status)s <> 'running' THEN %(ended)s END)",
            {"status": status, "ended": at(ended)},
        )


@pytest.fixture
def some_coins(connection: psycopg.Connection) -> None:
    connection.execute("INSERT INTO coin_priorities (coin_id) VALUES ('bitcoin')")


def test_without_any_coin_the_first_sweep_is_asked_for_by_the_poll_that_lacks_them(
    connection: psycopg.Connection,
) -> None:
    sweeps(connection, ("failed", "2025-11-22 10:00"))

    assert not first_sweep_lacking(connection, now=at("2025-11-22 12:00"))


@pytest.mark.usefixtures("some_coins")
def test_coins_that_no_sweep_left_lack_their_first_sweep(connection: psycopg.Connection) -> None:
    assert first_sweep_lacking(connection, now=at("2025-11-22 12:00"))


@pytest.mark.usefixtures("some_coins")
def test_one_completed_sweep_is_enough_for_ever(connection: psycopg.Connection) -> None:
    sweeps(
        connection,
        ("completed", "2025-11-20 00:01"),
        *[("failed", f"2025-11-21 {hour:02}:00") for hour in range(15)],
    )

    assert not first_sweep_lacking(connection, now=at("2025-11-22 12:00"))


@pytest.mark.usefixtures("some_coins")
def test_a_sweep_at_work_is_waited_for_and_a_dead_one_is_not(
    connection: psycopg.Connection,
) -> None:
    sweeps(connection, ("running", "2025-11-22 12:00"))

    assert not first_sweep_lacking(connection, now=at("2025-11-22 12:09:59"))
    assert first_sweep_lacking(connection, now=at("2025-11-22 12:10:00"))


@pytest.mark.parametrize(("failures", "minutes"), [(1, 5), (2, 10), (3, 20), (9, 360)])
@pytest.mark.usefixtures("some_coins")
def test_a_first_sweep_that_fails_is_asked_for_again_ever_more_rarely(
    connection: psycopg.Connection, failures: int, minutes: int
) -> None:
    sweeps(connection, *[("failed", "2025-11-22 12:00")] * failures)
    due = at("2025-11-22 12:00") + minutes * MINUTE

    assert not first_sweep_lacking(connection, now=due - timedelta(seconds=1))
    assert first_sweep_lacking(connection, now=due)


@pytest.mark.parametrize("status", ["running", "failed"])
@pytest.mark.usefixtures("some_coins")
def test_a_sweep_of_a_time_that_has_yet_to_come_is_not_waited_for(
    connection: psycopg.Connection, status: str
) -> None:
    sweeps(connection, (status, "2025-11-23 12:00"))

    assert first_sweep_lacking(connection, now=at("2025-11-22 12:00"))


@pytest.mark.parametrize("coins", [300])
def test_a_first_sweep_that_really_failed_midway_is_found_and_the_next_one_ends_it(
    platform: Platform, provider: RunningSimulator, connection: psycopg.Connection
) -> None:
    provider.fault("server_error", skip=1)
    with pytest.raises(SweepFailed):
        sweep(platform, connection, now=provider.now, until=provider.now + HOUR)
    provider.clear_faults()
    provider.advance(5 * MINUTE)
    assert first_sweep_lacking(connection, now=provider.now)

    sweep(platform, connection, now=provider.now, until=provider.now + HOUR)

    assert not first_sweep_lacking(connection, now=provider.now + DAY)
