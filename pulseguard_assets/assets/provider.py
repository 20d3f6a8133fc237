"""The provider's endpoints as external assets: where the lineage begins.

Belongs here: what others own and we only read. Does not: anything that we materialize.
"""

from __future__ import annotations

import dagster as dg

GROUP = "coingecko"

COINS_MARKETS = dg.AssetKey(["coingecko", "coins_markets"])
SIMPLE_PRICE = dg.AssetKey(["coingecko", "simple_price"])
MARKET_CHART = dg.AssetKey(["coingecko", "market_chart_range"])

_ATTRIBUTION = "Data provided by CoinGecko."


def provider_assets() -> list[dg.AssetSpec]:
    """The endpoints that live collection and history read."""
    return [
        dg.AssetSpec(
            COINS_MARKETS,
            description=(
                "`GET /coins/markets`: every coin by market cap, 250 to a page, with its rank. "
                f"Read by the daily sweep. {_ATTRIBUTION}"
            ),
            group_name=GROUP,
            kinds={"api"},
            metadata={"dagster/uri": "https://docs.coingecko.com/reference/coins-markets"},
        ),
        dg.AssetSpec(
            SIMPLE_PRICE,
            description=(
                "`GET /simple/price`: the price of now of up to 500 coins in one call. It has no "
                f"time parameter, so it can tell nothing about the past. {_ATTRIBUTION}"
            ),
            group_name=GROUP,
            kinds={"api"},
            metadata={"dagster/uri": "https://docs.coingecko.com/reference/simple-price"},
        ),
        dg.AssetSpec(
            MARKET_CHART,
            description=(
                "`GET /coins/{id}/market_chart/range`: the past prices of one coin in one call, "
                "five minutes apart for the last day, an hour up to 90 days, a day beyond. Read "
                f"for closes that were not seen live. {_ATTRIBUTION}"
            ),
            group_name=GROUP,
            kinds={"api"},
            metadata={
                "dagster/uri": "https://docs.coingecko.com/reference/coins-id-market-chart-range"
            },
        ),
    ]
