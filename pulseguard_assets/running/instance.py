"""The data folder of a platform: what lies where, who may use it, and what must not grow.

Belongs here: files. Does not: processes, nor anything in PostgreSQL.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from pulseguard_assets.durable import write_durably
from pulseguard_assets.resources import shipped

# sockaddr_un holds 108 bytes on Linux and 104 on macOS, with the terminating zero.
_LONGEST_SOCKET = 100
COMPUTE_LOGS_KEPT = timedelta(days=7)

REAL = "real"
SIMULATED = "simulated"


class InstanceError(RuntimeError):
    """The data folder cannot be used; the message says what to change."""


class AlreadyRunning(InstanceError):  # noqa: N818 - reads as what it says
    """Another platform runs there."""


@dataclass(frozen=True)
class Folders:
    """Where things lie below the data folder `root`."""

    root: Path

    @property
    def dagster_home(self) -> Path:
        """Dagster's own folder: its configuration and what runs leave behind."""
        return self.root / "dagster"

    @property
    def logs(self) -> Path:
        """What the children print, a file each."""
        return self.root / "logs"

    @property
    def compute_logs(self) -> Path:
        """What steps print, a folder for each run."""
        return self.dagster_home / "compute-logs"

    @property
    def code_server_socket(self) -> Path:
        """The unix socket of the code server: the same at each start, and short enough.

        The same, because Dagster stores it in the origin of every run and sensor.
        """
        beside = self.dagster_home / "code-server.sock"
        if len(os.fsencode(beside)) <= _LONGEST_SOCKET:
            return beside
        name = hashlib.sha256(os.fsencode(self.root)).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"pulseguard-{os.geteuid()}-{name}" / "code.sock"

    @property
    def lock(self) -> Path:
        """Held by `up`, and by its guardian until the last child is gone."""
        return self.root / "platform.lock"

    @property
    def purpose(self) -> Path:
        """Says whether real or simulated prices are kept here."""
        return self.root / "purpose"


def prepare(folders: Folders) -> None:
    """Make the folders and put the current `dagster.yaml` into Dagster's.

    Raises:
        InstanceError: they cannot be made or written to.
    """
    try:
        for folder in (folders.dagster_home, folders.logs, folders.compute_logs):
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o700)
        _prepare_socket_folder(folders.code_server_socket.parent)
        shutil.copyfile(shipped("dagster.yaml"), folders.dagster_home / "dagster.yaml")
    except OSError as error:
        raise InstanceError(
            f"{error.filename or folders.root} cannot be written: {error.strerror}. Set "
            "PULSEGUARD_DATA_DIR to a folder that you may write to."
        ) from error


def _prepare_socket_folder(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    # In a shared temporary folder somebody else may have made it first.
    if folder.stat().st_uid != os.geteuid():
        raise InstanceError(
            f"{folder} belongs to somebody else. Set PULSEGUARD_DATA_DIR to a shorter path, so "
            "that the code server's socket fits into the data folder."
        )


@contextlib.contextmanager
def locked(folders: Folders) -> Iterator[int]:
    """Hold the data folder's lock; yields the descriptor for the guardian to inherit.

    It is not the lock of the embedded server, which is free as soon as `up` is dead: this one
    stays until the guardian has stopped what a killed `up` left behind.

    Raises:
        AlreadyRunning: another platform has it.
        InstanceError: the folder cannot be used.
    """
    descriptor = _open_lock(folders)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning(_who_runs(folders, descriptor)) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode("ascii"), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def _open_lock(folders: Folders) -> int:
    try:
        _make_root(folders.root)
        return os.open(folders.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise InstanceError(
            f"{folders.root} cannot be used: {error.strerror}. Set PULSEGUARD_DATA_DIR to a "
            "folder that you may write to."
        ) from error


def _make_root(root: Path) -> None:
    missing = [path for path in (root, *root.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        # Started by root, the embedded server runs as another account, which has to pass through.
        path.chmod(0o711 if os.geteuid() == 0 else 0o700)


def _who_runs(folders: Folders, descriptor: int) -> str:
    owner = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
    if owner.isdigit() and not _is_alive(int(owner)):
        return (
            f"The PulseGuard in {folders.root} was killed and its processes are still being "
            "stopped. Try again in a few seconds."
        )
    who = f"process {owner}" if owner.isdigit() else "another process"
    return (
        f"PulseGuard is already running in {folders.root} ({who}). Stop it first, or give this "
        "one a folder of its own with PULSEGUARD_DATA_DIR."
    )


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def running_pid(folders: Folders) -> int | None:
    """The pid of the `up` that runs in this folder; None when there is none."""
    try:
        with folders.lock.open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except BlockingIOError:
        text = folders.lock.read_text("ascii").strip()
        return int(text) if text.isdigit() and _is_alive(int(text)) else None
    return None


def claim(folders: Folders, purpose: str) -> None:
    """Set this folder aside for real or for simulated prices, for good.

    Raises:
        InstanceError: it was set aside for the other.
    """
    try:
        found = folders.purpose.read_text("utf-8").strip()
    except FileNotFoundError:
        found = ""
    if not found:
        # None yet, or one that lost its content in a power cut; the database knows its own as well.
        write_durably(folders.purpose, f"{purpose}\n")
    elif found != purpose:
        raise InstanceError(other_purpose(f"The data folder {folders.root}", found))


def other_purpose(place: str, found: str) -> str:
    """The refusal to mix: `place` holds `found` prices already."""
    way_out = (
        "`pulseguard demo` made it; name another one for real prices in PULSEGUARD_DATA_DIR or "
        "PULSEGUARD_DATABASE_URL."
        if found == SIMULATED
        else "Simulated prices would spoil them; give the demo another PULSEGUARD_DATA_DIR."
    )
    return f"{place} holds {found} prices. {way_out}"


def forget_old_compute_logs(
    folders: Folders, now: datetime, *, keep: timedelta = COMPUTE_LOGS_KEPT
) -> int:
    """Delete what runs printed longer ago than `keep`; returns how many runs that were.

    Dagster never does. The newest file of a run decides: one that still prints is kept.
    """
    oldest = (now - keep).timestamp()
    forgotten = 0
    for run in folders.compute_logs.glob("*"):
        with contextlib.suppress(FileNotFoundError):
            if run.is_dir() and _last_change(run) < oldest:
                shutil.rmtree(run)
                forgotten += 1
    return forgotten


def _last_change(folder: Path) -> float:
    return max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))
