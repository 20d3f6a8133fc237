"""Every test of this folder that uses `postgres` runs on each PostgreSQL of this machine.

The embedded one always; Debian's where it is installed, run as a private server of the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner

from pulseguard_assets.cli import main
from pulseguard_assets.warehouse.connection import connect

DEBIAN = sorted(Path("/usr/lib/postgresql").glob("1[5-8]"))
SERVERS: dict[str, Path | None] = {
    "embedded-18": None,
    **{f"debian-{path.name}": path for path in DEBIAN if (path / "bin" / "postgres").exists()},
}


@pytest.fixture(scope="session", params=list(SERVERS))
def postgres(
    request: pytest.FixtureRequest, run_server: Callable[..., AbstractContextManager[Any]]
) -> Iterator[Any]:
    """One server after the other."""
    with run_server(request.param, SERVERS[request.param]) as server:
        yield server


@pytest.fixture(scope="module")
def one_database(postgres: Any) -> Iterator[psycopg.Connection]:
    """A connection to one migrated database for all tests of the module; see `undone_or_own`."""
    with (
        postgres.new_database(postgres.migrated_template()) as dsn,
        connect(dsn, application_name="tests") as connection,
    ):
        yield connection


@pytest.fixture
def undone_or_own(
    request: pytest.FixtureRequest, one_database: psycopg.Connection
) -> Iterator[psycopg.Connection]:
    """A transaction that is undone after the test, ten times as fast as a database of its own.

    A test that has other sessions, and so asks for `database`, gets a connection to that.
    """
    if "database" in request.fixturenames:
        dsn = request.getfixturevalue("database")
        with connect(dsn, application_name="tests") as own:
            yield own
    else:
        with one_database.transaction(force_rollback=True):
            yield one_database


@pytest.fixture
def pulseguard(
    only_our_settings: None, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str]]:
    """`pulseguard(dsn, "roles")`: exit code and output."""

    def run(dsn: str, *arguments: str) -> tuple[int, str]:
        monkeypatch.setenv("PULSEGUARD_DATABASE_URL", dsn)
        done = CliRunner().invoke(main, arguments)
        return done.exit_code, done.output

    return run
