"""What all tests share: a real PostgreSQL, and a fresh database on it for each test.

Nothing starts before a test asks for it: tests that need no server must not pay for one.
`tests/database/` replaces `postgres` by one server after the other.
"""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from pulseguard_assets.warehouse.connection import connect
from pulseguard_assets.warehouse.embedded import EmbeddedPostgres
from pulseguard_assets.warehouse.migrations import migrate

# Tests lose nothing when the machine does.
UNSAFE_BUT_FAST = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "max_wal_size": "2GB",
}

_numbers = itertools.count(1)


@dataclass(frozen=True)
class PostgresServer:
    """A running server that tests may fill with databases.

    Attributes:
        name: for instance `embedded-18`.
        dsn: its database `pulseguard`, where tests leave nothing.
    """

    name: str
    dsn: str
    _templates: dict[str, str] = field(default_factory=dict)

    def dsn_of(self, database: str) -> str:
        """Return the URL of another database of this server."""
        return self.dsn.replace("/pulseguard?", f"/{database}?")

    @contextmanager
    def new_database(self, template: str = "template0") -> Iterator[str]:
        """Make a database, yield its URL, drop it with whoever is still in it."""
        name = f"test_{next(_numbers)}"
        create = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
        drop = sql.SQL("DROP DATABASE {} WITH (FORCE)")
        with connect(self.dsn, application_name="tests") as admin:
            admin.execute(create.format(sql.Identifier(name), sql.Identifier(template)))
            try:
                yield self.dsn_of(name)
            finally:
                admin.execute(drop.format(sql.Identifier(name)))

    def migrated_template(self) -> str:
        """Return the name of a database with all migrations applied, to be cloned."""
        if "migrated" not in self._templates:
            name = "migrated"
            with connect(self.dsn, application_name="tests") as admin:
                admin.execute(sql.SQL("DROP DATABASE IF EXISTS {}").format(sql.Identifier(name)))
                admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
            migrate(self.dsn_of(name))
            self._templates["migrated"] = name
        return self._templates["migrated"]


@contextmanager
def _new_folder() -> Iterator[Path]:
    # Not pytest's tmp_path: for root that is closed to the account the server runs as.
    folder = Path(tempfile.mkdtemp(prefix="pulseguard-test-", dir="/tmp"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextmanager
def _run_server(name: str, installation: Path | None = None) -> Iterator[PostgresServer]:
    with (
        _new_folder() as folder,
        EmbeddedPostgres(folder, installation=installation, settings=UNSAFE_BUT_FAST) as dsn,
    ):
        yield PostgresServer(name, dsn)


@pytest.fixture(scope="session")
def run_server() -> Callable[..., AbstractContextManager[PostgresServer]]:
    """Return `run_server(name, installation=None)`, a context manager: a fast throw-away server."""
    return _run_server


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty folder that an embedded server can live in, also when the tests run as root."""
    with _new_folder() as folder:
        yield folder


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One server for the whole session: the embedded one."""
    with _run_server("embedded-18") as server:
        yield server


@pytest.fixture
def empty_database(postgres: PostgresServer) -> Iterator[str]:
    """The URL of a new database with nothing in it."""
    with postgres.new_database() as dsn:
        yield dsn


@pytest.fixture
def database(postgres: PostgresServer) -> Iterator[str]:
    """The URL of a new database with all migrations applied."""
    with postgres.new_database(postgres.migrated_template()) as dsn:
        yield dsn


@pytest.fixture
def connection(database: str) -> Iterator[psycopg.Connection]:
    """A connection to `database` as the product makes it: autocommit, in UTC."""
    with connect(database, application_name="tests") as connection:
        yield connection


@pytest.fixture(params=["Asia/Kolkata", "America/New_York"])
def timezone(request: pytest.FixtureRequest, database: str) -> Iterator[str]:
    """Run the test once in each of two zones: `database`, PGTZ and this process are set to it.

    Half an hour off, and with daylight saving: between them they show any place that is not UTC.
    """
    zone: str = request.param
    with connect(database) as admin:
        admin.execute(
            sql.SQL("ALTER DATABASE {} SET TimeZone TO {}").format(
                sql.Identifier(admin.info.dbname), sql.Literal(zone)
            )
        )
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PGTZ", zone)
        environment.setenv("TZ", zone)
        time.tzset()
        yield zone
    time.tzset()


@pytest.fixture
def local_connection(timezone: str, database: str) -> Iterator[psycopg.Connection]:
    """A stranger's connection to `database`: psql, a notebook. Its session is in `timezone`."""
    with psycopg.connect(database, autocommit=True) as connection:
        assert connection.info.parameter_status("TimeZone") == timezone
        yield connection


@pytest.fixture
def as_root() -> None:
    """Skip the test where it does not run as root."""
    if os.geteuid() != 0:
        pytest.skip("only root can change users")
