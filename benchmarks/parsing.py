"""Reading one poll's answers of 1,000 coins into typed frames."""

from __future__ import annotations

import json
import statistics
import time

from pulseguard_assets.coingecko.frames import parse_simple_price

_REPEATS = 50


def measure(coins: int = 1_000) -> float:
    """Median milliseconds to parse the answers for so many coins, 500 to an answer."""
    bodies = [_body(range(start, min(start + 500, coins))) for start in range(0, coins, 500)]
    times = []
    for _ in range(_REPEATS):
        begun = time.perf_counter()
        for body, ids in bodies:
            parse_simple_price(body, ids)
        times.append((time.perf_counter() - begun) * 1000)
    return statistics.median(times)


def _body(numbers: range) -> tuple[bytes, list[str]]:
    ids = [f"coin-{number}" for number in numbers]
    answer = {
        coin: {
            "usd": 98109.12345678901 / (number + 1),
            "usd_market_cap": 1942082111924.1234 / (number + 1),
            "usd_24h_vol": 120318717687.98 / (number + 1),
            "last_updated_at": 1732227858 + number % 60,
        }
        for number, coin in zip(numbers, ids, strict=True)
    }
    return json.dumps(answer).encode(), ids
