"""What the history endpoints make of the market: which points exist, and how they are stamped.

Belongs here: granularity, stamps and gaps of charts, as pure functions of (coin, window, now).
Does not: the values themselves (`market`), or JSON.

The rules, from recorded charts: points carry the price just before their stamp. Five-minute
points are stamped anywhere in their five minutes. An hourly point is a five-minute point looked
up when the hour has turned, so one stamped 14:02 closes the hour from 13:00; now and then it comes
late (14:40, and then it closes nothing), twice, or never. Daily points are stamped 00:00:00 sharp
and appear at 00:35. The last point is the present, stamped to the whole second; in the finest
charts it repeats the point before it and may lie some milliseconds before that in time.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final, Literal, NamedTuple

from pulseguard_assets.simulator.catalogue import Coin, instant_of, ms_of
from pulseguard_assets.simulator.market import Market, Quote, draw

Granularity = Literal["5m", "hourly", "daily"]

MINUTE_MS: Final = 60_000
FIVE_MS: Final = 5 * MINUTE_MS
HOUR_MS: Final = 60 * MINUTE_MS
DAY_MS: Final = 24 * HOUR_MS

#: A window that starts within this of the present is answered in five-minute points. The
#: minute above 24 hours forgives the time a request takes.
FINEST_REACH_MS: Final = DAY_MS + MINUTE_MS
#: Windows up to this wide are answered in hourly points, wider ones in daily points.
HOURLY_WIDTH_MS: Final = 90 * DAY_MS
#: The daily point of a day that has ended is not there before this time of the next day.
DAILY_READY_MS: Final = 35 * MINUTE_MS
#: An hourly point is prompt, and a close, when it is stamped at most this long after the hour.
PROMPT_MS: Final = 15 * MINUTE_MS

# In thousandths of all hours. The recorded month had 2 hours without a point and 6 doubled in
# 722; late points were far commoner there than here, so that most backfilled hours have a truth.
_MISSING, _LATE, _DOUBLED = 4, 30, 10


class Point(NamedTuple):
    """One point of a chart: its stamp (ms since 1970) and the minute whose values it carries."""

    stamp: int
    minute: int


def granularity(start_ms: int, end_ms: int, now_ms: int) -> Granularity:
    """The granularity the provider picks by itself for a window asked for at `now_ms`."""
    if start_ms >= now_ms - FINEST_REACH_MS:
        return "5m"
    return "hourly" if end_ms - start_ms <= HOURLY_WIDTH_MS else "daily"


def points(
    market: Market,
    coin: Coin,
    start_ms: int,
    end_ms: int,
    now_ms: int,
    grain: Granularity | None = None,
) -> list[Point]:
    """The points of a chart of `[start_ms, end_ms]` as answered at `now_ms`, oldest first.

    Points from before the coin was listed, or from while it was delisted, do not exist. The
    present is appended when the window reaches it.
    """
    grain = grain or granularity(start_ms, end_ms, now_ms)
    first = max(start_ms, coin.born * MINUTE_MS - DAY_MS)
    last = min(end_ms, now_ms)
    found = [
        point
        for point in _RULES[grain](market, coin, first, last, now_ms)
        if first <= point.stamp <= last and coin.listed_at(point.minute)
    ]
    if (present := _present(coin, found, now_ms)) and start_ms <= present.stamp <= end_ms:
        # The finest charts repeat their newest sample as the present.
        newest = found[-1].stamp if found else start_ms
        sampled = grain == "5m" and newest // MINUTE_MS < present.minute
        found += [Point(_looked(coin, now_ms), present.minute)] * sampled + [present]
    return found


def values(market: Market, coin: Coin, chart: list[Point]) -> list[Quote]:
    """The values of each point of a chart, in its order."""
    return [market.quote(coin, point.minute) for point in chart]


def hourly_close_stamp(market: Market, coin_id: str, bucket_end: datetime) -> datetime | None:
    """When the hourly point that closes the hour ending at `bucket_end` is stamped.

    None when charts have no such point: the coin was not listed, or the point is missing or
    late. The close it carries is `market.close(coin_id, bucket_end, "history")`.
    """
    coin, end_ms = market.coin(coin_id), ms_of(bucket_end)
    for point in _hour(market, coin, end_ms // HOUR_MS):
        if point.stamp - end_ms <= PROMPT_MS and coin.listed_at(point.minute):
            return instant_of(point.stamp)
    return None


def five_minute_stamp(market: Market, coin_id: str, instant: datetime) -> datetime | None:
    """The stamp of the five-minute point in the five minutes that hold `instant`.

    Its value is `market.observation` at the stamp. None when the coin was not listed then.
    """
    coin = market.coin(coin_id)
    stamp = _five_minute(coin, ms_of(instant) // FIVE_MS)
    return instant_of(stamp) if coin.listed_at(stamp // MINUTE_MS) else None


def daily_close_ready(bucket_end: datetime) -> datetime:
    """From when on the daily point stamped `bucket_end` is in the answers."""
    return bucket_end + timedelta(milliseconds=DAILY_READY_MS)


def _five_minute(coin: Coin, slot: int) -> int:
    # The last slot of an hour is sampled in its first minute: the hourly point that repeats this
    # sample then carries exactly what was live five minutes before the hour ended.
    spread = MINUTE_MS if slot % 12 == 11 else FIVE_MS // 2
    offset = draw(coin, 2, slot) % (spread - 1) + 1
    # Never on a minute boundary, where "just before" would be the minute before.
    return slot * FIVE_MS + offset + (offset % MINUTE_MS == 0)


def _five_minute_points(
    _market: Market, coin: Coin, first: int, last: int, _now: int
) -> Iterator[Point]:
    for slot in range(first // FIVE_MS, last // FIVE_MS + 1):
        stamp = _five_minute(coin, slot)
        yield Point(stamp, stamp // MINUTE_MS)


def _hour(market: Market, coin: Coin, hour: int) -> Iterator[Point]:
    """The points stamped within one hour: one as a rule."""
    bits = draw(coin, 3, hour)
    fate = bits % 1000 if market.irregular_charts else 999
    start = hour * HOUR_MS
    if fate >= _MISSING + _LATE:
        stamp = start + 20_000 + (bits >> 10) % 800_000
        yield Point(stamp, start // MINUTE_MS - 5)
    if _MISSING <= fate < _MISSING + _LATE + _DOUBLED:
        stamp = start + PROMPT_MS + 60_000 + (bits >> 32) % 2_520_000
        yield Point(stamp, stamp // MINUTE_MS - 5)


def _hourly_points(market: Market, coin: Coin, first: int, last: int, _now: int) -> Iterator[Point]:
    for hour in range(first // HOUR_MS, last // HOUR_MS + 1):
        yield from _hour(market, coin, hour)


def _daily_points(_market: Market, _coin: Coin, first: int, last: int, now: int) -> Iterator[Point]:
    for day in range(-(-first // DAY_MS), last // DAY_MS + 1):
        if day * DAY_MS + DAILY_READY_MS <= now:
            yield Point(day * DAY_MS, day * (DAY_MS // MINUTE_MS) - 5)


_RULES: Final = {"5m": _five_minute_points, "hourly": _hourly_points, "daily": _daily_points}


def _looked(coin: Coin, now_ms: int) -> int:
    """When the provider last looked at the coin, moved or not: within the minute of `now_ms`."""
    minute = now_ms // MINUTE_MS
    return minute * MINUTE_MS + min(draw(coin, 1, minute) % 20_000, now_ms % MINUTE_MS)


def _present(coin: Coin, found: list[Point], now_ms: int) -> Point | None:
    minute = now_ms // MINUTE_MS
    if not coin.listed_at(minute):
        return None
    newest = found[-1].stamp if found else 0
    return Point(max(_looked(coin, now_ms), newest) // 1000 * 1000, minute)
