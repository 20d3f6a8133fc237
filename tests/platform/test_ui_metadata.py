"""What the UI shows of each asset, held against the migrated database."""

from __future__ import annotations

import re
from typing import Any

import dagster as dg
import psycopg
import pytest

from pulseguard_assets.timeframes import TIMEFRAMES

TABLES = ["coin_priorities", *(timeframe.table for timeframe in TIMEFRAMES)]
# As long as pg_catalog writes them.
LONG = {"timestamp with time zone": "timestamptz"}


@pytest.fixture
def specs(defs: dg.Definitions) -> dict[str, dg.AssetSpec]:
    """All assets by name."""
    return {spec.key.to_user_string(): spec for spec in defs.resolve_all_asset_specs()}


@pytest.mark.parametrize("table", TABLES)
def test_the_columns_shown_are_those_of_the_table(
    specs: dict[str, dg.AssetSpec], connection: psycopg.Connection, table: str
) -> None:
    schema: Any = specs[table].metadata["dagster/column_schema"]
    shown = {
        column.name: (column.type, column.constraints.nullable)
        for column in getattr(schema, "schema", schema).columns
    }
    real = connection.execute(
        "SELECT attname, format_type(atttypid, atttypmod), NOT attnotnull FROM pg_attribute "
        "WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped",
        (f"public.{table}",),
    ).fetchall()

    assert shown == {name: (LONG.get(kind, kind), nullable) for name, kind, nullable in real}


@pytest.mark.parametrize("table", TABLES)
def test_every_column_shown_is_described(specs: dict[str, dg.AssetSpec], table: str) -> None:
    schema: Any = specs[table].metadata["dagster/column_schema"]

    assert all(column.description for column in getattr(schema, "schema", schema).columns)


@pytest.mark.parametrize("table", TABLES)
def test_a_table_is_shown_with_its_name_kinds_owners_and_group(
    specs: dict[str, dg.AssetSpec], table: str
) -> None:
    spec = specs[table]
    told = {key: getattr(value, "value", value) for key, value in spec.metadata.items()}

    assert told["dagster/table_name"] == f"public.{table}"
    assert told["dagster/storage_kind"] == "postgresql"
    assert spec.kinds == {"postgresql", "table"}
    assert spec.owners == ["team:data"]
    assert spec.group_name == ("coins" if table == "coin_priorities" else "closes")


@pytest.mark.parametrize("table", TABLES)
def test_the_query_to_copy_runs_and_finds_the_bitcoin_of_now(
    specs: dict[str, dg.AssetSpec], connection: psycopg.Connection, table: str
) -> None:
    (query,) = re.findall(r"```sql\n(.+?)\n```", specs[table].description or "", re.DOTALL)
    connection.execute(
        "INSERT INTO coin_priorities (coin_id, market_cap_rank) VALUES ('bitcoin', 1)"
    )
    for timeframe in TIMEFRAMES:
        connection.execute(
            f"INSERT INTO {timeframe.table} (coin_id, {timeframe.label}, price_usd) "
            "VALUES ('bitcoin', bucket_start(%s, now()), 1) ON CONFLICT DO NOTHING",
            (timeframe.name,),
        )

    found = connection.execute(query).fetchall()

    assert f"FROM {table}" in query
    assert "bitcoin" in found[0]


@pytest.mark.parametrize("endpoint", ["coins_markets", "simple_price", "market_chart_range"])
def test_the_providers_endpoints_are_shown_with_what_they_are_and_whose(
    specs: dict[str, dg.AssetSpec], endpoint: str
) -> None:
    spec = specs[f"coingecko/{endpoint}"]

    assert spec.group_name == "coingecko"
    assert spec.kinds == {"api"}
    assert "Data provided by CoinGecko" in (spec.description or "")
    assert "dagster/uri" in spec.metadata
