"""The ledger of calls to the provider, kept in PostgreSQL for all processes together.

Belongs here: the calls of `reserve_api_call()` and `settle_api_call()`, and what they have counted.
Does not: any plan; the figures to keep to are given by whoever makes the ledger.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from typing import Any, NamedTuple

from psycopg import Connection
from typing_extensions import LiteralString

from pulseguard_assets.warehouse.kept import KeptConnection
from pulseguard_assets.warehouse.statements import one_row


class Reservation(NamedTuple):
    """The answer to a reservation.

    Attributes:
        call_id: number of the reserved call; None when it was refused.
        next_free_at: when to ask again, if refused.
        refusal: `rate`, `credits` or `retry_after`, if refused.
        calls_left_this_minute: of the plan, after this one.
        credits_left_this_month: of what may be spent, after this one; None without a limit.
    """

    call_id: int | None
    next_free_at: datetime | None
    refusal: str | None
    calls_left_this_minute: int
    credits_left_this_month: int | None


def spent_this_month(connection: Connection, now: datetime) -> int:
    """Calls counted in the UTC month of `now` (aware), by the rule of `reserve_api_call()`.

    Days to come are counted in, as there: a clock set back hands no credits out again.
    """
    month = now.astimezone(timezone.utc).date().replace(day=1)
    statement = "SELECT coalesce(sum(total_calls), 0) FROM api_usage_stats WHERE date >= %s"
    return int(one_row(connection, statement, (month,))[0])


def release_reserve(connection: Connection, now: datetime) -> None:
    """Let every process spend the plan's reserve in the UTC month of `now`."""
    connection.execute("SELECT release_reserve(%s)", (now,))


class Ledger:
    """Reserves and settles calls by one short statement each; safe to share between threads.

    It owns a connection: its statements must commit whatever becomes of the transaction around
    a call, because the provider has counted the call by then.
    """

    def __init__(
        self,
        connect: Callable[[], Connection],
        *,
        calls_per_minute: int,
        credits_per_month: int | None,
        credits_reserved: int = 0,
    ) -> None:
        """Make a ledger that keeps to these figures.

        Args:
            connect: makes an autocommit connection; called at the first use, and again after a
                connection was lost.
            calls_per_minute: most calls within any 60 seconds.
            credits_per_month: most calls within a UTC month; None for no limit.
            credits_reserved: how many more in a month whose reserve was released.
        """
        self._kept = KeptConnection(connect)
        self._calls_per_minute = calls_per_minute
        self._credits_per_month = credits_per_month
        self._credits_reserved = credits_reserved
        self._lock = threading.Lock()
        self._granted = 0

    @property
    def granted(self) -> int:
        """Calls granted by this object so far: the difference over a while is what was spent."""
        return self._granted

    def reserve(self, endpoint: str, now: datetime) -> Reservation:
        """Reserve one call, or learn when the next is free.

        Raises:
            psycopg.Error: the ledger cannot be reached; then no call may be made.
        """
        row = self._execute(
            "SELECT call_id, next_free_at, refusal, calls_left_this_minute, "
            "credits_left_this_month FROM reserve_api_call(%s, %s, %s, %s, %s)",
            (
                endpoint,
                now,
                self._calls_per_minute,
                self._credits_per_month,
                self._credits_reserved,
            ),
        )
        reservation = Reservation(*row)
        if reservation.call_id is not None:
            with self._lock:
                self._granted += 1
        return reservation

    def settle(
        self,
        call_id: int,
        *,
        outcome: str,
        status: int | None,
        elapsed_ms: int,
        now: datetime,
        retry_at: datetime | None = None,
    ) -> None:
        """Record how a reserved call ended; a second time has no effect.

        Args:
            call_id: from `reserve`.
            outcome: `successful`, `failed` or `rate_limited`.
            status: HTTP status; None when no answer arrived.
            elapsed_ms: time to the complete answer, counted into the mean only if one arrived.
            now: the instant of settling.
            retry_at: no process calls the provider before this instant.

        Raises:
            psycopg.Error: the ledger cannot be reached.
        """
        self._execute(
            "SELECT settle_api_call(%s, %s, %s, %s, %s, %s)",
            (call_id, outcome, status, None if status is None else elapsed_ms, now, retry_at),
        )

    def settle_abandoned(self, now: datetime) -> int:
        """Settle as failed what a dead process left under way; returns how many calls."""
        return int(self._execute("SELECT settle_abandoned_api_calls(%s)", (now,))[0])

    def close(self) -> None:
        """Close the ledger's connection; the next use opens another."""
        self._kept.close()

    def _execute(self, statement: LiteralString, parameters: Sequence[Any]) -> Any:
        # One that fails is not repeated, since nobody knows whether it was counted.
        with self._kept.lent() as connection:
            return one_row(connection, statement, parameters)
