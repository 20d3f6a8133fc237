"""The ledger of calls, as the client uses it: by processes that share nothing but the database."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import psycopg
import pytest

from pulseguard_assets.warehouse.connection import DatabaseUnavailable, connect
from pulseguard_assets.warehouse.ledger import Ledger, Reservation

NOW = datetime(2026, 11, 22, 12, 3, 27, tzinfo=timezone.utc)
PRICES = "/simple/price"

LedgerFactory = Callable[..., Ledger]


@pytest.fixture
def new_ledger(database: str) -> Iterator[LedgerFactory]:
    """`new_ledger(calls_per_minute=5, credits_per_month=None)`: one process's ledger."""
    made: list[Ledger] = []

    def make(calls_per_minute: int = 5, credits_per_month: int | None = None) -> Ledger:
        made.append(
            Ledger(
                lambda: connect(database),
                calls_per_minute=calls_per_minute,
                credits_per_month=credits_per_month,
            )
        )
        return made[-1]

    yield make
    for ledger in made:
        ledger.close()


def granted(reservation: Reservation) -> int:
    assert reservation.call_id is not None, reservation
    return reservation.call_id


def usage(connection: psycopg.Connection) -> Any:
    return connection.execute(
        "SELECT total_calls, successful_calls, failed_calls, rate_limited_calls, "
        "average_response_time, peak_calls_per_minute FROM api_usage_stats"
    ).fetchone()


def test_a_reservation_tells_what_is_left(new_ledger: LedgerFactory) -> None:
    first = new_ledger(5, 100).reserve(PRICES, NOW)

    assert first == Reservation(
        call_id=granted(first),
        next_free_at=None,
        refusal=None,
        calls_left_this_minute=4,
        credits_left_this_month=99,
    )


def test_without_a_limit_on_credits_none_are_counted_down(new_ledger: LedgerFactory) -> None:
    assert new_ledger(5, None).reserve(PRICES, NOW).credits_left_this_month is None


def test_processes_share_the_calls_of_a_minute_and_learn_when_the_next_is_free(
    new_ledger: LedgerFactory,
) -> None:
    one, other = new_ledger(2), new_ledger(2)
    one.reserve(PRICES, NOW)
    other.reserve("/coins/markets", NOW + timedelta(seconds=10))

    refused = one.reserve(PRICES, NOW + timedelta(seconds=59))

    assert refused == Reservation(None, NOW + timedelta(seconds=60), "rate", 0, None)
    assert other.reserve(PRICES, NOW + timedelta(seconds=60)).refusal is None
    assert (one.granted, other.granted) == (1, 2), "a refusal is no call"


def test_spent_credits_come_back_with_the_month(new_ledger: LedgerFactory) -> None:
    ledger = new_ledger(100, 2)
    granted(ledger.reserve(PRICES, NOW))
    granted(ledger.reserve(PRICES, NOW))

    refused = ledger.reserve(PRICES, NOW)

    december = datetime(2026, 12, 1, tzinfo=timezone.utc)
    assert (refused.refusal, refused.next_free_at) == ("credits", december)
    assert ledger.reserve(PRICES, december - timedelta(microseconds=1)).refusal == "credits"
    assert ledger.reserve(PRICES, december).credits_left_this_month == 1


def test_a_retry_after_keeps_every_process_away(new_ledger: LedgerFactory) -> None:
    one, other = new_ledger(), new_ledger()
    retry_at = NOW + timedelta(seconds=119)
    one.settle(
        granted(one.reserve(PRICES, NOW)),
        outcome="rate_limited",
        status=429,
        elapsed_ms=12,
        now=NOW,
        retry_at=retry_at,
    )

    refused = other.reserve(PRICES, retry_at - timedelta(seconds=1))

    assert (refused.refusal, refused.next_free_at) == ("retry_after", retry_at)
    assert other.reserve(PRICES, retry_at).refusal is None


def test_every_outcome_is_counted_once_and_only_answers_make_the_mean(
    new_ledger: LedgerFactory, connection: psycopg.Connection
) -> None:
    ledger = new_ledger()
    for outcome, status, elapsed in (
        ("successful", 200, 100),
        ("failed", 500, 300),
        ("rate_limited", 429, 20),
        ("failed", None, 10_000),
    ):
        call = granted(ledger.reserve(PRICES, NOW))
        for _ in range(2):
            ledger.settle(call, outcome=outcome, status=status, elapsed_ms=elapsed, now=NOW)

    assert usage(connection) == (4, 1, 2, 1, 140, 4)


def test_calls_of_a_dead_process_are_settled_as_failed_and_those_under_way_are_not(
    new_ledger: LedgerFactory, connection: psycopg.Connection
) -> None:
    ledger = new_ledger()
    ledger.reserve(PRICES, NOW - timedelta(minutes=6))
    ledger.reserve(PRICES, NOW - timedelta(minutes=4))

    assert ledger.settle_abandoned(NOW) == 1
    assert ledger.settle_abandoned(NOW) == 0

    assert usage(connection)[:3] == (2, 0, 1)


def test_a_call_is_counted_whatever_becomes_of_the_transaction_around_it(
    new_ledger: LedgerFactory, connection: psycopg.Connection
) -> None:
    with connection.transaction(force_rollback=True):
        connection.execute("SELECT 1")
        new_ledger().reserve(PRICES, NOW)

    assert usage(connection)[0] == 1


def test_threads_of_one_process_never_get_more_than_the_plan_gives(
    new_ledger: LedgerFactory,
) -> None:
    ledgers = [new_ledger(10), new_ledger(10)]
    start = threading.Barrier(8, timeout=30)
    calls: list[int | None] = []

    def ask(number: int) -> None:
        start.wait()
        calls.extend(ledgers[number % 2].reserve(PRICES, NOW).call_id for _ in range(4))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    given = [call for call in calls if call is not None]
    assert (len(calls), len(given), len(set(given))) == (32, 10, 10)
    assert sum(ledger.granted for ledger in ledgers) == 10


END_LEDGERS = (
    "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
    "WHERE application_name = 'pulseguard' AND datname = current_database()"
)


def test_a_connection_lost_at_rest_is_replaced_and_nobody_notices(
    new_ledger: LedgerFactory, connection: psycopg.Connection
) -> None:
    ledger = new_ledger()
    ledger.reserve(PRICES, NOW)
    connection.execute(END_LEDGERS)

    assert granted(ledger.reserve(PRICES, NOW))

    assert ledger.granted == usage(connection)[0] == 2


def test_a_connection_lost_at_work_is_an_error_once_for_nobody_knows_what_was_counted(
    new_ledger: LedgerFactory, database: str, connection: psycopg.Connection
) -> None:
    ledger = new_ledger()
    ledger.reserve(PRICES, NOW)
    failures: list[psycopg.Error] = []

    def reserve() -> None:
        try:
            ledger.reserve(PRICES, NOW)
        except psycopg.OperationalError as error:
            failures.append(error)

    with connect(database, application_name="other") as other, other.transaction():
        other.execute("SELECT FROM api_budget FOR UPDATE")
        waiting = threading.Thread(target=reserve)
        waiting.start()
        until_blocked(connection)
        connection.execute(END_LEDGERS)
        waiting.join(30)

    assert len(failures) == ledger.granted == 1
    assert granted(ledger.reserve(PRICES, NOW))
    assert usage(connection)[0] == 2


def until_blocked(connection: psycopg.Connection) -> None:
    """Return when a session of this database waits for a lock."""
    waits = (
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    while connection.execute(waits).fetchone() == (0,):
        time.sleep(0.01)


def test_a_closed_ledger_opens_again_when_it_is_used(new_ledger: LedgerFactory) -> None:
    ledger = new_ledger()
    ledger.reserve(PRICES, NOW)
    ledger.close()
    ledger.close()

    assert granted(ledger.reserve(PRICES, NOW))


def test_without_a_database_no_call_is_granted() -> None:
    def refuse() -> psycopg.Connection:
        raise DatabaseUnavailable("no database today")

    ledger = Ledger(refuse, calls_per_minute=1, credits_per_month=None)

    with pytest.raises(DatabaseUnavailable):
        ledger.reserve(PRICES, NOW)
    assert ledger.granted == 0
