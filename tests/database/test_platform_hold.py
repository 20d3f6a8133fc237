"""One platform to a database, and one kind of prices."""

from __future__ import annotations

import os

import psycopg
import pytest

from pulseguard_assets.running.database import DatabaseHold
from pulseguard_assets.running.instance import AlreadyRunning, InstanceError
from pulseguard_assets.warehouse.connection import connect


def test_a_second_platform_on_the_same_database_is_told_who_is_there(database: str) -> None:
    with DatabaseHold(database):
        with pytest.raises(AlreadyRunning) as refusal:
            DatabaseHold(database).acquire()
        assert f"pulseguard up, process {os.getpid()} on " in str(refusal.value)
        assert "PULSEGUARD_DATABASE_URL" in str(refusal.value)
    with DatabaseHold(database):
        pass


def test_two_databases_of_one_server_do_not_get_in_each_others_way(
    database: str, empty_database: str
) -> None:
    with DatabaseHold(database), DatabaseHold(empty_database):
        pass


def _cut_connections(database: str) -> None:
    with connect(database) as admin:
        admin.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


def test_a_hold_whose_connection_was_cut_is_taken_again(database: str) -> None:
    with DatabaseHold(database) as hold:
        assert hold.verify() is False
        _cut_connections(database)
        assert hold.verify() is True
        with pytest.raises(AlreadyRunning):
            DatabaseHold(database).acquire()


def test_a_hold_that_somebody_took_in_between_is_not_shared(database: str) -> None:
    with DatabaseHold(database) as hold:
        _cut_connections(database)
        with DatabaseHold(database), pytest.raises(AlreadyRunning):
            hold.verify()


def test_a_database_is_for_real_or_for_simulated_prices(database: str) -> None:
    with DatabaseHold(database) as hold:
        hold.claim("simulated")
        hold.claim("simulated")
        with pytest.raises(InstanceError, match="This database holds simulated prices"):
            hold.claim("real")
    with connect(database) as connection, pytest.raises(psycopg.errors.UniqueViolation):
        connection.execute("INSERT INTO platform_purpose (purpose) VALUES ('real')")
