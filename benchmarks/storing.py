"""Storing one minute of every coin, three ways, in turns on one server.

* `put`: what the platform does. The hourly closes are merged in the same transaction.
* `copy`: a bare COPY of the same rows into the same table in a database of its own, from which the
  rollup's triggers were dropped. (Switched off they would still make PostgreSQL write row by row.)
* `seed`: the same COPY with the seed design's row trigger, repaired just enough to run, in a
  database of its own. The columns, foreign keys and checks are ours, so that both store the same;
  keys, indexes and storage are the seed's: a primary key and an index beside it on the same
  columns, a B-tree for every index, full pages.
* `seed's trigger`: the same trigger on our keys, indexes and storage too. What is left is the gain
  of the merge alone.

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
from pulseguard_assets.warehouse.copying import copy_frame
from pulseguard_assets.warehouse.embedded import EmbeddedPostgres
from pulseguard_assets.warehouse.migrations import migrate

HOUR = datetime(2026, 11, 10, 10, tzinfo=timezone.utc)
ROUNDS, MINUTES, UNCOUNTED = 4, 10, 2

# The keys and indexes of the seed in place of ours, and PostgreSQL's default storage. Without
# now() in a predicate and without CONCURRENTLY, which PostgreSQL refuses here.
_SEED_STORAGE = """
DROP INDEX idx_{table}_time, idx_recent_{table};
ALTER TABLE {table} DROP CONSTRAINT idx_{table}_coin_time, ADD PRIMARY KEY (coin_id, {label});
CREATE INDEX idx_{table}_coin_time ON {table} (coin_id, {label} DESC);
CREATE INDEX idx_{table}_time ON {table} ({label} DESC);
CREATE INDEX idx_recent_{table} ON {table} ({label} DESC, coin_id);
ALTER TABLE {table}_y2026m11 RESET (fillfactor);
"""
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
    put_ms: float
    copy_ms: float
    seed_ms: float
    seed_trigger_ms: float

    @property
    def put_to_copy(self) -> float:
        """How many times as long as a bare COPY."""
        return self.put_ms / self.copy_ms

    @property
    def seed_to_put(self) -> float:
        """How many times the rows per second of the seed."""
        return self.seed_ms / self.put_ms

    @property
    def seed_trigger_to_put(self) -> float:
        """The same, of the seed's trigger on our tables."""
        return self.seed_trigger_ms / self.put_ms


@dataclass(frozen=True)
class _Way:
    """One way to store a minute: where, and how."""

    connection: Connection
    store: Callable[[Connection, pl.DataFrame], None]


def measure(sizes: tuple[int, ...] = (18_000, 1_000)) -> list[Storing]:
    """Measure all ways at each size (coins), side by side on a server that does nothing else."""
    measured = []
    for coins in sizes:
        # One for each: autovacuum is at work on what was stored before for a while.
        with tempfile.TemporaryDirectory() as folder:
            Path(folder).chmod(0o755)
            with EmbeddedPostgres(Path(folder)) as dsn:
                measured.append(_measure(dsn, coins))
    return measured


def _measure(dsn: str, coins: int) -> Storing:
    ids = _ids(coins)
    ways = {
        "put": _Way(_database(dsn, f"put_{coins}", ids), _put),
        "copy": _Way(_without_triggers(_database(dsn, f"copy_{coins}", ids)), _copy),
        "seed": _Way(_as_the_seed_stores(_database(dsn, f"seed_{coins}", ids)), _copy),
        "seed_trigger": _Way(
            _without_triggers(_database(dsn, f"seed_trigger_{coins}", ids)), _copy
        ),
    }
    for way in ("seed", "seed_trigger"):
        ways[way].connection.execute(_SEED_TRIGGER)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            way.connection.execute("TRUNCATE minute_close, hourly_close")
            way.connection.execute("VACUUM ANALYZE coin_priorities")
            for minute in range(MINUTES):
                frame = _minute(ids, minute)
                begun = time.perf_counter()
                way.store(way.connection, frame)
                if minute >= UNCOUNTED:
                    times[name].append((time.perf_counter() - begun) * 1000)
    for way in ways.values():
        way.connection.close()
    return Storing(
        coins, **{f"{name}_ms": statistics.median(taken) for name, taken in times.items()}
    )


def _put(connection: Connection, frame: pl.DataFrame) -> None:
    put = put_minutes(connection, frame, now=HOUR + timedelta(hours=1))
    if put.stored != frame.height:
        raise AssertionError(f"{put.stored} of {frame.height} rows were stored")


def _copy(connection: Connection, frame: pl.DataFrame) -> None:
    with connection.transaction():
        copy_frame(connection, sql.Identifier("public", "minute_close"), frame)


def _without_triggers(connection: Connection) -> Connection:
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


def _as_the_seed_stores(connection: Connection) -> Connection:
    """The database without our triggers, and with the seed's keys, indexes and storage."""
    for table, label in (("minute_close", "minute_ts"), ("hourly_close", "hour_ts")):
        connection.execute(_SEED_STORAGE.format(table=table, label=label))
    return _without_triggers(connection)


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
