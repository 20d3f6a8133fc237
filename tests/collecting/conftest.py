"""Shared by the tests of collecting: a swept database, ticks, and what the simulator told."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

import psycopg
import pytest

from pulseguard_assets.collecting.platform import TICK_BUDGET, Platform
from pulseguard_assets.collecting.polling import NotDue, PollReport, poll_by_hand, poll_when_due
from pulseguard_assets.collecting.sweep import sweep
from pulseguard_assets.simulator.server import RunningSimulator


@dataclass(frozen=True)
class Ticks:
    """The sensor without Dagster: ticks, and a look at what they left."""

    provider: RunningSimulator
    connection: psycopg.Connection

    def tick(self, platform: Platform) -> PollReport | NotDue:
        """One tick at the simulated time, with the budget of a real one."""
        now = self.provider.now
        return poll_when_due(platform, self.connection, now=now, until=now + TICK_BUDGET)

    def poll(self, platform: Platform) -> PollReport:
        """One tick in which a poll is due."""
        done = self.tick(platform)
        assert isinstance(done, PollReport), done
        return done

    def by_hand(self, platform: Platform, patience: timedelta = TICK_BUDGET) -> PollReport:
        """One poll by hand at the simulated time."""
        now = self.provider.now
        return poll_by_hand(platform, self.connection, now=now, until=now + patience)

    def wait(self, **span: float) -> None:
        """Let simulated time pass, e.g. `wait(seconds=20)`."""
        self.provider.advance(timedelta(**span))

    def cycles(self, kind: str = "continuous") -> list[Any]:
        """The cycles' rows, oldest first: status, coins stored, coins failed, calls, error."""
        return self.connection.execute(
            "SELECT status, coins_processed, coins_failed, api_calls_made, error_message "
            "FROM collection_status WHERE collection_type = %s ORDER BY id",
            (kind,),
        ).fetchall()

    def statuses(self, kind: str = "continuous") -> list[str]:
        """The cycles' states, oldest first."""
        return [row[0] for row in self.cycles(kind)]

    def prices(self) -> dict[str, Decimal]:
        """Price of each coin in minute_close; there must be one minute for each."""
        rows = self.connection.execute("SELECT coin_id, price_usd FROM minute_close").fetchall()
        assert len({row[0] for row in rows}) == len(rows), "a coin has more than one minute"
        return dict(rows)

    def rejected(self) -> Mapping[str, str]:
        """Reason by coin of everything set aside."""
        return dict(
            self.connection.execute("SELECT coin_id, reason FROM rejected_observations").fetchall()
        )

    def asked_for(self) -> list[list[str]]:
        """The ids of every /simple/price call so far, in order of arrival."""
        calls = self.provider.calls(recent=2_000)["recent"]
        return [
            [unquote(coin_id) for coin_id in call["url"].partition("&ids=")[2].split(",")]
            for call in calls
            if call["endpoint"] == "simple_price"
        ]

    def truth(self, coin_ids: Sequence[str] | None = None) -> dict[str, Decimal]:
        """The price of now of every coin that has one, as the decimal the provider writes."""
        market, now = self.provider.market, self.provider.now
        seen = market.observations(coin_ids or market.listed(now), now)
        return {
            coin_id: Decimal(repr(each.price))
            for coin_id, each in seen.items()
            if each.price is not None
        }


@pytest.fixture
def ticks(provider: RunningSimulator, connection: psycopg.Connection) -> Ticks:
    """Ticks on `connection`, against `provider`."""
    return Ticks(provider, connection)


@pytest.fixture
def swept(provider: RunningSimulator, database: str, new_platform: Callable[..., Platform]) -> None:
    """All coins of the simulator are known; the calls that took are forgotten by both sides."""
    platform = new_platform(mode="complete")
    with platform.connect() as connection:
        now = platform.clock()
        connection.execute("SELECT ensure_partitions(%s, %s)", (now, now))
        sweep(platform, connection, now=now, until=now + timedelta(hours=2))
        connection.execute("TRUNCATE api_calls, api_usage_stats, collection_status")
    provider.reset()
