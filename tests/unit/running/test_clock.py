"""Noticing that the time of day went back."""

from __future__ import annotations

from datetime import timedelta

import pytest

from pulseguard_assets.running.clock import ClockWatch


class Clocks:
    """The time of day, and seconds that only go forward."""

    def __init__(self) -> None:
        self.wall, self.steady = 1_800_000_000.0, 5.0

    def watch(self) -> ClockWatch:
        return ClockWatch(lambda: self.wall, lambda: self.steady)

    def passes(self, seconds: float, step: float = 0.0) -> None:
        self.wall += seconds + step
        self.steady += seconds


def test_a_clock_that_goes_on_was_not_set_back() -> None:
    clocks = Clocks()
    watch = clocks.watch()
    for seconds in (0, 5, 86_400):
        clocks.passes(seconds)
        assert watch.set_back() is None


@pytest.mark.parametrize("step", [-60.0, -86_400.0, -31_536_000.0])
def test_it_is_noticed_once_by_how_much(step: float) -> None:
    clocks = Clocks()
    watch = clocks.watch()
    clocks.passes(5, step)

    assert watch.set_back() == timedelta(seconds=-step)
    clocks.passes(5)
    assert watch.set_back() is None


@pytest.mark.parametrize("step", [-59.0, 3_600.0, 86_400.0])
def test_a_small_correction_and_a_leap_ahead_are_borne(step: float) -> None:
    clocks = Clocks()
    watch = clocks.watch()
    clocks.passes(5, step)

    assert watch.set_back() is None
