"""What the code defines, kept where `pulseguard status` finds it."""

from __future__ import annotations

import threading
from datetime import timedelta

import psycopg
import pytest

from pulseguard_assets.alerts.instigators import Watched
from pulseguard_assets.alerts.watch_list import read, record
from pulseguard_assets.warehouse.connection import connect

PRICES = Watched("prices", "sensor", True, timedelta(seconds=20), None)
REPAIR = Watched("repair", "sensor", False, timedelta(minutes=5), None)
NIGHTLY = Watched("nightly", "schedule", True, None, "20 0 * * *")
NAMESAKE = Watched("prices", "schedule", True, None, "* * * * *")


def versions(connection: psycopg.Connection) -> dict[tuple[str, str], str]:
    """Which transaction wrote each row."""
    rows = connection.execute("SELECT kind, name, xmin::text FROM watch_list").fetchall()
    return {(kind, name): xmin for kind, name, xmin in rows}


def test_before_any_watchdog_has_run_nothing_is_known(connection: psycopg.Connection) -> None:
    assert read(connection) == []


def test_it_is_read_as_it_was_recorded(connection: psycopg.Connection) -> None:
    record(connection, [PRICES, NIGHTLY, REPAIR, NAMESAKE])

    assert read(connection) == [NIGHTLY, NAMESAKE, PRICES, REPAIR]


@pytest.mark.parametrize(
    "changed",
    [
        Watched("prices", "sensor", False, timedelta(seconds=20), None),
        Watched("prices", "sensor", True, timedelta(seconds=21), None),
    ],
)
def test_what_changed_is_written_and_nothing_else(
    connection: psycopg.Connection, changed: Watched
) -> None:
    record(connection, [PRICES, REPAIR, NIGHTLY])
    before = versions(connection)
    record(connection, [NIGHTLY, PRICES, REPAIR])
    assert versions(connection) == before

    record(connection, [changed, REPAIR, NIGHTLY])

    assert read(connection) == [NIGHTLY, changed, REPAIR]
    after = versions(connection)
    assert {key for key in after if after[key] != before[key]} == {("sensor", "prices")}


def test_another_cron_line_is_a_change(connection: psycopg.Connection) -> None:
    record(connection, [NIGHTLY])
    later = Watched("nightly", "schedule", True, None, "21 0 * * *")

    record(connection, [later])

    assert read(connection) == [later]


def test_what_is_gone_is_removed(connection: psycopg.Connection) -> None:
    record(connection, [PRICES, NAMESAKE, NIGHTLY])

    record(connection, [NAMESAKE])
    assert read(connection) == [NAMESAKE]

    record(connection, [])
    assert read(connection) == []


@pytest.mark.parametrize(
    "wrong",
    [
        Watched("", "sensor", True, timedelta(seconds=20), None),
        Watched("x", "job", True, timedelta(seconds=20), None),
        Watched("x", "sensor", True, None, None),
        Watched("x", "sensor", True, timedelta(0), None),
        Watched("x", "sensor", True, timedelta(seconds=20), "* * * * *"),
        Watched("x", "schedule", True, None, None),
        Watched("x", "schedule", True, None, ""),
        Watched("x", "schedule", True, timedelta(seconds=20), "* * * * *"),
    ],
)
def test_a_list_with_a_mistake_in_it_changes_nothing(
    connection: psycopg.Connection, wrong: Watched
) -> None:
    record(connection, [PRICES])

    with pytest.raises(psycopg.errors.CheckViolation):
        record(connection, [NIGHTLY, wrong])

    assert read(connection) == [PRICES]


def test_two_watchdogs_may_record_at_once(database: str) -> None:
    errors: list[BaseException] = []

    def work(watched: list[Watched]) -> None:
        try:
            with connect(database) as connection:
                for _ in range(30):
                    record(connection, watched)
        except psycopg.Error as error:
            errors.append(error)

    lists = [[PRICES, NIGHTLY, REPAIR], [REPAIR, NAMESAKE, PRICES], [NIGHTLY, NAMESAKE]]
    threads = [threading.Thread(target=work, args=(each,)) for each in lists]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []
