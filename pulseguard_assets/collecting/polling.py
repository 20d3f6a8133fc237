"""One poll of live prices: ask the provider, store what it answers, say how it went.

Belongs here: when a poll is due, how it goes on when one tick is too short for it, and what a
failure leaves behind. Does not: what Dagster makes of it.

A poll is a CYCLE over the coins of the mode, in chunks of as many ids as one call takes. Every
chunk is stored when it arrives, in one transaction with the cycle's progress. When the rate limit
or the tick's time ends before the coins do, the cycle waits, and the next tick goes on behind the
last coin stored. The state of a cycle lies in its row of `collection_status`, so a crash, a second
process or a poll by hand all find the same truth.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from typing import Any

import polars as pl
import psycopg
from psycopg import Connection

from pulseguard_assets.coingecko.client import PriceAnswer
from pulseguard_assets.coingecko.errors import CallNotFree, ProviderError, UriTooLong
from pulseguard_assets.coingecko.packing import halve, pack_ids
from pulseguard_assets.coingecko.planner import PollingPlan, plan_polling
from pulseguard_assets.collecting.errors import (
    WAREHOUSE_FAILURES,
    CollectingError,
    NoCoins,
    plainly_said,
    reason_of,
)
from pulseguard_assets.collecting.platform import Platform
from pulseguard_assets.timeframes import MINUTE
from pulseguard_assets.warehouse.closes import MINUTES_SCHEMA, count_rows, put_minutes
from pulseguard_assets.warehouse.coins import coins_to_poll
from pulseguard_assets.warehouse.collections import (
    Collection,
    begin_collection,
    fail_crashed,
    only_collector,
    recent_collections,
    reject,
    save_collection,
)
from pulseguard_assets.warehouse.history import set_scope

POLL_KINDS = ("continuous", "complete")
BY_HAND = "manual"
_LOCK = "poll"
_MOST_MISSING_NAMED = 20


class PollFailed(CollectingError):  # noqa: N818 - reads as what it says
    """A poll ended before its coins did. The message is the reason, and what to do.

    Attributes:
        report: what was stored before; None when nothing was tried, because the last failure is
            so recent.
    """

    def __init__(self, message: str, report: PollReport | None) -> None:
        super().__init__(message, report)
        self.report = report

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class NotDue:
    """No poll is due before this instant."""

    until: datetime
    why: str


@dataclass(frozen=True)
class PollReport:
    """What one call of `poll` did; counts are of this call, not of the whole cycle.

    Attributes:
        cycle: the cycle's row as it stands now.
        minute: the label that all stored rows carry.
        asked: coins asked for.
        stored: closes written.
        rejected: rows set aside with a reason.
        missing: coins that the answers did not mention.
        calls: calls to the provider, retries included.
        calls_left: calls left in the minute; None if none was made.
        credits_left: credits left in the month; None without a limit.
        oldest_provider_ts: the least recent of the provider's own times.
        took: from the beginning to the last commit.
        coins: coins of the whole cycle.
        table_rows: rows of minute_close afterwards.
    """

    cycle: Collection
    minute: datetime
    asked: int = 0
    stored: int = 0
    rejected: int = 0
    missing: int = 0
    calls: int = 0
    calls_left: int | None = None
    credits_left: int | None = None
    oldest_provider_ts: datetime | None = None
    took: timedelta = timedelta(0)
    coins: int = 0
    table_rows: int = 0

    @property
    def waiting_until(self) -> datetime | None:
        """When the cycle goes on; None when it is at its end."""
        text = self.cycle.details.get("waiting_until")
        return None if text is None else datetime.fromisoformat(text)


def minute_of(instant: datetime) -> datetime:
    """The label of the minute that holds an instant."""
    return instant.astimezone(timezone.utc).replace(second=0, microsecond=0)


def slot_of(instant: datetime, cadence_minutes: int) -> datetime:
    """The latest minute, up to this instant, on which a poll falls.

    Counted from the epoch, so that every process agrees and a restart shifts nothing.
    """
    minute = int(instant.timestamp()) // 60
    return datetime.fromtimestamp((minute - minute % cadence_minutes) * 60, timezone.utc)


def kind_of(platform: Platform) -> str:
    """The type of cycle that a mode polls: `complete` for all coins, else `continuous`."""
    return "complete" if platform.settings.coins_wanted is None else "continuous"


@plainly_said()
def poll_when_due(
    platform: Platform, connection: Connection, *, now: datetime, until: datetime
) -> PollReport | NotDue:
    """Begin the poll that is due, or go on with the one that waits.

    Args:
        now: when the tick began; its minute is the label of all rows.
        until: no call is begun, and none waited for, after this instant.

    Raises:
        NoCoins: a sweep must come first.
        WarehouseFailed: PostgreSQL failed before a call was made.
        PollFailed: the provider or the warehouse failed; also while the pause after a failure
            lasts, so that a provider that is down is seen to be down all the time.
        PlanCannotPay: the configured cadence costs more than the plan gives.
        CollectorBusy: another process polls right now.
    """
    kind = kind_of(platform)
    with only_collector(connection, _LOCK):
        last = _last_cycle(connection, kind, now)
        waiting = _waiting_until(last)
        if waiting is not None and waiting > now:
            return NotDue(waiting, "the rate limit frees the next call then")
        work = _Work.plan(platform, connection, now)
        slot = slot_of(now, work.schedule.cadence_minutes)
        if last is not None and waiting is None:
            pause = _pause(last, slot, work.schedule.cadence_minutes, now)
            if pause is not None:
                return pause
        cycle = last if last is not None and waiting is not None else None
        if cycle is None:
            cycle = begin_collection(connection, kind, now, _first_details(last, slot, work))
        return _Run(platform, connection, work, cycle, now).go_on(until)


@plainly_said()
def poll_by_hand(
    platform: Platform, connection: Connection, *, now: datetime, until: datetime
) -> PollReport:
    """One poll of all coins of the mode now, due or not, filed as `manual`.

    Raises: as `poll_when_due`.
    """
    with only_collector(connection, _LOCK, patience=True):
        fail_crashed(connection, (BY_HAND,), now)
        work = _Work.plan(platform, connection, now)
        cycle = begin_collection(connection, BY_HAND, now, {"coins": work.coins.height})
        run = _Run(platform, connection, work, cycle, now)
        report = run.go_on(until)
        if report.waiting_until is not None:
            raise run.failed(
                "The rate limit left no call for the rest of the coins in time. What arrived is "
                "stored; the sensor polls all of them over its ticks. To have them in one poll, "
                "use a larger plan (PULSEGUARD_PLAN) or fewer coins (PULSEGUARD_MODE)."
            )
        return report


def know_scope(platform: Platform, connection: Connection, now: datetime) -> None:
    """Make known in the warehouse which coins are expected, before any poll does.

    Raises:
        NoCoins: a sweep must come first.
        PlanCannotPay: the configured cadence costs more than the plan gives.
    """
    _Work.plan(platform, connection, now)


# --- what is due ---


@dataclass(frozen=True)
class _Work:
    """Whom to poll, and how often that can be paid."""

    coins: pl.DataFrame
    schedule: PollingPlan

    @classmethod
    def plan(cls, platform: Platform, connection: Connection, now: datetime) -> _Work:
        settings = platform.settings
        platform.ledger.settle_abandoned(now)
        coins = coins_to_poll(connection, settings.coins_wanted, settings.always_include)
        if coins.is_empty():
            raise NoCoins(
                "No coin is known yet. Materialize coin_priorities, or run "
                "`pulseguard collect --once --sweep`."
            )
        schedule = plan_polling(
            platform.plan,
            coins.height,
            reserve_percent=settings.reserve_percent,
            calls_per_poll=len(pack_ids(coins["coin_id"].to_list())),
            cadence_minutes=settings.cadence_minutes,
        )
        # What closes are expected, and how near to its end a bucket's close must lie, follows
        # from whom polls ask, and how often.
        set_scope(
            connection,
            wanted=settings.coins_wanted,
            always=settings.always_include,
            tolerance=timedelta(minutes=schedule.cadence_minutes),
        )
        return cls(coins, schedule)

    def chunks(self, after: str | None) -> list[list[str]]:
        """The ids behind `after`, as many at a time as one call takes."""
        ids = self.coins["coin_id"].to_list()
        return pack_ids(ids if after is None else [i for i in ids if i > after])


def _last_cycle(connection: Connection, kind: str, now: datetime) -> Collection | None:
    """The newest cycle, as far as its times can be gone by.

    One of a clock that has been set back since says that no poll is due until that time has come.
    """
    newest = next(iter(recent_collections(connection, (kind,), 1)), None)
    if newest is not None and newest.lies_ahead(now):
        newest = None
    resumable = None if newest is None or _waiting_until(newest) is None else newest.id
    # One by hand as well: whoever holds the lock knows that nobody is at it.
    fail_crashed(connection, (*POLL_KINDS, BY_HAND), now, resumable)
    if newest is None:
        return None
    return next(iter(recent_collections(connection, (kind,), 1)), None)


def _waiting_until(cycle: Collection | None) -> datetime | None:
    if cycle is None or cycle.status != "running":
        return None
    text = cycle.details.get("waiting_until")
    return None if text is None else datetime.fromisoformat(text)


def _pause(last: Collection, slot: datetime, cadence_minutes: int, now: datetime) -> NotDue | None:
    """Why the cycle after `last` must wait; None if it is due.

    Raises:
        PollFailed: it waits because `last` failed a moment ago.
    """
    if last.status == "failed" and "retry_at" in last.details:
        retry_at = datetime.fromisoformat(last.details["retry_at"])
        if retry_at > now:
            raise PollFailed(
                f"{last.error} Attempt {last.details['failures'] + 1} follows at "
                f"{retry_at:%H:%M:%S} UTC.",
                None,
            )
    elif last.status == "completed" and datetime.fromisoformat(last.details["slot"]) >= slot:
        return NotDue(slot + timedelta(minutes=cadence_minutes), "this minute's prices are stored")
    return None


def _first_details(last: Collection | None, slot: datetime, work: _Work) -> dict[str, Any]:
    details: dict[str, Any] = {"slot": slot.isoformat(), "coins": work.coins.height}
    if last is not None and last.status == "failed":
        details["failures"] = last.details.get("failures", 0)
        if last.details.get("slot") == details["slot"]:
            # What was stored before the failure need not be paid for again.
            details["after"] = last.details.get("after")
    return details


# --- doing it ---


class _Run:
    """One stretch of work on a cycle: from here to its end, to `until`, or to a failure."""

    def __init__(
        self,
        platform: Platform,
        connection: Connection,
        work: _Work,
        cycle: Collection,
        now: datetime,
    ) -> None:
        self._platform, self._connection, self._work, self._now = platform, connection, work, now
        self._granted_before = platform.ledger.granted
        self._calls_made_before = cycle.api_calls_made
        cycle.details.pop("waiting_until", None)
        self._report = PollReport(cycle, minute_of(now), coins=work.coins.height)
        save_collection(connection, cycle, now)

    def go_on(self, until: datetime) -> PollReport:
        """Fetch and store the chunks that remain."""
        try:
            return self._fetch(until)
        except CollectingError:
            raise
        except Exception as unforeseen:
            # A fault of ours. Filed as a failure it is paused after, too: repeated at every tick it
            # would pay for the same calls three times a minute.
            with suppress(psycopg.Error):
                self.failed(f"PulseGuard itself failed: {type(unforeseen).__name__}: {unforeseen}")
            raise

    def _fetch(self, until: datetime) -> PollReport:
        pending = list(self._work.chunks(self._report.cycle.details.get("after")))
        failing = bool(self._report.cycle.details.get("failures"))
        # While the provider is down one attempt per poll is enough to see it come back.
        patience = self._now if failing else until
        while pending:
            chunk = pending.pop(0)
            try:
                answer = self._platform.provider.simple_price(chunk, until=patience)
                self._store(chunk, answer)
            except CallNotFree as wait:
                return self._wait(wait.retry_at)
            except (ProviderError, *WAREHOUSE_FAILURES) as error:
                if isinstance(error, UriTooLong) and len(chunk) > 1:
                    pending[:0] = halve(chunk)
                    continue
                raise self.failed(reason_of(error), getattr(error, "retry_at", None)) from error
            if pending and self._platform.clock() >= until:
                return self._wait(self._platform.clock())
        return self._end(status="completed", ended_at=self._platform.clock(), failures=None)

    def failed(self, message: str, retry_at: datetime | None = None) -> PollFailed:
        """Close the cycle as failed, and make the exception that says so."""
        failures = self._report.cycle.details.get("failures", 0) + 1
        # A provider that is down must not eat the month's credits: 1, 2, 4 ... minutes, but no
        # longer than the polls are apart anyway.
        minutes = min(2 ** min(failures - 1, 10), self._work.schedule.cadence_minutes)
        pause = self._now + timedelta(minutes=minutes)
        later = max(pause, retry_at or pause).isoformat()
        try:
            report = self._end(
                status="failed",
                ended_at=self._platform.clock(),
                error=message,
                failures=failures,
                retry_at=later,
            )
        except psycopg.Error:
            # The warehouse is what failed, perhaps. The next poll closes the row.
            return PollFailed(message, self._report)
        return PollFailed(message, report)

    def _store(self, chunk: list[str], answer: PriceAnswer) -> None:
        now, report = self._now, self._report
        with self._connection.transaction():
            put = put_minutes(
                self._connection,
                self._minutes(answer),
                now=max(now, answer.received_at),
                collection_id=report.cycle.id,
            )
            unusable = reject(
                self._connection, answer.rejected, collection_id=report.cycle.id, now=now
            )
            missing = [*report.cycle.details.get("missing", []), *answer.missing]
            cycle = replace(
                report.cycle,
                coins_processed=report.cycle.coins_processed + put.stored,
                coins_failed=report.cycle.coins_failed + len(chunk) - put.stored,
                details=report.cycle.details
                | {
                    "minute": report.minute.isoformat(),
                    "after": chunk[-1],
                    "missing": missing[:_MOST_MISSING_NAMED],
                },
            )
            save_collection(self._connection, cycle, now)
        times = (report.oldest_provider_ts, answer.frame["provider_ts"].min())
        self._report = replace(
            report,
            cycle=cycle,
            asked=report.asked + len(chunk),
            stored=report.stored + put.stored,
            rejected=report.rejected + put.rejected + unusable,
            missing=report.missing + len(answer.missing),
            calls_left=answer.calls_left,
            credits_left=answer.credits_left,
            oldest_provider_ts=min((t for t in times if isinstance(t, datetime)), default=None),
            took=self._platform.clock() - now,
        )

    def _minutes(self, answer: PriceAnswer) -> pl.DataFrame:
        """The answer as rows of `minute_close`: label, rank and arrival added."""
        return (
            answer.frame.join(self._work.coins, on="coin_id", how="left")
            .with_columns(
                minute_ts=pl.lit(self._report.minute),
                created_at=pl.lit(answer.received_at),
                source=pl.lit("live"),
            )
            .select(MINUTES_SCHEMA.names())
            .cast(MINUTES_SCHEMA)
        )

    def _wait(self, until: datetime) -> PollReport:
        return self._end(status="running", waiting_until=until.isoformat())

    def _end(
        self,
        *,
        status: str,
        ended_at: datetime | None = None,
        error: str | None = None,
        **details: Any,
    ) -> PollReport:
        """Write how this stretch ended; a detail given as None is taken out."""
        calls = self._platform.ledger.granted - self._granted_before
        merged = self._report.cycle.details | details
        cycle = replace(
            self._report.cycle,
            status=status,
            ended_at=ended_at,
            error=error,
            api_calls_made=self._calls_made_before + calls,
            details={key: value for key, value in merged.items() if value is not None},
        )
        save_collection(self._connection, cycle, self._platform.clock())
        self._report = replace(
            self._report, cycle=cycle, calls=calls, table_rows=count_rows(self._connection, MINUTE)
        )
        return self._report
