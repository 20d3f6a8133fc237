"""The main job as a stranger sees it: `pulseguard demo`, a browser, and the tables."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest
from playwright.sync_api import Browser, expect
from up_support import OURS, Up, eventually, keep_picture, open_page

pytestmark = pytest.mark.timeout(900)

MINUTES = "SELECT count(DISTINCT minute_ts) FROM minute_close"
CLOSES = ("minute_close", "hourly_close", "daily_close", "monthly_close")
# Of every poll, as plots over time.
FIGURES = (
    *("dagster/row_count", "rows_stored", "coins_expected", "coverage", "missing", "rejected"),
    *("latency_seconds", "api_calls", "oldest_provider_age_seconds", "credits_left_this_month"),
)
DRAWN = """least => {
    const plots = [...document.querySelectorAll("canvas")];
    const drawn = plot => plot.getContext("2d")
        .getImageData(0, 0, plot.width, plot.height).data.some(Boolean);
    return plots.length >= least && plots.every(drawn);
}"""
# Two whole minutes pass before a second poll is due for sure.
TWO_POLLS = 200.0
# Ten seconds, and what a loaded machine takes more.
STOPS_WITHIN = 30.0


def _lineage(browser: Browser, up: Up) -> None:
    path = "/assets/monthly_close?view=lineage&lineageScope=upstream&lineageDepth=5"
    page = open_page(browser, up, path)
    for asset in ("coins_markets", "simple_price", "coin_priorities", *CLOSES):
        expect(page.get_by_text(asset, exact=True).first).to_be_visible()
    keep_picture(page, "lineage")


def _plots(browser: Browser, up: Up) -> None:
    page = open_page(browser, up, "/assets/minute_close?view=overview")
    page.get_by_role("button", name="Plots").click()
    page.get_by_role("button", name="Events").click()
    for figure in FIGURES:
        expect(page.get_by_text(figure, exact=True).first).to_be_visible()
    page.wait_for_function(DRAWN, arg=len(FIGURES))
    page.get_by_text("dagster/row_count", exact=True).first.scroll_into_view_if_needed()
    keep_picture(page, "plots")


def test_the_demo_collects_shows_it_and_goes_on_after_a_stop(
    start: Callable[..., Up], browser: Browser
) -> None:
    up = start("demo", definitions=OURS)
    up.wait_until_up()
    assert "simulated prices, none of them real" in up.screen
    eventually("a first minute", lambda: up.query(MINUTES) >= 1)
    eventually("a second minute", lambda: up.query(MINUTES) >= 2, within=TWO_POLLS)

    page = open_page(browser, up, "/assets/minute_close?view=overview")
    expect(page.get_by_text("Latest materialization")).to_be_visible()
    expect(page.get_by_text("FROM minute_close").first).to_be_visible()
    expect(page.get_by_text("coin_id").first).to_be_visible()
    keep_picture(page, "minute_close")
    page = open_page(browser, up, "/locations/pulseguard/sensors/coingecko_price_sensor")
    expect(page.get_by_text("~20 sec")).to_be_visible()
    keep_picture(page, "sensor")
    _lineage(browser, up)
    _plots(browser, up)

    # The open hour is live, rests on just the minutes that are stored, and is their last one.
    assert up.rows(
        """SELECT count(*) FROM hourly_close h WHERE h.close_ts IS DISTINCT FROM
           (SELECT max(m.minute_ts) FROM minute_close m WHERE m.coin_id = h.coin_id
            AND date_trunc('hour', m.minute_ts, 'UTC') = h.hour_ts)
           OR h.price_usd IS DISTINCT FROM (SELECT m.price_usd FROM minute_close m
            WHERE m.coin_id = h.coin_id AND m.minute_ts = h.close_ts)""",
    ) == [(0,)]
    before = up.query(MINUTES)
    assert up.stop(signal.SIGINT) < STOPS_WITHIN
    assert up.code == 0

    again = start("demo", definitions=OURS)
    again.wait_until_up()
    eventually("it goes on", lambda: again.query(MINUTES) > before, within=TWO_POLLS)
    # A cycle that the stop cut short is found and closed by the next one.
    eventually(
        "no cycle is left open",
        lambda: again.query("SELECT count(*) FROM collection_status WHERE status = 'running'") == 0,
        within=30,
    )
    # No minute in which it ran is missing: from each poll to the next it is a minute, but for the
    # one gap of the stop.
    gaps = again.rows(
        """SELECT count(*) FROM (SELECT minute_ts - lag(minute_ts) OVER (ORDER BY minute_ts) AS gap
           FROM (SELECT DISTINCT minute_ts FROM minute_close) AS minutes) AS gaps
           WHERE gap > INTERVAL '1 minute'""",
    )
    assert gaps[0][0] in (0, 1)
