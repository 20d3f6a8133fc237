"""Closes of the past: what is stored is rolled up, what lacks comes from the provider's history.

Belongs here: in which order coins are asked for, what becomes of each answer, and when to stop.
Does not: which closes lack and how a point is merged (`warehouse/history.py`, `sql/`), how far
back and how finely the provider answers (`coingecko/backfill.py`), what may be spent
(`budget.py`).

One call per coin brings all the coin lacks of the window. Charts are stored as they arrive, and
what they could not give is recorded in the same transaction: each by itself, or up to 20 together
when they come faster than they are stored. So a crash loses these and the calls under way and
nothing else, and whoever comes next asks only for what lacks then.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import chain

import polars as pl
import psycopg
from psycopg import Connection

from pulseguard_assets.coingecko.backfill import (
    ChartRequest,
    first_within_reach,
    grade_holds,
    out_of_reach_in_words,
    ready_at,
    requests_for,
)
from pulseguard_assets.coingecko.client import ChartAnswer
from pulseguard_assets.coingecko.errors import (
    CallNotFree,
    CreditsExhausted,
    ProviderError,
    ProviderUnavailable,
    RateLimitReached,
    UnknownCoin,
)
from pulseguard_assets.coingecko.frames import without_partial
from pulseguard_assets.coingecko.planner import PlanCannotPay
from pulseguard_assets.collecting.allowance import Allowance
from pulseguard_assets.collecting.budget import history_allowance
from pulseguard_assets.collecting.errors import (
    WAREHOUSE_FAILURES,
    CollectingError,
    plainly_said,
    reason_of,
)
from pulseguard_assets.collecting.platform import HistoryProvider, NoCallsForHistory, Platform
from pulseguard_assets.collecting.polling import BY_HAND, know_scope
from pulseguard_assets.timeframes import HOURLY, MINUTE, Timeframe, bucket_end, bucket_start
from pulseguard_assets.warehouse.closes import roll_up
from pulseguard_assets.warehouse.collections import (
    CollectorBusy,
    begin_collection,
    only_collector,
    recent_collections,
    reject,
    save_collection,
)
from pulseguard_assets.warehouse.history import (
    POINTS_SCHEMA,
    Held,
    HistoryPut,
    Lacking,
    held,
    lacking,
    put_history,
    record_unrecoverable,
)
from pulseguard_assets.warehouse.ledger import release_reserve

LOCK = "history"

# A chart takes the provider up to about a second, so this many under way keep the allowed rate.
_SECONDS_PER_CALL = 1.0
_MOST_WORKERS = 16
# One coin may be the provider's own trouble; three in a row are the provider.
_FAILURES_IN_A_ROW = 3
_COINS_PER_LOG_LINE = 50
# Charts that are there at the same time are stored together: the statements that merge them look
# at the window's closes once, and not once a coin.
_CHARTS_TOGETHER = 20
_PAUSE_BEFORE_TURN = 5.0
_ROWS_LOOKED_AT = 100

_NO_POINT = "CoinGecko's history holds no usable point at its end."
_NO_SAMPLE = "CoinGecko's history holds no usable point in five minutes of it."
_UNKNOWN = "CoinGecko knows no such coin any more."
_NO_TIME = (
    "The run's time was over before all was asked for. What arrived is stored; materialize again "
    "for the rest."
)


class HistoryFailed(CollectingError):  # noqa: N818 - reads as what it says
    """The warehouse failed while history was stored; what was committed before is kept."""


@dataclass(frozen=True)
class WindowReport:
    """What became of one window.

    Attributes:
        timeframe, start, end: the window, end excluded.
        rows_written: closes that rolling up wrote.
        held: what the table holds of the window afterwards.
        calls: calls to the provider, retries included.
        from_history: closes that history wrote.
        credits_left: credits that history may still spend this month; None without a limit, and
            where nothing was asked.
        still_lacking: closes of closed buckets that lack, counted per coin and bucket, without
            those recorded as not to be had.
        unrecovered: coins for which something was newly recorded as not to be had, and why.
        waiting_until: when what is too fresh for history can be asked for, or the next call made.
        refused: why not everything was asked for, and what to do, as a sentence; None if it was.
        capped: `refused` because `max_calls` were made, which the caller wanted.
    """

    timeframe: Timeframe
    start: datetime
    end: datetime
    rows_written: int
    held: Held
    calls: int = 0
    from_history: int = 0
    credits_left: int | None = None
    still_lacking: int = 0
    unrecovered: tuple[tuple[str, str], ...] = ()
    waiting_until: datetime | None = None
    refused: str | None = None
    capped: bool = False


@plainly_said()
def materialize_window(
    platform: Platform,
    connection: Connection,
    timeframe: Timeframe,
    start: datetime,
    end: datetime,
    *,
    now: datetime,
    until: datetime,
    max_calls: int | None = None,
    spend_reserve: bool = False,
    known_only: bool = False,
    with_history: bool = True,
    log: Callable[[str], object] = lambda _: None,
) -> WindowReport:
    """Make the closes of `[start, end)` as complete as they can be; again asks nothing.

    Closed buckets only are asked of history, and no live price ever goes into the past. At most
    one run of a database reads history at a time; another one waits for its turn until `until`.

    Args:
        timeframe: whose table; for `minute` the window is whole hours.
        start, end: labels (aware), on the timeframe's boundaries.
        now: the present; a bucket that ends later is open, and is only rolled up.
        until: no call is begun, and none waited for, after this instant.
        max_calls: most charts to ask for; None for no limit but the month's.
        spend_reserve: history may spend the credits of the reserve too.
        known_only: not before a coin was first seen by a sweep.
        with_history: False only rolls up.
        log: told how far it is.

    Raises:
        NoCoins: a sweep must come first.
        HistoryFailed: PostgreSQL failed midway.
        WarehouseFailed: it failed before.
    """
    try:
        know_scope(platform, connection, now)
        refused = None
    except PlanCannotPay as error:
        # What is stored can be rolled up all the same.
        refused = str(error)
    filling = _Filling(
        platform,
        connection,
        _Window(timeframe, start, end, now, known_only),
        until=until,
        max_calls=max_calls,
        spend_reserve=spend_reserve,
        log=log,
    )
    written = 0 if timeframe is MINUTE else roll_up(connection, timeframe, start, end)
    if with_history and refused is None:
        filling.fill()
    done = filling.done
    return WindowReport(
        timeframe,
        start,
        end,
        rows_written=written,
        held=held(connection, timeframe, start, end),
        calls=done.calls,
        from_history=done.written,
        credits_left=done.credits_left,
        still_lacking=filling.still_lacking(),
        unrecovered=tuple(done.unrecovered),
        waiting_until=done.waiting_until,
        refused=refused or done.refused,
        capped=done.capped,
    )


@dataclass(frozen=True)
class _Window:
    """The buckets in question."""

    timeframe: Timeframe
    start: datetime
    end: datetime
    now: datetime
    known_only: bool

    @property
    def bucket(self) -> Timeframe:
        """The width that is asked for at a time: minutes are asked for by the hour."""
        return HOURLY if self.timeframe is MINUTE else self.timeframe

    @property
    def closed_end(self) -> datetime:
        """Where the buckets end that are over."""
        return self.end if self.end <= self.now else bucket_start(self.bucket, self.now)

    @property
    def ready_end(self) -> datetime:
        """Where the buckets end whose history is complete."""
        end = self.closed_end
        while end > self.start and ready_at(self.timeframe, end) > self.now:
            end = bucket_start(self.bucket, end - timedelta(minutes=1))
        return max(end, self.start)

    def lacking(self, connection: Connection, start: datetime, end: datetime) -> list[Lacking]:
        """What lacks of a part of the window."""
        if start >= end:
            return []
        return lacking(
            connection, self.timeframe, start, end, now=self.now, known_only=self.known_only
        )


@dataclass(frozen=True)
class _Task:
    """One chart to ask for. `last` is the coin's last one; all share the coin's range."""

    coin_id: str
    start: datetime
    end: datetime
    request: ChartRequest
    last: bool


@dataclass
class _Done:
    """How far a run has come."""

    coins: int = 0
    written: int = 0
    calls: int = 0
    failed: set[str] = field(default_factory=set)
    failures_in_a_row: int = 0
    last_failure: str = ""
    unknown: set[str] = field(default_factory=set)
    unrecovered: list[tuple[str, str]] = field(default_factory=list)
    credits_left: int | None = None
    waiting_until: datetime | None = None
    refused: str | None = None
    capped: bool = False
    stopped: bool = False
    has_failed: bool = False

    def heard_of_credits(self, left: int | None) -> None:
        """What an answer says is left; they come in another order than their calls were counted."""
        if left is not None and self.credits_left is not None:
            left = min(left, self.credits_left)
        self.credits_left = left

    def refuse(self, sentence: str) -> None:
        """Something is not asked for; the first sentence stands for all."""
        self.refused = self.refused or sentence

    def stop(self, sentence: str) -> None:
        """No more is asked for; what is under way is still taken."""
        if not self.stopped:
            self.stopped = True
            self.refused = sentence if self.refused is None else f"{self.refused} {sentence}"

    def fail(self, sentence: str) -> None:
        """Stop because something went wrong that somebody should see."""
        self.has_failed = self.has_failed or not self.stopped
        self.stop(sentence)


class _Filling:
    """Filling one window from history."""

    def __init__(
        self,
        platform: Platform,
        connection: Connection,
        window: _Window,
        *,
        until: datetime,
        max_calls: int | None,
        spend_reserve: bool,
        log: Callable[[str], object],
    ) -> None:
        self._platform, self._connection, self._window = platform, connection, window
        self._until, self._max_calls, self._log = until, max_calls, log
        self._spend_reserve = spend_reserve
        self.done = _Done()

    def still_lacking(self) -> int:
        """Closes of closed buckets that lack now."""
        window = self._window
        found = window.lacking(self._connection, window.start, window.closed_end)
        return sum(each.buckets for each in found)

    def fill(self) -> None:
        """Ask for all that lacks and is ready, when it is this run's turn."""
        window = self._window
        ready_end = window.ready_end
        if window.lacking(self._connection, ready_end, window.closed_end):
            first = bucket_end(window.bucket, ready_end)
            self.done.waiting_until = ready_at(window.timeframe, first)
        if not window.lacking(self._connection, window.start, ready_end):
            return
        with ExitStack() as turn:
            if not self._wait_for(turn):
                return
            # Once more: whoever had the turn before may have filled it.
            found = window.lacking(self._connection, window.start, ready_end)
            if found:
                self._ask_for(found)

    def _wait_for(self, turn: ExitStack) -> bool:
        told = False
        while True:
            try:
                turn.enter_context(only_collector(self._connection, LOCK))
            except CollectorBusy as busy:
                if self._platform.clock() >= self._until:
                    self.done.stop(
                        "Another run reads the provider's history, and had not ended when this "
                        "run's time was over. Materialize again when it has."
                    )
                    return False
                if not told:
                    self._log(f"Waiting for the turn. {busy}")
                    told = True
                self._platform.sleep(_PAUSE_BEFORE_TURN)
            else:
                return True

    # --- asking ---

    def _ask_for(self, found: list[Lacking]) -> None:
        now = self._platform.clock()
        if self._spend_reserve:
            release_reserve(self._connection, now)
        allowance = history_allowance(
            self._platform, self._connection, now=now, spend_reserve=self._spend_reserve
        )
        self.done.credits_left = allowance.credits_free
        tasks = self._affordable(self._tasks(found), allowance, len(found))
        first = next(tasks, None)
        if first is None:
            return
        try:
            provider = self._platform.history_provider(allowance)
        except NoCallsForHistory as none:
            self.done.fail(str(none))
            return
        _close_crashed(self._connection, now)
        with provider:
            _Asking(
                self._platform,
                self._connection,
                self._window,
                provider,
                self.done,
                coins=len(found),
                log=self._log,
            ).run(chain([first], tasks), _workers(allowance), self._until)

    def _tasks(self, found: list[Lacking]) -> Iterator[_Task]:
        """One chart after the other, planned when its turn comes: grades and reach move on."""
        timeframe, plan = self._window.timeframe, self._platform.plan
        for each in found:
            now = self._platform.clock()
            end = bucket_end(self._window.bucket, each.last)
            begin = first_within_reach(timeframe, each.first, now=now, plan=plan)
            if timeframe is MINUTE and begin > bucket_start(HOURLY, begin):
                # Part of an hour would be paid for again and again, and never be whole.
                begin = bucket_end(HOURLY, begin)
            if begin > each.first:
                self.done.refuse(out_of_reach_in_words(timeframe, now=now, plan=plan))
            if begin >= end:
                continue
            requests = requests_for(timeframe, begin, end, now=now, plan=plan)
            for request in requests:
                yield _Task(each.coin_id, begin, end, request, last=request is requests[-1])

    def _affordable(
        self, tasks: Iterator[_Task], allowance: Allowance, coins: int
    ) -> Iterator[_Task]:
        """The tasks up to where calls, credits or time end."""
        free = allowance.credits_free
        for asked, task in enumerate(tasks):
            if self.done.stopped:
                return
            if self._max_calls is not None and asked >= self._max_calls:
                self.done.capped = self.done.refused is None
                self.done.stop(
                    f"The run was allowed {self._max_calls} calls (max_calls), and more is "
                    "lacking. What arrived is stored; materialize again for the rest."
                )
                return
            if free is not None and asked >= free:
                self.done.fail(_no_credits(free, coins))
                return
            if self._platform.clock() >= self._until:
                self.done.stop(_NO_TIME)
                return
            yield task


class _Asking:
    """A run that really asks, with its row in `collection_status`.

    Calls are made by a few threads, so that a slow provider does not slow the run; all else
    happens in the calling one.
    """

    def __init__(
        self,
        platform: Platform,
        connection: Connection,
        window: _Window,
        provider: HistoryProvider,
        done: _Done,
        *,
        coins: int,
        log: Callable[[str], object],
    ) -> None:
        self._platform, self._connection, self._window = platform, connection, window
        self._provider, self._done, self._coins, self._log = provider, done, coins, log
        self._with_points: set[str] = set()
        self._arrived: list[tuple[_Task, ChartAnswer]] = []
        self._began = platform.clock()
        details = {
            "history": window.timeframe.name,
            "from": window.start.isoformat(),
            "to": window.end.isoformat(),
            "coins": coins,
        }
        self._row = begin_collection(connection, BY_HAND, self._began, details)

    def run(self, tasks: Iterator[_Task], workers: int, until: datetime) -> None:
        """Ask for all tasks, unless something stops it.

        Raises:
            HistoryFailed: PostgreSQL failed.
        """
        try:
            self._work(tasks, workers, until)
        except WAREHOUSE_FAILURES as error:
            with suppress(psycopg.Error):
                self._save("failed", reason_of(error))
            raise HistoryFailed(reason_of(error)) from error
        except BaseException:
            # Ended by hand, for instance.
            with suppress(psycopg.Error):
                self._store_arrived()
                self._save("cancelled", "The run was interrupted. What arrived is stored.")
            raise
        done = self._done
        if done.failed and done.refused is None:
            done.fail(f"{_count(len(done.failed), 'coin')} could not be read: {done.last_failure}")
        self._save("failed" if done.has_failed else "completed", done.refused)
        self._tell()

    # --- calls, in threads ---

    def _work(self, tasks: Iterator[_Task], workers: int, until: datetime) -> None:
        """Keep the workers busy, and take what they bring in the order in which it was asked."""
        under_way: deque[tuple[_Task, Future[ChartAnswer]]] = deque()
        with ThreadPoolExecutor(workers, thread_name_prefix="history") as pool:
            try:
                while True:
                    # As many again wait, so that no worker idles while an answer is stored.
                    while len(under_way) < 2 * workers and (task := next(tasks, None)):
                        under_way.append((task, pool.submit(self._call, task, until)))
                    if not under_way:
                        return
                    planned_end = self._done.stopped
                    self._take(*under_way.popleft())
                    if self._done.stopped and not planned_end:
                        # What is under way is paid for, and taken; what only waits is not begun.
                        under_way = deque(each for each in under_way if not each[1].cancel())
                    if not under_way or not under_way[0][1].done():
                        self._store_arrived()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _call(self, task: _Task, until: datetime) -> ChartAnswer:
        request = task.request
        return self._provider.market_chart_range(
            task.coin_id, request.start, request.end, until=until
        )

    # --- answers ---

    def _take(self, task: _Task, future: Future[ChartAnswer]) -> None:
        done = self._done
        try:
            answer = future.result()
        except ProviderError as error:
            self._failed(task, error)
        else:
            done.failures_in_a_row = 0
            done.heard_of_credits(answer.credits_left)
            if grade_holds(task.request, answer.received_at):
                self._arrive(task, answer)
            else:
                self._left_out(task, "It was answered too late for the grade it was asked at.")
        done.calls = self._provider.granted
        if task.last:
            done.coins += 1
            if done.coins % _COINS_PER_LOG_LINE == 0:
                self._tell()

    def _arrive(self, task: _Task, answer: ChartAnswer) -> None:
        if self._arrived:
            other = self._arrived[0][0]
            alike = (task.start, task.end, task.request.grade) == (
                other.start,
                other.end,
                other.request.grade,
            )
            if not alike or len(self._arrived) >= _CHARTS_TOGETHER:
                self._store_arrived()
        self._arrived.append((task, answer))

    def _store_arrived(self) -> None:
        if not self._arrived:
            return
        arrived, self._arrived = self._arrived, []
        points = pl.concat([_points(task, answer) for task, answer in arrived])
        with self._connection.transaction():
            self._done.written += self._put(arrived[0][0], points).written
            for _, answer in arrived:
                reject(
                    self._connection,
                    answer.rejected,
                    collection_id=self._row.id,
                    now=answer.received_at,
                )
            # After the last of them, and by coin: the order of locks that all writers keep to.
            for task in sorted((task for task, _ in arrived), key=lambda task: task.coin_id):
                if task.last and task.coin_id not in self._done.failed:
                    minutes = self._window.timeframe is MINUTE
                    self._record(task, _NO_SAMPLE if minutes else _NO_POINT)
            self._with_points.update(points["coin_id"].unique())
            self._save("running", None)

    def _put(self, like: _Task, points: pl.DataFrame) -> HistoryPut:
        return put_history(
            self._connection,
            self._window.timeframe,
            like.request.grade,
            points,
            start=like.start,
            end=like.end,
            now=self._window.now,
            collection_id=self._row.id,
        )

    def _record(self, task: _Task, reason: str) -> None:
        """Remember what the coin lacks for good, so that nobody pays for it again."""
        recorded = record_unrecoverable(
            self._connection,
            self._window.timeframe,
            task.coin_id,
            reason,
            task.start,
            task.end,
            now=self._window.now,
        )
        if recorded:
            self._done.unrecovered.append((task.coin_id, reason))

    def _failed(self, task: _Task, error: ProviderError) -> None:
        done = self._done
        if isinstance(error, UnknownCoin):
            done.failures_in_a_row = 0
            if task.coin_id not in done.unknown:
                done.unknown.add(task.coin_id)
                self._record(task, _UNKNOWN)
            return
        self._left_out(task, reason_of(error))
        if isinstance(error, CreditsExhausted):
            done.fail(_no_credits(0, self._coins - done.coins))
        elif isinstance(error, CallNotFree):
            done.waiting_until = error.retry_at
            done.stop(_NO_TIME)
        elif isinstance(error, ProviderUnavailable):
            done.failures_in_a_row += 1
            if done.failures_in_a_row >= _FAILURES_IN_A_ROW:
                done.fail(reason_of(error))
        else:
            if isinstance(error, RateLimitReached):
                done.waiting_until = error.retry_at
            done.fail(reason_of(error))

    def _left_out(self, task: _Task, why: str) -> None:
        """The coin goes on lacking what it lacks; the next run asks for it again."""
        self._done.failed.add(task.coin_id)
        self._done.last_failure = why

    # --- telling ---

    def _save(self, status: str, error: str | None) -> None:
        done, now = self._done, self._platform.clock()
        done.calls = self._provider.granted
        self._row = replace(
            self._row,
            status=status,
            error=error,
            coins_processed=len(self._with_points),
            coins_failed=len(done.failed | done.unknown),
            api_calls_made=done.calls,
            ended_at=None if status == "running" else now,
            details=self._row.details | {"closes_written": done.written},
        )
        save_collection(self._connection, self._row, now)

    def _tell(self) -> None:
        done = self._done
        minutes = (self._platform.clock() - self._began).total_seconds() / 60
        pace = f", {done.calls / minutes:.0f} a minute" if minutes > 0 else ""
        self._log(
            f"{done.coins} of {_count(self._coins, 'coin')} asked for by {done.calls} calls{pace}; "
            f"{done.written} closes written"
        )


def _points(task: _Task, answer: ChartAnswer) -> pl.DataFrame:
    points = without_partial(answer.frame, answer.received_at)
    return points.select(
        pl.lit(task.coin_id).alias("coin_id"),
        *points.columns,
        pl.lit(answer.received_at).alias("created_at"),
    ).cast(POINTS_SCHEMA)


def _workers(allowance: Allowance) -> int:
    """Threads enough to keep the allowed rate, should a call take a second."""
    needed = math.ceil(allowance.calls_per_minute / 60 * _SECONDS_PER_CALL)
    return max(1, min(needed, _MOST_WORKERS))


def _close_crashed(connection: Connection, now: datetime) -> None:
    """Close the rows of history whose process died. The holder of the lock knows they are."""
    for row in recent_collections(connection, (BY_HAND,), _ROWS_LOOKED_AT):
        if row.status == "running" and "history" in row.details:
            gone = replace(
                row,
                status="failed",
                ended_at=now,
                error="The process that read this history ended before it did.",
            )
            save_collection(connection, gone, now)


def _no_credits(free: int, coins: int) -> str:
    return (
        f"The month's credits leave {_count(free, 'call')} for history, and "
        f"{_count(coins, 'coin')} of this window need one each; polls to come and the reserve are "
        "left aside. What arrived is stored. Materialize again next month, or now with "
        "spend_reserve: true in the run's config; fewer coins (PULSEGUARD_MODE), rarer polls "
        "(PULSEGUARD_CADENCE_MINUTES) or a larger plan (PULSEGUARD_PLAN) leave more."
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
