"""The ledger of calls: whatever the processes do, it neither overspends nor counts twice."""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any, NamedTuple

import psycopg
import pytest
from closes_support import Background, one, prepared_by, refused, shared_connection, undone, utc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pulseguard_assets.warehouse.connection import connect

NOW = utc(2026, 6, 30, 23, 59, 30)


class Reservation(NamedTuple):
    call_id: int | None
    next_free_at: datetime | None
    refusal: str | None
    calls_left: int
    credits_left: int | None


def prepare(connection: psycopg.Connection) -> None:
    """Nothing but the migrations."""


prepared = prepared_by(prepare)
shared = shared_connection
ledger = undone


def reserve(
    connection: psycopg.Connection,
    now: datetime = NOW,
    rate: int = 30,
    credits_: int | None = 10_000,
    endpoint: str = "/ping",
) -> Reservation:
    row = connection.execute(
        "SELECT * FROM reserve_api_call(%s, %s, %s, %s)", (endpoint, now, rate, credits_)
    ).fetchone()
    assert row is not None
    return Reservation(*row)


def settle(
    connection: psycopg.Connection,
    call_id: int | None,
    outcome: str = "successful",
    elapsed: int | None = 100,
    retry_at: datetime | None = None,
    now: datetime = NOW,
) -> bool:
    status = {"successful": 200, "failed": 500, "rate_limited": 429}.get(outcome)
    return bool(
        one(
            connection,
            "SELECT settle_api_call(%s, %s, %s, %s, %s, %s)",
            (call_id, outcome, status, elapsed, now, retry_at),
        )
    )


def usage(connection: psycopg.Connection) -> dict[date, tuple[Any, ...]]:
    """Return day -> total, successful, failed, rate limited, mean, peak."""
    rows = connection.execute(
        "SELECT date, total_calls, successful_calls, failed_calls, rate_limited_calls, "
        "average_response_time, peak_calls_per_minute FROM api_usage_stats"
    ).fetchall()
    return {day: tuple(figures) for day, *figures in rows}


# -- any interleaving ------------------------------------------------------------------------------


@dataclass
class Model:
    """What the ledger must say, kept by naive counting."""

    calls: list[tuple[datetime, str | None, int | None]] = field(default_factory=list)

    def usage(self) -> dict[date, tuple[Any, ...]]:
        days: dict[date, list[tuple[datetime, str | None, int | None]]] = defaultdict(list)
        for call in self.calls:
            days[call[0].date()].append(call)
        return {day: self._figures(calls) for day, calls in days.items()}

    @staticmethod
    def _figures(calls: list[tuple[datetime, str | None, int | None]]) -> tuple[Any, ...]:
        times = [elapsed for _, _, elapsed in calls if elapsed is not None]
        minutes: dict[datetime, int] = defaultdict(int)
        for at, _, _ in calls:
            minutes[at.replace(second=0, microsecond=0)] += 1
        return (
            len(calls),
            *(
                sum(outcome == wanted for _, outcome, _ in calls)
                for wanted in ("successful", "failed", "rate_limited")
            ),
            # As PostgreSQL rounds: halves up.
            (2 * sum(times) + len(times)) // (2 * len(times)) if times else None,
            max(minutes.values()),
        )


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("reserve"), st.sampled_from([0, 1, 7, 20, 31, 3600, 86_400])),
        st.tuples(
            st.just("settle"),
            st.integers(0, 30),
            st.sampled_from(["successful", "failed", "rate_limited"]),
            st.none() | st.integers(0, 5000),
        ),
        st.tuples(st.just("abandon"), st.sampled_from([0, 300, 4000])),
    ),
    max_size=40,
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(actions=ACTIONS)
def test_any_mixture_of_reserving_settling_and_dying_is_counted_exactly(
    ledger: psycopg.Connection, actions: list[tuple[Any, ...]]
) -> None:
    model, ids, now = Model(), [], NOW
    with ledger.transaction(force_rollback=True):
        for action, *details in actions:
            if action == "reserve":
                now += timedelta(seconds=details[0])
                got = reserve(ledger, now, rate=5, credits_=25)
                month = [c for c in model.calls if c[0].date() >= now.date().replace(day=1)]
                recent = [c for c in model.calls if c[0] > now - timedelta(seconds=60)]
                assert (got.call_id is not None) == (len(month) < 25 and len(recent) < 5)
                if got.call_id is not None:
                    ids.append(got.call_id)
                    model.calls.append((now, None, None))
                    assert got.calls_left == 4 - len(recent)
                    assert got.credits_left == 24 - len(month)
            elif action == "settle" and ids:
                index, outcome, elapsed = details[0] % len(ids), *details[1:]
                at, before, _ = model.calls[index]
                assert settle(ledger, ids[index], outcome, elapsed) == (before is None)
                if before is None:
                    model.calls[index] = (at, outcome, elapsed)
            elif action == "abandon":
                limit = now - timedelta(seconds=details[0])
                stale = [
                    number
                    for number, (at, outcome, _) in enumerate(model.calls)
                    if outcome is None and at < limit
                ]
                found = one(
                    ledger,
                    "SELECT settle_abandoned_api_calls(%s, %s)",
                    (now, timedelta(seconds=details[0])),
                )
                assert found == len(stale)
                for n in stale:
                    model.calls[n] = (model.calls[n][0], "failed", None)
            assert usage(ledger) == model.usage()


# -- the rate --------------------------------------------------------------------------------------


def test_a_refusal_names_the_instant_at_which_the_next_call_is_free(
    ledger: psycopg.Connection,
) -> None:
    for second in (0, 10, 20):
        assert reserve(ledger, NOW + timedelta(seconds=second), rate=3).call_id is not None
    refused = reserve(ledger, NOW + timedelta(seconds=25), rate=3)
    free = NOW + timedelta(seconds=60)
    assert refused == (None, free, "rate", 0, refused.credits_left)
    assert reserve(ledger, free - timedelta(microseconds=1), rate=3).refusal == "rate"
    assert reserve(ledger, free, rate=3).call_id is not None
    assert reserve(ledger, free, rate=3).next_free_at == NOW + timedelta(seconds=70)


def test_a_smaller_plan_counts_the_calls_made_under_the_larger_one(
    ledger: psycopg.Connection,
) -> None:
    for second in range(10):
        reserve(ledger, NOW + timedelta(seconds=second), rate=500)
    refused = reserve(ledger, NOW + timedelta(seconds=10), rate=3)
    assert refused.next_free_at == NOW + timedelta(seconds=67)
    assert reserve(ledger, NOW + timedelta(seconds=67), rate=3).call_id is not None


def test_no_calls_a_minute_are_no_calls(ledger: psycopg.Connection) -> None:
    assert reserve(ledger, rate=0).refusal == "rate"


def test_a_refused_call_costs_nothing(ledger: psycopg.Connection) -> None:
    reserve(ledger, rate=1)
    before = usage(ledger)
    for _ in range(5):
        assert reserve(ledger, rate=1).refusal == "rate"
        assert reserve(ledger, credits_=1).refusal == "credits"
    assert usage(ledger) == before


# -- the month -------------------------------------------------------------------------------------


def test_spent_credits_come_back_with_the_utc_month(local_connection: psycopg.Connection) -> None:
    end = utc(2026, 6, 30, 23, 59, 59)
    assert reserve(local_connection, end - timedelta(days=20), credits_=2).credits_left == 1
    assert reserve(local_connection, end, credits_=2).credits_left == 0
    refused = reserve(local_connection, end, credits_=2)
    assert refused[:3] == (None, utc(2026, 7, 1), "credits")
    granted = reserve(local_connection, end + timedelta(seconds=1), credits_=2)
    assert (granted.refusal, granted.credits_left) == (None, 1)
    assert set(usage(local_connection)) == {date(2026, 6, 10), date(2026, 6, 30), date(2026, 7, 1)}


def test_without_a_limit_there_is_none(ledger: psycopg.Connection) -> None:
    granted = reserve(ledger, credits_=None)
    assert granted.call_id is not None
    assert granted.credits_left is None


# -- Retry-After -----------------------------------------------------------------------------------


def test_a_retry_after_is_honoured_and_the_later_one_stays(ledger: psycopg.Connection) -> None:
    first, second = reserve(ledger), reserve(ledger)
    later = NOW + timedelta(seconds=90)
    settle(ledger, first.call_id, "rate_limited", retry_at=later)
    settle(ledger, second.call_id, "rate_limited", retry_at=NOW + timedelta(seconds=5))
    assert reserve(ledger, later - timedelta(microseconds=1))[:3] == (None, later, "retry_after")
    assert reserve(ledger, later).call_id is not None


def test_a_retry_after_of_a_call_settled_before_counts_too(ledger: psycopg.Connection) -> None:
    call = reserve(ledger)
    settle(ledger, call.call_id, "failed")
    assert not settle(ledger, call.call_id, "rate_limited", retry_at=NOW + timedelta(seconds=9))
    assert reserve(ledger).refusal == "retry_after"
    assert usage(ledger)[NOW.date()][1:4] == (0, 1, 0)


# -- settling --------------------------------------------------------------------------------------


def test_a_call_over_midnight_is_counted_on_the_day_it_was_sent(
    ledger: psycopg.Connection,
) -> None:
    call = reserve(ledger, NOW)
    assert settle(ledger, call.call_id, now=NOW + timedelta(minutes=1))
    assert usage(ledger) == {NOW.date(): (1, 1, 0, 0, 100, 1)}


def test_an_outcome_that_is_none_of_the_three_is_refused(ledger: psycopg.Connection) -> None:
    call = reserve(ledger)
    for outcome, problem in (("fine", "chk_outcome_known"), (None, "outcome is missing")):
        with refused(ledger, psycopg.Error, problem):
            ledger.execute(
                "SELECT settle_api_call(%s, %s, 200, 1, %s)", (call.call_id, outcome, NOW)
            )
    assert usage(ledger) == {NOW.date(): (1, 0, 0, 0, None, 1)}


def test_a_call_that_was_never_reserved_is_not_settled(ledger: psycopg.Connection) -> None:
    assert not settle(ledger, 4711)
    assert not settle(ledger, None)
    assert usage(ledger) == {}


# -- the clock -------------------------------------------------------------------------------------


@pytest.mark.parametrize("back", [timedelta(seconds=30), timedelta(hours=5), timedelta(days=40)])
def test_a_clock_set_back_gives_nothing_twice_and_blocks_for_a_minute_at_most(
    ledger: psycopg.Connection, back: timedelta
) -> None:
    noon = utc(2026, 6, 15, 12)
    for second in range(3):
        assert reserve(ledger, noon + timedelta(seconds=second), rate=3, credits_=5).call_id
    again = noon + timedelta(seconds=3) - back
    refused = reserve(ledger, again, rate=3, credits_=5)
    assert refused.refusal == "rate"
    assert refused.next_free_at is not None
    assert again < refused.next_free_at <= again + timedelta(seconds=60) + timedelta(seconds=30)
    granted = reserve(ledger, refused.next_free_at, rate=3, credits_=5)
    assert granted.call_id is not None
    # The calls of the days that will come again are still spent.
    assert granted.credits_left == 1


def test_a_clock_that_was_years_ahead_for_a_while_does_not_spoil_the_months_to_come(
    ledger: psycopg.Connection,
) -> None:
    call = reserve(ledger, NOW + timedelta(days=3650), credits_=5)
    settle(ledger, call.call_id)
    for month in range(7, 12):
        at = utc(2026, month, 5)
        assert [reserve(ledger, at, credits_=5).credits_left for _ in range(5)] == [3, 2, 1, 0, 0]
    assert usage(ledger)[date(2036, 6, 27)][:2] == (1, 1)


# -- many at once ----------------------------------------------------------------------------------


def test_processes_at_once_never_exceed_the_rate_in_any_sixty_seconds_nor_the_month(
    connection: psycopg.Connection, database: str
) -> None:
    # One clock that all of them read, and a little later use.
    ticks = itertools.count()

    def work(worker: int) -> int:
        granted = 0
        with connect(database) as mine:
            for step in range(60):
                now = NOW + timedelta(seconds=0.8 * next(ticks), milliseconds=130 * worker)
                got = reserve(mine, now, rate=7, credits_=25)
                if got.call_id is not None:
                    granted += 1
                    settle(mine, got.call_id, ["successful", "failed"][step % 2])
        return granted

    workers = [Background(lambda n=n: work(n)) for n in range(5)]  # type: ignore[misc]
    granted = sum(worker.result() for worker in workers)
    made = [at for (at,) in connection.execute("SELECT called_at FROM api_calls ORDER BY 1")]
    assert len(made) == granted
    for at in made:
        within = [other for other in made if at <= other < at + timedelta(seconds=60)]
        assert len(within) <= 7
    for month in ("2026-06-01", "2026-07-01"):
        spent = one(
            connection,
            "SELECT coalesce(sum(total_calls), 0) FROM api_usage_stats "
            "WHERE date_trunc('month', date) = %s::date",
            (month,),
        )
        assert spent <= 25
    figures = usage(connection).values()
    assert sum(day[0] for day in figures) == granted
    assert all(day[0] == day[1] + day[2] for day in figures)
    assert granted >= 25


def test_of_many_that_settle_one_call_one_counts(
    connection: psycopg.Connection, database: str
) -> None:
    call = reserve(connection)

    def work() -> bool:
        with connect(database) as mine:
            return settle(mine, call.call_id)

    assert sorted(w.result() for w in [Background(work) for _ in range(4)]) == [False] * 3 + [True]
    assert usage(connection) == {NOW.date(): (1, 1, 0, 0, 100, 1)}


def test_settling_and_reserving_do_not_wait_for_each_other_in_a_circle(
    connection: psycopg.Connection, database: str
) -> None:
    def work(worker: int) -> None:
        with connect(database) as mine:
            for step in range(30):
                now = NOW + timedelta(seconds=step)
                got = reserve(mine, now, rate=1000)
                settle(mine, got.call_id, "rate_limited", retry_at=NOW if step % 2 else None)
                one(mine, "SELECT settle_abandoned_api_calls(%s, '0 seconds')", (now,))

    for worker in [Background(lambda n=n: work(n)) for n in range(4)]:  # type: ignore[misc]
        worker.result()
    assert sum(day[0] for day in usage(connection).values()) == 120
    assert sum(sum(day[1:4]) for day in usage(connection).values()) == 120


def test_a_call_that_somebody_settles_just_now_is_not_abandoned_and_not_waited_for(
    connection: psycopg.Connection, database: str
) -> None:
    calls = [reserve(connection) for _ in range(3)]
    connection.execute("SET lock_timeout = '1ms'")
    later = NOW + timedelta(hours=1)
    abandoned = "SELECT settle_abandoned_api_calls(%s)"
    with connect(database) as other, other.transaction():
        other.execute("SELECT FROM api_calls WHERE call_id = %s FOR UPDATE", (calls[1].call_id,))
        assert one(connection, abandoned, (later,)) == 2
        assert settle(other, calls[1].call_id)
    assert one(connection, abandoned, (later,)) == 0
    assert usage(connection)[NOW.date()][:4] == (3, 1, 2, 0)


def test_a_released_reserve_is_everybodys_for_that_month_only(ledger: psycopg.Connection) -> None:
    def asked(now: datetime) -> Reservation:
        row = ledger.execute(
            "SELECT * FROM reserve_api_call('/ping', %s, 30, 2, 1)", (now,)
        ).fetchone()
        assert row is not None
        return Reservation(*row)

    june, july = NOW, NOW + timedelta(days=1)
    assert [asked(june).credits_left for _ in range(2)] == [1, 0]
    assert asked(june).refusal == "credits"

    ledger.execute("SELECT release_reserve(%s)", (june,))
    assert asked(june).credits_left == 0
    assert asked(june).refusal == "credits"

    assert [asked(july).credits_left for _ in range(2)] == [1, 0]
    assert asked(july).refusal == "credits"
