"""What the UI shows of a table: its columns, and a query to copy.

Belongs here: descriptions for people. Does not: the truth about columns, which is `sql/`; a test
holds the two together.
"""

from __future__ import annotations

import dagster as dg

from pulseguard_assets.timeframes import Timeframe

OWNERS = ["team:data"]
KINDS = {"postgresql", "table"}

_OBSERVATION = {
    "price_usd": ("numeric", "Price in US dollars of the last observation in the bucket."),
    "market_cap_usd": ("numeric", "Market cap in US dollars, from the same observation."),
    "volume_24h_usd": ("numeric", "24 h volume in US dollars, from the same observation."),
    "coin_rank": ("integer", "Market cap rank known at that observation."),
    "created_at": ("timestamptz", "When the observation was recorded."),
    "provider_ts": ("timestamptz", "The provider's own last-updated time."),
    "source": ("text", "live, history or correction."),
}
_ROLLUP = {
    "close_ts": ("timestamptz", "Minute of the observation that is the close."),
    "seen": ("bigint", "Evidence: one bit for each child the close rests on."),
}
_COINS = {
    "coin_id": ("text", "The provider's id."),
    "market_cap_rank": ("integer", "1 is the largest; NULL for a coin without one."),
    "market_cap_usd": ("numeric", "Market cap in US dollars at the last sweep."),
    "symbol": ("text", "Ticker symbol; not unique."),
    "name": ("text", "Display name."),
    "image_url": ("text", "Address of the logo."),
    "last_updated": ("timestamptz", "When a sweep last saw the coin."),
    "created_at": ("timestamptz", "When a sweep first saw it."),
    "provider_ts": ("timestamptz", "The provider's own last-updated time."),
}


def close_columns(timeframe: Timeframe) -> dg.TableSchema:
    """The columns of a close table."""
    key = {
        "coin_id": ("text", "The provider's coin id."),
        timeframe.label: ("timestamptz", "START of the bucket, UTC."),
    }
    columns = key | _OBSERVATION | ({} if timeframe.child is None else _ROLLUP)
    return _schema(columns, {*key, "price_usd", "created_at", "source", "seen"})


def coin_columns() -> dg.TableSchema:
    """The columns of `coin_priorities`."""
    return _schema(_COINS, {"coin_id"})


def table_metadata(table: str, columns: dg.TableSchema) -> dict[str, object]:
    """Metadata of an asset that is a table."""
    return {
        "dagster/table_name": f"public.{table}",
        "dagster/storage_kind": "postgresql",
        "dagster/column_schema": columns,
    }


def with_query(description: str, query: str) -> str:
    """A description, followed by a query to copy."""
    return f"{description}\n\n```sql\n{query}\n```"


def _schema(columns: dict[str, tuple[str, str]], not_null: set[str]) -> dg.TableSchema:
    return dg.TableSchema(
        columns=[
            dg.TableColumn(
                name,
                type_,
                description=text,
                constraints=dg.TableColumnConstraints(nullable=name not in not_null),
            )
            for name, (type_, text) in columns.items()
        ]
    )
