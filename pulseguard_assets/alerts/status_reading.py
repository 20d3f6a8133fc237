"""Asking the database how things are, in a set time whatever state it is in.

Belongs here: the statements, and giving up in time. Does not: what follows from the answers
(`status.py`).

A server that is suspended, or a network that swallows packets, answers nothing, and no timeout of
the server's own helps there. So a thread asks and is left behind when its time is over; its socket
is then shut, which ends it. Parts are asked for one by one: a table that somebody has locked costs
the part that needs it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import psycopg
from psycopg import Connection, sql

from pulseguard_assets.alerts import watch_list
from pulseguard_assets.alerts.backlog import backlog
from pulseguard_assets.alerts.dagster_state import (
    DagsterStateUnreadable,
    heartbeats,
    instigators,
    unbroken_since,
)
from pulseguard_assets.alerts.incidents import open_incidents
from pulseguard_assets.alerts.instigators import WATCHDOG, WATCHDOG_GAP
from pulseguard_assets.alerts.status_facts import (
    BacklogStatus,
    CloseStatus,
    CoverageStatus,
    DatabaseFacts,
    IncidentStatus,
    SizeStatus,
)
from pulseguard_assets.timeframes import DAILY, HOURLY, TIMEFRAMES, Timeframe, bucket_start
from pulseguard_assets.warehouse.connection import (
    DAGSTER_SCHEMA,
    DatabaseUnavailable,
    UnsupportedPostgres,
    connect,
)
from pulseguard_assets.warehouse.ledger import spent_this_month

# Why a table could not be read: there is none.
NOT_THERE = "it is not there; `pulseguard migrate` makes it"
# The clocks of those who write and of whoever looks.
CLOCKS_DIFFER = timedelta(minutes=1)
# Times the number of parts it is less than the patience: should all tables be locked.
_LOCK_TIMEOUT = timedelta(milliseconds=120)

Part = Callable[[Connection, datetime], Any]


def read_database(dsn: str, *, now: datetime, patience: float) -> DatabaseFacts:
    """Ask for everything that can be had within `patience` seconds. Never raises for a database.

    Args:
        dsn: where it is.
        now: the present; decides which windows are over.
        patience: after it, what has been read until then is returned.
    """
    reading = _Reading(dsn, now, timedelta(seconds=patience))
    thread = threading.Thread(target=reading.run, name="pulseguard status", daemon=True)
    thread.start()
    thread.join(patience)
    if thread.is_alive():
        reading.give_up()
    return reading.facts()


class _Reading:
    """One reading, shared by the thread that reads and the one that waits for it."""

    def __init__(self, dsn: str, now: datetime, patience: timedelta) -> None:
        self._dsn = dsn
        self._now = now
        self._patience = patience
        # Held while the connection is opened, closed or cut: its number is soon given to another.
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._given_up = False
        self._complaint: str | None = None
        self._read: dict[str, Any] = {}
        self._unread: dict[str, str] = {}

    def run(self) -> None:
        try:
            connection = connect(
                self._dsn,
                application_name="pulseguard status",
                connect_timeout=self._patience,
                statement_timeout=self._patience,
                lock_timeout=_LOCK_TIMEOUT,
            )
        except (DatabaseUnavailable, UnsupportedPostgres, OSError) as error:
            # What to check is said by whoever knows whose server it is.
            self._complaint = str(error).partition(" Check that ")[0].rstrip(".")
            return
        with self._lock:
            self._connection = connection
        try:
            self._ask(connection)
        finally:
            with self._lock:
                self._connection = None
                connection.close()

    def _ask(self, connection: Connection) -> None:
        for name, part in _PARTS.items():
            if self._given_up:
                return
            try:
                self._read[name] = part(connection, self._now)
            except DagsterStateUnreadable as error:
                self._unread[name] = str(error).rstrip(".")
            except psycopg.Error as error:
                if connection.broken:
                    self._complaint = "the connection was lost while it was read"
                    return
                self._unread[name] = _reason(error)

    def give_up(self) -> None:
        """Take what there is. The thread ends by itself, soon."""
        with self._lock:
            self._given_up = True
            if self._connection is not None:
                _cut(self._connection)

    def facts(self) -> DatabaseFacts:
        read, unread = dict(self._read), dict(self._unread)
        if not read and not unread:
            seconds = self._patience.total_seconds()
            return DatabaseFacts(
                complaint=self._complaint or f"it said nothing within {seconds:g} s"
            )
        for name in _PARTS:
            if name not in read and name not in unread:
                unread[name] = "there was no time left"
        closes = tuple(read.pop(table) for table in _TABLES if table in read)
        return DatabaseFacts(answers=True, unread=unread, closes=closes, **read)


def _cut(connection: Connection) -> None:
    """Have whoever waits for an answer see the end of the connection instead."""
    with (
        contextlib.suppress(OSError, psycopg.Error),
        socket.socket(fileno=os.dup(connection.fileno())) as ours,
    ):
        ours.shutdown(socket.SHUT_RDWR)


def _reason(error: psycopg.Error) -> str:
    if isinstance(error, psycopg.errors.LockNotAvailable):
        return "another session has locked the table"
    if isinstance(error, psycopg.errors.QueryCanceled):
        return "it took too long"
    if isinstance(error, (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedFunction)):
        return NOT_THERE
    return (error.diag.message_primary or type(error).__name__).rstrip(".")


# --- the parts ---


def _takes_no_writes(connection: Connection, _: datetime) -> bool:
    """Whether it is a standby, or was made read-only."""
    return connection.execute("SHOW transaction_read_only").fetchone() == ("on",)


def _newest(timeframe: Timeframe, connection: Connection, now: datetime) -> CloseStatus:
    """The newest label; one of the future is no sign that anything is collected."""
    statement = sql.SQL("SELECT max({label}) FROM {table} WHERE {label} <= %s").format(
        label=sql.Identifier(timeframe.label), table=sql.Identifier("public", timeframe.table)
    )
    row = connection.execute(statement, (now + CLOCKS_DIFFER,)).fetchone()
    return CloseStatus(timeframe.table, row[0] if row else None)


def _heartbeats(connection: Connection, _: datetime) -> Any:
    return tuple(sorted(heartbeats(connection), key=lambda each: each.at, reverse=True))


def _instigators(connection: Connection, _: datetime) -> Any:
    return tuple(instigators(connection))


def _watched(connection: Connection, _: datetime) -> Any:
    return tuple(watch_list.read(connection))


def _watching_since(connection: Connection, now: datetime) -> datetime | None:
    return unbroken_since(connection, WATCHDOG, now=now, gap=WATCHDOG_GAP)


def _incidents(connection: Connection, _: datetime) -> Any:
    return tuple(
        IncidentStatus(
            each.cause,
            each.title,
            each.message,
            each.severity,
            each.first_seen,
            each.link,
            each.help,
        )
        for each in open_incidents(connection)
    )


def _outbox(connection: Connection, _: datetime) -> Any:
    return tuple(
        BacklogStatus(each.channel, each.waiting, each.refused, each.since, each.last_error)
        for each in backlog(connection)
    )


def _tolerance(connection: Connection, _: datetime) -> Any:
    row = connection.execute("SELECT tolerance FROM public.collection_scope").fetchone()
    return row[0] if row else None


def _coverage(connection: Connection, now: datetime) -> Any:
    """The last hour and the last day that are over.

    The view `coverage` has all of them, and takes seconds at 18,000 coins.
    """
    hour, day = (
        bucket_start(each, bucket_start(each, now) - timedelta(seconds=1))
        for each in (HOURLY, DAILY)
    )
    row = connection.execute(
        "WITH coins AS MATERIALIZED (SELECT coin_id FROM public.expected_coins()) "
        "SELECT (SELECT count(*) FROM coins), "
        "(SELECT count(*) FROM coins JOIN public.hourly_close USING (coin_id) WHERE hour_ts = %s), "
        "(SELECT count(*) FROM coins JOIN public.daily_close USING (coin_id) WHERE day_ts = %s)",
        (hour, day),
    ).fetchone()
    expected, in_hour, in_day = row or (0, 0, 0)
    return (
        CoverageStatus("hour", hour, expected, in_hour),
        CoverageStatus("day", day, expected, in_day),
    )


def _sizes(connection: Connection, _: datetime) -> SizeStatus:
    tables: Mapping[str, int] = dict(
        connection.execute(
            "SELECT tablename, total_bytes FROM public.table_stats WHERE tablename = ANY (%s)",
            (list(_TABLES),),
        ).fetchall()
    )
    row = connection.execute(
        "SELECT pg_database_size(current_database()), coalesce(sum(pg_total_relation_size(oid)), 0)"
        "::bigint FROM pg_class WHERE relnamespace = to_regnamespace(%s) AND relkind = 'r'",
        (DAGSTER_SCHEMA,),
    ).fetchone()
    database, dagster = row or (0, 0)
    return SizeStatus(int(database), {name: int(tables.get(name, 0)) for name in _TABLES}, dagster)


_TABLES = tuple(timeframe.table for timeframe in TIMEFRAMES)

# By the names of `DatabaseFacts`, the tables apart. What the verdict needs comes first.
_PARTS: Mapping[str, Part] = {
    "takes_no_writes": _takes_no_writes,
    "heartbeats": _heartbeats,
    **{timeframe.table: partial(_newest, timeframe) for timeframe in TIMEFRAMES},
    "tolerance": _tolerance,
    "incidents": _incidents,
    "outbox": _outbox,
    "watched": _watched,
    "instigators": _instigators,
    "watching_since": _watching_since,
    "spent": spent_this_month,
    "coverage": _coverage,
    "sizes": _sizes,
}
