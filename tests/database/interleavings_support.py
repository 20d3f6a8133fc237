"""Two sessions, step by step: every order in which their steps can fall.

Belongs here: running steps in a given order, and noticing that a session waits. Does not: what the
steps are, or what must come of them. The model is PostgreSQL's and TimescaleDB's isolation tester.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg
from closes_support import Background

from pulseguard_assets.warehouse.connection import connect

PATIENCE = 30.0

# Waits for a lock, or sleeps between two tries for one as try_lock_tables() does.
_WAITING = """
SELECT cardinality(pg_blocking_pids(%(pid)s)) > 0 OR EXISTS (
    SELECT FROM pg_stat_activity WHERE pid = %(pid)s AND wait_event = 'PgSleep')
"""


@dataclass(frozen=True)
class Step:
    """A piece of a session's work, shown by its name when an order fails."""

    name: str
    work: Callable[[psycopg.Connection], Any]


@dataclass
class Session:
    """A session that does its steps one after another, each when it is told to.

    Attributes:
        results: what the finished steps returned, by name.
        errors: what they raised.
    """

    name: str
    connection: psycopg.Connection
    steps: Sequence[Step]
    results: dict[str, Any] = field(default_factory=dict)
    errors: list[psycopg.Error] = field(default_factory=list)
    waited: bool = False
    _begun: int = 0
    _running: Background | None = None

    @property
    def waiting(self) -> bool:
        """Whether its last step has not ended."""
        return self._running is not None

    @property
    def left(self) -> int:
        """How many steps have not begun."""
        return len(self.steps) - self._begun

    def begin_next(self, watcher: psycopg.Connection) -> None:
        """Begin the next step; return when it has ended, or waits for the other session."""
        assert self._running is None
        step = self.steps[self._begun]
        self._begun += 1
        self._running = Background(lambda: step.work(self.connection))
        self.settle(watcher)

    def settle(self, watcher: psycopg.Connection) -> None:
        """Return when the step under way has ended, or waits."""
        pid = {"pid": self.connection.info.backend_pid}
        deadline = time.monotonic() + PATIENCE
        while self._running is not None:
            if not self._running.running:
                self._take_result(self._running)
                return
            row = watcher.execute(_WAITING, pid).fetchone()
            if row is not None and row[0] and self._running.running:
                self.waited = True
                return
            assert time.monotonic() < deadline, f"{self.name} neither ends nor waits"
            time.sleep(0.001)

    def _take_result(self, ended: Background) -> None:
        name = self.steps[self._begun - 1].name
        self._running = None
        try:
            self.results[name] = ended.result()
        except psycopg.Error as error:
            self.errors.append(error)


def orders(*sessions: Sequence[Step]) -> Iterator[tuple[int, ...]]:
    """Yield every order of the sessions' steps, as the numbers of the sessions."""
    steps = [number for number, steps in enumerate(sessions) for _ in steps]
    yield from sorted(set(itertools.permutations(steps)))


def run_in_order(
    dsn: str,
    watcher: psycopg.Connection,
    order: Sequence[int],
    *sessions: Sequence[Step],
    after_each: Callable[[], None] = lambda: None,
) -> list[Session]:
    """Run the steps in this order, each session on a connection of its own.

    A step whose session still waits is put off until the other session lets it go on: that is
    then another one of the orders, but it too must come to a good end.

    Raises:
        AssertionError: all sessions wait and nobody can let them go on.
    """
    connections = [connect(dsn, application_name=f"session {n}") for n in range(len(sessions))]
    try:
        made = [
            Session(f"session {number}", connection, steps)
            for number, (connection, steps) in enumerate(
                zip(connections, sessions, strict=True), start=1
            )
        ]
        for connection in connections:
            connection.execute("SET deadlock_timeout = '20ms'")
        _run(watcher, made, order, after_each)
        return made
    finally:
        for connection in connections:
            connection.close()


def _run(
    watcher: psycopg.Connection,
    sessions: list[Session],
    order: Sequence[int],
    after_each: Callable[[], None],
) -> None:
    turns = [*order]
    deadline = time.monotonic() + PATIENCE
    while turns or any(session.waiting for session in sessions):
        for session in sessions:
            session.settle(watcher)
        turn = next((n for n in turns if not sessions[n].waiting), None)
        if turn is None:
            assert time.monotonic() < deadline, "all sessions wait, and nobody for the other"
            time.sleep(0.001)
            continue
        turns.remove(turn)
        sessions[turn].begin_next(watcher)
        after_each()
