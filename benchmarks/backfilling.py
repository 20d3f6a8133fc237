"""Taking a year of 1,000 coins from history, and the work of one ordinary hourly run.

The provider is the simulator in a process of its own, on this machine's clock; the platform's
process does what a run does, without Dagster around it.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

import polars as pl
import psutil
from psycopg import Connection

from pulseguard_assets.collecting.budget import history_allowance
from pulseguard_assets.collecting.history import WindowReport, materialize_window
from pulseguard_assets.collecting.platform import Platform
from pulseguard_assets.collecting.sweep import sweep
from pulseguard_assets.settings import load_settings
from pulseguard_assets.timeframes import DAILY, HOURLY, bucket_start
from pulseguard_assets.warehouse.closes import MINUTES_SCHEMA, put_minutes
from pulseguard_assets.warehouse.coins import coins_to_poll
from pulseguard_assets.warehouse.embedded import EmbeddedPostgres
from pulseguard_assets.warehouse.migrations import migrate

COINS, DAYS, RUNS = 1_000, 360, 5
_HOUR = timedelta(hours=1)
_FASTEST_MINUTE = """
SELECT max(calls) FROM (
    SELECT count(*) OVER (
        ORDER BY called_at RANGE BETWEEN CURRENT ROW AND '60 s' FOLLOWING
    ) AS calls
    FROM api_calls WHERE endpoint LIKE '%market_chart%'
) AS minutes
"""


@dataclass(frozen=True)
class Backfilling:
    """What a year of days took.

    Attributes:
        coins, days: how many closes were lacking: one for each coin and day.
        calls: calls to the provider.
        stored: closes that history wrote.
        seconds: from the first call to the last close.
        rate: most calls within a minute.
        rate_allowed: most calls a minute that history may make beside the polls.
        growth_bytes: the most memory that the process held, above what it began with.
        hour_ms: median of an hourly run that finds all closes there.
    """

    coins: int
    days: int
    calls: int
    stored: int
    seconds: float
    rate: int
    rate_allowed: int
    growth_bytes: int
    hour_ms: float

    @property
    def share_of_rate(self) -> float:
        """The fastest minute's calls by those allowed, 0 to 1."""
        return self.rate / self.rate_allowed


def measure(coins: int = COINS, days: int = DAYS) -> Backfilling:
    """Measure a backfill of `days` days, and hourly runs."""
    with tempfile.TemporaryDirectory() as name, _simulator(coins) as url:
        folder = Path(name)
        folder.chmod(0o755)
        with EmbeddedPostgres(folder / "postgres") as dsn:
            migrate(dsn)
            settings = load_settings(
                database_url=dsn, base_url=url, plan="pro", api_key="CG-bench", mode=str(coins)
            )
            with closing(Platform(settings)) as platform, platform.connect() as connection:
                return _measure(platform, connection, days)


def _measure(platform: Platform, connection: Connection, days: int) -> Backfilling:
    now = platform.clock()
    sweep(platform, connection, now=now, until=now + _HOUR)
    hour_ms = _hourly_run(platform, connection)
    today = bucket_start(DAILY, now)
    allowed = history_allowance(platform, connection, now=now).calls_per_minute
    with _watched_memory() as growth:
        begun = time.perf_counter()
        report = _filled(platform, connection, today - timedelta(days=days), today)
        seconds = time.perf_counter() - begun
    row = connection.execute(_FASTEST_MINUTE).fetchone()
    return Backfilling(
        coins=report.held.coins_expected // days,
        days=days,
        calls=report.calls,
        stored=report.from_history,
        seconds=seconds,
        rate=0 if row is None else int(row[0]),
        rate_allowed=allowed,
        growth_bytes=max(growth, default=0),
        hour_ms=hour_ms,
    )


def _filled(
    platform: Platform, connection: Connection, start: datetime, end: datetime
) -> WindowReport:
    now = platform.clock()
    return materialize_window(platform, connection, DAILY, start, end, now=now, until=now + _HOUR)


def _hourly_run(platform: Platform, connection: Connection) -> float:
    """An hour of minutes for every coin, then the run that finds all of it there."""
    now = datetime.now(timezone.utc)
    hour = bucket_start(HOURLY, now) - 2 * _HOUR
    settings = platform.settings
    ids = coins_to_poll(connection, settings.coins_wanted, settings.always_include)["coin_id"]
    for minute in range(60):
        label = hour + timedelta(minutes=minute)
        put_minutes(connection, _minute(ids, label), now=now)
    times = []
    for _ in range(RUNS):
        begun = time.perf_counter()
        report = materialize_window(
            platform, connection, HOURLY, hour, hour + _HOUR, now=now, until=now + _HOUR
        )
        times.append((time.perf_counter() - begun) * 1000)
        if report.calls or report.held.coins_seen != ids.len():
            raise AssertionError(f"the hour was not whole: {report}")
    return statistics.median(times)


def _minute(ids: pl.Series, label: datetime) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "coin_id": ids,
            "minute_ts": label,
            "price_usd": 1.5,
            "market_cap_usd": 1.5e9,
            "volume_24h_usd": 1.5e7,
            "coin_rank": 1,
            "created_at": label + timedelta(seconds=7),
            "provider_ts": label,
            "source": "live",
        },
        schema=MINUTES_SCHEMA,
    )


@contextmanager
def _simulator(coins: int) -> Iterator[str]:
    command = [sys.executable, "-m", "pulseguard_assets.cli", "simulate", "--port", "0", "--pro"]
    with subprocess.Popen(
        [*command, "--no-churn", "--coins", str(coins)], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            if process.stdout is None:
                raise AssertionError("the simulator's output is not piped")
            # It says where it is in its first line, behind the word "on".
            yield process.stdout.readline().split(" on ")[1].split()[0]
        finally:
            process.terminate()


@contextmanager
def _watched_memory() -> Iterator[list[int]]:
    """Growth of this process's memory since the beginning, sampled while the block runs."""
    process, stop = psutil.Process(), threading.Event()
    before, growth = process.memory_info().rss, list[int]()

    def watch() -> None:
        while not stop.wait(0.2):
            growth.append(process.memory_info().rss - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield growth
    finally:
        stop.set()
        watcher.join()
