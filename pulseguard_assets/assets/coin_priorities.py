"""The asset `coin_priorities`: which coins there are, and how they rank.

Belongs here: the asset and what it reports. Does not: the sweep itself (`collecting/`), nor when
it happens (`automation/`).
"""

# No `from __future__ import annotations` here: Dagster looks at the annotations as they are.

from datetime import timedelta

import dagster as dg

from pulseguard_assets.assets.provider import COINS_MARKETS
from pulseguard_assets.assets.tables import (
    KINDS,
    OWNERS,
    coin_columns,
    table_metadata,
    with_query,
)
from pulseguard_assets.collecting.errors import CollectingError
from pulseguard_assets.collecting.platform import Platform
from pulseguard_assets.collecting.sweep import sweep
from pulseguard_assets.warehouse.coins import count_coins

GROUP = "coins"
KEY = dg.AssetKey("coin_priorities")

# On the smallest plan a sweep of all coins makes 70 calls at a few a minute.
_PATIENCE = timedelta(hours=2)

_QUERY = """SELECT market_cap_rank, coin_id, symbol, name, market_cap_usd
FROM coin_priorities
ORDER BY market_cap_rank NULLS LAST
LIMIT 20;"""


@dg.asset(
    key=KEY,
    deps=[COINS_MARKETS],
    group_name=GROUP,
    kinds=KINDS,
    owners=OWNERS,
    metadata=table_metadata("coin_priorities", coin_columns()),
    description=with_query(
        "Coins the provider lists, with market cap rank and metadata. Refreshed daily at 00:00 UTC "
        "by a sweep of the market list, stored by id. Coins are never deleted.",
        _QUERY,
    ),
)
def coin_priorities(
    context: dg.AssetExecutionContext, platform: dg.ResourceParam[Platform]
) -> dg.MaterializeResult[None]:
    """Sweep the market list into the table."""
    now = platform.clock()
    with platform.connect() as connection:
        try:
            report = sweep(
                platform, connection, now=now, until=now + _PATIENCE, log=context.log.info
            )
        except CollectingError as failure:
            raise dg.Failure(str(failure)) from failure
        counted = count_coins(connection)
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": counted.coins,
            "coins_ranked": counted.ranked,
            "coins_stored": report.stored,
            "coins_rejected": report.rejected,
            "pages": report.pages,
            "api_calls": report.calls,
            **({} if report.credits_left is None else {"credits_left": report.credits_left}),
            **({"unknown_coins": ", ".join(report.unknown)} if report.unknown else {}),
        }
    )
