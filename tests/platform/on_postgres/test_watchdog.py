"""The watchdog in Dagster, tick by tick, on a real database that holds Dagster's tables as well."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from typing import Any

import dagster as dg
import psycopg
import pytest
from dagster._core.scheduler.instigation import InstigatorStatus
from watching_support import MINUTE, Sink, World

from pulseguard_assets.alerts import watch_list
from pulseguard_assets.alerts.instigators import WATCHDOG
from pulseguard_assets.alerts.outbox import ChannelsFailing
from pulseguard_assets.assets import watching
from pulseguard_assets.assets.watching import RoundFailed, watch
from pulseguard_assets.automation.polling import SENSOR
from pulseguard_assets.automation.repair import SENSOR as REPAIR_SENSOR
from pulseguard_assets.automation.watchdog import watched_of
from pulseguard_assets.coingecko.planner import PlanCannotPay
from pulseguard_assets.collecting.budget import polling_of
from pulseguard_assets.collecting.platform import Platform
from pulseguard_assets.simulator.server import RunningSimulator

OUTAGE = f"sensor:{SENSOR}:FAILING"
ALL_WELL = "Looked: no incident is open."


@pytest.fixture
def platform(new_platform: Callable[..., Platform], sink: Sink) -> Platform:
    """A platform whose alerts go to `sink`."""
    return new_platform(alert_urls=sink.url)


@pytest.fixture
def world(
    platform: Platform,
    instance: dg.DagsterInstance,
    provider: RunningSimulator,
    connection: psycopg.Connection,
    defs: dg.Definitions,
    sensor: Any,
) -> World:
    """The platform just started, with nothing collected yet."""
    ahead = provider.now + timedelta(days=365)
    connection.execute("SELECT ensure_partitions(%s, %s)", (provider.now, ahead))
    provider.set_clock(provider.now.replace(second=0, microsecond=0))
    world = World(platform, defs, instance, provider, connection, sensor)
    world.begin()
    return world


# --- all is well ---


def test_a_fresh_platform_raises_no_alarm(world: World) -> None:
    world.said.append(world.watch_as_daemon())
    world.run(7)

    assert set(world.said) == {ALL_WELL}
    assert world.incidents() == {}
    assert world.messages() == []


@pytest.mark.usefixtures("swept")
def test_a_platform_that_collects_is_well_and_its_watchdog_requests_no_run(world: World) -> None:
    world.run(6)
    done = world.tick()

    assert done.run_requests == []
    assert {*world.said, done.skip_message} == {ALL_WELL}
    assert world.incidents() == {}
    assert world.instance.get_runs() == []


@pytest.mark.usefixtures("swept")
def test_a_start_after_downtime_is_no_alarm(world: World) -> None:
    world.run(2)
    world.provider.advance(timedelta(hours=3))

    world.run(7)

    assert set(world.said) == {ALL_WELL}
    assert world.incidents() == {}


def test_it_ticks_every_minute_from_the_start_by_itself(world: World) -> None:
    schedule = world.repository.get_schedule_def(WATCHDOG)

    assert (schedule.cron_schedule, schedule.execution_timezone) == ("* * * * *", "UTC")
    assert schedule.default_status is dg.DefaultScheduleStatus.RUNNING


# --- an outage ---


@pytest.mark.usefixtures("swept")
def test_an_outage_of_the_provider_is_one_incident_one_message_and_one_recovery(
    world: World, sink: Sink
) -> None:
    world.run(2)
    world.provider.fault("server_error", status=503)
    world.run(2)

    assert world.open() == {OUTAGE}, "within two cadences"
    assert sink.titles() == [f"PulseGuard error: {SENSOR} fails"]
    world.run(6)
    assert set(world.incidents()) == {OUTAGE}, "late data and failed calls follow from it"
    assert len(sink.received) == 1
    assert "503" in sink.received[0]["message"]
    assert f"/locations/pulseguard/sensors/{SENSOR}" in sink.received[0]["message"]
    assert world.said[-1] == f"Looked: 1 incident is open. {SENSOR} fails."

    world.provider.clear_faults()
    world.run(6)

    assert world.open() == set()
    assert sink.titles()[1:] == [f"PulseGuard recovered: {SENSOR} fails"]
    world.run(2)
    assert set(world.incidents()) == {OUTAGE}
    assert len(sink.received) == 2
    assert world.messages() == [("opened", True), ("recovered", True)]


def test_a_hundred_failing_ticks_are_one_incident_that_happened_a_hundred_times(
    world: World, sink: Sink
) -> None:
    def fail() -> None:
        raise ValueError("The tide tables of Atlantis are out of print.")

    for failures in range(1, 101):
        try:
            fail()
        except ValueError:
            world.record(SENSOR, "sensor", "FAILURE", failures=failures)
        if failures % 12 == 0:
            world.watch_as_daemon()
        world.provider.advance(timedelta(seconds=20))
    world.watch_as_daemon()

    assert world.incidents()[OUTAGE] == 100
    assert [title for title in sink.titles() if SENSOR in title] == [
        f"PulseGuard error: {SENSOR} fails"
    ]
    (row,) = world.connection.execute(
        "SELECT message FROM incidents WHERE cause = %s", (OUTAGE,)
    ).fetchall()
    assert "Atlantis" in row[0]


@pytest.mark.usefixtures("swept")
def test_a_sensor_that_somebody_switched_off_is_named(world: World) -> None:
    world.run(2)
    world.switch(REPAIR_SENSOR)

    world.run(1)

    assert world.open() == {f"sensor:{REPAIR_SENSOR}:STOPPED"}


@pytest.mark.usefixtures("swept")
def test_a_sensor_that_never_ticked_is_named_although_dagster_knows_nothing_of_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world, "poll", lambda: None)
    world.instance.wipe_all_schedules()
    world.begin(unknown=SENSOR)

    world.run(4)

    assert f"sensor:{SENSOR}:NEVER" in world.open()


# --- a round is harmless to repeat ---


def state(connection: psycopg.Connection) -> list[Any]:
    """All that matters; how often it was looked is counted, and may grow."""
    return [
        connection.execute(statement).fetchall()
        for statement in (
            "SELECT id, cause, severity, occurrences, first_seen, last_seen, absent_since, "
            "resolved_at, flaps, last_reminded_at FROM incidents ORDER BY id",
            "SELECT id, kind, channel, sent_at, attempts, next_attempt_at, dropped_at "
            "FROM incident_messages ORDER BY id",
        )
    ]


@pytest.mark.usefixtures("swept")
@pytest.mark.parametrize("accepting", [True, False], ids=["channel-well", "channel-broken"])
def test_a_tick_that_is_evaluated_again_changes_nothing_more(
    world: World, sink: Sink, accepting: bool
) -> None:
    world.run(2)
    sink.accepting = accepting
    world.provider.fault("server_error", status=503)
    world.run(1)
    world.minute(watchdog=False)

    def tick() -> None:
        with nullcontext() if accepting else pytest.raises(ChannelsFailing):
            world.tick()

    tick()
    before, events = state(world.connection), len(world.events())
    assert len(before[0]) == 1
    for _ in range(3):
        tick()

    assert state(world.connection) == before
    assert len(world.events()) == events


# --- events ---


@pytest.mark.usefixtures("swept")
def test_an_event_is_recorded_when_something_changes_and_not_otherwise(world: World) -> None:
    world.run(3)
    assert [event["open"] for event in world.events()] == [0], "that it was looked at"
    world.provider.fault("server_error", status=503)
    world.run(4)
    assert [event["open"] for event in world.events()] == [0, 1]
    world.provider.clear_faults()
    world.run(6)

    assert [event["open"] for event in world.events()] == [0, 1, 0]
    assert world.instance.get_runs() == []


@pytest.mark.usefixtures("swept")
def test_what_the_watchdog_outside_opened_is_shown_as_well(world: World) -> None:
    world.run(2)
    world.connection.execute(
        "INSERT INTO incidents (cause, area, kind, severity, subject, title, message, first_seen, "
        "last_seen, occurrences, counted) VALUES ('process:webserver:DOWN', 'processes', 'DOWN', "
        "'error', 'webserver', 'The web interface is down', 'It is.', now(), now(), 1, 1)"
    )
    world.run(2)

    assert [event["open"] for event in world.events()] == [0, 1]


# --- what fails ---


@pytest.mark.usefixtures("swept")
def test_a_broken_channel_fails_the_tick_and_the_message_stays_until_it_is_mended(
    world: World, sink: Sink
) -> None:
    world.run(2)
    sink.accepting = False
    world.provider.fault("server_error", status=503)
    for _ in range(2):
        world.minute(watchdog=False)

    with pytest.raises(ChannelsFailing, match=r"Alerts do not get through. json \(1\)") as failed:
        world.tick()

    assert "t0ken" not in str(failed.value)
    assert world.messages() == [("opened", False)]
    assert [event["open"] for event in world.events()][-1] == 1, "it is shown all the same"
    sink.accepting = True
    world.run(2)
    assert sink.titles()[0] == f"PulseGuard error: {SENSOR} fails"


@pytest.mark.usefixtures("swept")
def test_a_broken_channel_is_itself_an_incident_that_other_channels_hear_of(
    world: World, sink: Sink, new_platform: Callable[..., Platform]
) -> None:
    nobody = "json://127.0.0.1:9/"
    world.platform = new_platform(alert_urls=f"{sink.url},{nobody}")
    world.provider.fault("server_error", status=503)

    world.run(5)

    assert world.open() == {OUTAGE, f"schedule:{WATCHDOG}:FAILING"}
    assert [title for title in sink.titles() if WATCHDOG in title] == [
        f"PulseGuard error: {WATCHDOG} fails"
    ]
    (told,) = [each["message"] for each in sink.received if WATCHDOG in each["title"]]
    assert "json (2)" in told


@pytest.mark.usefixtures("swept")
def test_a_look_that_fails_silences_no_other_and_fails_the_tick(world: World, sink: Sink) -> None:
    world.run(2)
    world.provider.fault("server_error", status=503)
    for _ in range(2):
        world.minute(watchdog=False)
    world.connection.execute("ALTER TABLE dagster.daemon_heartbeats RENAME TO elsewhere")

    with pytest.raises(RoundFailed) as failed:
        world.tick()

    assert "\n- daemons: " in str(failed.value)
    assert str(failed.value).count("\n- ") == 1
    assert world.open() == {OUTAGE}
    assert sink.titles() == [f"PulseGuard error: {SENSOR} fails"]


def test_a_look_that_fails_and_a_channel_that_does_are_both_told(world: World, sink: Sink) -> None:
    world.connection.execute("ALTER TABLE dagster.daemon_heartbeats RENAME TO elsewhere")
    sink.accepting = False
    world.provider.fault("server_error", status=503)
    world.switch(SENSOR)

    with pytest.raises(RoundFailed, match=r"(?s)\n- daemons: .*\n- Alerts do not get through"):
        world.tick()


@pytest.mark.usefixtures("swept")
def test_a_part_that_was_not_looked_at_resolves_nothing(world: World) -> None:
    world.run(2)
    world.switch(REPAIR_SENSOR)
    world.run(1)
    world.switch(REPAIR_SENSOR, InstigatorStatus.RUNNING)  # but nobody can see it
    world.connection.execute("ALTER TABLE dagster.job_ticks RENAME TO elsewhere")

    for _ in range(10):
        world.provider.advance(MINUTE)
        with pytest.raises(RoundFailed, match="sensors and schedules"):
            world.tick()

    assert f"sensor:{REPAIR_SENSOR}:STOPPED" in world.open()


def test_a_look_that_takes_too_long_is_given_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "_PER_LOOK", timedelta(milliseconds=100))

    def sleepy(sight: Any) -> Any:
        sight.connection.execute("SELECT pg_sleep(30)")

    parts = (watching._Part("dreams", sleepy), *watching._PARTS)
    monkeypatch.setattr(watching, "_PARTS", parts)
    monkeypatch.setattr(watching, "_PER_LOOK", timedelta(milliseconds=300))
    world.switch(REPAIR_SENSOR)

    with pytest.raises(RoundFailed, match="dreams: it took too long") as failed:
        world.tick()

    assert str(failed.value).count("\n- ") == 1
    assert world.open() == {f"sensor:{REPAIR_SENSOR}:STOPPED"}


def test_what_there_is_no_time_for_is_left_for_the_next_round(world: World) -> None:
    world.switch(REPAIR_SENSOR)
    # Begun, the first part, the second; and then too late.
    seconds = iter([0, 1, 2, *[9] * 50])

    done = watch(
        world.platform,
        now=world.now,
        watched=world.watched,
        timer=lambda: next(seconds),
    )

    assert world.open() == {f"sensor:{REPAIR_SENSOR}:STOPPED"}
    assert len(done.problems) == 7, "of 8 that are looked at every minute, and one every fifth"
    assert all("too long" in problem for problem in done.problems)
    assert done.problems[0].startswith("runs: ")


@pytest.mark.usefixtures("swept")
def test_a_plan_that_cannot_pay_for_the_cadence_stops_no_look(
    world: World, new_platform: Callable[..., Platform]
) -> None:
    """The sensor says so; late data and credits are looked at all the same."""
    poor = new_platform(credits_per_month=1_000, cadence_minutes=1)
    with pytest.raises(PlanCannotPay), poor.connect() as connection:
        polling_of(poor, connection)

    done = watch(poor, now=world.now)

    assert (done.problems, done.open) == ((), ())


def test_a_database_that_is_gone_fails_the_tick_with_its_sentence(
    world: World, new_platform: Callable[..., Platform]
) -> None:
    world.platform = new_platform(database_url="postgresql://nobody@127.0.0.1:9/nothing")

    with pytest.raises(Exception, match="Cannot connect to PostgreSQL"):
        world.tick()


# --- how often, and what ---


def test_the_dear_looks_are_made_in_some_minutes_only_and_all_of_them_every_hour(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: dict[str, list[int]] = {}

    def noted(part: Any) -> Any:
        def look(sight: Any) -> Any:
            looked.setdefault(part.what, []).append(sight.now.minute)
            return part.look(sight)

        return watching._Part(part.what, look, part.every, part.at)

    monkeypatch.setattr(watching, "_PARTS", tuple(map(noted, watching._PARTS)))
    start = world.now.replace(minute=0)
    for minute in range(60):
        watch(world.platform, now=start + timedelta(minutes=minute), watched=[])

    often = {what: minutes for what, minutes in looked.items() if minutes != list(range(60))}
    assert {what: len(minutes) for what, minutes in often.items()} == {
        "hours that lack closes": 12,
        "retention": 4,
        "days that lack closes": 1,
    }
    assert len(looked) == len(watching._PARTS)


def test_by_hand_everything_is_looked_at_whatever_the_minute(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []

    def noted(part: Any) -> Any:
        def look(sight: Any) -> Any:
            looked.append(part.what)
            return part.look(sight)

        return watching._Part(part.what, look, 60, 59)

    monkeypatch.setattr(watching, "_PARTS", tuple(map(noted, watching._PARTS)))

    watch(world.platform, now=world.now)

    assert len(looked) == len(watching._PARTS)


def test_what_the_code_defines_is_watched_and_recorded(world: World) -> None:
    world.tick()

    by_name = {each.name: each for each in world.watched}
    assert len(world.watched) == 11
    assert by_name[SENSOR].every == timedelta(seconds=20)
    assert by_name[WATCHDOG].cron == "* * * * *"
    assert by_name["daily_close_schedule"].cron == "5 * * * *"
    assert all(each.runs_by_default for each in world.watched)
    assert watch_list.read(world.connection) == world.watched


def test_of_several_cron_lines_the_first_is_watched_and_what_is_off_by_default_is_known() -> None:
    @dg.schedule(cron_schedule=["0 1 * * *", "0 2 * * *"], job_name="job")
    def twice() -> None: ...

    @dg.sensor(job_name="job", name="eager")
    def sensor() -> None: ...

    @dg.op
    def nothing() -> None: ...

    @dg.job
    def job() -> None:
        nothing()

    repository = dg.Definitions(
        jobs=[job], schedules=[twice], sensors=[sensor]
    ).get_repository_def()
    eager, both = watched_of(repository)
    assert (both.name, both.cron, both.runs_by_default) == ("twice", "0 1 * * *", False)
    assert (eager.every, eager.runs_by_default) == (timedelta(seconds=30), False)


# --- by hand ---


@pytest.fixture
def by_hand(materialize: Callable[..., Any]) -> Callable[[], dg.ExecuteInProcessResult]:
    """`by_hand()`: materialize it, as the button in the web interface does."""
    return lambda: materialize("incidents")


def told(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    assert result.success, [str(event) for event in result.all_events if event.is_step_failure]
    (event,) = result.asset_materializations_for_node("incidents")
    return {key: each.value for key, each in event.metadata.items()}


@pytest.mark.usefixtures("swept")
def test_materializing_it_looks_at_once_and_tells(
    world: World, by_hand: Callable[[], dg.ExecuteInProcessResult], sink: Sink
) -> None:
    world.run(2)
    assert told(by_hand())["open"] == 0
    world.switch(REPAIR_SENSOR)

    figures = told(by_hand())

    counts = {key: figures[key] for key in ("open", "critical", "error", "warning")}
    assert sum(counts.values()) == 2 * counts["open"] == 2
    assert REPAIR_SENSOR.replace("_", r"\_") in figures["incidents"]
    assert world.open() == {f"sensor:{REPAIR_SENSOR}:STOPPED"}
    assert len(sink.received) == 1
    told(by_hand())
    assert len(sink.received) == 1


@pytest.mark.usefixtures("swept")
def test_by_hand_it_knows_a_sensor_that_never_ticked_from_what_the_watchdog_recorded(
    world: World,
    by_hand: Callable[[], dg.ExecuteInProcessResult],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(world, "poll", lambda: None)
    world.run(3)

    told(by_hand())

    assert f"sensor:{SENSOR}:NEVER" in world.open()


@pytest.mark.usefixtures("swept")
def test_a_round_by_hand_that_could_not_tell_fails_with_the_sentence_and_the_figures(
    world: World,
    by_hand: Callable[[], dg.ExecuteInProcessResult],
    failure: Callable[[Any], str],
    sink: Sink,
) -> None:
    world.run(1)
    world.switch(REPAIR_SENSOR)
    sink.accepting = False

    result = by_hand()

    assert not result.success
    assert "Alerts do not get through" in failure(result)
    (event,) = [each for each in result.all_events if each.is_step_failure]
    user_failure: Any = event.step_failure_data
    assert user_failure.user_failure_data.metadata["open"].value == 1
