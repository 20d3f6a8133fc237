from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from pulseguard_assets.simulator.clock import ClockError, MovableClock, utc_now

UTC = timezone.utc
START = datetime(2026, 1, 1, tzinfo=UTC)


class Source:
    """A time that tests move."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


def test_a_clock_left_alone_shows_its_source() -> None:
    source = Source()
    clock = MovableClock(source)
    source.pass_by(90)
    assert clock() == START + timedelta(seconds=90)


def test_a_moved_clock_goes_on_from_there_at_its_rate() -> None:
    source = Source()
    clock = MovableClock(source)
    there = datetime(2030, 5, 5, tzinfo=UTC)
    clock.set(now=there, rate=60)
    source.pass_by(2)
    assert clock() == there + timedelta(minutes=2)
    clock.set(rate=0)
    source.pass_by(100)
    assert clock() == there + timedelta(minutes=2)
    clock.set(advance=timedelta(hours=-1), rate=1)
    source.pass_by(1)
    assert clock() == there + timedelta(minutes=2, hours=-1, seconds=1)
    assert clock.follow_source() == source()
    assert clock.rate == 1


def test_zones_are_turned_into_utc() -> None:
    clock = MovableClock(Source(), now=datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=5.5))))
    assert clock() == START - timedelta(hours=5.5)
    assert clock().tzinfo is UTC


@pytest.mark.parametrize(
    "change",
    [
        {"now": START.replace(tzinfo=None)},
        {"rate": -1.0},
        {"rate": float("nan")},
        {"rate": 1e9},
        {"now": datetime(1969, 1, 1, tzinfo=UTC)},
        {"advance": timedelta(days=365 * 9_000)},
    ],
)
def test_an_impossible_time_is_refused_and_changes_nothing(change: dict[str, object]) -> None:
    clock = MovableClock(Source(), rate=0)
    with pytest.raises(ClockError):
        clock.set(**change)  # type: ignore[arg-type]
    assert clock() == START
    assert clock.rate == 0


def test_a_fast_clock_stops_short_of_the_end_of_time() -> None:
    source = Source()
    clock = MovableClock(source, rate=1e6)
    source.pass_by(3600 * 24 * 365)
    assert clock().year == 8999


def test_real_time_is_aware() -> None:
    assert utc_now().tzinfo is UTC
