from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pulseguard_assets.simulator.catalogue import instant_of, minute_of, ms_of
from pulseguard_assets.simulator.market import Market, UnknownCoinError

UTC = timezone.utc
NOON = datetime(2026, 11, 22, 12, 3, 27, 250_000, tzinfo=UTC)
SMALL = Market(seed=7, coins=300)
FULL = Market(seed=1, coins=20_000)

instants = st.datetimes(
    min_value=datetime(2020, 1, 1),  # noqa: DTZ001 - hypothesis adds the zone
    max_value=datetime(2030, 1, 1),  # noqa: DTZ001
    timezones=st.just(UTC),
)
plain_ids = st.sampled_from([coin.id for coin in SMALL.coins if coin.values == "plain"])


def test_two_markets_of_one_seed_agree_and_of_two_seeds_do_not() -> None:
    again, other = Market(seed=7, coins=120), Market(seed=8, coins=120)
    for coin_id in ("bitcoin", "_", again.coins[100].id):
        assert again.observation(coin_id, NOON) == SMALL.observation(coin_id, NOON)
    assert other.observation("bitcoin", NOON) != SMALL.observation("bitcoin", NOON)


@given(plain_ids, instants)
def test_a_price_holds_for_its_minute_and_its_time_lies_in_it(
    coin_id: str, instant: datetime
) -> None:
    minute = minute_of(instant)
    start = instant_of(minute * 60_000)
    seen = SMALL.observation(coin_id, instant)
    first = SMALL.observation(coin_id, start)
    if seen is None or first is None:
        assert seen is first is None
        return
    assert seen[:3] == first[:3]
    coin = SMALL.coin(coin_id)
    updated = coin.updated_minute(minute)
    assert minute_of(seen.last_updated) == updated
    assert seen.last_updated <= instant
    assert first.last_updated <= seen.last_updated
    assert seen.price is not None
    assert 0 < seen.price < float("inf")
    assert seen.market_cap is not None
    assert seen.market_cap >= 0
    assert seen.volume is not None
    assert seen.volume >= 0


@given(plain_ids, instants)
def test_every_minute_of_a_lively_coin_has_a_price_of_its_own(
    coin_id: str, instant: datetime
) -> None:
    coin = SMALL.coin(coin_id)
    if coin.whole or coin.period > 1 or not coin.jitter:
        return
    minute = minute_of(instant)
    assert len({SMALL.quote(coin, minute + k).price for k in range(30)}) == 30


def test_a_close_is_the_observation_of_its_minute_at_either_grade() -> None:
    end = datetime(2026, 11, 1, tzinfo=UTC)
    live, history = SMALL.close("bitcoin", end, "live"), SMALL.close("bitcoin", end, "history")
    assert live is not None
    assert history is not None
    assert live.close_ts == end - timedelta(minutes=1)
    assert history.close_ts == end - timedelta(minutes=5)
    for close in (live, history):
        seen = SMALL.observation("bitcoin", close.close_ts + timedelta(seconds=31))
        assert seen is not None
        assert close[:3] == seen[:3]


def test_the_catalogue_holds_every_oddity_of_the_provider() -> None:
    ids = [coin.id for coin in FULL.coins]
    assert len(ids) == len(set(ids)) == 20_000
    assert ids[:3] == ["bitcoin", "ethereum", "cardano"]
    assert {"_", "1move token", "boringdao-[old]", "-10", "4"} <= set(ids)
    assert max(map(len, ids)) == 72
    symbols = [coin.symbol for coin in FULL.coins]
    assert len(set(symbols)) < 0.8 * len(symbols)
    assert {"", "比特熊", "🚀🌕"} <= set(symbols)
    names = "".join(coin.name for coin in FULL.coins)
    assert all(odd in names for odd in ('"', "'", ",", "🐸"))
    assert any(coin.name.endswith("\u00a0") for coin in FULL.coins)
    prices = [FULL.quote(coin, minute_of(NOON)).price for coin in FULL.coins]
    known = [price for price in prices if price is not None]
    assert min(known) < 1e-11
    assert max(known) > 1e12
    assert None in prices


def test_about_a_third_of_all_coins_have_no_rank_and_a_market_cap_of_zero() -> None:
    minute = minute_of(NOON)
    order = FULL.page_order(minute)
    unranked = [coin for coin in order if FULL.rank(coin, minute) is None]
    assert 0.28 < len(unranked) / len(order) < 0.4
    zero = [coin for coin in unranked if FULL.quote(coin, minute).market_cap == 0]
    assert len(zero) > 0.8 * len(unranked)
    assert FULL.rank(FULL.coin("capped-unranked"), minute) is None
    assert (FULL.quote(FULL.coin("capped-unranked"), minute).market_cap or 0) > 1e8


def test_ranks_have_ties_and_gaps_and_trail_behind_the_caps() -> None:
    minute = minute_of(NOON) // 5 * 5
    ranks = [FULL.rank(coin, minute) or 0 for coin in FULL.page_order(minute)[:900]]
    assert ranks[:3] == [1, 2, 3]
    assert len(set(ranks)) < len(ranks)
    assert set(range(1, 901)) - set(ranks)
    assert ranks == sorted(ranks)
    later = [FULL.rank(coin, minute + 4) for coin in FULL.page_order(minute + 4)[:12_000]]
    known = [rank for rank in later if rank is not None]
    assert known != sorted(known)


def test_the_forgotten_coin_of_the_first_page_is_twelve_days_old() -> None:
    minute = minute_of(NOON)
    assert (FULL.rank(FULL.coin("forgotten-coin"), minute) or 999) <= 250
    seen = FULL.observation("forgotten-coin", NOON)
    assert seen is not None
    assert timedelta(days=12) <= NOON - seen.last_updated < timedelta(days=13)


def test_a_slow_coin_keeps_its_price_and_its_time_for_the_hour() -> None:
    hour = NOON.replace(minute=0, second=0, microsecond=0)
    seen = [FULL.observation("slow-coin", hour + timedelta(minutes=k)) for k in (1, 30, 59)]
    assert seen[0] is not None
    assert seen[0] == seen[1] == seen[2]
    assert hour <= seen[0].last_updated < hour + timedelta(minutes=1)
    after = FULL.observation("slow-coin", hour + timedelta(hours=1))
    assert after is not None
    assert after.price != seen[0].price


def test_coins_come_and_go_and_some_return() -> None:
    born = [c for c in FULL.coins if c.born > minute_of(NOON)]
    gone = [c for c in FULL.coins if c.gone and c.gone[0] <= minute_of(NOON) < c.gone[1]]
    back = [
        c for c in FULL.coins if c.gone and c.gone[1] < minute_of(datetime(2030, 1, 1, tzinfo=UTC))
    ]
    assert born
    assert gone
    assert back
    listed = set(FULL.listed(NOON))
    assert not listed & {c.id for c in (*born, *gone)}
    first = instant_of(born[0].born * 60_000)
    assert FULL.observation(born[0].id, first) is not None
    assert FULL.observation(born[0].id, first - timedelta(milliseconds=1)) is None
    still = Market(seed=1, coins=2_000, churn=False)
    assert len(still.listed(NOON)) == 2_000


def test_an_unknown_coin_and_a_naive_time_are_errors_that_say_so() -> None:
    with pytest.raises(UnknownCoinError, match="no coin 'bitcoln'"):
        SMALL.observation("bitcoln", NOON)
    with pytest.raises(ValueError, match="no time zone"):
        SMALL.observation("bitcoin", NOON.replace(tzinfo=None))


def test_a_thousand_coins_take_well_under_fifty_milliseconds() -> None:
    ids = [coin.id for coin in FULL.coins[:1000]]
    FULL.observations(ids, NOON)
    best = min(_timed(ids, NOON + timedelta(minutes=k)) for k in range(5))
    assert best < 0.05


def _timed(ids: list[str], instant: datetime) -> float:
    began = time.perf_counter()
    FULL.observations(ids, instant)
    return time.perf_counter() - began


@given(instants)
def test_instants_survive_the_way_to_milliseconds_and_back(instant: datetime) -> None:
    assert instant - instant_of(ms_of(instant)) < timedelta(milliseconds=1)
