"""Whatever happens, in whatever order: the tables are those of the raw stream.

Belongs here: the machine that makes up histories of a platform. What can happen is in
`streams_support`, what must then be true in `truth_support`.
"""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from closes_support import bucket, clean_up, roll_up, utc
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from streams_support import (
    COINS,
    DAYS,
    HOURS,
    MINUTE_FAULTS,
    MINUTES,
    SOAK_TIMES,
    VALUE_FAULTS,
    Batch,
    Stream,
)

from pulseguard_assets.timeframes import DAILY, HOURLY, MINUTE, MONTHLY, WEEKLY, Timeframe
from pulseguard_assets.warehouse.closes import put_minutes

# The evening before the calendar does something: week 53 begins and ends, a leap day, a month's and
# a year's end, and the nights that New York's clocks are changed.
BEGINNINGS = (
    utc(2020, 12, 27, 23, 40, 27),
    utc(2021, 1, 3, 23, 40, 27),
    utc(2026, 12, 27, 23, 40, 27),
    utc(2026, 12, 31, 18, 10, 27),
    utc(2028, 2, 28, 23, 40, 27),
    utc(2028, 2, 29, 23, 40, 27),
    utc(2026, 1, 31, 23, 40, 27),
    utc(2026, 3, 8, 6, 40, 27),
    utc(2026, 11, 1, 5, 40, 27),
)
FIRST, LAST = utc(2020, 1, 1), utc(2040, 1, 1)
ZONES = ("UTC", "America/New_York", "Asia/Kolkata")
STEPS = (
    *(5 * MINUTES, 20 * MINUTES, 59 * MINUTES, 61 * MINUTES, 3 * HOURS),
    *(24 * HOURS, 25 * HOURS, 3 * DAYS, 8 * DAYS, 32 * DAYS, 370 * DAYS),
)

coins = st.sampled_from(COINS)
# How long ago: mostly moments, so that minutes meet; at the edges of what is kept; and days.
ago = st.one_of(
    st.integers(0, 8).map(lambda n: n * MINUTES),
    st.sampled_from([58 * MINUTES, 60 * MINUTES, 61 * MINUTES, 119 * MINUTES]),
    st.sampled_from([5 * HOURS, 23 * HOURS, 24 * HOURS, 25 * HOURS, 2 * DAYS, 6 * DAYS, 7 * DAYS]),
    st.sampled_from([9 * DAYS, 17 * DAYS]),
)
kinds = st.sampled_from(["live", "live", "live", "late", "correction"])
observed = st.lists(st.tuples(coins, ago, kinds), min_size=1, max_size=6)
faults = st.lists(st.tuples(coins, st.integers(0, len(MINUTE_FAULTS) - 1)), max_size=3)
# A point of an hour or day closes one only if it is stamped soon after its turn.
past_turn = st.sampled_from([0, 1, 14 * 60, 15 * 60, 15 * 60 + 1, 40 * 60]).map(
    lambda seconds: timedelta(seconds=seconds)
)
rollups = st.sampled_from([HOURLY, DAILY, WEEKLY, MONTHLY])
Drawn = list[tuple[str, timedelta, str]]


class AnyStream(RuleBasedStateMachine):
    """Steps in any order; the tables are compared with the raw stream after each."""

    dsn = ""

    @initialize(begins=st.sampled_from(BEGINNINGS), zone=st.sampled_from(ZONES))
    def begin(self, begins: datetime, zone: str) -> None:
        self.stream = Stream(self.dsn, begins, zone)

    def teardown(self) -> None:
        if hasattr(self, "stream"):
            try:
                self.stream.end()
            finally:
                self.stream.close()

    def _batch(self, drawn: Drawn, wrong: list[tuple[str, int]]) -> Batch:
        stream = self.stream
        return stream.batch(
            *(
                stream.observe(
                    coin,
                    bucket(MINUTE, stream.now - age),
                    at_once=kind == "live",
                    source="correction" if kind == "correction" else "live",
                )
                for coin, age, kind in drawn
            ),
            faults=wrong,
        )

    @rule(drawn=observed, wrong=faults)
    def put(self, drawn: Drawn, wrong: list[tuple[str, int]]) -> None:
        self.stream.put(self._batch(drawn, wrong))
        self.stream.check()

    @rule(step=st.sampled_from(STEPS))
    def time_passes(self, step: timedelta) -> None:
        self.stream.now += step

    @rule(coin=coins, step=st.sampled_from([MINUTES, 20 * MINUTES, HOURS, 5 * HOURS, DAYS]))
    def a_coin_is_polled_for_a_while(self, coin: str, step: timedelta) -> None:
        for _ in range(4):
            self.stream.now += step
            self.stream.put(self._batch([(coin, timedelta(0), "live")], []))
        self.stream.check()

    @precondition(lambda self: self.stream.batches)
    @rule(data=st.data())
    def deliver_again(self, data: st.DataObject) -> None:
        old = data.draw(st.sampled_from(self.stream.batches))
        # What was the future then may be the present now.
        self.stream.put(self.stream.batch(*old.sound))
        self.stream.check()

    @rule(drawn=observed, wrong=faults)
    def put_crashes_before_commit(self, drawn: Drawn, wrong: list[tuple[str, int]]) -> None:
        frame, now = self._batch(drawn, wrong).frame(), self.stream.now
        self.stream.crash_before_commit(lambda session: put_minutes(session, frame, now=now))
        self.stream.check()

    @rule(timeframe=rollups)
    def roll_up_crashes_before_commit(self, timeframe: Timeframe) -> None:
        self.stream.crash_before_commit(
            lambda session: roll_up(session, timeframe.name, FIRST, LAST)
        )
        self.stream.check()

    @rule()
    def cleanup_crashes_before_commit(self) -> None:
        self.stream.crash_before_commit(lambda session: clean_up(session, self.stream.now))
        self.stream.check()

    @rule(drawn=observed, wrong=faults)
    def crash_after_commit(self, drawn: Drawn, wrong: list[tuple[str, int]]) -> None:
        self.stream.crash_after_commit(self._batch(drawn, wrong))
        self.stream.check()

    @rule(drawn=observed, more=observed, wrong=faults)
    def two_puts_at_once(self, drawn: Drawn, more: Drawn, wrong: list[tuple[str, int]]) -> None:
        self.stream.two_puts_at_once(self._batch(drawn, wrong), self._batch(more, wrong))
        self.stream.check()

    @rule(drawn=observed)
    def put_at_once_with_cleanup(self, drawn: Drawn) -> None:
        self.stream.put_at_once_with_cleanup(self._batch(drawn, []))
        self.stream.check()

    @rule(drawn=observed, timeframe=rollups)
    def put_at_once_with_roll_up(self, drawn: Drawn, timeframe: Timeframe) -> None:
        stream = self.stream
        stream.at_once(
            self._batch(drawn, []),
            lambda session: roll_up(session, timeframe.name, FIRST, LAST),
        )
        stream.check()

    @rule(
        timeframe=st.sampled_from([MINUTE, HOURLY]),
        drawn=st.lists(st.tuples(coins, ago), min_size=1, max_size=4, unique=True),
        wrong=st.none() | st.tuples(coins, st.integers(0, len(VALUE_FAULTS) - 1)),
    )
    def five_minute_points(
        self,
        timeframe: Timeframe,
        drawn: list[tuple[str, timedelta]],
        wrong: tuple[str, int] | None,
    ) -> None:
        # Never the minute that is running: the poll of it may be under way.
        before = self.stream.now - MINUTES
        points: list[tuple[str, datetime, int | None]] = []
        points += [(coin, before - age, None) for coin, age in drawn]
        if wrong is not None:
            points.append((wrong[0], before - 30 * MINUTES, wrong[1]))
        self.stream.put_points(timeframe, "five_minute", points)
        self.stream.check()

    @rule(
        timeframe=rollups,
        grade=st.sampled_from([HOURLY, DAILY]),
        drawn=st.lists(st.tuples(coins, ago, past_turn), min_size=1, max_size=4),
    )
    def coarse_points(
        self, timeframe: Timeframe, grade: Timeframe, drawn: list[tuple[str, timedelta, timedelta]]
    ) -> None:
        turns = {(coin, bucket(grade, self.stream.now - age)): later for coin, age, later in drawn}
        points = [
            (coin, min(turn + later, self.stream.now), None)
            for (coin, turn), later in turns.items()
        ]
        self.stream.put_points(timeframe, grade.name, points)
        self.stream.check()

    @rule(timeframe=rollups, first=ago, width=st.sampled_from([HOURS, DAYS, 8 * DAYS]))
    def roll_up(self, timeframe: Timeframe, first: timedelta, width: timedelta) -> None:
        begin = self.stream.now - first
        self.stream.roll_up(timeframe, begin, begin + width)
        self.stream.check()

    @rule()
    def clean_up(self) -> None:
        self.stream.clean_up_and_check()

    @rule(timeframe=st.sampled_from([MINUTE, HOURLY, DAILY, WEEKLY]), months=st.integers(0, 2))
    def drop_partitions(self, timeframe: Timeframe, months: int) -> None:
        self.stream.drop_partitions(timeframe, months)
        self.stream.check()

    @rule()
    def settle(self) -> None:
        self.stream.settle()


def run(dsn: str, **how: object) -> None:
    class Here(AnyStream):
        pass

    Here.dsn = dsn
    run_state_machine_as_test(
        Here,
        settings=settings(
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            **how,  # type: ignore[arg-type]
        ),
    )


def test_any_stream_ends_in_the_closes_that_python_computes_from_it(stream_database: str) -> None:
    # The same streams in every run, and no hunt for a shorter one: that takes minutes, and is the
    # long run's business.
    run(
        stream_database,
        max_examples=25,
        stateful_step_count=20,
        derandomize=True,
        phases=[Phase.generate],
    )


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_very_many_streams_end_in_the_closes_that_python_computes(stream_database: str) -> None:
    run(stream_database, max_examples=40 * SOAK_TIMES, stateful_step_count=50)
