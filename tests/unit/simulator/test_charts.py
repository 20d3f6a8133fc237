from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pulseguard_assets.simulator import charts
from pulseguard_assets.simulator.catalogue import Coin, instant_of, ms_of
from pulseguard_assets.simulator.charts import DAY_MS, HOUR_MS, MINUTE_MS
from pulseguard_assets.simulator.market import Market

UTC = timezone.utc
NOON = datetime(2026, 11, 22, 12, 3, 27, 250_000, tzinfo=UTC)
NOW = ms_of(NOON)
MARKET = Market(seed=7, coins=300)
BITCOIN = MARKET.coin("bitcoin")


def chart(days: float, coin: Coin = BITCOIN, market: Market = MARKET) -> list[charts.Point]:
    return charts.points(market, coin, NOW - int(days * DAY_MS), NOW, NOW)


@pytest.mark.parametrize(
    ("start", "width", "grain"),
    [
        (1.0, 1.0, "5m"),
        (0.2, 0.1, "5m"),
        (1.1, 1.0, "hourly"),
        (90, 90, "hourly"),
        (91, 91, "daily"),
        (300, 90, "hourly"),
        (300, 90.01, "daily"),
    ],
)
def test_granularity_follows_the_age_and_the_width_of_the_window(
    start: float, width: float, grain: str
) -> None:
    begin = NOW - int(start * DAY_MS)
    assert charts.granularity(begin, begin + int(width * DAY_MS), NOW) == grain


def test_every_five_minutes_of_the_last_day_have_a_point_of_their_own_minute() -> None:
    points = chart(1)
    slots = [point.stamp // charts.FIVE_MS for point in points[:-2]]
    assert slots == list(range(slots[0], slots[0] + len(slots)))
    assert len(slots) in (287, 288, 289)
    assert all(point.minute == point.stamp // MINUTE_MS for point in points)
    # "Just before the stamp" and "in the minute it is stamped in" are one and the same.
    assert all((point.stamp - 1) // MINUTE_MS == point.minute for point in points[:-2])
    assert len({point.stamp % charts.FIVE_MS for point in points}) > 200


def test_the_present_comes_last_to_the_second_and_repeats_the_newest_sample() -> None:
    *_, sample, present = chart(1)
    assert present.stamp % 1000 == 0
    assert 0 <= sample.stamp - present.stamp < 1000
    assert present.minute == sample.minute == NOW // MINUTE_MS
    assert chart(30)[-1].stamp == present.stamp
    assert chart(30)[-2].stamp < present.stamp - MINUTE_MS


def test_a_window_that_ends_in_the_past_has_no_present() -> None:
    points = charts.points(MARKET, BITCOIN, NOW - 30 * DAY_MS, NOW - 10 * DAY_MS, NOW)
    assert points[-1].stamp < NOW - 10 * DAY_MS
    assert points[-1].minute < NOW // MINUTE_MS - 10 * 1440


def test_a_prompt_hourly_point_carries_the_price_of_five_minutes_before_the_hour() -> None:
    prompt = [p for p in chart(90)[:-1] if p.stamp % HOUR_MS <= charts.PROMPT_MS]
    assert len(prompt) > 2_000
    for point in prompt:
        end = instant_of(point.stamp // HOUR_MS * HOUR_MS)
        close = MARKET.close("bitcoin", end, "history")
        assert close is not None
        assert MARKET.quote(BITCOIN, point.minute) == close[:3]
        assert charts.hourly_close_stamp(MARKET, "bitcoin", end) == instant_of(point.stamp)


def test_an_hourly_point_repeats_the_five_minute_point_of_its_last_slot() -> None:
    end = datetime(2026, 11, 22, 9, tzinfo=UTC)
    stamp = charts.five_minute_stamp(MARKET, "bitcoin", end - timedelta(minutes=2))
    assert stamp is not None
    assert end - timedelta(minutes=5) < stamp < end - timedelta(minutes=4)
    seen = MARKET.observation("bitcoin", stamp)
    close = MARKET.close("bitcoin", end, "history")
    assert seen is not None
    assert close is not None
    assert seen[:3] == close[:3]


def test_hours_are_now_and_then_missing_late_or_doubled_and_the_truth_knows_it() -> None:
    by_hour: dict[int, list[int]] = {}
    for point in chart(90)[:-1]:
        by_hour.setdefault(point.stamp // HOUR_MS, []).append(point.stamp % HOUR_MS)
    hours = range(min(by_hour), max(by_hour) + 1)
    missing = [hour for hour in hours if hour not in by_hour]
    doubled = [hour for hour in hours if len(by_hour.get(hour, [])) == 2]
    late = [hour for hour in hours if by_hour.get(hour, [0])[0] > charts.PROMPT_MS]
    assert missing
    assert doubled
    assert late
    for hour in (*missing, *late):
        assert charts.hourly_close_stamp(MARKET, "bitcoin", instant_of(hour * HOUR_MS)) is None
    regular = Market(seed=7, coins=3, irregular_charts=False)
    hourly = [point.stamp // HOUR_MS for point in chart(90, regular.coin("bitcoin"), regular)[:-1]]
    assert hourly == list(range(hourly[0], hourly[0] + len(hourly)))


def test_daily_points_are_midnights_that_close_the_day_before() -> None:
    points = chart(300)[:-1]
    assert len(points) == 300
    for point in points:
        assert point.stamp % DAY_MS == 0
        close = MARKET.close("bitcoin", instant_of(point.stamp), "history")
        assert close is not None
        assert MARKET.quote(BITCOIN, point.minute) == close[:3]


@pytest.mark.parametrize(("minutes", "there"), [(34, False), (35, True)])
def test_yesterday_appears_thirty_five_minutes_after_midnight(minutes: int, there: bool) -> None:
    midnight = ms_of(datetime(2026, 11, 22, tzinfo=UTC))
    now = midnight + minutes * MINUTE_MS
    points = charts.points(MARKET, BITCOIN, now - 100 * DAY_MS, now, now)
    assert (midnight in [point.stamp for point in points]) is there
    assert (charts.daily_close_ready(instant_of(midnight)) <= instant_of(now)) is there


def test_there_is_no_history_from_before_a_coin_was_listed_or_from_while_it_was_away() -> None:
    big = Market(seed=1, coins=20_000)
    young = next(c for c in big.coins if NOW - 200 * DAY_MS < c.born * MINUTE_MS < NOW - DAY_MS)
    born = young.born * MINUTE_MS
    assert charts.points(big, young, born - 90 * DAY_MS, born - 1, NOW) == []
    assert all(p.minute >= young.born for p in charts.points(big, young, 0, NOW, NOW))
    back = next(c for c in big.coins if c.gone and c.gone[1] * MINUTE_MS < NOW - 2 * DAY_MS)
    assert back.gone is not None
    start, end = back.gone[0] * MINUTE_MS, back.gone[1] * MINUTE_MS
    inside = charts.points(big, back, start + HOUR_MS, end - HOUR_MS, NOW)
    assert inside == []
    assert charts.points(big, back, end + HOUR_MS, end + DAY_MS, NOW)


@given(
    st.integers(0, 400 * DAY_MS),
    st.integers(-DAY_MS, 200 * DAY_MS),
    st.sampled_from([coin.id for coin in MARKET.coins[:80]]),
)
def test_points_lie_in_their_window_in_order_and_never_in_the_future(
    ago: int, width: int, coin_id: str
) -> None:
    start, coin = NOW - ago, MARKET.coin(coin_id)
    points = charts.points(MARKET, coin, start, start + width, NOW)
    stamps = [point.stamp for point in points]
    assert all(start <= stamp <= start + width for stamp in stamps)
    assert all(stamp <= NOW for stamp in stamps)
    assert stamps[:-1] == sorted(stamps[:-1])
    assert all(point.minute <= point.stamp // MINUTE_MS for point in points)


@given(st.integers(1, 40), st.integers(0, 40))
def test_asking_later_or_in_pieces_gives_the_same_old_points(first: int, gap: int) -> None:
    start, end = NOW - 80 * DAY_MS, NOW - 30 * DAY_MS
    middle = start + first * DAY_MS
    whole = charts.points(MARKET, BITCOIN, start, end, NOW)
    pieces = charts.points(MARKET, BITCOIN, start, middle, NOW)
    pieces += charts.points(MARKET, BITCOIN, middle + 1, end, NOW + gap * HOUR_MS)
    assert pieces == whole
