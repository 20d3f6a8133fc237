"""Load on a platform or on a bare server, whom to kill in it, and what must hold afterwards.

Belongs here: a stream of puts whose every commit is remembered outside of the database, the
processes of a platform by their kind, and the promises of a close as questions to its tables.
Does not: when who is killed.
"""

from __future__ import annotations

import itertools
import json
import random
import signal
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import psycopg
from truth_support import CHILDREN, KEPT, order
from up_support import PULSEGUARD, Up, eventually, utc_now

from pulseguard_assets.running.leftovers import MARK
from pulseguard_assets.simulator.catalogue import minute_of
from pulseguard_assets.simulator.market import Market
from pulseguard_assets.timeframes import HOURLY, MINUTE, TIMEFRAMES, Timeframe
from pulseguard_assets.warehouse.closes import MINUTES_SCHEMA, put_minutes, roll_up
from pulseguard_assets.warehouse.coins import COINS_SCHEMA, put_coins
from pulseguard_assets.warehouse.connection import DatabaseUnavailable, connect
from pulseguard_assets.warehouse.postmaster import processes_in
from pulseguard_assets.warehouse.upkeep import blocked_rows, clean_up

# Hours are kept for a day, and their evidence with them: what was put into one can be asked of it.
_REACHES_BACK_MINUTES = 20 * 60
ALWAYS, NEVER = datetime(1900, 1, 1, tzinfo=timezone.utc), datetime(2300, 1, 1, tzinfo=timezone.utc)
# Enough (group, minute) pairs for a quarter of an hour.
_GROUPS, _TOGETHER, _WRITERS = 16, 10, 2
_LOOK_EVERY = 0.25


# --- load -----------------------------------------------------------------------------------------


@dataclass
class Group:
    """Coins that are put together, a minute at a time, and what became of each of these puts.

    Attributes:
        coins: their ids.
        acknowledged: minutes of which the commit was confirmed.
        attempted: minutes that were sent, those of `acknowledged` among them. Of the others nobody
            can know whether they were committed; only that it was all of it or nothing.
    """

    coins: tuple[str, ...]
    acknowledged: set[datetime] = field(default_factory=set)
    attempted: set[datetime] = field(default_factory=set)


class Load:
    """Work on a database that goes on whatever becomes of its server, until it is left.

    Every put is of other minutes of the past hours, in no order, at the price of the market. No put
    is repeated: a row that a cleanup took could else be there for a second time.

    Args:
        dsn: says where the server is just now; None while there is none.
        market: what is put.
        seed: of the order of the minutes.
        pause: seconds that each worker rests after a put or a round of upkeep.
    """

    def __init__(
        self,
        dsn: Callable[[], str | None],
        market: Market,
        seed: int,
        *,
        pause: float = 0.02,
    ) -> None:
        self._dsn, self.market, self._luck = dsn, market, random.Random(seed)
        self._pause = pause
        now = utc_now()
        # Small coins, of which no poll asks.
        plain = [
            coin.id
            for coin in market.page_order(minute_of(now))[3000:]
            if coin.values == "plain" and coin.period == 1 and coin.gone is None and coin.lag == 0
        ]
        self.groups = [
            Group(tuple(sorted(plain[n * _TOGETHER : (n + 1) * _TOGETHER]))) for n in range(_GROUPS)
        ]
        self.mistakes: list[BaseException] = []
        self._ended = threading.Event()

    @property
    def acknowledged(self) -> int:
        """Puts that were confirmed so far."""
        return sum(len(group.acknowledged) for group in self.groups)

    @property
    def coins(self) -> tuple[str, ...]:
        """The ids of all coins that are put."""
        return tuple(itertools.chain.from_iterable(group.coins for group in self.groups))

    def introduce(self, connection: psycopg.Connection) -> None:
        """Make the coins known, without which no close of theirs is accepted."""
        coins = pl.DataFrame(
            {
                "coin_id": self.coins,
                # Behind all that any mode of these tests asks for.
                "market_cap_rank": [100_000 + n for n in range(len(self.coins))],
                "symbol": self.coins,
                "name": self.coins,
            }
        ).with_columns(
            market_cap_usd=pl.lit(None), image_url=pl.lit(None), provider_ts=pl.lit(None)
        )
        put_coins(connection, coins.cast(COINS_SCHEMA).select(COINS_SCHEMA.names()), now=utc_now())

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Put, roll up and clean up during the block.

        Whatever fails, but for the loss of the server, is raised at its end.
        """
        self._ended.clear()
        work: list[Callable[[psycopg.Connection], None]] = [
            _Putting(self.market, self.groups[n::_WRITERS], self._luck.randrange(1 << 32))
            for n in range(_WRITERS)
        ]
        threads = [
            threading.Thread(target=self._keep_at, args=(each,), daemon=True)
            for each in (*work, _upkeep)
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._ended.set()
            for thread in threads:
                thread.join(60)
            if self.mistakes:
                raise self.mistakes[0]
        assert not any(thread.is_alive() for thread in threads), "a worker hangs"

    def _keep_at(self, work: Callable[[psycopg.Connection], None]) -> None:
        try:
            while not self._ended.is_set():
                dsn = self._dsn()
                with suppress(psycopg.OperationalError, DatabaseUnavailable):
                    if dsn is not None:
                        self._keep_working(dsn, work)
                # To look whether a server is back reads the whole list of processes.
                self._ended.wait(_LOOK_EVERY)
        except BaseException as mistake:  # noqa: BLE001 - raised by whoever leaves `going_on`
            self.mistakes.append(mistake)

    def _keep_working(self, dsn: str, work: Callable[[psycopg.Connection], None]) -> None:
        with connect(dsn, application_name="load") as connection:
            while not self._ended.wait(self._pause):
                work(connection)


class _Putting:
    """One writer: at each call a minute of one of its groups."""

    def __init__(self, market: Market, groups: Sequence[Group], seed: int) -> None:
        self._market = market
        now = utc_now().replace(second=0, microsecond=0)
        # A minute that is not over has no close yet.
        minutes = [now - timedelta(minutes=n) for n in range(2, _REACHES_BACK_MINUTES)]
        self._left = [
            (group, minute)
            for group in groups
            for minute in minutes
            if minute not in group.attempted
        ]
        random.Random(seed).shuffle(self._left)

    def __call__(self, connection: psycopg.Connection) -> None:
        group, minute = self._left.pop()
        observed = observed_at(self._market, group.coins, minute)
        group.attempted.add(minute)
        put = put_minutes(connection, observed, now=utc_now())
        group.acknowledged.add(minute)
        assert (put.stored, put.rejected) == (len(group.coins), 0)


def observed_at(market: Market, coins: Iterable[str], minute: datetime) -> pl.DataFrame:
    """What a poll of these coins would have stored in a minute."""
    arrived = utc_now()
    end = minute + timedelta(seconds=59)
    rows = [
        (coin, minute, seen.price, seen.market_cap, seen.volume, None, arrived, seen.last_updated)
        for coin, seen in market.observations(coins, end).items()
    ]
    frame = pl.DataFrame(rows, schema=MINUTES_SCHEMA.names()[:-1], orient="row", strict=False)
    return frame.with_columns(source=pl.lit("live")).cast(MINUTES_SCHEMA)


def _upkeep(connection: psycopg.Connection) -> None:
    now = utc_now()
    for timeframe in CHILDREN:
        roll_up(connection, timeframe, now - timedelta(days=2), now)
    clean_up(connection, now=now)


# --- what must hold -------------------------------------------------------------------------------

Key = tuple[str, datetime]
Closes = dict[str, dict[Key, tuple[Any, ...]]]

# In the order that `truth_support` reads.
_VALUES = "price_usd, market_cap_usd, volume_24h_usd, coin_rank, created_at, provider_ts, source"


def closes(connection: psycopg.Connection) -> Closes:
    """All stored closes, by table, as of one instant: values, and of rollups close_ts and seen."""
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        return {each.table: _closes_of(connection, each) for each in TIMEFRAMES}


def _closes_of(connection: psycopg.Connection, timeframe: Timeframe) -> dict[Key, tuple[Any, ...]]:
    more = "" if timeframe is MINUTE else f", coalesce(close_ts, {timeframe.label}), seen"
    rows = connection.execute(
        f"SELECT coin_id, {timeframe.label}, {_VALUES}{more} FROM {timeframe.table}".encode()
    )
    return {(coin, label): tuple(values) for coin, label, *values in rows}


def nothing_acknowledged_is_lost(load: Load, stored: Closes) -> None:
    """Every confirmed put is in its hour, no other is there in part, and none that was not sent."""
    hours = stored[HOURLY.table]
    for group in load.groups:
        found = [_minutes_known(hours, coin) for coin in group.coins]
        for minutes in found[1:]:
            assert minutes == found[0], "a put was stored in part"
        lost = group.acknowledged - found[0]
        assert not lost, f"{len(lost)} of {len(group.acknowledged)} confirmed puts are lost: {lost}"
        assert found[0] <= group.attempted, "evidence of what was never sent"


def _minutes_known(hours: Mapping[Key, tuple[Any, ...]], coin: str) -> set[datetime]:
    return {
        label + timedelta(minutes=bit)
        for (each, label), row in hours.items()
        if each == coin
        for bit in range(60)
        if row[-1] >> bit & 1
    }


def nothing_went_back(before: Closes, after: Closes) -> None:
    """No close of `before` became older, lost evidence or is gone, but for what retention took."""
    now = utc_now()
    for timeframe in TIMEFRAMES:
        stored = after[timeframe.table]
        for key, row in before[timeframe.table].items():
            again = stored.get(key)
            if again is None:
                kept = KEPT.get(timeframe)
                assert kept is not None, f"{timeframe.table} lost {key}"
                assert key[1] < now - kept, f"{timeframe.table} lost {key}, too young for it"
                continue
            assert order(key[1], again) >= order(key[1], row), f"{timeframe.table} set back {key}"
            if timeframe is not MINUTE:
                assert row[-1] & ~again[-1] == 0, f"{timeframe.table} forgot evidence of {key}"


def every_close_is_true(market: Market, stored: Closes) -> int:
    """Hold every close against the market; returns how many there were.

    Prices are those of the minute that is named, or, of a poll that a minute's end overtook, of one
    between the tick's begin, which names it, and the answer.
    """
    count = 0
    for timeframe in TIMEFRAMES:
        for (coin, label), row in stored[timeframe.table].items():
            observed = label if timeframe is MINUTE else row[7]
            last = observed if row[5] is None else max(observed, row[4])
            assert tuple(row[:3]) in _quotes(market, coin, observed, last), (
                f"{timeframe.table}: {coin} at {label} is {row}, which was never so"
            )
            count += 1
    return count


def _quotes(
    market: Market, coin: str, first: datetime, last: datetime
) -> Iterator[tuple[Any, ...]]:
    known = market.coin(coin)
    for minute in range(minute_of(first), minute_of(last) + 1):
        yield tuple(map(_number, market.quote(known, minute)))


def _number(value: float | None) -> Decimal | None:
    return None if value is None else Decimal(repr(value))


def tables_agree(connection: psycopg.Connection) -> None:
    """What the database says of itself: labels, hours and the minutes below them, deletions."""
    for timeframe in TIMEFRAMES:
        found = connection.execute(
            "SELECT * FROM misaligned_closes(%s, buckets => 3000)", (timeframe.name,)
        ).fetchall()
        assert found == [], timeframe.name
    # The narrowest without a roll-up: a trigger carries minutes into their hours.
    assert _behind(connection, HOURLY) == []
    assert connection.execute("SELECT * FROM retention_audit_failures()").fetchall() == []


def _behind(connection: psycopg.Connection, timeframe: Timeframe) -> list[tuple[Any, ...]]:
    return connection.execute(
        "SELECT * FROM parents_behind(%s, %s, %s)", (timeframe.name, ALWAYS, NEVER)
    ).fetchall()


def everything_rolls_up_once(connection: psycopg.Connection) -> None:
    """With nobody else at work: one roll-up makes all tables agree, another writes nothing."""
    now = utc_now()
    for timeframe in CHILDREN:
        roll_up(connection, timeframe, ALWAYS, NEVER)
        assert _behind(connection, timeframe) == []
    assert [roll_up(connection, each, ALWAYS, NEVER) for each in CHILDREN] == [0] * len(CHILDREN)
    clean_up(connection, now=now)
    assert set(clean_up(connection, now=now).values()) == {0}
    assert set(blocked_rows(connection, now=now).values()) <= {0}
    tables_agree(connection)


# --- whom to kill, and what is left ---------------------------------------------------------------


def kill(processes: Iterable[psutil.Process]) -> None:
    """Kill them as in one instant: all are stopped before, so that none sees another one die."""
    processes = list(processes)
    for blow in (signal.SIGSTOP, signal.SIGKILL):
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(blow)
    psutil.wait_procs(processes, timeout=20)


def kill_all(find: Callable[[], Sequence[psutil.Process]]) -> None:
    """Kill what is found until nothing is: one may have just been started by another."""
    while processes := find():
        kill(processes)


def alive(*pids: int) -> list[psutil.Process]:
    """Those of these processes that are there, and no zombies."""
    found = []
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@dataclass
class SharedMemory:
    """What the servers of a data folder had the system keep for them, collected while they ran."""

    pgdata: Path
    segments: set[str] = field(default_factory=set)
    files: set[Path] = field(default_factory=set)

    def look(self) -> None:
        """Take note of what the server that runs now has."""
        with suppress(FileNotFoundError, IndexError):
            lock = (self.pgdata / "postmaster.pid").read_text("ascii").splitlines()
            self.segments.add(lock[6].split()[-1])
            maps = Path(f"/proc/{lock[0]}/maps").read_text("ascii").splitlines()
            self.files |= {Path(line.split()[5]) for line in maps if "/dev/shm/" in line}

    def left(self) -> set[str]:
        """What of it is still there."""
        lines = Path("/proc/sysvipc/shm").read_text("ascii").splitlines()
        there = {line.split()[1] for line in lines[1:]}
        return (self.segments & there) | {str(file) for file in self.files if file.exists()}


class Demo:
    """A running demo, its processes by their kind, and more work for it.

    Args:
        up: the demo.
    """

    def __init__(self, up: Up) -> None:
        self.up = up

    def guardian(self) -> list[psutil.Process]:
        """The process that stops the others should `up` be killed."""
        children = [kid for up in alive(self.up.process.pid) for kid in up.children()]
        return [kid for kid in children if _runs(kid, "guardian.py")]

    def child(self, name: str) -> list[psutil.Process]:
        """One that is kept running; none while it is being replaced."""
        return alive(self.up.pid(name))

    def runs(self) -> list[psutil.Process]:
        """Processes of runs, which the code server started."""
        started = [kid for server in self.child("code-server") for kid in server.children()]
        return [kid for kid in started if _runs(kid, "spawn_main")]

    def server(self) -> list[psutil.Process]:
        """PostgreSQL, its head first."""
        return sorted(processes_in(self.up.data_dir / "postgres"), key=lambda each: each.pid)

    def backends(self) -> list[psutil.Process]:
        """Processes of PostgreSQL that serve somebody."""
        pids = self.up.rows(
            "SELECT pid FROM pg_stat_activity "
            "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        return alive(*(pid for (pid,) in pids))

    def everything(self) -> list[psutil.Process]:
        """All of it."""
        marked = [int(line.split()[0]) for line in self.up.processes()]
        return [*self.guardian(), *alive(*marked)]

    def calls_counted(self) -> int:
        """Calls that this demo's simulator has counted; 0 while there is none."""
        for simulator in self.child("simulator"):
            port = simulator.cmdline()[-1]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/admin/calls", timeout=20) as told:
                return int(json.load(told)["total"])
        return 0

    def backfill(self, asset: str, partitions: Iterable[str]) -> None:
        """Ask for partitions, as the dialog of the web interface does, again while that fails."""
        wanted = {"assetSelection": [{"path": [asset]}], "partitionNames": list(partitions)}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.up.port}/graphql",
            json.dumps({"query": _BACKFILL, "variables": {"wanted": wanted}}).encode(),
            {"content-type": "application/json"},
        )
        eventually(f"a backfill of {asset}", lambda: _accepted(request))

    def collector(self) -> subprocess.Popen[str]:
        """`pulseguard collect --once` beside the platform, with its settings."""
        settings = self.child("daemon")[0].environ()
        return subprocess.Popen(
            [*PULSEGUARD, "collect", "--once"],
            env={name: value for name, value in settings.items() if name != MARK},
            cwd=self.up.data_dir,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


_BACKFILL = """mutation ($wanted: LaunchBackfillParams!) {
    launchPartitionBackfill(backfillParams: $wanted) {
        __typename ... on Error { message }
    }
}"""


def _accepted(request: urllib.request.Request) -> bool:
    # The web server may have lost its database, or its code server, a moment ago.
    with suppress(OSError), urllib.request.urlopen(request, timeout=60) as answer:
        done = (json.load(answer)["data"] or {}).get("launchPartitionBackfill") or {}
        return bool(done.get("__typename") == "LaunchBackfillSuccess")
    return False


def _runs(process: psutil.Process, program: str) -> bool:
    with suppress(psutil.Error):
        return any(program in part for part in process.cmdline())
    return False


def temporary_files(up: Up, folder: Path) -> list[Path]:
    """Files below the platform's own folders that only somebody at work needs."""
    names = ("*.sock", ".s.PGSQL*", "postmaster.pid", "*.new", "*.new-*", "processes.json")
    found = [path for name in names for path in up.data_dir.rglob(name)]
    found += (up.data_dir / "postgres" / "base" / "pgsql_tmp").glob("*")
    return sorted([*found, *folder.iterdir()])
