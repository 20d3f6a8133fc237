"""The verdict on sensors and schedules, from their ticks and from since when somebody watches."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from alerts_support import NOON

from pulseguard_assets.alerts.dagster_state import Instigator, Tick
from pulseguard_assets.alerts.instigators import Watched, look_at_instigators
from pulseguard_assets.alerts.model import Finding, Look

LONG_AGO = NOON - timedelta(days=5)
SECOND = timedelta(seconds=1)
PRICES = "coingecko_price_sensor"
TIMED_OUT = "The sensor tick timed out. One way to avoid this error is to be quick."


def sensor(every: float = 20, *, default: bool = True, name: str = "it") -> Watched:
    return Watched(name, "sensor", default, timedelta(seconds=every), None)


def schedule(cron: str = "0 * * * *", *, default: bool = True) -> Watched:
    return Watched("it", "schedule", default, None, cron)


def tick(ago: float, status: str = "SKIPPED", failures: int = 0, **known: Any) -> Tick:
    """A tick that began so many seconds before noon, and took one if it has ended."""
    at = NOON - timedelta(seconds=ago)
    return Tick(
        id=1,
        status=status,
        at=at,
        ended_at=known.pop("ended_at", None if status == "STARTED" else at + SECOND),
        failures_in_a_row=failures,
        error=known.pop("error", "It is broken." if status == "FAILURE" else None),
        skip_reason=None,
        **known,
    )


def failure(ago: float, failures: int = 1, **known: Any) -> Tick:
    return tick(ago, "FAILURE", failures, **known)


def cut(ago: float, failures: int = 1) -> Tick:
    return failure(ago, failures, error=TIMED_OUT, timed_out=True)


def look(
    watched: Watched,
    *ticks: Tick,
    status: str | None = "DECLARED_IN_CODE",
    now: datetime = NOON,
    since: datetime | None = LONG_AGO,
    **known: Any,
) -> Look:
    """The look at one; `status` None: Dagster does not know it."""
    states = (
        []
        if status is None
        else [Instigator(watched.name, watched.kind, status, tuple(ticks), **known)]
    )
    return look_at_instigators([watched], states, now=now, watching_since=since)


def kind(*arguments: Any, **known: Any) -> str | None:
    found = look(*arguments, **known).findings
    assert len(found) <= 1
    return found[0].kind if found else None


def only(*arguments: Any, **known: Any) -> Finding:
    (found,) = look(*arguments, **known).findings
    return found


@pytest.mark.parametrize("status", ["SUCCESS", "SKIPPED"])
def test_nothing_is_wrong_with_one_that_ticks(status: str) -> None:
    for watched in (sensor(), sensor(300), schedule("* * * * *"), schedule()):
        assert look(watched, tick(5, status)) == Look((), ("sensors", "schedules"))


def test_also_when_there_is_nothing_to_watch_both_areas_were_looked_at() -> None:
    look = look_at_instigators([], [], now=NOON, watching_since=None)

    assert look == Look((), ("sensors", "schedules"))


def test_what_the_code_defines_no_more_is_nobodys_business() -> None:
    states = [
        Instigator("gone", "sensor", "RUNNING", (failure(5, 9),)),
        Instigator("it", "schedule", "STOPPED", ()),
    ]

    look = look_at_instigators([sensor()], states, now=NOON, watching_since=None)

    assert look.findings == ()


def test_each_has_its_own_verdict() -> None:
    watched = [sensor(name="a"), sensor(name="b"), sensor(name="c")]
    states = [
        Instigator("c", "sensor", "STOPPED", ()),
        Instigator("a", "sensor", "RUNNING", (failure(5, 2),)),
        Instigator("b", "sensor", "RUNNING", (tick(5),)),
    ]

    look = look_at_instigators(watched, states, now=NOON, watching_since=LONG_AGO)

    assert [each.cause for each in look.findings] == ["sensor:a:FAILING", "sensor:c:STOPPED"]


# --- STOPPED ---


@pytest.mark.parametrize("watched", [sensor(), schedule()], ids=["sensor", "schedule"])
def test_one_that_runs_by_default_and_was_switched_off_is_told_whatever_else_is(
    watched: Watched,
) -> None:
    for ticks in ((), (failure(5, 9),), (tick(50, "STARTED"),), (tick(90_000),)):
        assert kind(watched, *ticks, status="STOPPED") == "STOPPED"
        assert kind(watched, *ticks, status="STOPPED", since=None) == "STOPPED"


def test_one_that_is_off_by_default_may_be_switched_off() -> None:
    for off in ("STOPPED", "DECLARED_IN_CODE"):
        for ticks in ((), (failure(5, 9),), (tick(50, "STARTED"),)):
            assert kind(sensor(default=False), *ticks, status=off) is None
            assert kind(schedule(default=False), *ticks, status=off) is None


@pytest.mark.parametrize("watched", [sensor(300, default=False), schedule(default=False)])
def test_one_that_nobody_ever_switched_on_has_never_started(watched: Watched) -> None:
    found = look(watched, status=None, since=NOON).findings

    assert [(each.kind, each.severity) for each in found] == [("NEVER", "warning")]
    assert "nobody has ever switched it on" in found[0].message
    assert kind(watched, status=None, since=None) is None


def test_one_that_is_off_by_default_and_was_switched_on_is_watched_like_the_others() -> None:
    watched = sensor(default=False)

    assert kind(watched, failure(5, 2), status="RUNNING") == "FAILING"
    assert kind(watched, tick(61), status="RUNNING") == "STALE"
    assert kind(watched, status="RUNNING") == "NEVER"


# --- HUNG ---


def test_a_tick_hangs_after_more_than_45_seconds() -> None:
    for watched in (sensor(), sensor(300), schedule("* * * * *")):
        assert kind(watched, tick(45, "STARTED")) is None
        assert kind(watched, tick(45.001, "STARTED")) == "HUNG"


def test_a_tick_that_began_before_anybody_watched_is_given_time_to_be_taken_up() -> None:
    old = tick(3_600, "STARTED")
    for watched in (sensor(), schedule("* * * * *")):
        assert kind(watched, old, since=None) is None
        assert kind(watched, old, since=NOON) is None
        assert kind(watched, old, since=NOON - 105 * SECOND) is None
        assert kind(watched, old, since=NOON - 105.001 * SECOND) == "HUNG"


def test_the_first_tick_of_a_watch_may_be_for_a_time_that_is_past() -> None:
    # The watchdog's own, of a daemon that starts 50 seconds after the minute.
    assert kind(schedule("* * * * *"), tick(50, "STARTED"), since=NOON - 50 * SECOND) is None


def test_a_tick_that_was_cut_hangs_as_well_so_that_it_is_one_trouble() -> None:
    """As a daemon leaves it: begun, cut after a minute, begun again some seconds later."""
    rounds = [
        [tick(46, "STARTED")],
        [cut(62)],
        [tick(1, "STARTED", 1), cut(66)],
        [tick(44, "STARTED", 1), cut(109)],
        [tick(50, "STARTED", 1), cut(115)],
        [cut(61, 2), cut(126)],
        [tick(1, "STARTED", 2), cut(66, 2)],
    ]

    found = [only(sensor(), *ticks) for ticks in rounds]

    assert {each.cause for each in found} == {"sensor:it:HUNG"}
    assert [each.occurrences for each in found] == [1, 1, 1, 1, 2, 2, 2]


def test_a_tick_that_was_cut_hangs_whoever_watches_and_however_seldom_it_ticks() -> None:
    for watched in (sensor(), sensor(300), schedule("* * * * *")):
        assert kind(watched, cut(62), since=None) == "HUNG"


def test_one_that_hung_is_well_again_when_a_tick_ends_and_fails_when_it_raises() -> None:
    assert kind(sensor(), tick(1), cut(62)) is None
    assert kind(sensor(), tick(1, "STARTED"), tick(20), cut(90)) is None
    assert kind(sensor(), failure(1, 2), cut(62)) == "FAILING"


def test_a_person_reads_what_hangs_and_for_how_long() -> None:
    found = only(sensor(), tick(50, "STARTED", 2))
    assert found.title == "it hangs"
    assert found.message == (
        "Its tick of 11:59 UTC has not ended for 50 seconds. Dagster cuts a tick at 60 seconds, "
        "and begins the next."
    )
    assert found.occurrences == 3

    found = only(sensor(), cut(62, 3), failing_since=NOON - timedelta(minutes=3))
    assert found.message == (
        "Its ticks do not end. The sensor tick timed out. It has failed 3 times in a row, since "
        "11:57 UTC."
    )


# --- FAILING ---


@pytest.mark.parametrize(
    ("every", "failures", "fails"),
    [(20, 1, False), (20, 2, True), (60, 1, False), (60, 2, True), (61, 1, True), (300, 1, True)],
)
def test_a_sensor_that_ticks_every_minute_or_more_often_may_fail_once(
    every: float, failures: int, fails: bool
) -> None:
    assert kind(sensor(every), failure(5, failures)) == ("FAILING" if fails else None)


def test_a_schedule_fails_when_it_has_failed_again_or_is_not_tried_again() -> None:
    assert kind(schedule(), failure(60)) is None
    assert kind(schedule(), failure(60, 2)) == "FAILING"
    # It ended a second after it began.
    assert kind(schedule(), failure(90.9)) is None
    assert kind(schedule(), failure(91)) == "FAILING"
    assert kind(schedule(), failure(90, ended_at=None)) == "FAILING"


def test_one_goes_on_failing_until_a_tick_has_ended_well() -> None:
    assert kind(sensor(), tick(1, "STARTED", 5), failure(21, 5)) == "FAILING"
    assert kind(sensor(), tick(1, "SUCCESS"), failure(21, 5)) is None
    assert kind(sensor(), tick(1), failure(21, 5)) is None


def test_a_failure_is_known_also_to_one_who_has_just_begun_to_watch() -> None:
    assert kind(sensor(), failure(5, 2), since=None) == "FAILING"


def test_a_person_reads_the_errors_own_words_and_how_often() -> None:
    since = NOON - timedelta(minutes=7)
    found = only(sensor(), failure(5, 5), failing_since=since)

    assert found == Finding(
        area="sensors",
        cause="sensor:it:FAILING",
        kind="FAILING",
        severity="error",
        subject="it",
        title="it fails",
        message="It is broken. It has failed 5 times in a row, since 11:53 UTC.",
        link="/locations/pulseguard/sensors/it",
        help="pulseguard status",
        occurrences=5,
        explained_by=("daemon:SENSOR:OLD", "process:daemon:", "location:"),
    )


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("No luck", "No luck. It failed at 11:58 UTC."),
        ("No luck!", "No luck! It failed at 11:58 UTC."),
        ("Cut off…", "Cut off… It failed at 11:58 UTC."),
        (None, "The error has no words. It failed at 11:58 UTC."),
        (" ", "The error has no words. It failed at 11:58 UTC."),
    ],
)
def test_a_single_failure_is_told_with_its_time(error: str | None, message: str) -> None:
    assert only(sensor(300), failure(100, error=error)).message == message


def test_a_time_of_another_day_has_its_day() -> None:
    found = only(sensor(), failure(5, 9_000), failing_since=NOON - timedelta(days=2))

    assert found.message.endswith("9,000 times in a row, since 2026-11-20 12:00 UTC.")
    assert found.occurrences == 9_000


def test_a_failure_that_dagster_does_not_count_still_happened_once() -> None:
    assert only(sensor(300), failure(5, 0)).occurrences == 1
    assert only(sensor(300), cut(5, 0)).occurrences == 1


def test_of_the_price_sensor_the_help_is_to_collect_by_hand() -> None:
    prices = sensor(name=PRICES)

    assert only(prices, failure(5, 2)).help == "pulseguard collect --once"
    assert only(prices, cut(62)).help == "pulseguard collect --once"
    assert only(prices, tick(61)).help == "pulseguard status"
    assert only(prices, failure(5, 50)).severity == "error"
    assert only(prices, status="STOPPED").help is None


# --- STALE and NEVER: a sensor ---


@pytest.mark.parametrize(("every", "limit"), [(5, 60), (20, 60), (21, 63), (300, 900)])
def test_a_sensor_is_stale_after_three_intervals_and_a_minute_at_least(
    every: float, limit: float
) -> None:
    assert kind(sensor(every), tick(limit)) is None
    assert kind(sensor(every), tick(limit + 0.001)) == "STALE"


@pytest.mark.parametrize(("every", "limit"), [(5, 60), (20, 60), (21, 63), (300, 900)])
def test_a_sensor_without_a_tick_has_never_started_after_as_long(
    every: float, limit: float
) -> None:
    for status in ("DECLARED_IN_CODE", "RUNNING", None):
        for ago, expected in ((limit - 0.001, None), (limit, "NEVER")):
            since = NOON - ago * SECOND
            assert kind(sensor(every), status=status, since=since) == expected


def test_what_nobody_watched_is_not_missed() -> None:
    """After a start, and after downtime."""
    old = tick(86_400)

    for since in (None, NOON, NOON - 60 * SECOND):
        assert kind(sensor(), old, since=since) is None
    assert kind(sensor(), old, since=NOON - 60.001 * SECOND) == "STALE"
    for since in (None, NOON, NOON - 59 * SECOND):
        assert kind(sensor(), status=None, since=since) is None
        assert kind(sensor(), since=since) is None


def test_what_was_switched_on_just_now_has_missed_nothing_before() -> None:
    for watched in (sensor(), schedule("0 0 * * *")):
        old = tick(3 * 86_400)
        assert kind(watched, old, status="RUNNING", started_at=NOON) is None
        assert kind(watched, status="RUNNING", started_at=NOON) is None
    assert kind(sensor(), tick(99), started_at=NOON - 60 * SECOND) is None
    assert kind(sensor(), tick(99), started_at=NOON - 61 * SECOND) == "STALE"
    assert kind(sensor(), started_at=NOON - 59 * SECOND) is None
    assert kind(sensor(), started_at=NOON - 60 * SECOND) == "NEVER"


def test_having_been_switched_on_is_no_watch() -> None:
    assert kind(sensor(), since=None, started_at=LONG_AGO) is None
    assert kind(sensor(), since=NOON, started_at=LONG_AGO) is None


def test_a_tick_under_way_is_not_stale_but_ends_or_hangs() -> None:
    assert kind(sensor(), tick(100, "STARTED"), since=NOON - 90 * SECOND) is None


# --- STALE and NEVER: a schedule ---


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=timezone.utc)  # type: ignore[misc, arg-type]


def at(moment: datetime) -> Tick:
    return Tick(1, "SKIPPED", moment, moment, 0, None, None)


@pytest.mark.parametrize(
    ("cron", "due", "before"),
    [
        ("* * * * *", utc(2026, 11, 22, 12, 0), utc(2026, 11, 22, 11, 59)),
        ("*/15 * * * *", utc(2026, 11, 22, 12, 15), utc(2026, 11, 22, 12, 0)),
        ("20 0 * * *", utc(2026, 11, 22, 0, 20), utc(2026, 11, 21, 0, 20)),
        # Midnight, at the ends of months and of February, leap year or not, and of the year.
        ("0 0 * * *", utc(2026, 12, 1), utc(2026, 11, 30)),
        ("0 0 * * *", utc(2026, 3, 1), utc(2026, 2, 28)),
        ("0 0 * * *", utc(2028, 2, 29), utc(2028, 2, 28)),
        ("0 0 * * *", utc(2028, 3, 1), utc(2028, 2, 29)),
        ("0 0 * * *", utc(2027, 1, 1), utc(2026, 12, 31)),
        ("30 23 L * *", utc(2026, 2, 28, 23, 30), utc(2026, 1, 31, 23, 30)),
        ("15 0 1 * *", utc(2026, 12, 1, 0, 15), utc(2026, 11, 1, 0, 15)),
        ("10 0 * * 1", utc(2026, 11, 23, 0, 10), utc(2026, 11, 16, 0, 10)),
        # The nights in which clocks change elsewhere.
        ("30 2 * * *", utc(2026, 3, 29, 2, 30), utc(2026, 3, 28, 2, 30)),
        ("30 1 * * *", utc(2026, 10, 25, 1, 30), utc(2026, 10, 24, 1, 30)),
    ],
)
def test_a_schedule_is_stale_more_than_five_minutes_after_a_time_without_its_tick(
    cron: str, due: datetime, before: datetime
) -> None:
    watched, old = schedule(cron), at(before)
    if cron == "* * * * *":
        old = at(before - timedelta(minutes=1))
        assert kind(watched, at(before), now=due + timedelta(minutes=5)) is None
        assert kind(watched, old, now=due + timedelta(minutes=5)) == "STALE"
        return
    just, late = due + timedelta(minutes=5), due + timedelta(minutes=5, seconds=1)
    since = due - timedelta(seconds=1)

    assert kind(watched, old, now=just, since=since) is None
    assert kind(watched, old, now=late, since=since) == "STALE"
    assert kind(watched, old, now=late, since=due) is None, "nobody watched before"
    assert kind(watched, at(due), now=late, since=since) is None
    assert kind(watched, at(due - timedelta(seconds=1)), now=late, since=since) == "STALE"
    # And the same without any tick.
    assert kind(watched, now=just, since=since) is None
    assert kind(watched, now=late, since=since) == "NEVER"
    assert kind(watched, now=late, since=due) is None
    assert kind(watched, status=None, now=late, since=since) == "NEVER"
    assert kind(watched, old, now=late, since=None) is None
    assert kind(watched, now=late, since=None) is None


def test_of_a_time_so_long_ago_that_its_tick_may_be_deleted_nothing_is_said() -> None:
    since, due = utc(2026, 1, 1), utc(2026, 11, 1)
    watched = schedule("0 0 1 * *")

    assert kind(watched, now=due + timedelta(days=7), since=since) is None
    assert kind(watched, now=due + timedelta(days=7, seconds=-1), since=since) == "NEVER"
    old = at(utc(2026, 10, 1))
    assert kind(watched, old, now=due + timedelta(days=7), since=since) is None
    assert kind(watched, old, now=due + timedelta(days=7, seconds=-1), since=since) == "STALE"


def test_a_person_reads_what_is_not_done_and_since_when() -> None:
    assert only(sensor(300), tick(901)).message == (
        "Its last tick was at 11:44 UTC, though it ticks every 5 minutes."
    )
    assert only(sensor(20), since=NOON - timedelta(hours=1)).message == (
        "It should tick every 20 seconds, but has never done so; it is watched since 11:00 UTC. "
        "Dagster does not know it, or its daemon does not come to it."
    )
    found = only(schedule("20 0 * * *"), tick(2 * 86_400))
    assert found.message == (
        "Its last tick was at 2026-11-20 12:00 UTC, though it was due at 00:20 UTC."
    )
    assert found.cause == "schedule:it:STALE"
    assert found.area == "schedules"
    assert found.link == "/locations/pulseguard/schedules/it"
    assert found.explained_by == ("daemon:SCHEDULER:OLD", "process:daemon:", "location:")
    assert only(schedule("20 0 * * *")).message.startswith(
        "It should have ticked at 00:20 UTC, but has never done so;"
    )
    stopped = only(sensor(), status="STOPPED")
    assert stopped.title == "it is switched off"
    assert (stopped.explained_by, stopped.severity) == ((), "error")
    assert "until it is switched on again" in stopped.message


# --- the clock ---


@pytest.mark.parametrize("watched", [sensor(), schedule()], ids=["sensor", "schedule"])
@pytest.mark.parametrize("since", [LONG_AGO, None])
def test_one_that_ticked_in_a_time_yet_to_come_waits_for_it_and_is_stale(
    watched: Watched, since: datetime | None
) -> None:
    found = only(watched, tick(-3600), since=since)

    assert found.kind == "STALE"
    assert "at 13:00 UTC, which has yet to come: the clock was set back" in found.message
    assert kind(watched, tick(-59), since=NOON) is None, "clocks differ by so much"
