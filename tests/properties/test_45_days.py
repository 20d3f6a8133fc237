"""Forty-five days of a small platform: polled, closed and cleaned, or not, as the seed has it.

Belongs here: a long and ordinary life, outages of schedules included. Does not: the unlikely, which
`test_any_stream` makes up.
"""

from __future__ import annotations

import random

import pytest
from closes_support import bucket, utc
from streams_support import COINS, DAYS, HOURS, MINUTES, SOAK_TIMES, Stream

from pulseguard_assets.timeframes import DAILY, HOURLY, MINUTE, MONTHLY, WEEKLY

# Week 53, a year's end and two months' ends; the leap day; the night of the clocks.
BEGINNINGS = {
    "Asia/Kolkata": utc(2020, 12, 1, 0, 0, 27),
    "America/New_York": utc(2028, 2, 10, 0, 0, 27),
}
SCHEDULES = (
    (HOURLY, 24 * HOURS),
    (DAILY, DAYS),
    (WEEKLY, 7 * DAYS),
    (MONTHLY, 15 * DAYS),
)


def live(stream: Stream, days: int, every: int, luck: random.Random, skipped: float) -> None:
    """Let days go by with a poll every few hours, and everything else when the seed likes."""
    end = stream.now + days * DAYS
    while stream.now < end:
        minute = bucket(MINUTE, stream.now)
        polled = [coin for coin in COINS if luck.random() > 0.1]
        stream.put(stream.batch(*(stream.observe(coin, minute) for coin in polled)))
        if luck.random() < 0.1:
            late = bucket(MINUTE, stream.now - luck.randrange(3 * 24 * 60) * MINUTES)
            stream.put(
                stream.batch(
                    stream.observe(luck.choice(COINS), late, at_once=False),
                    faults=[(luck.choice(COINS), luck.randrange(10))],
                )
            )
        if luck.random() < 0.05:
            stamp = bucket(HOURLY, stream.now - luck.randrange(5 * 24) * HOURS)
            stream.put_points(HOURLY, "hourly", [(luck.choice(COINS), stamp, None)])
        for timeframe, width in SCHEDULES:
            if luck.random() > skipped:
                stream.roll_up(timeframe, stream.now - 2 * width, stream.now)
        if luck.random() > skipped:
            stream.clean_up()
        stream.now += every * HOURS + luck.randrange(59) * MINUTES


@pytest.mark.parametrize(
    ("zone", "skipped"),
    [("Asia/Kolkata", 0.1), ("America/New_York", 0.9)],
    ids=["every schedule", "few schedules"],
)
def test_after_45_days_every_table_is_that_of_the_raw_stream(
    stream_database: str, zone: str, skipped: float
) -> None:
    stream = Stream(stream_database, BEGINNINGS[zone], zone)
    luck = random.Random(zone)
    try:
        for _ in range(9):
            live(stream, 5, 6, luck, skipped)
            stream.check()
        stream.end()
    finally:
        stream.close()


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(2 * SOAK_TIMES))
def test_after_400_days_every_table_is_that_of_the_raw_stream(
    stream_database: str, seed: int
) -> None:
    luck = random.Random(seed)
    stream = Stream(stream_database, BEGINNINGS["America/New_York"], "America/New_York")
    try:
        live(stream, 400, 5, luck, luck.choice([0.0, 0.5, 0.95, 0.99]))
        stream.end()
    finally:
        stream.close()
