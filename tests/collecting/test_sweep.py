"""Sweeps of the market list against the served simulator and a real database."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from decimal import Decimal
from typing import Any

import psycopg
import pytest

from pulseguard_assets.collecting.errors import SweepFailed
from pulseguard_assets.collecting.platform import Platform
from pulseguard_assets.collecting.sweep import SweepReport, sweep
from pulseguard_assets.simulator.server import RunningSimulator
from pulseguard_assets.warehouse.coins import coins_to_poll
from pulseguard_assets.warehouse.collections import CollectorBusy, only_collector
from pulseguard_assets.warehouse.connection import connect

PlatformFactory = Callable[..., Platform]
Sweeping = Callable[..., SweepReport]
PATIENCE = timedelta(minutes=10)


@pytest.fixture
def run(provider: RunningSimulator, connection: psycopg.Connection) -> Sweeping:
    """`run(platform, log=...)` sweeps at the simulated time."""

    def once(platform: Platform, **how: Any) -> SweepReport:
        now = provider.now
        return sweep(platform, connection, now=now, until=now + PATIENCE, **how)

    return once


@pytest.fixture
def another(database: str) -> Iterator[psycopg.Connection]:
    with connect(database) as connection:
        yield connection


def known(connection: psycopg.Connection) -> set[str]:
    return {row[0] for row in connection.execute("SELECT coin_id FROM coin_priorities")}


def ranks(connection: psycopg.Connection) -> dict[str, int | None]:
    return dict(connection.execute("SELECT coin_id, market_cap_rank FROM coin_priorities"))


def true_ranks(provider: RunningSimulator) -> dict[str, int | None]:
    market, minute = provider.market, int(provider.now.timestamp()) // 60
    return {
        coin.id: market.rank(coin, minute) if coin.values == "plain" else None
        for coin in market.page_order(minute)
    }


def in_order(provider: RunningSimulator) -> list[str]:
    """Ids as the market list has them."""
    return [c.id for c in provider.market.page_order(int(provider.now.timestamp()) // 60)]


def cycles(connection: psycopg.Connection) -> list[Any]:
    return connection.execute(
        "SELECT status, coins_processed, coins_failed, api_calls_made, error_message "
        "FROM collection_status WHERE collection_type = 'priority_refresh' ORDER BY id"
    ).fetchall()


def asked_for(provider: RunningSimulator) -> list[str]:
    """The last parameter of every /coins/markets call."""
    return [call["url"].rpartition("&")[2] for call in provider.calls(recent=200)["recent"]]


# --- what is stored ---


def test_a_sweep_of_all_coins_reads_to_the_end_of_the_list(
    new_platform: PlatformFactory,
    provider: RunningSimulator,
    connection: psycopg.Connection,
    run: Sweeping,
) -> None:
    report = run(new_platform(mode="complete"))

    assert (report.stored, report.rejected, report.pages, report.calls) == (300, 0, 2, 2)
    assert known(connection) == set(provider.market.listed(provider.now))
    assert cycles(connection) == [("completed", 300, 0, 2, None)]


def test_ranks_are_stored_with_their_ties_and_gaps_and_nulls(
    new_platform: PlatformFactory,
    provider: RunningSimulator,
    connection: psycopg.Connection,
    run: Sweeping,
) -> None:
    run(new_platform(mode="complete"))

    truth = true_ranks(provider)
    assert ranks(connection) == truth
    given = sorted(rank for rank in truth.values() if rank is not None)
    assert len(set(given)) < len(given), "or no tie is tried"
    assert given[-1] > len(given), "or no gap is"
    assert None in truth.values()


def test_a_coin_is_stored_as_the_list_describes_it(
    new_platform: PlatformFactory,
    provider: RunningSimulator,
    connection: psycopg.Connection,
    run: Sweeping,
) -> None:
    run(new_platform(mode="complete"))

    rows = connection.execute(
        "SELECT coin_id, symbol, name, image_url, market_cap_usd, provider_ts, last_updated, "
        "created_at FROM coin_priorities"
    )
    for coin_id, symbol, name, image, cap, provider_ts, updated, created in rows:
        coin = provider.market.coin(coin_id)
        seen = provider.market.observation(coin_id, provider.now)
        assert (symbol, name, image) == (coin.symbol, coin.name, coin.image)
        assert (updated, created) == (provider.now, provider.now)
        assert seen is not None
        assert cap == (None if seen.market_cap is None else Decimal(round(seen.market_cap)))
        assert provider_ts == seen.last_updated


@pytest.mark.parametrize(
    ("mode", "pages"), [("1", 1), ("250", 1), ("251", 2), ("top1000", 2), ("complete", 2)]
)
def test_a_mode_reads_as_many_pages_as_it_needs(
    new_platform: PlatformFactory, provider: RunningSimulator, run: Sweeping, mode: str, pages: int
) -> None:
    assert run(new_platform(mode=mode)).pages == pages

    assert asked_for(provider) == [f"page={n}" for n in range(1, pages + 1)]


@pytest.mark.parametrize("coins", [500])
def test_a_list_that_ends_with_a_full_page_is_read_one_page_further(
    new_platform: PlatformFactory, run: Sweeping
) -> None:
    report = run(new_platform(mode="complete"))

    assert (report.stored, report.pages) == (500, 3)


@pytest.mark.parametrize("shift", [1, 7])
def test_a_coin_on_two_pages_is_stored_once(
    new_platform: PlatformFactory,
    provider: RunningSimulator,
    connection: psycopg.Connection,
    run: Sweeping,
    shift: int,
) -> None:
    provider.fault("page_drift", shift=shift)

    run(new_platform(mode="complete"))

    assert ranks(connection) == true_ranks(provider)


def test_a_coin_between_two_pages_is_missed_and_a_later_sweep_finds_it(
    new_platform: PlatformFactory,
    provider: RunningSimulator,
    connection: psycopg.Connection,
    run: Sweeping,
) -> None:
    platform = new_platform(mode="complete", always_include="")
    provider.fault("page_drift", shift=-3, count=2)
    run(platform)
    missed = set(in_order(provider)) - known(connection)
    assert missed == set(in_order(provider)[250:253])
    provider.advance(timedelta(days=1))

    run(platform)

    assert known(connection) == set(in_order(provider))


def test_a_coin_that_leaves_the_list_is_never_deleted(
    new_platform: PlatformFactory,
    provider: RunningSimulator,
    connection: psycopg.Connection,
    run: Sweeping,
) -> None:
    platform = new_platform(mode="complete")
    run(platform)
    provider.fault("missing_ids", coins=["tron"])
    provider.advance(timedelta(days=30))

    run(platform)

    assert "tron" in known(connection)
    assert "tron" not in set(coins_to_poll(connection, None, ())["coin_id"])


def test_a_row_that_cannot_be_read_is_set_aside_and_its_page_stored(
    new_platform: PlatformFactory,
    provider: RunningSimulator,
    connection: psycopg.Connection,
    run: Sweeping,
) -> None:
    provider.fault("replace", fields=["rank"], value=-5, coins=["tron"])
    provider.fault("negative", fields=["market_cap"], coins=["cardano"])
    provider.fault("string_number", fields=["market_cap"], coins=["solana"])

    report = run(new_platform(mode="complete", always_include="bitcoin"))

    assert (report.stored, report.rejected) == (297, 3)
    assert set(in_order(provider)) - known(connection) == {"tron", "cardano", "solana"}
    filed = connection.execute(
        "SELECT coin_id, collection_id FROM rejected_observations ORDER BY 1"
    ).fetchall()
    assert filed == [(coin, report.cycle.id) for coin in ("cardano", "solana", "tron")]
    assert cycles(connection) == [("completed", 297, 3, 2, None)]


# --- always included ---


def test_an_always_included_coin_beyond_the_mode_is_fetched_by_its_id(
    new_platform: PlatformFactory,
    provider: RunningSimulator,
    connection: psycopg.Connection,
    run: Sweeping,
) -> None:
    far = in_order(provider)[260]

    report = run(new_platform(mode="10", always_include=f"bitcoin,{far}"))

    assert asked_for(provider) == ["page=1", f"ids={far}"]
    assert (report.stored, report.unknown) == (251, ())
    assert known(connection) == {*in_order(provider)[:250], far}


def test_its_rank_is_renewed_by_every_sweep(
    new_platform: PlatformFactory,
    provider: RunningSimulator,
    connection: psycopg.Connection,
    run: Sweeping,
) -> None:
    far = in_order(provider)[205]
    assert true_ranks(provider)[far] is not None
    platform = new_platform(mode="10", always_include=far)
    run(platform)
    connection.execute("UPDATE coin_priorities SET market_cap_rank = 9999")
    provider.fault("missing_ids", coins=[far], count=1)
    provider.advance(timedelta(days=1))

    run(platform)

    assert ranks(connection)[far] == true_ranks(provider)[far]


def test_a_coin_the_provider_does_not_list_is_named_with_the_setting(
    new_platform: PlatformFactory,
    provider: RunningSimulator,
    connection: psycopg.Connection,
    run: Sweeping,
) -> None:
    said: list[str] = []

    report = run(new_platform(always_include="bitcoin,bitcion,cadrano"), log=said.append)

    assert report.unknown == ("bitcion", "cadrano")
    assert any("bitcion, cadrano" in line and "PULSEGUARD_ALWAYS_INCLUDE" in line for line in said)
    details = connection.execute("SELECT batch_details->'unknown' FROM collection_status")
    assert details.fetchone() == (["bitcion", "cadrano"],)
    assert cycles(connection) == [("completed", 300, 2, 3, None)]


@pytest.mark.parametrize("coins", [700])
def test_more_always_included_coins_than_fit_into_a_call_are_fetched_in_several(
    new_platform: PlatformFactory,
    provider: RunningSimulator,
    connection: psycopg.Connection,
    run: Sweeping,
) -> None:
    far = in_order(provider)[300:650]

    report = run(new_platform(mode="10", always_include=",".join(far)))

    assert set(far) <= known(connection)
    assert report.unknown == ()


# --- failures ---


def test_a_failure_keeps_the_pages_before_it(
    new_platform: PlatformFactory,
    provider: RunningSimulator,
    connection: psycopg.Connection,
    run: Sweeping,
) -> None:
    provider.fault("server_error", skip=1)

    with pytest.raises(SweepFailed, match=r"/coins/markets with HTTP 500") as failure:
        run(new_platform(mode="complete"))

    assert len(known(connection)) == 250
    assert cycles(connection) == [("failed", 250, 0, 4, str(failure.value))]


def test_a_hiccup_of_the_provider_is_tried_again(
    platform: Platform, provider: RunningSimulator, connection: psycopg.Connection, run: Sweeping
) -> None:
    provider.fault("html", status=502, count=2)
    provider.fault("rate_limit", retry_after=30, skip=1, count=1)

    assert run(platform).stored == 300

    assert cycles(connection)[0][3] == provider.calls()["total"]


def test_on_a_small_plan_a_sweep_waits_for_free_calls(
    new_platform: PlatformFactory, provider: RunningSimulator, run: Sweeping
) -> None:
    began = provider.now

    assert run(new_platform(calls_per_minute=1)).stored == 300

    assert provider.now - began >= timedelta(seconds=60)


@pytest.mark.parametrize("coins", [3300])
def test_a_sweep_that_takes_too_long_ends_and_keeps_what_it_read(
    new_platform: PlatformFactory,
    provider: RunningSimulator,
    connection: psycopg.Connection,
    run: Sweeping,
) -> None:
    def dawdle(_: str) -> None:
        provider.advance(PATIENCE / 2)

    with pytest.raises(SweepFailed, match=r"after page 2 .*PULSEGUARD_PLAN"):
        run(new_platform(mode="complete"), log=dawdle)

    assert cycles(connection)[0][:2] == ("failed", 500)


def test_a_crashed_sweep_is_closed_by_the_next(
    platform: Platform, connection: psycopg.Connection, run: Sweeping
) -> None:
    class Killed(BaseException):
        pass

    def die(_: str) -> None:
        raise Killed

    with pytest.raises(Killed):
        run(platform, log=die)
    assert [row[0] for row in cycles(connection)] == ["running"]

    run(platform)

    assert [row[0] for row in cycles(connection)] == ["failed", "completed"]


def test_of_two_sweeps_the_second_is_told_that_one_is_running(
    platform: Platform, another: psycopg.Connection, run: Sweeping
) -> None:
    with only_collector(another, "priority_refresh"), pytest.raises(CollectorBusy):
        run(platform)


def test_a_sweep_whose_warehouse_fails_says_so(
    platform: Platform, connection: psycopg.Connection, run: Sweeping
) -> None:
    connection.execute("ALTER TABLE coin_priorities RENAME TO gone")

    with pytest.raises(SweepFailed, match=r"PostgreSQL failed: .*coin_priorities"):
        run(platform)

    assert cycles(connection)[0][0] == "failed"
