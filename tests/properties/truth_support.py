"""What the close tables must hold, worked out from the raw stream of observations alone.

Belongs here: the oracle, and comparing a database with it after each step. Does not: making a
stream, nor any rule of `sql/`; what is said here about a close is said a second time, on purpose.

A close that no cleanup could have touched must equal the oracle's to the last column. One that was
old enough to be deleted may be there again, from an observation that came later; it may then say
less than the oracle, but nothing else, and what it lacks is in its parents.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import psycopg
from closes_support import (
    Closes,
    Observation,
    bucket,
    everything,
    evidence_of,
    expected,
    one,
    utc,
)

from pulseguard_assets.timeframes import (
    DAILY,
    HOURLY,
    MINUTE,
    MONTHLY,
    TIMEFRAMES,
    WEEKLY,
    Timeframe,
)

ALWAYS, NEVER = utc(1900, 1, 1), utc(2300, 1, 1)
KEPT = {
    MINUTE: timedelta(minutes=60),
    HOURLY: timedelta(hours=24),
    DAILY: timedelta(days=7),
    WEEKLY: timedelta(days=364),
}
PARENTS = {MINUTE: (HOURLY,), HOURLY: (DAILY,), DAILY: (WEEKLY, MONTHLY), WEEKLY: (MONTHLY,)}
CHILDREN = {HOURLY: MINUTE, DAILY: HOURLY, WEEKLY: DAILY, MONTHLY: DAILY}
REJECTIONS_KEPT = timedelta(days=30)

Key = tuple[str, datetime]
Row = tuple[Any, ...]
Tables = Mapping[str, Closes]

CREATED_AT, SOURCE, CLOSE_TS, SEEN = 4, 6, 7, 8


def order(label: datetime, row: Row) -> tuple[datetime, bool, datetime]:
    """What decides which of two closes is the later one."""
    close_ts = row[CLOSE_TS] if len(row) > CLOSE_TS else label
    return close_ts, row[SOURCE] != "history", row[CREATED_AT]


@dataclass
class Truth:
    """The stream so far, and what has happened to it.

    Attributes:
        stream: what was accepted, with the narrowest table it went to. Minutes go to all.
        horizon: by timeframe, before which label a close may have been deleted.
        rejected: by hour, coin and reason: when first, and how often.
        before: the tables after the last step.
    """

    stream: list[tuple[Timeframe, Observation]] = field(default_factory=list)
    horizon: dict[Timeframe, datetime] = field(default_factory=lambda: dict.fromkeys(KEPT, ALWAYS))
    rejected: dict[tuple[datetime, str, str], tuple[datetime, int]] = field(default_factory=dict)
    before: Tables = field(default_factory=lambda: {t.table: {} for t in TIMEFRAMES})

    # -- what happens ------------------------------------------------------------------------------

    def accept(self, level: Timeframe, observed: Iterable[Observation]) -> None:
        """Observations entered the table of a timeframe and, in the end, every wider one."""
        self.stream += ((level, seen) for seen in observed)

    def reject(self, faults: Iterable[tuple[str, str]], now: datetime) -> None:
        """Rows, each as its coin and the reason, were set aside."""
        hour = bucket(HOURLY, now)
        for coin, reason in faults:
            first, times = self.rejected.get((hour, coin, reason), (now, 0))
            self.rejected[hour, coin, reason] = (first, times + 1)

    def cleaned(self, now: datetime) -> None:
        """A cleanup ran: everything older than it is kept may be gone."""
        for timeframe, keep in KEPT.items():
            self.horizon[timeframe] = max(self.horizon[timeframe], now - keep)
        self.rejected = {
            key: (first, times)
            for key, (first, times) in self.rejected.items()
            if first >= now - REJECTIONS_KEPT
        }

    def dropped(self, timeframe: Timeframe, first_kept_month: datetime, now: datetime) -> None:
        """Old partitions were dropped, those before a month and before what is kept."""
        end = min(first_kept_month, now - KEPT[timeframe])
        self.horizon[timeframe] = max(self.horizon[timeframe], end)

    # -- what must be there ------------------------------------------------------------------------

    def expected(self, timeframe: Timeframe) -> Closes:
        """Every close of a timeframe, had nothing ever been deleted."""
        return expected(
            timeframe,
            (
                seen
                for level, seen in self.stream
                if TIMEFRAMES.index(level) <= TIMEFRAMES.index(timeframe)
            ),
        )

    def untouched(self, timeframe: Timeframe, closes: Closes) -> Closes:
        """Those that no cleanup could have deleted."""
        horizon = self.horizon.get(timeframe, ALWAYS)
        return {key: row for key, row in closes.items() if key[1] >= horizon}

    def check(self, connection: psycopg.Connection) -> None:
        """Compare the tables with the stream, and with what they were after the last step.

        The session must be in UTC.
        """
        now_there = everything(connection)
        observed = {(seen.coin_id, seen.minute_ts, *seen.values) for _, seen in self.stream}
        for timeframe in TIMEFRAMES:
            whole, found = self.expected(timeframe), now_there[timeframe.table]
            if timeframe in (MINUTE, HOURLY):
                # Live by the trigger, without any roll-up.
                self._check_equal(timeframe, found, whole)
            for key, row in found.items():
                self._check_says_nothing_else(timeframe, key, row, whole, observed)
        self._check_nothing_went_back(now_there)
        self.before = now_there
        assert rejections(connection) == self._rejections(), "a fault is lost, or counted twice"

    def _check_equal(self, timeframe: Timeframe, found: Closes, whole: Closes) -> None:
        found, whole = self.untouched(timeframe, found), self.untouched(timeframe, whole)
        wrong = {
            key: (found.get(key), whole.get(key))
            for key in sorted(found.keys() | whole.keys())
            if found.get(key) != whole.get(key)
        }
        assert wrong == {}, f"{timeframe.table}, stored and expected: {wrong}"

    def _check_says_nothing_else(
        self, timeframe: Timeframe, key: Key, row: Row, whole: Closes, observed: set[Row]
    ) -> None:
        coin, label = key
        assert key in whole, f"{timeframe.table} has {key}, of which nothing was observed"
        assert order(label, row) <= order(label, whole[key])
        close_ts = row[CLOSE_TS] if len(row) > CLOSE_TS else label
        assert bucket(timeframe, close_ts) == label, "a close outside its bucket"
        assert (coin, close_ts, *row[:CLOSE_TS]) in observed, "columns of different observations"
        if timeframe is not MINUTE:
            assert row[SEEN] & ~whole[key][SEEN] == 0, "evidence of what was never observed"

    def _check_nothing_went_back(self, now_there: Tables) -> None:
        for timeframe in TIMEFRAMES:
            found = now_there[timeframe.table]
            for key, row in self.before[timeframe.table].items():
                if key in found and self._grew(timeframe, key[1], row, found[key]):
                    continue
                what = f"{timeframe.table} {'set back' if key in found else 'lost'} {key}"
                assert key[1] < self.horizon.get(timeframe, ALWAYS), f"{what}, too young for it"
                # Deleted, and perhaps there again from an older observation that came meanwhile.
                assert self._carried(timeframe, key, row, now_there), f"{what}, nowhere carried"

    @staticmethod
    def _grew(timeframe: Timeframe, label: datetime, before: Row, after: Row) -> bool:
        """Whether a close is as new as it was, and rests on no less."""
        lost = 0 if timeframe is MINUTE else before[SEEN] & ~after[SEEN]
        return lost == 0 and order(label, after) >= order(label, before)

    def _carried(self, timeframe: Timeframe, key: Key, row: Row, tables: Tables) -> bool:
        """Whether every parent knows of a deleted close.

        Or else, of a parent that may have gone too (and be there again), that one's parents.
        """
        if timeframe is WEEKLY:
            days = [key[1] + timedelta(days=day) for day in range(7) if row[SEEN] >> day & 1]
            # Of each day the evidence, but of the week's last month alone the close.
            return all(self._knows(MONTHLY, key[0], day, tables) for day in days) and self._knows(
                MONTHLY, key[0], row[CLOSE_TS], tables, order(key[1], row)
            )
        return all(
            self._knows(parent, key[0], key[1], tables, order(key[1], row))
            or (
                bucket(parent, key[1]) < self.horizon.get(parent, ALWAYS)
                and self._carried(
                    parent,
                    (key[0], bucket(parent, key[1])),
                    (*row[:CLOSE_TS], order(key[1], row)[0], evidence_of(parent, key[1])),
                    tables,
                )
            )
            for parent in PARENTS[timeframe]
        )

    @staticmethod
    def _knows(
        parent: Timeframe, coin: str, child: datetime, tables: Tables, at_least: Any = None
    ) -> bool:
        label = bucket(parent, child)
        row = tables[parent.table].get((coin, label))
        return (
            row is not None
            and row[SEEN] & evidence_of(parent, child) != 0
            and (at_least is None or order(label, row) >= at_least)
        )

    def check_rolled_up(self, connection: psycopg.Connection, now: datetime) -> None:
        """Hold every table against the stream, all of which was rolled up."""
        self.check(connection)
        for timeframe in TIMEFRAMES:
            found, whole = self.before[timeframe.table], self.expected(timeframe)
            self._check_equal(timeframe, found, whole)
        self._check_own_reports(connection, now)

    def _check_own_reports(self, connection: psycopg.Connection, now: datetime) -> None:
        """What the database says about itself: nothing is behind, nothing was lost."""
        for timeframe in CHILDREN:
            behind = connection.execute(
                "SELECT * FROM parents_behind(%s, %s, %s)", (timeframe.name, ALWAYS, NEVER)
            ).fetchall()
            assert behind == []
        blocked = connection.execute("SELECT * FROM retention_blocked(%s)", (now,)).fetchall()
        assert [count for _, count, _ in blocked] == [0, 0, 0, 0]
        failures = "SELECT * FROM retention_audit_failures(%s)"
        assert connection.execute(failures, (now,)).fetchall() == []

    def check_cleaned(self, now: datetime) -> None:
        """After a cleanup nothing is left that is older than its table keeps it."""
        for timeframe, keep in KEPT.items():
            too_old = [key for key in self.before[timeframe.table] if key[1] < now - keep]
            assert too_old == [], f"{timeframe.table} should have been cleaned"

    def _rejections(self) -> dict[tuple[datetime, str, str], int]:
        return {key: times for key, (_, times) in self.rejected.items()}


def rejections(connection: psycopg.Connection) -> dict[tuple[datetime, str, str], int]:
    """What was set aside: (hour, coin, reason) -> how often."""
    rows = connection.execute(
        "SELECT hour, coalesce(coin_id, ''), reason, times FROM rejected_observations"
    )
    return {(hour, coin, reason): times for hour, coin, reason, times in rows}


def empty(connection: psycopg.Connection) -> None:
    """Take everything out that a stream brought, partitions included."""
    for timeframe in TIMEFRAMES:
        partitions = one(
            connection,
            "SELECT coalesce(string_agg(partition::text, ', '), '') FROM close_partitions(%s)",
            (timeframe.table,),
        )
        if partitions:
            connection.execute(f"DROP TABLE {partitions}".encode())
    connection.execute("DELETE FROM rejected_observations")
    connection.execute("DELETE FROM retention_audit")
