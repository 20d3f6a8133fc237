"""Coins: storing a sweep of the provider's market list, and choosing whom to poll."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import polars as pl
from psycopg import Connection, sql

from pulseguard_assets.warehouse.closes import Put
from pulseguard_assets.warehouse.copying import copy_frame
from pulseguard_assets.warehouse.statements import one_row

COINS_SCHEMA = pl.Schema(
    {
        "coin_id": pl.String(),
        "market_cap_rank": pl.Int32(),
        "market_cap_usd": pl.Float64(),
        "symbol": pl.String(),
        "name": pl.String(),
        "image_url": pl.String(),
        "provider_ts": pl.Datetime("us", "UTC"),
    }
)
POLLED_SCHEMA = pl.Schema({"coin_id": pl.String(), "coin_rank": pl.Int32()})


def put_coins(
    connection: Connection,
    coins: pl.DataFrame,
    *,
    now: datetime,
    collection_id: int | None = None,
) -> Put:
    """Store one page of the market list, by id. No coin is ever deleted.

    Args:
        coins: rows of `COINS_SCHEMA`, in the order of the list; of two rows of a coin the later
            one stays.
        now: when the page arrived; becomes `last_updated`.
        collection_id: the cycle that rejections are filed under.

    Raises:
        psycopg.Error: nothing was stored.
    """
    staged = coins.match_to_schema(COINS_SCHEMA).with_row_index("position")
    with connection.transaction():
        connection.execute(
            "CREATE TEMPORARY TABLE staged_coins ON COMMIT DROP AS "
            "SELECT 0::bigint AS position, coin_id, market_cap_rank, market_cap_usd, symbol, name, "
            "image_url, provider_ts FROM public.coin_priorities WITH NO DATA"
        )
        copy_frame(connection, sql.Identifier("pg_temp", "staged_coins"), staged)
        put = one_row(
            connection,
            "SELECT stored, rejected FROM put_staged_coins(%s, %s)",
            (collection_id, now),
        )
        connection.execute("DROP TABLE pg_temp.staged_coins")
    return Put(*put)


def coins_to_poll(
    connection: Connection, wanted: int | None, always: Sequence[str]
) -> pl.DataFrame:
    """The coins of a mode, by coin_id, with their latest known rank (`POLLED_SCHEMA`).

    Sorted as Python compares texts, whatever the collation of the database: a cycle goes on behind
    its last coin, and would else skip coins or pay for them twice.

    Args:
        wanted: how many, by rank; None for all the provider lists.
        always: ids to include whatever their rank, if they are known.
    """
    rows = connection.execute(
        "SELECT coin_id, coin_rank FROM coins_to_poll(%s, %s)", (wanted, list(always))
    ).fetchall()
    return pl.DataFrame(rows, schema=POLLED_SCHEMA, orient="row").sort("coin_id")


def unknown_coins(connection: Connection, coin_ids: Sequence[str]) -> list[str]:
    """Those of the ids that `coin_priorities` does not hold, in the given order."""
    known = connection.execute(
        "SELECT coin_id FROM coin_priorities WHERE coin_id = ANY (%s)", (list(coin_ids),)
    ).fetchall()
    present = {row[0] for row in known}
    return [coin_id for coin_id in coin_ids if coin_id not in present]


@dataclass(frozen=True)
class CoinCount:
    """How many coins are known, how many of them ranked, and when a sweep last saw any."""

    coins: int
    ranked: int
    last_updated: datetime | None


def count_coins(connection: Connection) -> CoinCount:
    """Count `coin_priorities`."""
    return CoinCount(
        *one_row(
            connection,
            "SELECT count(*), count(market_cap_rank), max(last_updated) FROM coin_priorities",
        )
    )
