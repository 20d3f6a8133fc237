"""The running platform, looked at for a while: ticks, Dagster's storage, memory and processor.

It starts `pulseguard demo` in a folder of its own: real processes, a real database, simulated
prices of 1,000 coins. Everything is read from outside, from PostgreSQL and /proc.

Beside it, in the same minutes, runs what Dagster costs anyway: the same processes with the least
that they could serve (`bare.py`).
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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from psycopg import Connection

from benchmarks import bare
from pulseguard_assets.warehouse.connection import DatabaseUnavailable, connect
from pulseguard_assets.warehouse.embedded import running_dsn

_START_WITHIN = 180.0
# Whose processor time is Dagster's own, by a word of their command line: its three processes, and
# PostgreSQL with every process of a session.
_DAGSTERS = ("dagster", "postgres")

# One row per poll: the tick's own clock to the event's, which is written after the commit.
_TICKS = """
SELECT tick.timestamp AS begun, event.timestamp AS recorded, event.event
FROM dagster.job_ticks tick
JOIN dagster.event_logs event
  ON event.asset_key = %s AND event.dagster_event_type = 'ASSET_MATERIALIZATION'
 AND event.timestamp >= tick.timestamp
 AND event.timestamp < tick.timestamp + INTERVAL '20 seconds'
WHERE tick.status = 'SKIPPED' OR tick.status = 'SUCCESS'
ORDER BY event.id
"""
_RUNS_UNDER_WAY = """
SELECT count(*) FROM dagster.runs WHERE status NOT IN ('SUCCESS', 'FAILURE', 'CANCELED')
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
        bare_tick_ms: the same of a sensor that does nothing but record an event.
        collect_ms: median of the poll's own latency, to the last commit.
        bytes_per_poll: growth of the event log by event.
        bytes_per_tick: growth of the tick table by tick.
        ticks: rows of the tick table.
        storage_bytes: all of Dagster's tables now.
        memory_bytes: proportional set size of all processes together.
        cpu_share: processor time of all processes by wall time, 1.0 is one core.
        bare_cpu_share: the same of Dagster's processes and PostgreSQL with that one sensor.
    """

    minutes: float
    polls: int
    tick_ms: float
    bare_tick_ms: float
    collect_ms: float
    bytes_per_poll: float
    bytes_per_tick: float
    ticks: int
    storage_bytes: int
    memory_bytes: int
    cpu_share: float
    bare_cpu_share: float


def measure(minutes: float) -> Running:
    """Run the platform for so many minutes, beside a bare Dagster, and read its figures."""
    with (
        _started("demo") as (ours, folder),
        _started("up", PULSEGUARD_DEFINITIONS=bare.__name__) as (theirs, bare_folder),
        _connected(folder / "demo") as connection,
        _connected(bare_folder) as bare_connection,
    ):
        _first_event(connection, "minute_close")
        _first_event(bare_connection, bare.ASSET)
        _rest(connection)
        before, bare_before, begun = _cpu(_all(ours)), _cpu(_dagsters(theirs)), time.monotonic()
        time.sleep(minutes * 60)
        processes, bare_processes = _all(ours), _dagsters(theirs)
        elapsed = time.monotonic() - begun
        polls = _polls(connection, "minute_close")
        sizes = dict(connection.execute(_SIZES).fetchall())
        ticks = _count(connection, "job_ticks")
        return Running(
            minutes=minutes,
            polls=len(polls),
            tick_ms=statistics.median(total for total, _ in polls),
            bare_tick_ms=statistics.median(
                total for total, _ in _polls(bare_connection, bare.ASSET)
            ),
            collect_ms=statistics.median(_latency(event) for _, event in polls),
            bytes_per_poll=sizes["event_logs"] / _count(connection, "event_logs"),
            bytes_per_tick=sizes["job_ticks"] / ticks,
            ticks=ticks,
            storage_bytes=sum(sizes.values()),
            memory_bytes=sum(process.memory_full_info().pss for process in processes),
            cpu_share=(_cpu(processes) - before) / elapsed,
            bare_cpu_share=(_cpu(bare_processes) - bare_before) / elapsed,
        )


@contextmanager
def _started(command: str, **settings: str) -> Iterator[tuple[psutil.Process, Path]]:
    """A `pulseguard` in a folder of its own, with that folder."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("PULSEGUARD_")},
            "PULSEGUARD_DATA_DIR": folder,
            "PULSEGUARD_PORT": str(_free_port()),
            "PYTHONPATH": str(Path(__file__).parents[1]),
            **settings,
        }
        with subprocess.Popen(
            [sys.executable, "-m", "pulseguard_assets.cli", command],
            cwd=folder,
            env=environment,
            stdout=subprocess.DEVNULL,
        ) as platform:
            try:
                yield psutil.Process(platform.pid), Path(folder)
            finally:
                platform.terminate()
                platform.wait(30)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _polls(connection: Connection, asset: str) -> list[tuple[float, str]]:
    """Milliseconds from each due tick's begin to its event, and that event."""
    rows = connection.execute(_TICKS, (json.dumps([asset]),)).fetchall()
    # Of the ticks before an event, the last one recorded it.
    last = {recorded: (begun, event) for begun, recorded, event in rows}
    return [
        ((recorded - begun).total_seconds() * 1000, event)
        for recorded, (begun, event) in last.items()
    ]


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
    found: list[Connection] = []

    def connected() -> bool:
        dsn = running_dsn(data_dir) if data_dir.exists() else None
        if dsn is not None:
            # It answers before its database is made.
            with suppress(DatabaseUnavailable):
                found.append(connect(dsn))
        return bool(found)

    _await(connected, "the platform did not bring its database up")
    return found[0]


def _first_event(connection: Connection, asset: str) -> None:
    def recorded() -> bool:
        made = all(_exists(connection, f"dagster.{table}") for table in ("job_ticks", "event_logs"))
        return made and bool(_polls(connection, asset))

    _await(recorded, f"the platform recorded no event of {asset}")


def _rest(connection: Connection) -> None:
    """Wait for the end of the runs that a new platform begins with."""
    _await(
        lambda: connection.execute(_RUNS_UNDER_WAY).fetchone() == (0,),
        "the platform's first runs do not end",
    )


def _await(condition: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + _START_WITHIN
    while not condition():
        if time.monotonic() >= deadline:
            raise TimeoutError(otherwise)
        time.sleep(0.2)


def _exists(connection: Connection, table: str) -> bool:
    row = connection.execute("SELECT to_regclass(%s) IS NOT NULL", (table,)).fetchone()
    return bool(row and row[0])


def _all(parent: psutil.Process) -> list[psutil.Process]:
    return [parent, *parent.children(recursive=True)]


def _dagsters(parent: psutil.Process) -> list[psutil.Process]:
    return [
        process
        for process in parent.children(recursive=True)
        if any(word in part for part in process.cmdline()[:4] for word in _DAGSTERS)
    ]


def _cpu(processes: Sequence[psutil.Process]) -> float:
    """Seconds of processor time, those of ended children (run workers) included."""
    total = 0.0
    for process in processes:
        times = process.cpu_times()
        total += times.user + times.system + times.children_user + times.children_system
    return total
