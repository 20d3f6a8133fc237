"""Connecting: to real servers, and to ones that are not there."""

from __future__ import annotations

import socket
import threading
import time
from datetime import timedelta

import psycopg
import pytest
import sqlalchemy

from pulseguard_assets.warehouse import connection as module
from pulseguard_assets.warehouse.connection import (
    DatabaseUnavailable,
    UnsupportedPostgres,
    connect,
    dagster_url,
    ensure_dagster_schema,
)


def setting(connection: psycopg.Connection, name: str) -> str:
    row = connection.execute("SELECT current_setting(%s)", (name,)).fetchone()
    assert row is not None
    return str(row[0])


def test_the_session_is_in_utc_whatever_the_database_and_the_environment_say(
    timezone: str, database: str, local_connection: psycopg.Connection
) -> None:
    assert setting(local_connection, "TimeZone") == timezone
    with connect(database) as connection:
        assert setting(connection, "TimeZone") == "UTC"
        assert connection.execute("SELECT 1").statusmessage == "SELECT 1"
        assert connection.autocommit


def test_limits_are_set_where_asked_for_and_left_alone_where_not(empty_database: str) -> None:
    limits = {"statement_timeout": timedelta(seconds=2), "lock_timeout": timedelta(0)}
    with connect(empty_database, **limits) as connection:  # type: ignore[arg-type]
        assert setting(connection, "statement_timeout") == "2s"
        assert setting(connection, "lock_timeout") == "1ms"  # not 0, which is none
    with connect(empty_database, application_name="a name") as connection:
        assert setting(connection, "statement_timeout") == "0"
        assert setting(connection, "application_name") == "a name"


def test_options_of_the_url_are_kept(empty_database: str) -> None:
    with connect(f"{empty_database}&options=-c%20work_mem%3D7MB") as connection:
        assert setting(connection, "work_mem") == "7MB"
        assert setting(connection, "TimeZone") == "UTC"


def test_without_autocommit_the_first_statement_opens_the_transaction(empty_database: str) -> None:
    with connect(empty_database, autocommit=False) as connection:
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        connection.execute("SELECT 1")
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS


def test_a_missing_database_is_named(empty_database: str) -> None:
    with pytest.raises(DatabaseUnavailable, match=r"no_such.*PULSEGUARD_DATABASE_URL"):
        connect(empty_database.replace("/test_", "/no_such_"))


def test_a_closed_port_is_named_and_the_password_is_not() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(DatabaseUnavailable, match="PULSEGUARD_DATABASE_URL") as failed:
        connect(f"postgresql://u:hush%40@127.0.0.1:{port}/d")
    assert str(port) in str(failed.value)
    assert "hush" not in str(failed.value)


def test_a_server_that_repeats_the_password_does_not_make_us_repeat_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def refuse() -> None:
            client, _ = server.accept()
            with client:
                client.recv(4096)
                client.sendall(b"E\x00\x00\x00\x20SFATAL\x00C28P01\x00Mnot with hush\x00\x00")

        thread = threading.Thread(target=refuse)
        thread.start()
        with pytest.raises(DatabaseUnavailable) as failed:
            connect(f"postgresql://u:hush@127.0.0.1:{server.getsockname()[1]}/d?sslmode=disable")
        thread.join()
    assert "not with ***" in str(failed.value)


def test_another_major_version_is_refused_and_the_connection_closed(
    empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "OLDEST_MAJOR", 19)
    monkeypatch.setattr(module, "NEWEST_MAJOR", 19)
    with pytest.raises(UnsupportedPostgres, match=r"is PostgreSQL 1[5-8]; .*with 19 to 19"):
        connect(empty_database, application_name="refused")
    monkeypatch.undo()
    with connect(empty_database) as connection:
        left = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'refused'"
        # Its backend notices that a moment later.
        deadline = time.monotonic() + 60
        while connection.execute(left).fetchone() != (0,):
            assert time.monotonic() < deadline, "it is still connected"


def test_dagster_gets_its_schema_from_several_starters_at_once(empty_database: str) -> None:
    failures: list[BaseException] = []

    def start() -> None:
        try:
            ensure_dagster_schema(empty_database)
        except BaseException as failure:  # noqa: BLE001 - told by the assertion below
            failures.append(failure)

    starters = [threading.Thread(target=start) for _ in range(8)]
    for starter in starters:
        starter.start()
    for starter in starters:
        starter.join()
    assert failures == []
    with connect(empty_database) as connection:
        row = connection.execute("SELECT obj_description('dagster'::regnamespace)").fetchone()
    assert row == ("The tables of Dagster itself",)


def test_dagsters_tables_land_in_its_schema(empty_database: str) -> None:
    ensure_dagster_schema(empty_database)
    engine = sqlalchemy.create_engine(dagster_url(empty_database), poolclass=sqlalchemy.NullPool)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("CREATE TABLE runs (id int)"))
        assert connection.execute(sqlalchemy.text("SHOW TimeZone")).scalar() == "UTC"
    engine.dispose()
    with connect(empty_database) as connection:
        row = connection.execute("SELECT to_regclass('dagster.runs')::text").fetchone()
    assert row == ("dagster.runs",)


def test_a_role_that_may_not_make_schemas_is_told_what_to_run(empty_database: str) -> None:
    with connect(empty_database) as owner:
        owner.execute("CREATE ROLE humble LOGIN")
        try:
            with pytest.raises(DatabaseUnavailable, match=r"GRANT CREATE ON DATABASE .* TO humble"):
                ensure_dagster_schema(empty_database.replace("pulseguard@", "humble@"))
            owner.execute("CREATE SCHEMA dagster")
            ensure_dagster_schema(empty_database.replace("pulseguard@", "humble@"))
        finally:
            owner.execute("DROP ROLE humble")
