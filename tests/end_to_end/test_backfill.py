"""A year of days backfilled by the dialog of the web interface, while polls go on."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from decimal import Decimal

import pytest
from playwright.sync_api import Browser
from up_support import REAL, Up, eventually, keep_picture, open_page

from pulseguard_assets.coingecko.backfill import ready_at
from pulseguard_assets.simulator.market import HISTORY_LEAD, Market
from pulseguard_assets.timeframes import (
    DAILY,
    MONTHLY,
    WEEKLY,
    Timeframe,
    bucket_end,
    bucket_start,
)

pytestmark = pytest.mark.timeout(900)

MINUTES = "SELECT count(DISTINCT minute_ts) FROM minute_close"
ENDED = "SELECT count(*) FROM dagster.bulk_actions WHERE status = 'COMPLETED_SUCCESS'"


def test_a_year_backfilled_by_the_dialog_ends_in_exact_weeks_and_months(
    start: Callable[..., Up], browser: Browser
) -> None:
    begin = datetime.now(timezone.utc).date() - timedelta(days=365)
    settings = {"PULSEGUARD_MODE": "20", "PULSEGUARD_HISTORY_START": begin.isoformat()}
    up = start("demo", program=REAL, **settings)
    up.wait_until_up()
    eventually("a first minute", lambda: up.query(MINUTES) >= 1)

    had = _newest_day_to_be_had(datetime.now(timezone.utc))
    page = open_page(browser, up, "/assets/daily_close?view=overview")
    page.get_by_role("button", name="Materialize").first.click()
    page.get_by_role("button", name="Confirm").click()
    page.get_by_role("button", name="Show all partitions").click()
    page.get_by_role("button", name="All", exact=True).last.click()
    page.get_by_role("button", name="Launch backfill").click()
    eventually("the backfill's end", lambda: up.query(ENDED) == 1, within=300)
    page.close()
    keep_picture(open_page(browser, up, "/assets/monthly_close?view=overview"), "backfill")

    before = up.query(MINUTES)
    eventually("polls go on", lambda: up.query(MINUTES) > before, within=200)
    calls = "SELECT count(*) FROM api_calls WHERE endpoint LIKE '%market_chart%'"
    assert up.query(calls) <= up.query("SELECT count(*) FROM coin_priorities")
    # As `pulseguard demo` invents it.
    market = Market(seed=0)
    assert _compared(up, market, WEEKLY, had) > 50 * 15
    assert _compared(up, market, MONTHLY, had) > 10 * 15


def _newest_day_to_be_had(now: datetime) -> datetime:
    """When the newest day ended whose close history has: not yet the one just over, at midnight."""
    ended = bucket_start(DAILY, now)
    return ended if ready_at(DAILY, ended) <= now else ended - timedelta(days=1)


def _compared(up: Up, market: Market, timeframe: Timeframe, had: datetime) -> int:
    """Hold the closes of every bucket that is over against the truth; returns how many.

    Args:
        had: until when the backfill had every day. A bucket that ended since rests on no older day.
    """
    now = datetime.now(timezone.utc)
    rows = up.rows(
        f"SELECT coin_id, {timeframe.label}, close_ts, price_usd FROM {timeframe.table} "
        f"WHERE {timeframe.label} < %s",
        bucket_start(timeframe, now),
    )
    for coin, label, close_ts, price in rows:
        end = bucket_end(timeframe, label)
        # A point of the past was observed five minutes before what it closes was over.
        closed = close_ts + HISTORY_LEAD
        assert closed == end if end <= had else closed >= had, (coin, label, close_ts)
        truth = market.close(coin, closed, "history")
        assert price == Decimal(repr(truth.price)), (coin, label)
    return len(rows)
