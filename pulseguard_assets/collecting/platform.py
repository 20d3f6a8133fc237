"""What a collecting process holds: settings, the way to the warehouse, the provider.

Belongs here: making these from settings, once. Does not: using them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

import httpx
from psycopg import Connection

from pulseguard_assets.coingecko.client import CoinGecko, Limits, utc_now
from pulseguard_assets.coingecko.planner import credits_allowed
from pulseguard_assets.coingecko.plans import Plan
from pulseguard_assets.collecting.allowance import Allowance
from pulseguard_assets.collecting.errors import CollectingError
from pulseguard_assets.collecting.planning import plan_in_force
from pulseguard_assets.settings import Settings
from pulseguard_assets.warehouse.at_hand import dsn_in_use
from pulseguard_assets.warehouse.connection import connect
from pulseguard_assets.warehouse.kept import KeptConnection
from pulseguard_assets.warehouse.ledger import Ledger, Reservation

# Dagster cuts a tick at 60 s. A tick begins no call after 25 s, and no call lasts longer than
# these limits: 25 + 12 + 6 s leaves room for the database.
TICK_BUDGET = timedelta(seconds=25)
_CALL_LIMITS = Limits(connect_seconds=5, read_seconds=6, total_seconds=12)
# A writer that waits longer than this for another has met something stuck.
_LOCK_TIMEOUT = timedelta(seconds=10)


class NoCallsForHistory(CollectingError):  # noqa: N818 - reads as what it says
    """The polls need every call a minute that the plan gives."""


class _HistoryLedger(Ledger):
    """Keeps to an allowance, and to its month: the next month's credits are the polls' first."""

    def __init__(self, connect: Callable[[], Connection], allowance: Allowance) -> None:
        super().__init__(
            connect,
            calls_per_minute=allowance.calls_per_minute,
            credits_per_month=allowance.credits_per_month,
        )
        self._month_end = allowance.month_end

    def reserve(self, endpoint: str, now: datetime) -> Reservation:
        if self._month_end is not None and now >= self._month_end:
            return Reservation(None, None, "credits", 0, 0)
        return super().reserve(endpoint, now)


class HistoryProvider(CoinGecko):
    """The client that history is asked of. Closing it closes its ledger too."""

    def __init__(self, ledger: Ledger, **options: Any) -> None:
        super().__init__(ledger=ledger, **options)
        self._own_ledger = ledger

    @property
    def granted(self) -> int:
        """Calls granted so far, retries included: what was spent."""
        return self._own_ledger.granted

    def close(self) -> None:
        """Close the connections to both sides. The client cannot be used afterwards."""
        super().close()
        self._own_ledger.close()


@dataclass(frozen=True)
class Platform:
    """One process's access to both sides.

    Attributes:
        settings: as validated at start.
        clock: the current instant, UTC.
        sleep: waits so many seconds; whoever moves the clock by hand moves it here.
        transport: httpx transport in place of the network, for tests.
    """

    settings: Settings
    clock: Callable[[], datetime] = utc_now
    sleep: Callable[[float], object] = time.sleep
    transport: httpx.BaseTransport | None = None

    @cached_property
    def plan(self) -> Plan:
        """The provider's plan with the figures in force."""
        return plan_in_force(self.settings)

    @cached_property
    def ledger(self) -> Ledger:
        """The ledger, keeping to the plan's calls a minute and its credits less the reserve."""
        return Ledger(
            self.connect,
            calls_per_minute=self.plan.calls_per_minute,
            credits_per_month=self.credits_allowed,
            credits_reserved=self.credits_reserved,
        )

    @property
    def credits_allowed(self) -> int | None:
        """What may be spent of the plan's credits in a month; None if it has no limit."""
        return credits_allowed(self.plan, self.settings.reserve_percent)

    @property
    def credits_reserved(self) -> int:
        """The rest of them, which are spent only when somebody releases them."""
        return (self.plan.credits_per_month or 0) - (self.credits_allowed or 0)

    @cached_property
    def provider(self) -> CoinGecko:
        """The client; one for the process, so that connections are kept."""
        return CoinGecko(ledger=self.ledger, limits=_CALL_LIMITS, **self._client_options)

    def history_provider(self, allowance: Allowance) -> HistoryProvider:
        """A client of its own for history, which keeps to `allowance`; the caller closes it.

        Its calls are counted with all others. It is refused a call while the polls need it, and
        for good (`CreditsExhausted`) when the allowance is spent or its month is over.

        Raises:
            NoCallsForHistory: the plan leaves no call a minute beside the polls.
        """
        if allowance.calls_per_minute < 1:
            raise NoCallsForHistory(
                f"The {self.plan.calls_per_minute} calls a minute of the plan {self.plan.name!r} "
                "are all needed by the polls, so nothing can be taken from history. Use a larger "
                "plan (PULSEGUARD_PLAN), or correct PULSEGUARD_CALLS_PER_MINUTE."
            )
        ledger = _HistoryLedger(self.connect, allowance)
        return HistoryProvider(ledger, **self._client_options)

    @property
    def _client_options(self) -> dict[str, Any]:
        key = self.settings.api_key
        return {
            "plan": self.plan,
            "base_url": self.settings.base_url,
            "api_key": None if key is None else key.get_secret_value(),
            "clock": self.clock,
            "sleep": self.sleep,
            "transport": self.transport,
        }

    def connect(self) -> Connection:
        """A new autocommit connection to the warehouse.

        That is the database of the settings, or the embedded one that a running `pulseguard up`
        keeps in the data folder.

        Raises:
            DatabaseUnavailable: there is neither, or the server cannot be reached.
        """
        return connect(dsn_in_use(self.settings), lock_timeout=_LOCK_TIMEOUT)

    @cached_property
    def ticking(self) -> KeptConnection:
        """The connection of a sensor that ticks all day; as `connect` makes them."""
        return KeptConnection(self.connect)

    def close(self) -> None:
        """Close the connections it keeps."""
        self.ticking.close()
        self.provider.close()
        self.ledger.close()
