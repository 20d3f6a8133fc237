"""`pulseguard up`: brings the whole platform up, looks after it, and takes it down.

Belongs here: the order of things, and what the user is told. Does not: how a child is kept
running (`supervisor.py`), what the children are (`children.py`), or any work of the platform.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import TypeVar

import psycopg

from pulseguard_assets.collecting.planning import polling_by_settings
from pulseguard_assets.running import children
from pulseguard_assets.running.address import require_free
from pulseguard_assets.running.clock import ClockWatch, free_dagster
from pulseguard_assets.running.database import DatabaseHold
from pulseguard_assets.running.instance import (
    REAL,
    SIMULATED,
    Folders,
    claim,
    forget_old_compute_logs,
    locked,
    prepare,
)
from pulseguard_assets.running.leftovers import end_leftovers
from pulseguard_assets.running.processes import ProcessFile
from pulseguard_assets.running.screen import Screen
from pulseguard_assets.running.supervisor import (
    ChildSpec,
    Guardian,
    Rules,
    StopSignals,
    Supervisor,
)
from pulseguard_assets.settings import Settings
from pulseguard_assets.warehouse.connection import (
    DatabaseUnavailable,
    connect,
    ensure_dagster_schema,
)
from pulseguard_assets.warehouse.embedded import EmbeddedPostgres, EmbeddedPostgresError
from pulseguard_assets.warehouse.failures import what_failed
from pulseguard_assets.warehouse.migrations import migrate
from pulseguard_assets.warehouse.retention import set_retention

T = TypeVar("T")

_LOOK_AT_DATABASE_EVERY = 5.0
_LOOK_AT_CLOCK_EVERY = 5.0
# For so long after the clock was set back: the old daemon may still write what it did before.
_FREE_DAGSTER_FOR = timedelta(minutes=2)
_HOUSEKEEPING_EVERY = 3600.0
# The children have stopped by then, so the server has nobody to wait for.
_DATABASE_STOPS_WITHIN = 2.0
EXIT_KILLED = 130


class _StopRequested(Exception):  # noqa: N818 - it is no error
    """A signal came before everything was up."""


@dataclass(frozen=True)
class Options:
    """What can be told to `up` beside the settings.

    Attributes:
        simulator_port: start a simulator on this loopback port: the demo. None: no simulator.
        rules: how children are restarted and stopped.
    """

    simulator_port: int | None = None
    rules: Rules = field(default_factory=Rules)

    @property
    def purpose(self) -> str:
        """Whether real or simulated prices are collected."""
        return REAL if self.simulator_port is None else SIMULATED


def up(settings: Settings, screen: Screen, options: Options | None = None) -> None:
    """Run the platform until SIGINT, SIGTERM or SIGHUP.

    Raises:
        PlanCannotPay, AddressUnusable, InstanceError, ChildFailed: see there.
        DatabaseUnavailable, UnsupportedPostgres, MigrationError, EmbeddedPostgresError,
        FolderInUse: see `warehouse`.
    """
    asyncio.run(_Platform(settings, screen, options or Options()).run())


class _Platform:
    """One run of the platform, from the first lock to the last process."""

    def __init__(self, settings: Settings, screen: Screen, options: Options) -> None:
        self._settings = settings
        self._screen = screen
        self._options = options
        self._folders = Folders(settings.data_dir)
        self._embedded: EmbeddedPostgres | None = None
        self._hold: DatabaseHold | None = None
        self._dsn = ""
        self._supervisor: Supervisor | None = None
        self._processes = ProcessFile(self._folders, screen.say)

    async def run(self) -> None:
        # From the first moment: the default answer to SIGUSR1 is to die.
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, self._reload)
        with StopSignals(self._kill).installed() as stop:
            with suppress(_StopRequested):
                async with AsyncExitStack() as stack:
                    guardian = await self._start(stack, stop)
                    await self._look_after(guardian, stop)
            self._screen.say("Stopped. Everything that was collected is kept.")

    def _reload(self) -> None:
        """`pulseguard reload`: run the code as it is on disk now."""
        if self._supervisor is not None:
            self._supervisor.replace(children.CODE_SERVER)

    def _kill(self) -> None:
        """A second signal: whoever sends it does not want to wait."""
        if self._supervisor is not None:
            self._supervisor.kill()
        self._processes.remove()
        # The guardian and the kernel (see `launcher.py`) end what is left, cleanly and soon.
        os._exit(EXIT_KILLED)

    async def _start(self, stack: AsyncExitStack, stop: asyncio.Event) -> Guardian:
        """Bring everything up, entering what must be left again into `stack`."""
        folders, step = self._folders, self._screen.step
        polling_by_settings(self._settings)
        require_free(self._settings.host, self._settings.port)
        lock = stack.enter_context(locked(folders))
        claim(folders, self._options.purpose)
        if ended := await asyncio.to_thread(end_leftovers, folders):
            self._screen.progress(f"Ended {ended} processes that a killed PulseGuard left running")
        prepare(folders)
        # A code server that had to be killed leaves it behind.
        stack.callback(folders.code_server_socket.unlink, missing_ok=True)
        stack.enter_context(self._processes)
        self._screen.settings(self._settings, folders, simulated=self._simulated)
        guardian = await stack.enter_async_context(_guardian(holding=lock))
        with step("database") as done:
            dsn = await self._start_database(stack)
            done(f"{'embedded' if self._embedded else 'external'} PostgreSQL")
        _raise_if(stop)
        with step("migrations") as done:
            applied, dagster_role = await asyncio.to_thread(self._prepare_database, dsn)
            done(f"{len(applied)} applied" if applied else "up to date")
        _raise_if(stop)
        self._supervisor = await stack.enter_async_context(
            Supervisor(
                logs=folders.logs,
                guardian=guardian,
                say=self._screen.say,
                echo=self._screen.echo,
                publish=self._processes.write,
                rules=self._options.rules,
            )
        )
        for spec in self._specs(dsn, dagster_role):
            with step(spec.name) as done:
                await _unless(stop, self._supervisor.start(spec))
                done(f"process {self._supervisor.pids[spec.name]}")
        self._screen.welcome(self._settings, folders, simulated=self._simulated)
        return guardian

    @property
    def _simulated(self) -> bool:
        return self._options.simulator_port is not None

    async def _start_database(self, stack: AsyncExitStack) -> str:
        if self._settings.database_url is None:
            self._embedded = EmbeddedPostgres(
                self._settings.data_dir, progress=self._screen.progress
            )
            stack.push_async_callback(
                asyncio.to_thread, self._embedded.stop, patience=_DATABASE_STOPS_WITHIN
            )
            dsn = await asyncio.to_thread(self._embedded.start)
        else:
            dsn = self._settings.database_url.get_secret_value()
        self._dsn = dsn
        self._hold = DatabaseHold(dsn)
        stack.callback(self._hold.release)
        await asyncio.to_thread(self._hold.acquire)
        return dsn

    def _prepare_database(self, dsn: str) -> tuple[list[str], str | None]:
        """The migrations that were applied, and whom Dagster acts as."""
        assert self._hold is not None  # noqa: S101 - set by _start_database
        applied = migrate(dsn)
        self._hold.claim(self._options.purpose)
        dagster_role = ensure_dagster_schema(dsn)
        with connect(dsn) as connection:
            set_retention(connection, self._settings.keep_overrides)
            # The clock of this machine may have been set right while nothing ran.
            free_dagster(connection, datetime.now(timezone.utc))
        return applied, dagster_role

    def _specs(self, dsn: str, dagster_role: str | None) -> list[ChildSpec]:
        """The children in the order of their start."""
        folders, settings = self._folders, self._settings
        variables = children.environment(settings, folders, dsn, dagster_role=dagster_role)
        port = self._options.simulator_port
        return [
            *([] if port is None else [children.simulator(port, folders)]),
            children.code_server(settings, folders, variables),
            children.webserver(settings, folders, variables),
            children.daemon(folders, variables),
            children.lookout(folders, variables),
        ]

    async def _look_after(self, guardian: Guardian, stop: asyncio.Event) -> None:
        """Until a signal comes: restart, watch, tidy. A mistake of our own ends it too."""
        assert self._supervisor is not None  # noqa: S101 - set by _start
        tasks = [
            asyncio.create_task(work)
            for work in (
                self._supervisor.run(stop),
                guardian.keep(),
                self._watch_database(),
                self._watch_clock(),
                self._keep_house(),
            )
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
            self._screen.say("Stopping")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch_database(self) -> None:
        """Restart the embedded server when it dies; keep the lock through restarts of any."""
        complaint = ""
        while True:
            await asyncio.sleep(_LOOK_AT_DATABASE_EVERY)
            try:
                lost = await asyncio.to_thread(self._restore_database)
            except (DatabaseUnavailable, EmbeddedPostgresError, psycopg.Error, OSError) as error:
                said = what_failed(error) if isinstance(error, psycopg.Error) else str(error)
                # What a server said before it ended follows in further lines, with the time.
                if said.splitlines()[0] != complaint:
                    complaint = said.splitlines()[0]
                    self._screen.say(f"The database is away, trying on: {said}")
                continue
            if lost:
                self._screen.say("The database is back")
            complaint = ""

    def _restore_database(self) -> bool:
        """Whether something had to be restored."""
        assert self._hold is not None  # noqa: S101 - set by _start_database
        if self._embedded is not None and not self._embedded.running:
            self._screen.say("The embedded PostgreSQL has ended; starting it again")
            self._embedded.start()
        return self._hold.verify()

    async def _watch_clock(self) -> None:
        """Let sensors and schedules go on when the clock was set back."""
        assert self._supervisor is not None  # noqa: S101 - set by _start
        watch, since = ClockWatch(), _FREE_DAGSTER_FOR
        while True:
            await asyncio.sleep(_LOOK_AT_CLOCK_EVERY)
            since += timedelta(seconds=_LOOK_AT_CLOCK_EVERY)
            back = watch.set_back()
            if back is not None:
                since = timedelta(0)
                self._screen.say(
                    f"The clock was set back by {back // timedelta(seconds=1)} s; the daemon is "
                    "restarted so that sensors and schedules do not wait for that time"
                )
                # It measures its pauses by the time of day.
                self._supervisor.replace(children.DAEMON)
            if since < _FREE_DAGSTER_FOR:
                # That the database is away is said by whoever watches it.
                with suppress(DatabaseUnavailable, psycopg.Error):
                    await asyncio.to_thread(self._free_dagster)

    def _free_dagster(self) -> None:
        with connect(self._dsn) as connection:
            free_dagster(connection, datetime.now(timezone.utc))

    async def _keep_house(self) -> None:
        while True:
            await asyncio.to_thread(
                forget_old_compute_logs, self._folders, datetime.now(timezone.utc)
            )
            await asyncio.sleep(_HOUSEKEEPING_EVERY)


@asynccontextmanager
async def _guardian(*, holding: int) -> AsyncIterator[Guardian]:
    guardian = Guardian(holding=holding)
    await guardian.start()
    try:
        yield guardian
    finally:
        await guardian.close()


def _raise_if(stop: asyncio.Event) -> None:
    if stop.is_set():
        raise _StopRequested


async def _unless(stop: asyncio.Event, work: Awaitable[T]) -> T:
    """Await `work`, giving it up when `stop` is set first."""
    working = asyncio.ensure_future(work)
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise _StopRequested
        return working.result()
    finally:
        stopping.cancel()
        working.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(working, return_exceptions=True)
