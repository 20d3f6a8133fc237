"""A year of days backfilled by the dialog of the web interface, while polls go on."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from decimal import Decimal

import psycopg
import pytest
from playwright.sync_api import Browser
from up_support import REAL, Up, eventually, keep_picture, open_page

from pulseguard_assets.simulator.market import Market
from pulseguard_assets.timeframes import MONTHLY, WEEKLY, Timeframe, bucket_end
from pulseguard_assets.warehouse.embedded import running_dsn

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
    assert _compared(up, market, WEEKLY) > 50 * 15
    assert _compared(up, market, MONTHLY) > 10 * 15


def _compared(up: Up, market: Market, timeframe: Timeframe) -> int:
    """Hold the closes of every bucket that is over against the truth; returns how many."""
    dsn = running_dsn(up.folders.root)
    assert dsn is not None
    with psycopg.connect(dsn) as connection:
        rows = connection.execute(
            f"SELECT coin_id, {timeframe.label}, close_ts, price_usd FROM {timeframe.table} "
            f"WHERE {timeframe.label} < date_trunc(%s, now(), 'UTC')",
            ({"weekly": "week", "monthly": "month"}[timeframe.name],),
        ).fetchall()
    for coin, label, close_ts, price in rows:
        end = bucket_end(timeframe, label)
        truth = market.close(coin, end, "history")
        assert close_ts == end - timedelta(minutes=5)
        assert price == Decimal(repr(truth.price)), (coin, label)
    return len(rows)
