"""An hour and a year of days, asked for by clicks in the web interface, while polls go on."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from decimal import Decimal

import pytest
from playwright.sync_api import Browser, expect
from up_support import OURS, Up, eventually, keep_picture, open_page

from pulseguard_assets.coingecko.backfill import ready_at
from pulseguard_assets.simulator.market import HISTORY_LEAD, Market
from pulseguard_assets.timeframes import (
    DAILY,
    HOURLY,
    MONTHLY,
    WEEKLY,
    Timeframe,
    bucket_end,
    bucket_start,
)

pytestmark = pytest.mark.timeout(900)

MINUTES = "SELECT count(DISTINCT minute_ts) FROM minute_close"
ENDED = "SELECT count(*) FROM dagster.bulk_actions WHERE status = 'COMPLETED_SUCCESS'"


def test_an_hour_by_click_and_a_year_by_dialog_end_in_exact_closes(
    start: Callable[..., Up], browser: Browser
) -> None:
    begin = datetime.now(timezone.utc).date() - timedelta(days=365)
    settings = {"PULSEGUARD_MODE": "20", "PULSEGUARD_HISTORY_START": begin.isoformat()}
    up = start("demo", definitions=OURS, **settings)
    up.wait_until_up()
    eventually("a first minute", lambda: up.query(MINUTES) >= 1)
    assert _compared(up, HOURLY, had=_an_hour_by_click(browser, up)) >= 15

    had = _newest_day_to_be_had(datetime.now(timezone.utc))
    _a_year_by_dialog(browser, up)

    before = up.query(MINUTES)
    eventually("polls go on", lambda: up.query(MINUTES) > before, within=200)
    calls = "SELECT count(*) FROM api_calls WHERE endpoint LIKE '%market_chart%'"
    assert up.query(calls) <= up.query("SELECT count(*) FROM coin_priorities")
    assert _compared(up, WEEKLY, had) > 50 * 15
    assert _compared(up, MONTHLY, had) > 10 * 15


def _an_hour_by_click(browser: Browser, up: Up) -> datetime:
    """Materialize an hour of the list that has long been over; returns when it ended."""
    hour = bucket_start(HOURLY, datetime.now(timezone.utc)) - timedelta(hours=2)
    key = f"{hour:%Y-%m-%d-%H}:00"
    page = open_page(browser, up, "/assets/hourly_close?view=partitions")
    page.get_by_text(key, exact=True).first.click()
    page.get_by_role("button", name="Materialize").first.click()
    page.get_by_role("button", name="Launch 1 run").click()
    stored = "SELECT count(*) FROM hourly_close WHERE hour_ts = %s AND source = 'history'"
    eventually("the hour is there", lambda: up.rows(stored, hour)[0][0] >= 15)
    page.close()
    page = open_page(browser, up, f"/assets/hourly_close?view=partitions&partition={key}")
    expect(page.get_by_text("Materialized", exact=True).first).to_be_visible()
    expect(page.get_by_text("from_history", exact=True).first).to_be_visible()
    keep_picture(page, "partition")
    return bucket_end(HOURLY, hour)


def _a_year_by_dialog(browser: Browser, up: Up) -> None:
    """Materialize all days, of which no hour but one was ever: else Dagster would ask twice."""
    page = open_page(browser, up, "/assets/daily_close?view=overview")
    page.get_by_role("button", name="Materialize").first.click()
    page.get_by_role("button", name="Show all partitions").click()
    page.get_by_role("button", name="All", exact=True).last.click()
    page.get_by_role("button", name="Launch backfill").click()
    eventually("the backfill's end", lambda: up.query(ENDED) == 1, within=300)
    page.close()
    keep_picture(open_page(browser, up, "/assets/monthly_close?view=overview"), "backfill")


def _newest_day_to_be_had(now: datetime) -> datetime:
    """When the newest day ended whose close history has: not yet the one just over, at midnight."""
    ended = bucket_start(DAILY, now)
    return ended if ready_at(DAILY, ended) <= now else ended - timedelta(days=1)


def _compared(up: Up, timeframe: Timeframe, had: datetime) -> int:
    """Hold the closes of every bucket that is over against the truth; returns how many.

    Args:
        had: until when history had every close. A bucket that ended since rests on nothing older,
            or on a poll of this very test.
    """
    # As `pulseguard demo` invents it.
    market = Market(seed=0)
    rows = up.rows(
        f"SELECT coin_id, {timeframe.label}, close_ts, price_usd, source FROM {timeframe.table} "
        f"WHERE {timeframe.label} < %s",
        bucket_start(timeframe, datetime.now(timezone.utc)),
    )
    for coin, label, close_ts, price, source in rows:
        end = bucket_end(timeframe, label)
        if source == "live":
            assert end > had
            continue
        # A point of the past was observed five minutes before what it closes was over.
        closed = close_ts + HISTORY_LEAD
        assert closed == end if end <= had else closed >= had, (coin, label, close_ts)
        truth = market.close(coin, closed, "history")
        assert price == Decimal(repr(truth.price)), (coin, label)
    return len(rows)
