"""Ask a hostile server for everything it has, and say how that ended and what memory it took.

Run by `test_hostile_servers` in a process of its own, since a process knows only the most memory
it ever had: `hostile_caller.py ADDRESS CASE...` writes JSON.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from typing import Any

from pulseguard_assets.coingecko.client import CoinGecko, Limits
from pulseguard_assets.coingecko.errors import ProviderError
from pulseguard_assets.coingecko.plans import plan_for

LIMITS = Limits(connect_seconds=5, read_seconds=1, total_seconds=1, attempts=1)
AT_A_TIME = 4


class Granted:
    """Any call is granted."""

    call_id = 1
    next_free_at = refusal = credits_left_this_month = None
    calls_left_this_minute = 1


class Ledger:
    """Grants every call and forgets it."""

    def reserve(self, *_: Any) -> Granted:
        return Granted()

    def settle(self, *_: Any, **__: Any) -> None:
        pass


def calls(until: datetime) -> dict[str, Callable[[CoinGecko], Any]]:
    """Each endpoint's call."""
    day_ago = until - timedelta(days=1)
    return {
        "simple_price": lambda client: client.simple_price(["bitcoin"], until=until),
        "coins_markets": lambda client: client.coins_markets_page(1, until=until),
        "market_chart": lambda client: client.market_chart_range(
            "bitcoin", day_ago, until, until=until
        ),
        "key": lambda client: client.key(until=until),
        "ping": lambda client: client.ping(until=until),
    }


def asked(address: str, case: str, endpoint: str) -> dict[str, Any]:
    """How one call of one case ended."""
    until = datetime.now(timezone.utc)
    began = time.monotonic()
    with CoinGecko(
        plan=plan_for("pro"),
        api_key="CG-geheim",
        ledger=Ledger(),
        base_url=f"{address}/{case}",
        limits=LIMITS,
    ) as client:
        try:
            calls(until)[endpoint](client)
            error = None
        except ProviderError as told:
            error = str(told)
    return {"case": case, "endpoint": endpoint, "error": error, "took": time.monotonic() - began}


def most_megabytes() -> float:
    """The most memory that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(address: str, cases: list[str]) -> None:
    """Ask for every case by every endpoint."""
    endpoints = list(calls(datetime.now(timezone.utc)))
    for endpoint in endpoints:
        asked(address, "sound", endpoint)
    before = most_megabytes()
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        under_way = [
            pool.submit(asked, address, case, endpoint) for case in cases for endpoint in endpoints
        ]
        ended = [each.result() for each in under_way]
    json.dump({"ended": ended, "megabytes": most_megabytes() - before}, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
