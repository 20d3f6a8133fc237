"""Which processes a platform consists of at this moment, in a file that needs no database to read.

Belongs here: writing the list, reading it, and telling a process from another that was given its
pid since. Does not: starting or stopping any (`supervisor.py`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import psutil  # type: ignore[import-untyped]

from pulseguard_assets.running.instance import Folders

State = Literal["starting", "running", "restarting", "stopped"]
Condition = Literal["alive", "suspended", "gone"]

UP = "up"
# Of clocks and of rounding. No pid is given to another process that was started so soon after.
_SAME_START_SECONDS = 2.0


@dataclass(frozen=True)
class ProcessRecord:
    """A process, as whoever keeps it running has written it down.

    Attributes:
        name: of the child; `up` for the one that keeps the others.
        state: `starting` until it serves for the first time, `restarting` from a failure until it
            serves again, `stopped` for good.
        pid: of the process that runs it, or ran it last.
        started_at: when that was started, UTC.
        restarts: how often it was replaced.
        not_serving_since: UTC; None while it is `running`.
        born: seconds from the machine's start to the process's; None: it was gone already.
    """

    name: str
    state: State
    pid: int
    started_at: datetime
    restarts: int
    not_serving_since: datetime | None
    born: float | None

    def now(self, state: State, *, at: datetime | None = None) -> ProcessRecord:
        """The same process in another state, since `at`."""
        at = at or datetime.now(timezone.utc)
        since = None if state == "running" else self.not_serving_since or at
        return replace(self, state=state, not_serving_since=since)

    def replaced_by(self, fresh: ProcessRecord) -> ProcessRecord:
        """Its successor, which has not shown yet that it serves."""
        return replace(
            fresh,
            state=self.state,
            restarts=self.restarts + 1,
            not_serving_since=self.not_serving_since,
        )

    @property
    def condition(self) -> Condition:
        """What the system says of it now. A zombie, or a stranger with its pid, counts as gone."""
        try:
            process = psutil.Process(self.pid)
            born, status = _born(process), process.status()
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            return "gone"
        except psutil.AccessDenied:  # not on Linux; there is a process, and no more is told
            return "alive"
        if status == psutil.STATUS_ZOMBIE:
            return "gone"
        if self.born is None or abs(born - self.born) > _SAME_START_SECONDS:
            return "gone"
        return "suspended" if status == psutil.STATUS_STOPPED else "alive"


@dataclass(frozen=True)
class ProcessList:
    """A platform: the process that keeps it, and its children in the order of their start."""

    up: ProcessRecord
    children: tuple[ProcessRecord, ...] = ()


def record_of(name: str, pid: int, *, at: datetime | None = None) -> ProcessRecord:
    """The record of a process that was started just now."""
    at = at or datetime.now(timezone.utc)
    try:
        born = _born(psutil.Process(pid))
    except psutil.Error:
        born = None
    return ProcessRecord(name, "starting", pid, at, 0, at, born)


def _born(process: psutil.Process) -> float:
    # Not the time of day: that of a process that runs changes when the clock is set. Asked in this
    # order, since older versions of psutil keep what they were told of the machine's start.
    machine = psutil.boot_time()
    return round(float(process.create_time()) - float(machine), 2)


def processes_file(folders: Folders) -> Path:
    """Where the list of a platform lies."""
    return folders.root / "processes.json"


class ProcessFile:
    """The list of this platform, for as long as it runs. A context manager: leaving removes it.

    Args:
        folders: of the platform.
        say: is told when it cannot be written. That is no reason to stop a platform.
    """

    def __init__(self, folders: Folders, say: Callable[[str], None]) -> None:
        self._path = processes_file(folders)
        self._say = say
        self._up = record_of(UP, os.getpid()).now("running")
        self._written = False
        self._complaint = ""

    def __enter__(self) -> ProcessFile:
        self.write(())
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def write(self, children: Sequence[ProcessRecord]) -> None:
        """Replace the list. Who reads sees the old one or the new one, never half of one."""
        try:
            write_processes(self._path, ProcessList(self._up, tuple(children)))
            self._written = True
        except OSError as error:
            complaint = f"{self._path} cannot be written: {error.strerror}. Free some space there."
            if complaint != self._complaint:
                self._say(complaint)
            self._complaint = complaint
        else:
            self._complaint = ""

    def remove(self) -> None:
        """This platform has stopped. Harmless when it wrote none: another's is left alone."""
        if not self._written:
            return
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            self._say(f"{self._path} cannot be removed: {error.strerror}. Remove it by hand.")


def write_processes(file: Path, processes: ProcessList) -> None:
    """Replace a list by another.

    Raises:
        OSError: it cannot be written; the old one is as it was.
    """
    children = [_plain(child) for child in processes.children]
    text = json.dumps({"up": _plain(processes.up), "children": children}, indent=2)
    fresh = file.with_suffix(".new")
    fresh.write_text(f"{text}\n", "utf-8")
    fresh.replace(file)


def read_processes(folders: Folders) -> ProcessList | None:
    """The list in a data folder; None if there is none, or none that can be read.

    It proves nothing: a platform that was killed leaves it behind. Ask `condition`.
    """
    try:
        found = json.loads(processes_file(folders).read_text("utf-8"))
        return ProcessList(_record(found["up"]), tuple(_record(each) for each in found["children"]))
    except (OSError, ValueError, KeyError, TypeError):
        # After a power cut it may be empty, and another version may have written it otherwise.
        return None


def _plain(record: ProcessRecord) -> dict[str, Any]:
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in asdict(record).items()
    }


def _record(found: dict[str, Any]) -> ProcessRecord:
    times = {
        name: None if found[name] is None else datetime.fromisoformat(found[name])
        for name in ("started_at", "not_serving_since")
    }
    return ProcessRecord(**{**found, **times})
