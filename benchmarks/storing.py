"""Storing one minute of every coin, three ways, in turns on one server.

* `put`: what the platform does. The hourly closes are merged in the same transaction.
* `copy`: a bare COPY of the same rows into the same table in a database of its own, from which the
  rollup's triggers were dropped. (Switched off they would still make PostgreSQL write row by row.)
* `seed`: the same COPY with the seed design's row trigger, repaired just enough to run, in a
  database of its own. Its tables have the same columns, keys, checks and indexes as ours; their
  storage is PostgreSQL's default, as in the seed. `seed, our storage` gives it our fillfactor too,
  which is the part of the gain that comes from heap-only updates.

Every way stores the same hour of minutes in the same order. The first two minutes of each round
are not counted: they make the hour's rows instead of merging into them.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

import polars as pl
from psycopg import Connection, conninfo, sql

from pulseguard_assets.warehouse.closes import MINUTES_SCHEMA, put_minutes
from pulseguard_assets.warehouse.connection import connect
from pulseguard_assets.warehouse.embedded import EmbeddedPostgres
from pulseguard_assets.warehouse.migrations import migrate
from pulseguard_assets.warehouse.statements import copy_frame

HOUR = datetime(2026, 11, 10, 10, tzinfo=timezone.utc)
ROUNDS, MINUTES, UNCOUNTED = 4, 10, 2

_SEED_TRIGGER = """
CREATE FUNCTION seed_aggregate_to_hourly() RETURNS TRIGGER AS $$
DECLARE
    hour_timestamp TIMESTAMPTZ;
    coin_data RECORD;
BEGIN
    hour_timestamp := DATE_TRUNC('hour', NEW.minute_ts);
    SELECT NEW.coin_id AS coin_id, hour_timestamp AS hour_ts,
           price_usd, market_cap_usd, volume_24h_usd, coin_rank
    INTO coin_data
    FROM minute_close
    WHERE coin_id = NEW.coin_id AND minute_ts >= hour_timestamp
      AND minute_ts < hour_timestamp + INTERVAL '1 hour'
    ORDER BY minute_ts DESC LIMIT 1;
    INSERT INTO hourly_close
        (coin_id, hour_ts, price_usd, market_cap_usd, volume_24h_usd, coin_rank)
    VALUES (coin_data.coin_id, coin_data.hour_ts, coin_data.price_usd, coin_data.market_cap_usd,
            coin_data.volume_24h_usd, coin_data.coin_rank)
    ON CONFLICT (coin_id, hour_ts) DO UPDATE SET
        price_usd = EXCLUDED.price_usd, market_cap_usd = EXCLUDED.market_cap_usd,
        volume_24h_usd = EXCLUDED.volume_24h_usd, coin_rank = EXCLUDED.coin_rank,
        created_at = NOW();
    RETURN NEW;
END;
$$ LANGUAGE plpgsql;
CREATE TRIGGER seed_aggregate_hourly AFTER INSERT ON minute_close
    FOR EACH ROW EXECUTE FUNCTION seed_aggregate_to_hourly();
"""


@dataclass(frozen=True)
class Storing:
    """Medians of one size, in milliseconds, and what they come to."""

    coins: int
    copy_ms: float
    put_ms: float
    seed_ms: float
    seed_our_storage_ms: float

    @property
    def put_to_copy(self) -> float:
        """How many times as long as a bare COPY."""
        return self.put_ms / self.copy_ms

    @property
    def seed_to_put(self) -> float:
        """How many times the rows per second of the seed's trigger."""
        return self.seed_ms / self.put_ms

    @property
    def seed_our_storage_to_put(self) -> float:
        """The same, had the seed chosen our fillfactor."""
        return self.seed_our_storage_ms / self.put_ms


def measure(sizes: tuple[int, ...] = (18_000, 1_000)) -> list[Storing]:
    """Measure all three ways at each size (coins)."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        with EmbeddedPostgres(Path(folder)) as dsn:
            return [_measure(dsn, coins) for coins in sizes]


def _measure(dsn: str, coins: int) -> Storing:
    ids = _ids(coins)
    ours = _database(dsn, f"ours_{coins}", ids)
    bare, seed = (_bare(_database(dsn, f"{name}_{coins}", ids)) for name in ("bare", "seed"))
    seed.execute(_SEED_TRIGGER)
    ways: dict[str, Callable[[pl.DataFrame], None]] = {
        "copy": lambda frame: _copy(bare, frame),
        "put": lambda frame: _put(ours, frame),
        "seed": lambda frame: _copy(seed, frame),
        "seed, our storage": lambda frame: _copy(seed, frame),
    }
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(ROUNDS):
        for way, store in ways.items():
            connection = {"copy": bare, "put": ours}.get(way, seed)
            connection.execute("TRUNCATE minute_close, hourly_close")
            connection.execute("VACUUM ANALYZE coin_priorities")
            _fill(connection, 100 if way == "seed" else 45)
            for minute in range(MINUTES):
                frame = _minute(ids, minute)
                begun = time.perf_counter()
                store(frame)
                if minute >= UNCOUNTED:
                    times[way].append((time.perf_counter() - begun) * 1000)
    for connection in (ours, bare, seed):
        connection.close()
    return Storing(coins, *(statistics.median(times[way]) for way in ways))


def _put(connection: Connection, frame: pl.DataFrame) -> None:
    put = put_minutes(connection, frame, now=HOUR + timedelta(hours=1))
    if put.stored != frame.height:
        raise AssertionError(f"{put.stored} of {frame.height} rows were stored")


def _copy(connection: Connection, frame: pl.DataFrame) -> None:
    with connection.transaction():
        copy_frame(connection, sql.Identifier("public", "minute_close"), frame)


def _bare(connection: Connection) -> Connection:
    """The database without our triggers on minutes."""
    triggers = connection.execute(
        "SELECT tgrelid::regclass::text, tgname FROM pg_trigger "
        "WHERE NOT tgisinternal AND tgrelid::regclass::text LIKE 'minute_close%'"
    ).fetchall()
    for table, trigger in triggers:
        connection.execute(
            sql.SQL("DROP TRIGGER {} ON {}").format(sql.Identifier(trigger), sql.Identifier(table))
        )
    return connection


def _fill(connection: Connection, fillfactor: int) -> None:
    partition = sql.Identifier(f"hourly_close_y{HOUR:%Y}m{HOUR:%m}")
    connection.execute(
        sql.SQL("ALTER TABLE {} SET (fillfactor = {})").format(partition, sql.Literal(fillfactor))
    )


def _database(dsn: str, name: str, ids: list[str]) -> Connection:
    with connect(dsn) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    own = conninfo.make_conninfo(dsn, dbname=name)
    migrate(own)
    connection = connect(own)
    connection.execute("SELECT ensure_partitions(%s, %s)", (HOUR, HOUR))
    copy_frame(
        connection, sql.Identifier("public", "coin_priorities"), pl.DataFrame({"coin_id": ids})
    )
    return connection


def _ids(coins: int) -> list[str]:
    # In the lengths real ids have; in the order `put` stores them.
    chosen = random.Random(1)
    return sorted(f"coin-{chosen.getrandbits(36):x}-{number}" for number in range(coins))


def _minute(ids: list[str], minute: int) -> pl.DataFrame:
    chosen = random.Random(minute)
    label = HOUR + timedelta(minutes=minute)
    price = [chosen.random() * 10 ** chosen.randint(-9, 5) for _ in ids]
    return pl.DataFrame(
        {
            "coin_id": ids,
            "minute_ts": label,
            "price_usd": price,
            "market_cap_usd": [value * 1e7 for value in price],
            "volume_24h_usd": [value * 1e5 for value in price],
            "coin_rank": range(1, len(ids) + 1),
            "created_at": label + timedelta(seconds=7),
            "provider_ts": label + timedelta(seconds=1),
            "source": "live",
        },
        schema=MINUTES_SCHEMA,
    )
