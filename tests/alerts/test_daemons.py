"""The verdict on Dagster's daemons, from their heartbeats."""

from __future__ import annotations

from datetime import timedelta

import pytest
from alerts_support import NOON

from pulseguard_assets.alerts.daemons import look_at_daemons
from pulseguard_assets.alerts.dagster_state import Heartbeat
from pulseguard_assets.alerts.model import Finding, Look


def beat(daemon: str, ago: float, process: str = "one", *errors: str) -> Heartbeat:
    return Heartbeat(daemon, process, NOON - timedelta(seconds=ago), errors)


def look(*heartbeats: Heartbeat, watched_for: float | None = 600) -> Look:
    """At noon, by somebody who has watched for so many seconds; None: nobody has."""
    since = None if watched_for is None else NOON - timedelta(seconds=watched_for)
    return look_at_daemons(heartbeats, now=NOON, watching_since=since)


def causes(*heartbeats: Heartbeat) -> list[str]:
    return [each.cause for each in look(*heartbeats).findings]


def only(*heartbeats: Heartbeat) -> Finding:
    (found,) = look(*heartbeats).findings
    return found


def test_daemons_that_are_alive_are_no_news() -> None:
    beats = [beat("SENSOR", 29), beat("SCHEDULER", 89), beat("BACKFILL", 0)]

    assert look(*beats) == Look((), ("daemons",))
    assert look(*beats, watched_for=None) == Look((), ("daemons",))


def test_a_platform_that_has_not_run_yet_has_no_dead_daemons() -> None:
    assert look() == Look((), ("daemons",))


# --- OLD ---


def test_a_daemon_is_silent_after_more_than_two_minutes() -> None:
    assert causes(beat("SENSOR", 120), beat("SCHEDULER", 0)) == []
    assert causes(beat("SENSOR", 120.001), beat("SCHEDULER", 0)) == ["daemon:SENSOR:OLD"]


@pytest.mark.parametrize("watched_for", [None, 0, 120])
def test_after_a_machine_slept_or_its_clock_leapt_daemons_have_time_to_give_a_sign(
    watched_for: float | None,
) -> None:
    asleep = beat("SENSOR", 10_800), beat("SCHEDULER", 1, "one", "x")

    told = look(*asleep, watched_for=watched_for)

    assert [each.cause for each in told.findings] == ["daemon:SCHEDULER:ERRORS"]
    assert told.areas == (), "who was silent before is not taken for back either"
    assert "daemon:SENSOR:OLD" in causes(*asleep)
    assert look(*asleep, watched_for=120.001).areas == ("daemons",)


def test_when_the_whole_process_is_silent_it_is_told_once_through_the_scheduler() -> None:
    found = look(beat("SENSOR", 500), beat("SCHEDULER", 500), beat("BACKFILL", 510)).findings

    explained = {each.cause: each.explained_by for each in found}
    assert explained == {
        "daemon:SENSOR:OLD": ("process:daemon:", "daemon:SCHEDULER:OLD"),
        "daemon:SCHEDULER:OLD": ("process:daemon:",),
        "daemon:BACKFILL:OLD": ("process:daemon:", "daemon:SCHEDULER:OLD"),
    }


def test_a_daemon_that_the_process_in_force_does_not_have_is_not_missed() -> None:
    """As after an upgrade that has one kind of daemon less: its row stays for ever."""
    assert causes(beat("LEGACY", 90_000, "before"), beat("SENSOR", 1), beat("SCHEDULER", 1)) == []


def test_of_processes_that_are_all_dead_the_last_one_is_told() -> None:
    assert causes(beat("SENSOR", 400, "two"), beat("BACKFILL", 90_000, "one")) == [
        "daemon:SENSOR:OLD"
    ]


@pytest.mark.parametrize(
    ("daemon", "severity"),
    [("SENSOR", "critical"), ("SCHEDULER", "critical"), ("BACKFILL", "error"), ("NEW", "error")],
)
def test_without_sensors_or_schedules_nothing_works(daemon: str, severity: str) -> None:
    assert only(beat(daemon, 121)).severity == severity


def test_a_person_reads_what_a_silent_daemon_leaves_undone() -> None:
    assert only(beat("SENSOR", 1_250)) == Finding(
        area="daemons",
        cause="daemon:SENSOR:OLD",
        kind="OLD",
        severity="critical",
        subject="SENSOR",
        title="Daemon SENSOR gives no sign of life",
        message="Dagster's daemon SENSOR, which evaluates the sensors, which collect the prices, "
        "has sent no heartbeat for 1,250 seconds; one is due every 30 to 60. The web interface "
        "shows it as running for half an hour more.",
        link="/deployment/daemons",
        help="pulseguard status",
        explained_by=("process:daemon:", "daemon:SCHEDULER:OLD"),
    )
    assert only(beat("NEW", 121)).message.startswith(
        "Dagster's daemon NEW has sent no heartbeat for 121 seconds;"
    )


# --- ERRORS ---


def test_a_daemon_that_reports_errors_is_told_with_the_newest() -> None:
    found = only(beat("BACKFILL", 1, "one", "No such partition.", "An older one."))

    assert (found.cause, found.severity) == ("daemon:BACKFILL:ERRORS", "error")
    assert found.message.endswith("in the last minutes: No such partition.")
    assert found.explained_by == ("location:",)


def test_errors_of_ticks_are_told_by_the_sensors_and_schedules_themselves() -> None:
    assert only(beat("SENSOR", 1, "one", "x")).explained_by == ("sensor:", "location:")
    assert only(beat("SCHEDULER", 1, "one", "x")).explained_by == ("schedule:", "location:")


def test_a_silent_daemons_last_errors_are_past() -> None:
    assert causes(beat("SENSOR", 121, "one", "x")) == ["daemon:SENSOR:OLD"]
    assert causes(beat("LEGACY", 121, "before", "x"), beat("SENSOR", 1)) == []


# --- TWO ---


def test_two_processes_that_take_turns_are_two() -> None:
    assert causes(
        beat("SENSOR", 12, "one"), beat("BACKFILL", 10, "two"), beat("SCHEDULER", 5, "one")
    ) == ["daemons:TWO"]
    assert causes(
        beat("SENSOR", 12, "two"), beat("BACKFILL", 10, "one"), beat("SCHEDULER", 5, "two")
    ) == ["daemons:TWO"]


def test_a_restart_is_one_after_the_other() -> None:
    """The new process has sent its first heartbeats, all but one so far."""
    before = [beat("SENSOR", 40, "old"), beat("BACKFILL", 39, "old"), beat("SCHEDULER", 12, "old")]
    assert causes(*before) == []
    assert causes(before[2], beat("SENSOR", 1, "new"), beat("BACKFILL", 0.5, "new")) == []
    assert causes(*(beat(each.daemon, 0.1, "new") for each in before)) == []


def test_what_a_new_process_has_not_overtaken_in_15_seconds_is_still_being_sent() -> None:
    other = beat("SCHEDULER", 50, "other")

    assert causes(other, beat("SENSOR", 15, "new"), beat("BACKFILL", 1, "new")) == []
    assert causes(other, beat("SENSOR", 15.001, "new"), beat("BACKFILL", 1, "new")) == [
        "daemons:TWO"
    ]


def test_the_leftovers_of_a_dead_process_are_no_second_one() -> None:
    for leftover in (120.001, 90_000):
        assert causes(beat("LEGACY", leftover, "dead"), beat("SENSOR", 25), beat("ASSET", 30)) == []
    assert causes(beat("LEGACY", 120, "dead"), beat("SENSOR", 25), beat("ASSET", 30)) == [
        "daemons:TWO"
    ]


def test_a_person_reads_what_two_daemons_cost() -> None:
    found = only(beat("SENSOR", 20, "one"), beat("ASSET", 10, "two"), beat("SCHEDULER", 5, "one"))

    assert found.title == "Two Dagster daemons are at work"
    assert "tick twice" in found.message
    assert (found.area, found.kind, found.severity) == ("daemons", "TWO", "error")
    assert found.explained_by == ()
