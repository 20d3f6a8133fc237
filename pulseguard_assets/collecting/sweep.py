"""One sweep of the provider's market list into `coin_priorities`.

Belongs here: how many pages a mode needs, and the coins that must be known whatever their rank.
Does not: how a coin is stored (`sql/`), nor what Dagster makes of it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime

import psycopg
from psycopg import Connection

from pulseguard_assets.coingecko.client import MarketsAnswer
from pulseguard_assets.coingecko.errors import ProviderError
from pulseguard_assets.coingecko.packing import pack_ids
from pulseguard_assets.collecting.errors import (
    WAREHOUSE_FAILURES,
    SweepFailed,
    plainly_said,
    reason_of,
)
from pulseguard_assets.collecting.platform import Platform
from pulseguard_assets.warehouse.coins import COINS_SCHEMA, put_coins, unknown_coins
from pulseguard_assets.warehouse.collections import (
    Collection,
    begin_collection,
    fail_crashed,
    only_collector,
    reject,
    save_collection,
)

KIND = "priority_refresh"
PER_PAGE = 250


@dataclass(frozen=True)
class SweepReport:
    """What a sweep did.

    Attributes:
        cycle: its row.
        stored: coins written, a coin on two pages counted twice.
        rejected: rows set aside with a reason.
        pages: pages read.
        unknown: always-included coins that the provider does not list.
        calls: calls to the provider, retries included.
        credits_left: credits left in the month; None without a limit.
    """

    cycle: Collection
    stored: int = 0
    rejected: int = 0
    pages: int = 0
    unknown: tuple[str, ...] = ()
    calls: int = 0
    credits_left: int | None = None


@plainly_said()
def sweep(
    platform: Platform,
    connection: Connection,
    *,
    now: datetime,
    until: datetime,
    log: Callable[[str], object] = lambda _: None,
) -> SweepReport:
    """Read the market list as far as the mode needs it, and store each page as it arrives.

    Args:
        now: when the sweep began.
        until: no call is begun after this instant; a small plan needs many minutes.
        log: told of every page.

    Raises:
        WarehouseFailed: PostgreSQL failed before a call was made.
        SweepFailed: the provider or the warehouse failed.
        CollectorBusy: another sweep is running.
    """
    with only_collector(connection, KIND):
        fail_crashed(connection, (KIND,), now)
        cycle = begin_collection(connection, KIND, now, {})
        return _Sweep(platform, connection, SweepReport(cycle), now, log).run(until)


class _Sweep:
    """A sweep under way."""

    def __init__(
        self,
        platform: Platform,
        connection: Connection,
        report: SweepReport,
        now: datetime,
        log: Callable[[str], object],
    ) -> None:
        self._platform, self._connection, self._now, self._log = platform, connection, now, log
        self._report = report
        self._seen: set[str] = set()
        self._calls_before = platform.ledger.granted

    def run(self, until: datetime) -> SweepReport:
        try:
            self._pages(until)
            self._always_included(until)
        except (ProviderError, *WAREHOUSE_FAILURES) as error:
            raise self._failed(reason_of(error)) from error
        return self._end("completed", None)

    def _failed(self, message: str) -> SweepFailed:
        # The warehouse may be what failed. The next sweep closes the row then.
        with suppress(psycopg.Error):
            self._end("failed", message)
        return SweepFailed(message)

    def _pages(self, until: datetime) -> None:
        wanted = self._platform.settings.coins_wanted
        while True:
            page = self._report.pages + 1
            answer = self._platform.provider.coins_markets_page(
                page, per_page=PER_PAGE, until=until
            )
            self._store(answer)
            self._report = replace(self._report, pages=page)
            self._log(f"page {page}: {answer.rows} coins")
            if answer.rows < PER_PAGE or (wanted is not None and page * PER_PAGE >= wanted):
                return
            if self._platform.clock() >= until:
                raise self._failed(
                    f"The sweep's time was over after page {page} of the market list. What it read "
                    "is stored. To read all of it in time, use a larger plan (PULSEGUARD_PLAN) or "
                    "fewer coins (PULSEGUARD_MODE)."
                )

    def _always_included(self, until: datetime) -> None:
        # Known ones too: beyond the mode's pages, nobody else would renew their ranks.
        lacking = [i for i in self._platform.settings.always_include if i not in self._seen]
        for coin_ids in pack_ids(lacking, max_ids=PER_PAGE):
            self._store(self._platform.provider.coins_markets_of(coin_ids, until=until))
        unknown = tuple(unknown_coins(self._connection, lacking))
        if unknown:
            self._log(
                f"the provider lists no coin {', '.join(unknown)}: check PULSEGUARD_ALWAYS_INCLUDE"
            )
        self._report = replace(self._report, unknown=unknown)

    def _store(self, answer: MarketsAnswer) -> None:
        coins = answer.frame.rename({"last_updated": "provider_ts"}).select(COINS_SCHEMA.names())
        self._seen.update(coins["coin_id"])
        identity = self._report.cycle.id
        with self._connection.transaction():
            put = put_coins(
                self._connection,
                coins.cast(COINS_SCHEMA),
                now=answer.received_at,
                collection_id=identity,
            )
            unusable = reject(
                self._connection, answer.rejected, collection_id=identity, now=self._now
            )
        self._report = replace(
            self._report,
            stored=self._report.stored + put.stored,
            rejected=self._report.rejected + put.rejected + unusable,
            credits_left=answer.credits_left,
        )
        # A sign of life after every page: a sweep of all coins on a small plan takes long.
        save_collection(self._connection, self._row("running", None), self._platform.clock())

    def _row(self, status: str, error: str | None) -> Collection:
        report = self._report
        return replace(
            report.cycle,
            status=status,
            error=error,
            coins_processed=report.stored,
            coins_failed=report.rejected + len(report.unknown),
            api_calls_made=self._platform.ledger.granted - self._calls_before,
            ended_at=None if status == "running" else self._platform.clock(),
            details={"pages": report.pages, "unknown": list(report.unknown)},
        )

    def _end(self, status: str, error: str | None) -> SweepReport:
        row = self._row(status, error)
        save_collection(self._connection, row, self._platform.clock())
        return replace(self._report, cycle=row, calls=row.api_calls_made)
