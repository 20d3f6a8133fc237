"""The running platform, looked at for a while: ticks, Dagster's storage, memory and processor.

It starts `pulseguard demo` in a folder of its own: real processes, a real database, simulated
prices of 1,000 coins. Everything is read from outside, from PostgreSQL and /proc.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from psycopg import Connection

from pulseguard_assets.warehouse.connection import DatabaseUnavailable, connect
from pulseguard_assets.warehouse.embedded import running_dsn

_START_WITHIN = 180.0

# One row per poll: the tick's own clock to the event's, which is written after the commit.
_TICKS = """
SELECT tick.timestamp AS begun, event.timestamp AS recorded, event.event
FROM dagster.job_ticks tick
JOIN dagster.event_logs event
  ON event.asset_key = '["minute_close"]' AND event.dagster_event_type = 'ASSET_MATERIALIZATION'
 AND event.timestamp >= tick.timestamp
 AND event.timestamp < tick.timestamp + INTERVAL '20 seconds'
WHERE tick.status = 'SKIPPED' OR tick.status = 'SUCCESS'
ORDER BY event.id
"""
_SIZES = """
SELECT relname, pg_total_relation_size(c.oid)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'dagster' AND c.relkind = 'r'
"""


@dataclass(frozen=True)
class Running:
    """What a while of running showed.

    Attributes:
        minutes: how long it ran.
        polls: events of `minute_close`.
        tick_ms: median from a due tick's begin to the recorded event.
        collect_ms: median of the poll's own latency, to the last commit.
        bytes_per_poll: growth of the event log by event.
        bytes_per_tick: growth of the tick table by tick.
        ticks: rows of the tick table.
        storage_bytes: all of Dagster's tables now.
        memory_bytes: proportional set size of all processes together.
        cpu_share: processor time of all processes by wall time, 1.0 is one core.
    """

    minutes: float
    polls: int
    tick_ms: float
    collect_ms: float
    bytes_per_poll: float
    bytes_per_tick: float
    ticks: int
    storage_bytes: int
    memory_bytes: int
    cpu_share: float


def measure(minutes: float) -> Running:
    """Run the platform for so many minutes and read its figures."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("PULSEGUARD_")},
            "PULSEGUARD_DATA_DIR": folder,
            "PULSEGUARD_PORT": str(_free_port()),
        }
        command = [sys.executable, "-m", "pulseguard_assets.cli", "demo"]
        with subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.DEVNULL
        ) as platform:
            try:
                return _watch(platform, Path(folder) / "demo", minutes)
            finally:
                platform.terminate()
                platform.wait(30)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _watch(platform: subprocess.Popen[bytes], data_dir: Path, minutes: float) -> Running:
    with _connected(data_dir) as connection:
        _first_poll(connection)
        processes = _processes(platform.pid)
        cpu_before, begun = _cpu(processes), time.monotonic()
        time.sleep(minutes * 60)
        processes = _processes(platform.pid)
        elapsed = time.monotonic() - begun
        return _figures(connection, minutes, processes, (_cpu(processes) - cpu_before) / elapsed)


def _figures(
    connection: Connection, minutes: float, processes: list[psutil.Process], cpu: float
) -> Running:
    rows = connection.execute(_TICKS).fetchall()
    first: dict[object, tuple[float, float]] = {}
    for begun, recorded, event in rows:
        first[recorded] = ((recorded - begun).total_seconds() * 1000, _latency(event))
    sizes = dict(connection.execute(_SIZES).fetchall())
    events = _count(connection, "event_logs")
    ticks = _count(connection, "job_ticks")
    return Running(
        minutes=minutes,
        polls=len(first),
        tick_ms=statistics.median(total for total, _ in first.values()),
        collect_ms=statistics.median(own for _, own in first.values()),
        bytes_per_poll=sizes["event_logs"] / events,
        bytes_per_tick=sizes["job_ticks"] / ticks,
        ticks=ticks,
        storage_bytes=sum(sizes.values()),
        memory_bytes=sum(process.memory_full_info().pss for process in processes),
        cpu_share=cpu,
    )


def _latency(event: str) -> float:
    entries = json.loads(event)["dagster_event"]["event_specific_data"]["materialization"]
    entry = next(e for e in entries["metadata_entries"] if e["label"] == "latency_seconds")
    return float(entry["entry_data"]["value"]) * 1000


def _count(connection: Connection, table: str) -> int:
    query = {
        "event_logs": "SELECT count(*) FROM dagster.event_logs",
        "job_ticks": "SELECT count(*) FROM dagster.job_ticks",
    }[table]
    row = connection.execute(query).fetchone()
    return 0 if row is None else int(row[0])


def _connected(data_dir: Path) -> Connection:
    deadline = time.monotonic() + _START_WITHIN
    while time.monotonic() < deadline:
        dsn = running_dsn(data_dir) if data_dir.exists() else None
        if dsn is not None:
            # It answers before its database is made.
            with suppress(DatabaseUnavailable):
                return connect(dsn)
        time.sleep(0.2)
    raise TimeoutError("the platform did not bring its database up")


def _first_poll(connection: Connection) -> None:
    deadline = time.monotonic() + _START_WITHIN
    while time.monotonic() < deadline:
        if _exists(connection, "public.minute_close") and _exists(connection, "dagster.event_logs"):
            row = connection.execute("SELECT count(*) FROM minute_close").fetchone()
            if row is not None and row[0]:
                return
        time.sleep(0.5)
    raise TimeoutError("the platform stored no price")


def _exists(connection: Connection, table: str) -> bool:
    row = connection.execute("SELECT to_regclass(%s) IS NOT NULL", (table,)).fetchone()
    return bool(row and row[0])


def _processes(pid: int) -> list[psutil.Process]:
    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]


def _cpu(processes: list[psutil.Process]) -> float:
    """Seconds of processor time, those of ended children (run workers) included."""
    total = 0.0
    for process in processes:
        times = process.cpu_times()
        total += times.user + times.system + times.children_user + times.children_system
    return total
