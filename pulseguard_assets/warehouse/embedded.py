"""A PostgreSQL of our own, in a data folder of its own, for whoever has not brought one.

Belongs here: making the cluster, starting, watching and stopping its server. Does not: anything
about the product's tables, and no decision whether an embedded server is wanted.

How it survives what happens to it:

* We are killed: the kernel sends the server SIGINT, its fast and clean shutdown (`launcher.py`).
  Where that fails, or is still under way, the next start ends the server first and waits for it.
* The server is killed, or the machine: the next start replays the journal. Lock files are cleared
  only where they name a stranger; PostgreSQL judges the rest.
* We are killed while making the cluster: it was made aside and is made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from urllib.parse import quote

import psycopg
from psycopg import sql

from pulseguard_assets.durable import rename_durably
from pulseguard_assets.warehouse.account import (
    Account,
    EmbeddedPostgresError,
    bundled_installation,
    choose_account,
    clean_environment,
    require_reachable,
    usable_installation,
)
from pulseguard_assets.warehouse.folder_lock import FolderInUse, FolderLock
from pulseguard_assets.warehouse.launching import launched
from pulseguard_assets.warehouse.postmaster import (
    clear_misleading_locks,
    end_leftovers,
    processes_in,
    read_postmaster_file,
)

__all__ = ["EmbeddedPostgres", "EmbeddedPostgresError", "FolderInUse", "running_dsn"]

ROLE = DATABASE = "pulseguard"
_CLUSTER = "postgres"
# There is no TCP, so the number only names the socket. Fixed, because PGPORT must not move it.
_PORT = 5432
_SOCKET = f".s.PGSQL.{_PORT}"
# sun_path of struct sockaddr_un on Linux: 108 bytes with its final NUL.
_LONGEST_SOCKET_PATH = 107
_POLL_SECONDS = 0.05
_REPORT_EVERY_SECONDS = 5.0
_FULL = "No space left on device"

# What a user may tune: `ALTER SYSTEM SET ...` is read after this and wins.
_DEFAULTS: Mapping[str, str] = MappingProxyType(
    {
        "max_connections": "100",
        "shared_buffers": "128MB",
        # A clean-up or a dump takes a lock on every partition of five tables and their indexes.
        "max_locks_per_transaction": "256",
        "maintenance_work_mem": "64MB",
        "max_wal_size": "512MB",
        "synchronous_commit": "on",
        "autovacuum": "on",
        "timezone": "UTC",
        "log_timezone": "UTC",
        "datestyle": "iso, ymd",
        "lc_messages": "C",
        "log_min_messages": "warning",
        "log_checkpoints": "off",
        "log_line_prefix": "%m [%p] %a ",
    }
)

# What the code relies on: given on the command line, which wins over every file.
_FIXED: Mapping[str, str] = MappingProxyType(
    {
        "listen_addresses": "",
        "port": str(_PORT),
        # Local connections are trusted, so nobody else may reach the socket.
        "unix_socket_permissions": "0700",
        "logging_collector": "on",
        "log_destination": "stderr",
        "log_directory": "log",
        # One file per day of the week, emptied when its day comes again: a week, then it levels.
        "log_filename": "postgresql-%a.log",
        "log_truncate_on_rotation": "on",
        "log_rotation_age": "1d",
        "log_rotation_size": "0",
    }
)


def _silent(_: str) -> None:
    """Report nothing."""


class EmbeddedPostgres:
    """A PostgreSQL server that lives and dies with this process.

    Use it as a context manager, or call `start` and `stop`. It may be started again after it was
    stopped or has died.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        progress: Callable[[str], None] = _silent,
        start_timeout: float = 900.0,
        installation: Path | None = None,
        settings: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Prepare a server; nothing happens before `start`.

        Args:
            data_dir: holds the cluster in `postgres/`, the lock, and what goes with them.
            progress: is told, in sentences, what takes time.
            start_timeout: seconds until a start is given up. Generous: after a crash the journal
                is replayed first.
            installation: a folder with `bin/postgres`, PostgreSQL 15 to 18; default: the wheel's.
            settings: server settings that override everything, for instance in tests.
        """
        self.data_dir = data_dir.expanduser().resolve()
        self.pgdata = self.data_dir / _CLUSTER
        self._progress = progress
        self._start_timeout = start_timeout
        self._installation = installation
        self._settings = dict(settings)
        self._lock = FolderLock(self.data_dir)
        self._keeper: _Keeper | None = None
        self._socket_dir: Path | None = None

    @property
    def pid(self) -> int | None:
        """The pid of the running server; None when there is none."""
        return self._keeper.pid if self.running and self._keeper else None

    @property
    def running(self) -> bool:
        """Whether the server was started and has not ended."""
        return self._keeper is not None and not self._keeper.exited.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the server ends; whether it has. True at once when it is not running."""
        return self._keeper is None or self._keeper.exited.wait(timeout)

    def start(self) -> str:
        """Start the server, making the cluster first if there is none, and wait until it answers.

        Returns:
            The URL of the database `pulseguard` on it, reachable through a socket by this user
            (and root) only.

        Raises:
            FolderInUse: another PulseGuard works in this folder.
            EmbeddedPostgresError: it cannot be started; the message says what to change.
        """
        if self.running:
            raise EmbeddedPostgresError(f"The server in {self.data_dir} is already started.")
        self._make_data_dir()
        try:
            self._lock.acquire()
        except OSError as error:
            raise EmbeddedPostgresError(
                f"Cannot lock {self._lock.path}: {error.strerror}. Set PULSEGUARD_DATA_DIR to a "
                "local folder that you may write to."
            ) from error
        try:
            return self._start()
        except BaseException:
            self.stop()
            raise

    def stop(self, *, patience: float = 8.0) -> None:
        """Stop the server and free the folder. Harmless when it is not running.

        Args:
            patience: seconds for the clean shutdown. Then it is cut short, which loses nothing:
                the next start replays the journal.
        """
        keeper, self._keeper = self._keeper, None
        try:
            if keeper is not None and not keeper.end(patience):
                end_leftovers(self.pgdata, patience=0)
            if self._socket_dir is not None and self._socket_dir.parent != self.data_dir:
                # Outside our folder we leave nothing; not empty means that it is still in use.
                with contextlib.suppress(OSError):
                    self._socket_dir.rmdir()
        finally:
            self._lock.release()

    def __enter__(self) -> str:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _make_data_dir(self) -> None:
        # Folders that we make are open for passing through, not for looking: as root, the server's
        # account has to pass, whatever the umask. Folders that exist stay as they are.
        missing = [path for path in (self.data_dir, *self.data_dir.parents) if not path.exists()]
        try:
            for path in reversed(missing):
                path.mkdir(exist_ok=True)
                path.chmod(0o711 if os.geteuid() == 0 else 0o700)
        except OSError as error:
            raise EmbeddedPostgresError(
                f"Cannot make the folder {self.data_dir}: {error.strerror}. Set "
                "PULSEGUARD_DATA_DIR to a folder that you may write to."
            ) from error

    def _start(self) -> str:
        account = choose_account(self.pgdata)
        if account.switch:
            require_reachable(self.data_dir, account)
        programs = self._programs(account)
        self._socket_dir = socket_dir = _make_socket_dir(self.data_dir, account)
        self._make_cluster(programs, account)
        self._recover(socket_dir / _SOCKET)
        self._write_defaults()
        self._launch(programs, account, socket_dir)
        self._await_ready()
        dsn = socket_dsn(socket_dir)
        _make_database(socket_dir)
        return dsn

    def _programs(self, account: Account) -> Path:
        installation = self._installation or usable_installation(
            bundled_installation(), account, copies=self.data_dir / "postgres-programs"
        )
        return installation / "bin"

    def _make_cluster(self, programs: Path, account: Account) -> None:
        if (self.pgdata / "PG_VERSION").exists():
            self._check_version(programs, account)
            return
        if self.pgdata.exists() and any(self.pgdata.iterdir()):
            raise EmbeddedPostgresError(
                f"{self.pgdata} holds files but no database. Move them away, or name another "
                "folder in PULSEGUARD_DATA_DIR."
            )
        self._progress(f"Making a database in {self.pgdata}")
        # Aside, then renamed: whoever interrupts this leaves no half-made cluster behind.
        for half_made in self.data_dir.glob(f"{_CLUSTER}.new-*"):
            shutil.rmtree(half_made)
        fresh = Path(tempfile.mkdtemp(prefix=f"{_CLUSTER}.new-", dir=self.data_dir))
        if account.switch:
            os.chown(fresh, account.uid, account.gid)
        self._initdb(programs, account, fresh)
        with (fresh / "postgresql.conf").open("a", encoding="utf-8") as configuration:
            # A relative path, so that the data folder can be moved.
            configuration.write(f"\ninclude_if_exists = '../{self._defaults_file.name}'\n")
        # Synced, since PostgreSQL vouches for what is in the folder, but not for its name: after a
        # power cut it could be that of a half-made one, and removed at the next start.
        rename_durably(fresh, self.pgdata, content=fresh / "postgresql.conf")

    def _initdb(self, programs: Path, account: Account, fresh: Path) -> None:
        durable = self._settings.get("fsync") != "off"
        made = account.run(
            str(programs / "initdb"),
            f"--pgdata={fresh}",
            f"--username={ROLE}",
            "--encoding=UTF8",
            "--locale=C",
            "--auth-local=trust",
            "--auth-host=reject",
            "--data-checksums",
            *([] if durable else ["--no-sync"]),
        )
        if made.returncode != 0:
            raise EmbeddedPostgresError(
                f"initdb could not make a database in {fresh}:\n{made.stderr.strip()}"
            )

    def _check_version(self, programs: Path, account: Account) -> None:
        ours = (self.pgdata / "PG_VERSION").read_text("ascii").strip()
        printed = account.run(str(programs / "postgres"), "--version").stdout
        found = re.search(r"\d+", printed)
        if found is None or found[0] != ours:
            raise EmbeddedPostgresError(
                f"The data in {self.pgdata} is of PostgreSQL {ours}, and the server here is "
                f"{printed.strip() or 'not able to run'}. Move the data over with pg_dump, or "
                "name another folder in PULSEGUARD_DATA_DIR."
            )

    def _recover(self, socket: Path) -> None:
        try:
            if processes_in(self.pgdata):
                self._progress("Ending the server that a killed PulseGuard left running")
                end_leftovers(self.pgdata)
        except TimeoutError as error:
            raise EmbeddedPostgresError(str(error)) from error
        clear_misleading_locks(self.pgdata, socket)

    @property
    def _defaults_file(self) -> Path:
        # Beside the cluster, not in it: what root writes may not lie in a folder of another user,
        # who could point it elsewhere with a link.
        return self.data_dir / "postgresql-defaults.conf"

    def _write_defaults(self) -> None:
        lines = [
            "# Written by PulseGuard at every start. To change a setting, use ALTER SYSTEM SET.",
            *(f"{name} = '{value}'" for name, value in _DEFAULTS.items()),
        ]
        fresh = self._defaults_file.with_suffix(".new")
        try:
            fresh.write_text("\n".join(lines) + "\n", "utf-8")
            fresh.chmod(0o644)
            fresh.replace(self._defaults_file)
        except OSError as error:
            raise EmbeddedPostgresError(
                f"Cannot write {fresh}: {error.strerror}. Make room there, and see that you may "
                "write to it."
            ) from error

    def _launch(self, programs: Path, account: Account, socket_dir: Path) -> None:
        uid, gid = (account.uid, account.gid) if account.switch else (-1, -1)
        settings = {**_FIXED, "unix_socket_directories": str(socket_dir), **self._settings}
        command = [
            # Should we die: PostgreSQL's fast and clean shutdown.
            *launched(signal.SIGINT, uid=uid, gid=gid),
            *(str(programs / "postgres"), "-D", str(self.pgdata)),
            *(f"--{name}={value}" for name, value in settings.items()),
        ]
        self._progress("Starting PostgreSQL")
        self._keeper = _Keeper(command, self._start_log)
        self._keeper.start()

    @property
    def _start_log(self) -> Path:
        return self.data_dir / "postgres-start.log"

    def _await_ready(self) -> None:
        keeper = self._keeper
        assert keeper is not None  # noqa: S101 - set by _launch
        waited = reported = 0.0
        while not keeper.exited.wait(_POLL_SECONDS):
            waited += _POLL_SECONDS
            file = read_postmaster_file(self.pgdata)
            if file is not None and file.pid == keeper.pid and file.ready:
                return
            if waited >= self._start_timeout:
                raise EmbeddedPostgresError(
                    f"PostgreSQL was not ready after {waited:.0f} s.{self._log_tail()}"
                )
            if waited - reported >= _REPORT_EVERY_SECONDS:
                reported = waited
                self._progress(
                    f"Waiting for PostgreSQL ({waited:.0f} s); after an unclean stop it first "
                    "replays its journal, which can take minutes"
                )
        said = self._log_tail()
        full = f" The disk of {self.data_dir} is full: make room on it." if _FULL in said else ""
        raise EmbeddedPostgresError(
            f"PostgreSQL ended while starting.{full}{said}"
        ) from keeper.failure

    def _log_tail(self) -> str:
        """Return the last lines of what the server said, for an error message."""
        by_age = sorted((self.pgdata / "log").glob("*.log"), key=lambda log: log.stat().st_mtime)
        logs = [self._start_log, *by_age[-1:]]
        said = [
            line
            for log in logs
            if log.exists()
            for line in log.read_text("utf-8", "replace").splitlines()[-8:]
        ]
        return "\n".join(["", "It said:", *said]) if said else ""


class _Keeper(threading.Thread):
    """Starts the server and waits for its end.

    A thread of its own, because the kernel counts the THREAD that started a process as its
    parent: started from any other, the server would be told that we died when that thread ends.
    """

    def __init__(self, command: list[str], output: Path) -> None:
        super().__init__(name="embedded-postgres", daemon=True)
        self.exited = threading.Event()
        self.failure: OSError | None = None
        self._command = command
        self._output = output
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The pid of the server, which the launcher becomes; None before it was started."""
        return self._process.pid if self._process else None

    def run(self) -> None:
        try:
            with self._output.open("wb") as output:
                self._process = subprocess.Popen(  # noqa: S603 - our own program, no shell
                    self._command,
                    cwd="/",
                    env=clean_environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    # Ctrl-C in the terminal is for us: we stop the server after its users.
                    start_new_session=True,
                )
            self._process.wait()
        except OSError as error:
            self.failure = error
        finally:
            self.exited.set()

    def end(self, patience: float) -> bool:
        """End the server: fast shutdown, then an immediate one. Whether it has ended."""
        # PostgreSQL kills its own children 5 s after an immediate shutdown, then ends.
        for way, seconds in ((signal.SIGINT, patience), (signal.SIGQUIT, 7.0)):
            if self.exited.is_set():
                break
            if self._process is not None:
                self._process.send_signal(way)
            self.exited.wait(seconds)
        return self.exited.is_set()


def socket_dsn(socket_dir: Path, database: str = DATABASE) -> str:
    """Return the URL of a database on the server that listens in `socket_dir`."""
    return f"postgresql://{ROLE}@/{database}?host={quote(str(socket_dir), safe='')}&port={_PORT}"


def running_dsn(data_dir: Path) -> str | None:
    """Return the URL of the embedded server that another process keeps in `data_dir`, if any.

    For commands beside a running `pulseguard up`. None: it does not run, is not ready, or belongs
    to a user whose processes we may not see.
    """
    pgdata = data_dir.expanduser().resolve() / _CLUSTER
    try:
        file = read_postmaster_file(pgdata)
    except PermissionError:
        return None
    if file is None or not file.ready or file.socket_dir is None:
        return None
    if file.pid not in {process.pid for process in processes_in(pgdata)}:
        return None
    return socket_dsn(file.socket_dir)


def _make_socket_dir(data_dir: Path, account: Account) -> Path:
    """Make the folder of the socket, which only the account can enter."""
    folder = data_dir / "postgres-socket"
    too_long = len(os.fsencode(folder / _SOCKET)) > _LONGEST_SOCKET_PATH
    # libpq reads a comma as a list of hosts, PostgreSQL a comma or a quote as a list of folders.
    if too_long or set(str(folder)) & set(",\"'\\\n"):
        name = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:12]
        folder = _runtime_dir(account) / f"pulseguard-{account.uid}-{name}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
        if account.switch:
            os.chown(folder, account.uid, account.gid)
    found = folder.lstat()
    # In a shared folder somebody may have been here first, to answer in the server's place.
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != account.uid or found.st_mode & 0o077:
        raise EmbeddedPostgresError(
            f"{folder} is meant for the server's socket, but it is not a folder that only "
            f"{account.name} can enter. Remove it and start again."
        )
    return folder


def _runtime_dir(account: Account) -> Path:
    own = os.environ.get("XDG_RUNTIME_DIR", "")
    # Root's own runtime folder is closed to the account.
    if own and not account.switch and len(own) < 60 and os.access(own, os.W_OK):
        return Path(own)
    return Path("/tmp")  # noqa: S108 - short, and guarded by the checks of the caller


def _make_database(socket_dir: Path) -> None:
    with psycopg.connect(socket_dsn(socket_dir, "postgres"), autocommit=True) as connection:
        known = connection.execute("SELECT FROM pg_database WHERE datname = %s", (DATABASE,))
        if known.fetchone() is None:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))
