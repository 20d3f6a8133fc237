"""Collection cycles as rows: how they begin, end, and are found out when their process died."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import polars as pl
import psycopg
import pytest

from pulseguard_assets.warehouse.collections import (
    SILENT_FOR,
    Collection,
    CollectorBusy,
    begin_collection,
    fail_crashed,
    only_collector,
    recent_collections,
    reject,
    save_collection,
)
from pulseguard_assets.warehouse.connection import connect

NOW = datetime(2026, 11, 22, 12, 3, 27, tzinfo=timezone.utc)
REJECTED = {"coin_id": pl.String, "reason": pl.String, "payload": pl.String}


@pytest.fixture
def another(database: str) -> Iterator[psycopg.Connection]:
    """Another process's connection; it waits half a second for a lock."""
    with connect(database, lock_timeout=timedelta(milliseconds=500)) as connection:
        yield connection


def statuses(connection: psycopg.Connection) -> dict[int, str]:
    return dict(connection.execute("SELECT id, status FROM collection_status").fetchall())


# --- the life of a row ---


def test_a_cycle_begins_as_running_with_its_details(connection: psycopg.Connection) -> None:
    cycle = begin_collection(connection, "continuous", NOW, {"coins": 3})

    assert cycle == Collection(cycle.id, "continuous", NOW, NOW, details={"coins": 3})
    assert recent_collections(connection, ["continuous"], 5) == [cycle]


def test_everything_about_a_cycle_is_saved(connection: psycopg.Connection) -> None:
    begun = begin_collection(connection, "complete", NOW, {})
    ended = replace(
        begun,
        status="failed",
        coins_processed=5,
        coins_failed=2,
        api_calls_made=3,
        error="It rained.",
        ended_at=NOW + timedelta(seconds=9),
        details={"missing": ["a,b", "'", '"', "🦊"]},
    )

    save_collection(connection, ended, NOW + timedelta(seconds=9))

    saved = replace(ended, heard_at=NOW + timedelta(seconds=9))
    assert recent_collections(connection, ["complete"], 1) == [saved]
    sign_of_life = connection.execute("SELECT heartbeat_at FROM collection_status").fetchone()
    assert sign_of_life == (NOW + timedelta(seconds=9),)


def test_the_newest_cycles_of_the_kinds_come_first(connection: psycopg.Connection) -> None:
    first, second, _, fourth = (
        begin_collection(connection, kind, NOW - timedelta(minutes=n), {})
        for n, kind in enumerate(("continuous", "manual", "complete", "continuous"))
    )

    assert recent_collections(connection, ["continuous", "manual"], 2) == [fourth, second]
    assert recent_collections(connection, ["continuous"], 9) == [fourth, first]
    assert recent_collections(connection, ["priority_refresh"], 9) == []


def test_a_row_of_somebody_elses_without_details_can_be_read(
    connection: psycopg.Connection,
) -> None:
    connection.execute(
        "INSERT INTO collection_status (collection_type, start_time) VALUES ('manual', %s)", (NOW,)
    )

    assert recent_collections(connection, ["manual"], 1)[0].details == {}


def test_a_kind_the_schema_does_not_know_is_refused(connection: psycopg.Connection) -> None:
    with pytest.raises(psycopg.errors.CheckViolation):
        begin_collection(connection, "now and then", NOW, {})


# --- crashes ---


def test_a_row_whose_process_died_becomes_failed_and_says_so(
    connection: psycopg.Connection,
) -> None:
    begin_collection(connection, "continuous", NOW, {"after": "x"})

    assert fail_crashed(connection, ["continuous"], NOW + timedelta(minutes=1)) == 1

    crashed = recent_collections(connection, ["continuous"], 1)[0]
    assert (crashed.status, crashed.ended_at) == ("failed", NOW + timedelta(minutes=1))
    assert crashed.error is not None
    assert "process" in crashed.error
    assert crashed.details == {"after": "x"}, "the next cycle may go on behind it"


def test_only_running_rows_of_these_kinds_are_failed(connection: psycopg.Connection) -> None:
    kinds = ("continuous", "complete", "manual", "priority_refresh")
    running = {kind: begin_collection(connection, kind, NOW, {}).id for kind in kinds}
    done = begin_collection(connection, "continuous", NOW, {})
    save_collection(connection, replace(done, status="completed", ended_at=NOW), NOW)

    assert fail_crashed(connection, ["continuous", "manual"], NOW) == 2

    assert statuses(connection) == {
        running["continuous"]: "failed",
        running["complete"]: "running",
        running["manual"]: "failed",
        running["priority_refresh"]: "running",
        done.id: "completed",
    }


def test_a_cycle_that_waits_is_left_alone_until_it_has_been_silent_for_long(
    connection: psycopg.Connection,
) -> None:
    waits = begin_collection(connection, "continuous", NOW, {}).id

    assert fail_crashed(connection, ["continuous"], NOW + SILENT_FOR, resumable=waits) == 0
    late = NOW + SILENT_FOR + timedelta(seconds=1)
    assert fail_crashed(connection, ["continuous"], late, resumable=waits) == 1


# --- one at a time ---


def test_of_two_collectors_the_second_is_told_that_the_first_is_at_it(
    connection: psycopg.Connection, another: psycopg.Connection
) -> None:
    with only_collector(connection, "poll"):
        with (
            pytest.raises(CollectorBusy, match="collection_status"),
            only_collector(another, "poll"),
        ):
            pytest.fail("both are in")
        with only_collector(another, "priority_refresh"):
            pass
    with only_collector(another, "poll"):
        pass


def test_a_patient_collector_gives_up_when_the_other_goes_on(
    connection: psycopg.Connection, another: psycopg.Connection
) -> None:
    with (
        only_collector(connection, "poll"),
        pytest.raises(CollectorBusy),
        only_collector(another, "poll", patience=True),
    ):
        pytest.fail("both are in")


def test_a_patient_collector_goes_on_when_the_other_ends(
    connection: psycopg.Connection, database: str
) -> None:
    entered = threading.Event()

    def wait_for_it() -> None:
        with (
            connect(database, application_name="patient") as mine,
            only_collector(mine, "poll", patience=True),
        ):
            entered.set()

    with only_collector(connection, "poll"):
        waiter = threading.Thread(target=wait_for_it)
        waiter.start()
        while (
            connection.execute(
                "SELECT 1 FROM pg_stat_activity WHERE application_name = 'patient' "
                "AND wait_event_type = 'Lock'"
            ).fetchone()
            is None
        ):
            assert waiter.is_alive(), "it did not wait"
        assert not entered.is_set()
    waiter.join(30)

    assert entered.is_set()


def test_a_collector_whose_session_is_lost_leaves_nobody_waiting_and_tells_its_own_error(
    connection: psycopg.Connection, database: str
) -> None:
    def collect(lost: psycopg.Connection) -> None:
        with only_collector(lost, "poll"):
            connection.execute("SELECT pg_terminate_backend(%s, 10000)", (lost.info.backend_pid,))
            _ = 1 / 0

    with connect(database) as mine, pytest.raises(ZeroDivisionError):
        collect(mine)

    with only_collector(connection, "poll"):
        pass


def test_an_error_in_the_block_comes_through_and_frees_the_place(
    connection: psycopg.Connection, another: psycopg.Connection
) -> None:
    with pytest.raises(ZeroDivisionError), only_collector(connection, "poll"):
        _ = 1 / 0

    with only_collector(another, "poll"):
        pass


# --- what was no observation at all ---


def test_rejections_are_filed_with_their_payload(connection: psycopg.Connection) -> None:
    rows = pl.DataFrame(
        [("a", "no price", '{"usd": null}'), ("", "not an object", "[1, 2]")],
        schema=REJECTED,
        orient="row",
    )

    assert reject(connection, rows, collection_id=7, now=NOW) == 2

    assert connection.execute(
        "SELECT rejected_at, collection_id, coin_id, reason, payload "
        "FROM rejected_observations ORDER BY coin_id"
    ).fetchall() == [
        (NOW, 7, "", "not an object", [1, 2]),
        (NOW, 7, "a", "no price", {"usd": None}),
    ]


def test_what_is_rejected_again_within_the_hour_is_counted_with_its_latest_payload(
    connection: psycopg.Connection,
) -> None:
    def rows(*payloads: str) -> pl.DataFrame:
        return pl.DataFrame(
            [("a", "no price", payload) for payload in payloads], schema=REJECTED, orient="row"
        )

    assert reject(connection, rows("9", "3", "5"), collection_id=7, now=NOW) == 3
    assert reject(connection, rows("1"), collection_id=8, now=NOW - timedelta(minutes=1)) == 1
    later = NOW + timedelta(hours=1)
    assert reject(connection, rows("2", "4"), collection_id=9, now=later) == 2

    filed = connection.execute(
        "SELECT rejected_at, last_rejected_at, collection_id, times, payload "
        "FROM rejected_observations ORDER BY rejected_at"
    ).fetchall()
    assert filed == [(NOW, NOW, 8, 4, 1), (later, later, 9, 2, 4)]


def test_nothing_rejected_is_nothing_filed(connection: psycopg.Connection) -> None:
    assert reject(connection, pl.DataFrame(schema=REJECTED), collection_id=None, now=NOW) == 0


def test_a_run_that_reads_history_is_not_taken_for_a_crashed_poll_by_hand(
    connection: psycopg.Connection,
) -> None:
    history = begin_collection(connection, "manual", NOW, {"history": "daily"})
    by_hand = begin_collection(connection, "manual", NOW, {"coins": 3})

    assert fail_crashed(connection, ["manual"], NOW) == 1

    assert statuses(connection) == {history.id: "running", by_hand.id: "failed"}


@pytest.mark.parametrize("details", [{}, {"history": "daily"}])
def test_a_row_of_any_kind_is_closed_when_it_was_silent_for_long(
    connection: psycopg.Connection, details: dict[str, str]
) -> None:
    silent = begin_collection(connection, "priority_refresh", NOW, details)

    assert fail_crashed(connection, ["continuous"], NOW + SILENT_FOR) == 0
    assert fail_crashed(connection, ["continuous"], NOW + SILENT_FOR + timedelta(seconds=1)) == 1

    assert statuses(connection) == {silent.id: "failed"}
