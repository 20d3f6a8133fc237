"""A connection kept from one use to the next: how long it lasts, and when it is replaced."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from pulseguard_assets.warehouse.connection import connect
from pulseguard_assets.warehouse.kept import KeptConnection


@pytest.fixture
def made() -> list[psycopg.Connection]:
    """All connections that `kept` has made."""
    return []


@pytest.fixture
def kept(database: str, made: list[psycopg.Connection]) -> Iterator[KeptConnection]:
    """One on `database`."""

    def make() -> psycopg.Connection:
        made.append(connect(database, application_name="kept"))
        return made[-1]

    kept = KeptConnection(make)
    yield kept
    kept.close()
    assert all(connection.closed for connection in made), "one is left open"


def test_each_use_finds_the_same_session(
    kept: KeptConnection, made: list[psycopg.Connection]
) -> None:
    assert made == []
    for _ in range(3):
        with kept.lent() as first, first.transaction():
            first.execute("SELECT 1")
        with kept.lent_or_new() as second:
            assert second is first
    assert len(made) == 1


def test_one_that_the_server_ended_between_two_uses_is_replaced(
    kept: KeptConnection, made: list[psycopg.Connection], connection: psycopg.Connection
) -> None:
    for _ in range(2):
        with kept.lent_or_new() as mine:
            mine.execute("SELECT 1")
        connection.execute("SELECT pg_terminate_backend(%s, 10000)", (mine.info.backend_pid,))
    with kept.lent() as mine:
        mine.execute("SELECT 1")
    assert len(made) == 3


@pytest.mark.parametrize("use", [KeptConnection.lent, KeptConnection.lent_or_new])
def test_one_whose_use_failed_is_closed_and_its_locks_are_free(
    kept: KeptConnection,
    made: list[psycopg.Connection],
    connection: psycopg.Connection,
    use: object,
) -> None:
    assert callable(use)

    def fail() -> None:
        with use(kept) as mine:
            mine.execute("SELECT pg_advisory_lock(7)")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert made[0].closed
    connection.execute("SET lock_timeout = '10s'")
    connection.execute("SELECT pg_advisory_lock(7)")
    with use(kept) as again:
        assert again is made[1]


def test_whoever_finds_it_in_use_gets_one_of_his_own_that_is_not_kept(
    kept: KeptConnection, made: list[psycopg.Connection]
) -> None:
    with kept.lent() as first, kept.lent_or_new() as second:
        assert second is not first
        assert second.execute("SELECT 1").fetchone() == (1,)
    assert second.closed
    with kept.lent() as third:
        assert third is first
    assert len(made) == 2


def test_a_connection_that_cannot_be_made_is_tried_again_at_the_next_use() -> None:
    tried: list[None] = []

    def refuse() -> psycopg.Connection:
        tried.append(None)
        raise psycopg.OperationalError("refused")

    kept = KeptConnection(refuse)
    for use in (kept.lent, kept.lent_or_new, kept.lent):
        with pytest.raises(psycopg.OperationalError, match="refused"), use():
            pytest.fail("there is none")
    assert len(tried) == 3
