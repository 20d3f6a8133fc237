"""What a data folder of PostgreSQL tells about the server in it, dead or alive.

Belongs here: reading `postmaster.pid`, finding and ending the processes of a folder, clearing the
lock files that would stop the next server for no reason. Does not: starting one.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]

# postmaster.pid, line by line: src/include/utils/pidfile.h of PostgreSQL.
_PID, _PORT, _SOCKET_DIR, _STATUS = 0, 3, 4, 7


@dataclass(frozen=True)
class PostmasterFile:
    """The content of `postmaster.pid`. It proves nothing: a killed server leaves it behind."""

    pid: int
    port: int | None
    socket_dir: Path | None
    status: str  # starting, stopping, ready, standby, or empty: not written yet

    @property
    def ready(self) -> bool:
        """Whether its writer accepted connections when it last wrote."""
        return self.status == "ready"


def read_postmaster_file(pgdata: Path) -> PostmasterFile | None:
    """Read `<pgdata>/postmaster.pid`; None if it is missing or not written to its first line."""
    try:
        lines = (pgdata / "postmaster.pid").read_text("utf-8", "replace").splitlines()
    except FileNotFoundError:
        return None
    fields = [line.strip() for line in lines] + [""] * (_STATUS + 1 - len(lines))
    if not fields[_PID].lstrip("-").isdigit():
        return None
    return PostmasterFile(
        pid=abs(int(fields[_PID])),
        port=int(fields[_PORT]) if fields[_PORT].isdigit() else None,
        socket_dir=Path(fields[_SOCKET_DIR]) if fields[_SOCKET_DIR] else None,
        status=fields[_STATUS],
    )


def processes_in(pgdata: Path) -> list[psutil.Process]:
    """Return every process of a server on `pgdata`, recognised by its working folder.

    A pid in a file may long belong to somebody else; the working folder of a live process cannot
    lie. All processes of a server have its data folder as theirs. Root in a container often may
    not see it (it lacks CAP_SYS_PTRACE): there the head of a server is known by its command line,
    and the rest by being its children.
    """
    wanted = str(pgdata.resolve())
    servers = [
        process
        for process in psutil.process_iter(["name", "cwd", "cmdline", "ppid"])
        if process.info["name"] == "postgres"
    ]
    heads = {process.pid for process in servers if ["-D", wanted] == _data_option(process)}
    return [
        process
        for process in servers
        if process.info["cwd"] == wanted
        or (process.info["cwd"] is None and heads & {process.pid, process.info["ppid"]})
    ]


def end_leftovers(pgdata: Path, *, patience: float = 60.0) -> bool:
    """End the server that a killed owner left running on `pgdata`, and wait until it is gone.

    Args:
        pgdata: the data folder.
        patience: seconds allowed for the clean shutdown, before the harder ways are tried.

    Returns:
        Whether there was one.

    Raises:
        TimeoutError: a process would not end even by SIGKILL.
    """
    leftovers = processes_in(pgdata)
    if not leftovers:
        return False
    file = read_postmaster_file(pgdata)
    head = [process for process in leftovers if file is not None and process.pid == file.pid]
    if head:
        _signal(head, signal.SIGINT)
        psutil.wait_procs(leftovers, timeout=patience)
    # Without its head a server is already lost; its journal makes the next start whole again.
    for harder, seconds in ((signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0)):
        leftovers = processes_in(pgdata)
        _signal(leftovers, harder)
        psutil.wait_procs(leftovers, timeout=seconds)
    if stubborn := processes_in(pgdata):
        raise TimeoutError(
            f"Processes {', '.join(str(process.pid) for process in stubborn)} of an earlier "
            f"server still hold {pgdata} and do not end. End them, then start again."
        )
    return True


def clear_misleading_locks(pgdata: Path, socket: Path) -> None:
    """Remove lock files that are empty, or whose pid has been given to a stranger since.

    PostgreSQL refuses to start when `postmaster.pid`, or the lock of its socket, is empty or names
    a live process, and after a reboot that often is something else. Files that name a dead one are
    left to PostgreSQL, which also looks for shared memory still in use before it removes them.
    Call this only while no process of the folder runs, and under the folder's lock.
    """
    for lock in (pgdata / "postmaster.pid", socket.with_name(f"{socket.name}.lock")):
        if not lock.exists():
            continue
        pid = _first_number(lock)
        if pid is None or psutil.pid_exists(pid):
            lock.unlink()


def _data_option(process: psutil.Process) -> list[str]:
    return list((process.info["cmdline"] or [])[1:3])


def _first_number(path: Path) -> int | None:
    first = path.read_text("utf-8", "replace").split(maxsplit=1)[:1]
    digits = first[0].lstrip("-") if first else ""
    return int(digits) if digits.isdigit() else None


def _signal(processes: list[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        try:
            os.kill(process.pid, number)
        except ProcessLookupError:
            continue
