"""The URL by which Dagster reaches the database, read back by the library that will read it."""

from __future__ import annotations

import traceback
from typing import Any

import pytest
from sqlalchemy.engine import make_url

from pulseguard_assets.warehouse.connection import DatabaseUnavailable, connect, dagster_url


def what_the_driver_gets(dsn: str) -> dict[str, Any]:
    url = make_url(dagster_url(dsn))
    arguments, keywords = url.get_dialect()().create_connect_args(url)
    assert not arguments
    return keywords


def test_it_names_the_driver_because_a_bare_url_means_another_one() -> None:
    url = make_url(dagster_url("postgresql://u@h/d"))
    assert url.get_driver_name() == "psycopg2"


def test_a_password_with_special_characters_arrives_whole() -> None:
    got = what_the_driver_gets("postgresql://us%40er:p%40s%2Fs%3A%25%20%2B%23@db.lan:5433/my%2Fdb")
    assert got["user"] == "us@er"
    assert got["password"] == "p@s/s:% +#"
    assert (got["host"], got["port"], got["dbname"]) == ("db.lan", 5433, "my/db")


def test_a_socket_with_a_blank_in_its_path_arrives_whole() -> None:
    got = what_the_driver_gets("postgresql://pulseguard@/pulseguard?host=%2Ftmp%2Fa%20b&port=5432")
    assert got["host"] == "/tmp/a b"
    assert (got["user"], got["dbname"], got["port"]) == ("pulseguard", "pulseguard", "5432")


def test_an_ipv6_address_and_a_connection_string_are_understood() -> None:
    assert what_the_driver_gets("host=::1 dbname=d user=u")["host"] == "::1"


def test_two_hosts_stay_two_hosts() -> None:
    got = what_the_driver_gets("postgresql://u@a:1,b:2/d")
    assert (got["host"], got["port"]) == ("a,b", "1,2")


def test_its_tables_go_to_the_schema_dagster_and_its_times_are_utc() -> None:
    got = what_the_driver_gets("postgresql://u@h/d?options=-c%20work_mem%3D8MB")
    assert got["options"] == "-c work_mem=8MB -csearch_path=dagster -cTimeZone=UTC"


def test_other_parameters_are_kept() -> None:
    assert what_the_driver_gets("postgresql://u@h/d?sslmode=require")["sslmode"] == "require"


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://user:hush@hush@host/db",
        "postgresql://user:hu@sh:hush@host/db",
        "postgresql://user:hush@host:hush/db",
        "postgresql//user:hush@host/db",
        "user hush",
    ],
)
def test_a_malformed_url_is_refused_without_repeating_any_of_it(dsn: str) -> None:
    for reader in (dagster_url, connect):
        with pytest.raises(DatabaseUnavailable, match="PULSEGUARD_DATABASE_URL") as refused:
            reader(dsn)
        assert "hush" not in "".join(traceback.format_exception(refused.value))
