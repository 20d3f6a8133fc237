"""What all tests share: a real PostgreSQL, a served simulator, and a platform on the two.

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
from datetime import datetime, timedelta
from datetime import timezone as tz
from functools import lru_cache
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from pulseguard_assets.collecting.platform import Platform
from pulseguard_assets.settings import PREFIX, load_settings
from pulseguard_assets.simulator.limits import Limits
from pulseguard_assets.simulator.market import Market
from pulseguard_assets.simulator.server import RunningSimulator, running_simulator
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

# End to end, the longest first.
_BY_LENGTH = {
    name: place
    for place, name in enumerate(
        (
            *("test_crashes.py", "test_alerts.py", "test_faults.py", "test_security.py"),
            *("test_collecting.py", "test_backfill.py", "test_trouble.py", "test_clock_leap.py"),
            *("test_own_code.py", "test_up.py"),
        )
    )
}

_numbers = itertools.count(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What waits for minutes to pass comes first, so that the rest runs beside it."""
    items.sort(key=lambda item: _BY_LENGTH.get(item.path.name, len(_BY_LENGTH)))


@dataclass(frozen=True)
class PostgresServer:
    """A running server that tests may fill with databases.

    Attributes:
        name: for instance `embedded-18`.
        dsn: its database `pulseguard`, where tests leave nothing.
        embedded: to stop it and start it again.
    """

    name: str
    dsn: str
    embedded: EmbeddedPostgres
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
            # By a connection of its own: a test may have ended the server in between.
            with connect(self.dsn, application_name="tests") as admin:
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


def _place_of_folders() -> str:
    """In memory, where there is room.

    A database is 1,500 files. ext4 reuses none of those removed in the last seconds and looks
    through all of them for each new one: half of the time of all tests that make databases.
    """
    memory = Path("/dev/shm")
    roomy = memory.is_mount() and shutil.disk_usage(memory).free > 4_000_000_000
    return str(memory) if roomy and os.access(memory, os.W_OK) else "/tmp"


@contextmanager
def _new_folder() -> Iterator[Path]:
    # Not pytest's tmp_path: for root that is closed to the account the server runs as.
    folder = Path(tempfile.mkdtemp(prefix="pulseguard-test-", dir=_place_of_folders()))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextmanager
def _run_server(
    name: str, installation: Path | None = None, **settings: str
) -> Iterator[PostgresServer]:
    with _new_folder() as folder:
        embedded = EmbeddedPostgres(
            folder, installation=installation, settings=UNSAFE_BUT_FAST | settings
        )
        with embedded as dsn:
            yield PostgresServer(name, dsn, embedded)


@pytest.fixture(scope="session")
def run_server() -> Callable[..., AbstractContextManager[PostgresServer]]:
    """Return `run_server(name, installation=None, **settings)`: a fast throw-away server.

    It is a context manager; settings are the server's.
    """
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


# --- a provider, and a platform that collects from it ---

# In the past: Dagster knows no partition that has not begun by its own, the real clock.
NOON = datetime(2025, 11, 22, 12, 3, 27, 250_000, tzinfo=tz.utc)
API_KEY = "CG-Sesam0effneDichNicht"

PlatformFactory = Callable[..., Platform]


@lru_cache(maxsize=4)
def _market(coins: int) -> Market:
    return Market(seed=7, coins=coins, churn=False)


@pytest.fixture
def coins() -> int:
    """How many coins the simulator has; override it by parametrizing."""
    return 300


@pytest.fixture
def provider(coins: int) -> Iterator[RunningSimulator]:
    """A served simulator on the paid host, at `NOON` and standing still, without faults."""
    with running_simulator(market=_market(coins), now=NOON, limits=Limits(host="pro")) as simulator:
        yield simulator


@pytest.fixture
def only_our_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither the environment nor a `.env` of whoever runs the tests."""
    for name in list(os.environ):
        if name.upper().startswith(PREFIX):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def new_platform(
    provider: RunningSimulator, database: str, only_our_settings: None
) -> Iterator[PlatformFactory]:
    """`new_platform(**settings)`: as another process would make one; it lives in simulated time.

    Unless told otherwise it polls 300 coins on the plan `pro`. To wait moves the clock.
    """
    made: list[Platform] = []

    def make(*, transport: Any = None, **settings: Any) -> Platform:
        ours = {
            "database_url": database,
            "base_url": provider.url,
            "plan": "pro",
            "api_key": API_KEY,
            "mode": "300",
        }
        made.append(
            Platform(
                load_settings(**ours | settings),
                clock=provider.clock,
                sleep=lambda seconds: provider.advance(timedelta(seconds=seconds)),
                transport=transport,
            )
        )
        return made[-1]

    yield make
    for platform in made:
        platform.close()


@pytest.fixture
def platform(new_platform: PlatformFactory) -> Platform:
    """A platform with the settings of `new_platform`."""
    return new_platform()
