"""What the watchdog outside Dagster finds wrong, of statuses made by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from alerts_support import NOON, after

from pulseguard_assets.alerts.dagster_state import Heartbeat
from pulseguard_assets.alerts.messages import LONGEST_TITLE
from pulseguard_assets.alerts.model import Finding, Look
from pulseguard_assets.alerts.process_rules import Trail, followed, look_at_processes
from pulseguard_assets.alerts.status_facts import (
    CreditsStatus,
    InstigatorStatus,
    ProcessStatus,
    Status,
)

LOGS = "/data/logs"
PIDS = {"up": 1, "code-server": 20, "webserver": 30, "daemon": 40, "lookout": 50}
Change = Callable[[Status], Status]


def well(at: datetime, *, tick: datetime | None = NOON, on: bool | None = True) -> Status:
    """A platform that was started an hour before noon, and of which all is well."""
    started = after(-60)
    return Status(
        level=0,
        state="healthy",
        headline="PulseGuard is healthy.",
        at=at,
        troubles=(),
        data_dir="/data",
        started_at=started,
        database="embedded",
        database_answers=True,
        processes=tuple(
            ProcessStatus(name, pid, "running", "alive", started, 0) for name, pid in PIDS.items()
        ),
        heartbeats=(Heartbeat("SENSOR", "d1", at - timedelta(seconds=20), ()),),
        instigators=(
            InstigatorStatus("prices", "sensor", True, at, "skipped", "fine"),
            InstigatorStatus("watchdog_schedule", "schedule", on, tick or at, "skipped", "fine"),
        ),
        closes=(),
        coverage=None,
        incidents=(),
        outbox=(),
        channels=(),
        credits=CreditsStatus("keyless", 0, None),
        sizes=None,
        unread={},
    )


def process(name: str, **changed: Any) -> Change:
    """The status with this process changed."""

    def change(status: Status) -> Status:
        return replace(
            status,
            processes=tuple(
                replace(each, **changed) if each.name == name else each
                for each in status.processes or ()
            ),
        )

    return change


def silent(since: datetime) -> Change:
    """The status with no newer heartbeat."""
    return lambda status: replace(status, heartbeats=(Heartbeat("SENSOR", "d1", since, ()),))


def quiet(since: datetime | None, *, on: bool | None = True) -> Change:
    """The status with no newer tick of the watchdog."""
    return lambda status: replace(
        status,
        instigators=(
            InstigatorStatus("watchdog_schedule", "schedule", on, since, "skipped", "fine"),
        ),
    )


class Watch:
    """Rounds every half minute, from ten minutes before noon on."""

    def __init__(self) -> None:
        self.trail: Trail | None = None
        self.now = after(-10)
        self.looks: list[tuple[datetime, Look]] = []

    def rounds(self, until: float, *changes: Change, load_error: str | None = None) -> Look:
        """Until so many minutes after noon, with these changes; the last of the looks."""
        while self.now < after(until):
            self.now += timedelta(seconds=30)
            status = well(self.now, tick=self.now)
            for change in changes:
                status = change(status)
            self.trail = followed(self.trail, status, now=self.now)
            look = look_at_processes(
                status, self.trail, now=self.now, logs=LOGS, load_error=load_error
            )
            self.looks.append((self.now, look))
        return self.looks[-1][1]

    def first(self, cause: str) -> timedelta | None:
        """How long after noon it was found first."""
        found = (at for at, look in self.looks if cause in causes(look))
        return next((at - NOON for at in found), None)


@pytest.fixture
def watch() -> Watch:
    """Rounds that were all well until noon."""
    watch = Watch()
    assert watch.rounds(0) == Look((), ("processes",))
    return watch


def causes(look: Look) -> list[str]:
    return [finding.cause for finding in look.findings]


def only(look: Look) -> Finding:
    (finding,) = look.findings
    return finding


def test_where_all_is_well_nothing_is_found(watch: Watch) -> None:
    assert watch.rounds(60) == Look((), ("processes",))
    assert not any(look.findings for _, look in watch.looks)


def test_a_daemon_that_hangs_is_found_within_two_minutes_with_what_ends_it(watch: Watch) -> None:
    finding = only(watch.rounds(10, silent(NOON)))

    assert watch.first("process:daemon:DOWN") == timedelta(minutes=2)
    assert (finding.kind, finding.severity, finding.subject) == ("DOWN", "critical", "daemon")
    assert finding.message == (
        "Dagster's daemon hangs: no sign of life for 10 min. Meanwhile nothing is collected, and "
        "no sensor and no schedule runs."
    )
    assert finding.help == "kill -KILL 40  (PulseGuard then starts it again)"
    assert finding.link == "/deployment/daemons"


def test_a_suspended_daemon_is_told_from_one_that_hangs(watch: Watch) -> None:
    finding = only(watch.rounds(4, silent(NOON), process("daemon", condition="suspended")))

    assert "is suspended by a signal: no sign of life for 4 min" in finding.message
    assert finding.help == "kill -CONT 40"


def test_a_daemon_that_does_not_start_is_told_with_its_last_words(watch: Watch) -> None:
    finding = only(watch.rounds(4, silent(NOON), process("daemon", condition="gone")))

    assert "has ended and does not start again: no sign of life for 4 min" in finding.message
    assert finding.help == "tail -n 40 '/data/logs/daemon.log'"


def test_a_daemon_that_never_gave_a_sign_of_life_is_down(watch: Watch) -> None:
    never: Change = lambda status: replace(status, heartbeats=())  # noqa: E731

    assert "no sign of life ever." in only(watch.rounds(1, never)).message


def test_one_daemon_of_several_that_is_alive_is_enough(watch: Watch) -> None:
    two: Change = lambda status: replace(  # noqa: E731
        status, heartbeats=((*(status.heartbeats or ()), Heartbeat("OLD", "d0", after(-90), ())))
    )

    assert watch.rounds(5, two).findings == ()


def test_a_restart_of_the_daemon_is_no_trouble(watch: Watch) -> None:
    watch.rounds(1, silent(NOON), process("daemon", condition="gone", state="restarting"))
    watch.rounds(1.5, silent(NOON))
    watch.rounds(10)

    assert not any(look.findings for _, look in watch.looks)


def test_code_that_does_not_load_is_told_in_the_words_of_the_error(watch: Watch) -> None:
    away = process("code-server", state="restarting", not_serving_since=NOON, restarts=5)
    error = "ModuleNotFoundError: No module named 'pandaz' (prices.py, line 6)"

    finding = only(watch.rounds(3, away, load_error=error))

    assert watch.first("location:pulseguard:UNLOADABLE") == timedelta(seconds=90)
    assert (finding.kind, finding.severity) == ("UNLOADABLE", "critical")
    assert finding.message == (
        "The code cannot be loaded: ModuleNotFoundError: No module named 'pandaz' (prices.py, "
        "line 6). It is tried again each minute. Meanwhile nothing is collected, and no sensor "
        "and no schedule runs."
    )
    assert finding.help == "tail -n 40 '/data/logs/code-server.log'"
    assert finding.link == "/deployment/locations"


def test_a_code_server_that_dies_without_a_word_is_told_as_that(watch: Watch) -> None:
    away = process("code-server", state="restarting", not_serving_since=NOON, restarts=1)

    finding = only(watch.rounds(3, away))

    assert finding.title == "the code server is down"
    assert "does not serve, although it was started again once" in finding.message


def test_a_suspended_code_server_is_not_taken_for_code_that_does_not_load(watch: Watch) -> None:
    finding = only(
        watch.rounds(
            2, process("code-server", condition="suspended"), load_error="ValueError: long ago"
        )
    )

    assert watch.first("location:pulseguard:UNLOADABLE") == timedelta(minutes=2)
    assert "The code server is suspended (process 20)" in finding.message
    assert "long ago" not in finding.message


def test_a_reload_is_no_trouble(watch: Watch) -> None:
    watch.rounds(0.5, process("code-server", state="restarting", not_serving_since=NOON))
    watch.rounds(1, process("code-server", state="restarting", not_serving_since=NOON))
    watch.rounds(10)

    assert not any(look.findings for _, look in watch.looks)


def test_one_restart_after_another_with_service_in_between_is_no_trouble(watch: Watch) -> None:
    for minute in range(1, 10):
        since = after(minute - 0.6)
        watch.rounds(
            minute - 0.5, process("code-server", state="restarting", not_serving_since=since)
        )
        watch.rounds(minute)

    assert not any(look.findings for _, look in watch.looks)


def test_a_web_interface_that_is_away_is_an_error_and_nothing_graver(watch: Watch) -> None:
    away = process("webserver", state="restarting", not_serving_since=NOON, restarts=3)

    finding = only(watch.rounds(2, away))

    assert (finding.cause, finding.severity) == ("process:webserver:DOWN", "error")
    assert finding.message == (
        "The web interface does not serve, although it was started again 3 times. Prices are "
        "collected without it."
    )


@pytest.mark.parametrize("name", ["lookout", "simulator"])
def test_other_children_are_none_of_its_business(watch: Watch, name: str) -> None:
    away = process(name, state="restarting", not_serving_since=NOON)

    assert watch.rounds(5, away).findings == ()


def test_a_watchdog_that_does_not_tick_is_found_after_three_minutes(watch: Watch) -> None:
    finding = only(watch.rounds(5, quiet(NOON)))

    assert watch.first("watchdog:SILENT") == timedelta(minutes=3.5)
    assert finding.severity == "critical"
    assert finding.message.startswith("watchdog_schedule has not ticked for 5 min. ")
    assert finding.link == "/locations/pulseguard/schedules/watchdog_schedule"
    assert finding.help == "tail -n 40 '/data/logs/daemon.log'"


def test_a_watchdog_that_never_ticked_is_found_too(watch: Watch) -> None:
    unknown: Change = lambda status: replace(status, instigators=())  # noqa: E731

    assert "has not ticked yet" in only(watch.rounds(1, quiet(None, on=None))).message
    assert "has not ticked yet" in only(watch.rounds(2, unknown)).message


def test_a_watchdog_that_was_switched_off_is_found_at_once(watch: Watch) -> None:
    finding = only(watch.rounds(0.5, quiet(NOON, on=False)))

    assert finding.message.startswith("watchdog_schedule is switched off. ")
    assert finding.help == "open the link and switch watchdog_schedule on"


def test_a_dead_daemon_is_told_and_not_that_the_watchdog_is_silent_for_that(watch: Watch) -> None:
    watch.rounds(20, silent(NOON), quiet(NOON))

    assert watch.first("process:daemon:DOWN") is not None
    assert watch.first("watchdog:SILENT") is None


def test_the_watchdog_has_time_to_tick_again_when_the_daemon_is_back(watch: Watch) -> None:
    watch.rounds(20, silent(NOON), quiet(NOON))
    watch.rounds(23, quiet(NOON))
    assert watch.first("watchdog:SILENT") is None

    watch.rounds(25, quiet(NOON))

    assert watch.first("watchdog:SILENT") == timedelta(minutes=24)


def test_the_watchdog_has_time_to_tick_again_when_the_code_loads_again(watch: Watch) -> None:
    away = process("code-server", state="restarting", not_serving_since=NOON)
    watch.rounds(20, away, quiet(NOON))
    watch.rounds(23, quiet(NOON))

    assert watch.first("location:pulseguard:UNLOADABLE") is not None
    assert watch.first("watchdog:SILENT") is None


def test_a_platform_that_was_just_started_is_not_judged_by_what_was_before() -> None:
    of_yesterday = (silent(after(-600)), quiet(after(-600)))
    watch = Watch()

    watch.rounds(-8.5, *of_yesterday)
    assert all(look == Look() for _, look in watch.looks)
    watch.rounds(-7, quiet(after(-600)))

    assert not any(look.findings for _, look in watch.looks)


def test_a_machine_that_slept_is_given_time_to_wake(watch: Watch) -> None:
    watch.now = after(600)
    watch.rounds(601, silent(NOON), quiet(NOON))
    assert watch.looks[-1][1] == Look()

    watch.rounds(603)

    assert not any(look.findings for _, look in watch.looks)


def test_a_clock_that_is_set_back_is_no_reason_to_wait_for_the_time_before(watch: Watch) -> None:
    watch.now = after(-30)
    assert watch.rounds(-29, silent(after(-60))) == Look()

    assert causes(watch.rounds(-25, silent(after(-60)))) == ["process:daemon:DOWN"]


def test_without_a_database_nothing_is_judged_and_afterwards_time_is_given(watch: Watch) -> None:
    away: Change = lambda status: replace(status, heartbeats=None, instigators=None)  # noqa: E731
    assert watch.rounds(10, away) == Look()
    assert watch.rounds(11.5, silent(NOON), quiet(NOON)) == Look()

    assert watch.rounds(14) == Look((), ("processes",))


def test_where_ticks_could_not_be_read_what_is_seen_is_told_and_nothing_resolved(
    watch: Watch,
) -> None:
    unread: Change = lambda status: replace(status, instigators=None)  # noqa: E731

    look = watch.rounds(5, unread, silent(NOON))

    assert causes(look) == ["process:daemon:DOWN"]
    assert look.areas == ()


def test_without_a_platform_on_this_machine_nothing_is_judged() -> None:
    elsewhere: Change = lambda status: replace(status, started_at=None, processes=None)  # noqa: E731
    watch = Watch()

    assert watch.rounds(0, elsewhere, silent(after(-600))) == Look()


@pytest.mark.parametrize(
    "changes",
    [
        [silent(NOON)],
        [process("code-server", state="restarting", not_serving_since=NOON)],
        [process("webserver", state="restarting", not_serving_since=NOON)],
        [quiet(NOON)],
        [quiet(NOON, on=False)],
    ],
)
def test_titles_fit_on_a_lock_screen_whole(watch: Watch, changes: Sequence[Change]) -> None:
    finding = only(watch.rounds(10, *changes))

    assert len(f"PulseGuard {finding.severity}, still: {finding.title}") <= LONGEST_TITLE
