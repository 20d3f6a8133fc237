"""A `pulseguard` that runs for a test, with everything it started."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import psutil
import psycopg
from playwright.sync_api import Browser, Page

from pulseguard_assets.running.instance import Folders, InstanceError, locked
from pulseguard_assets.warehouse.embedded import running_dsn
from pulseguard_assets.warehouse.postmaster import processes_in

HERE = Path(__file__).parent
# What CI keeps of a run.
ARTEFACTS = HERE.parent / "artefacts"
# A loaded machine starts four interpreters that import Dagster in this time, and more.
PATIENCE = 120.0
PULSEGUARD = (sys.executable, "-m", "pulseguard_assets.cli")
# What is served: the platform itself, or the least there can be, which starts sooner.
OURS = "pulseguard_assets.definitions"
STAND_IN = "stand_in_definitions"


def eventually(what: str, condition: Callable[[], object], *, within: float = PATIENCE) -> None:
    """Ask until it is so. Processes that are not our children cannot be awaited."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, f"not within {within:.0f} s: {what}"
        time.sleep(0.1)


class Up:
    """A `pulseguard` that runs, and everything it started."""

    def __init__(self, data_dir: Path, *arguments: str, **environment: str) -> None:
        self.data_dir = data_dir
        self.port = free_port()
        self.screen_file = data_dir.parent / f"{data_dir.name}-screen-{uuid.uuid4().hex}.txt"
        # Handed on to every process below, however deep.
        self._mark = uuid.uuid4().hex
        with self.screen_file.open("wb") as screen:
            self.process = subprocess.Popen(
                [*PULSEGUARD, *arguments, "--port", str(self.port)],
                env={
                    **_environment(),
                    "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]),
                    "MARK_OF_THIS_TEST": self._mark,
                    "PULSEGUARD_DATA_DIR": str(data_dir),
                    **environment,
                },
                cwd=data_dir.parent,
                stdin=subprocess.DEVNULL,
                stdout=screen,
                stderr=screen,
                start_new_session=True,
            )

    @property
    def screen(self) -> str:
        return self.screen_file.read_text("utf-8")

    def wait_until_up(self) -> None:
        eventually("up or ended", lambda: "To stop" in self.screen or self.code is not None)
        assert self.code is None, self.screen

    @property
    def code(self) -> int | None:
        return self.process.poll()

    def pid(self, child: str) -> int:
        """The pid of a child by what its log says last."""
        log = (self.folders.logs / f"{child}.log").read_text("utf-8")
        return int(re.findall(r"started as process (\d+)", log)[-1])

    @property
    def folders(self) -> Folders:
        return Folders(self.data_dir)

    def processes(self) -> list[str]:
        """All processes that descend from this `up`, and those of its server."""
        found = []
        for process in psutil.process_iter():
            try:
                marked = process.environ().get("MARK_OF_THIS_TEST") == self._mark
                if marked and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(f"{process.pid} {' '.join(process.cmdline())}")
            except psutil.Error:
                continue
        return found + [f"{p.pid} postgres" for p in processes_in(self.folders.root / "postgres")]

    def lock_is_free(self) -> bool:
        try:
            with locked(self.folders):
                return True
        except InstanceError:
            return False

    def web(self) -> bool:
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self.port}/server_info", timeout=5
            ) as r:
                return bool(r.status == 200)
        except OSError:
            return False

    def query(self, statement: str) -> int:
        dsn = running_dsn(self.folders.root)
        if dsn is None:
            return -1
        try:
            with psycopg.connect(dsn, connect_timeout=5) as connection:
                row = connection.execute(statement.encode()).fetchone()
        except psycopg.Error:
            return -1
        return int(row[0]) if row else -1

    def rows(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        """The rows of a statement, of a database that runs."""
        dsn = running_dsn(self.folders.root)
        assert dsn is not None
        with psycopg.connect(dsn) as connection:
            return connection.execute(statement.encode(), parameters).fetchall()

    def ticks(self) -> int:
        return self.query("SELECT count(*) FROM dagster.job_ticks WHERE status <> 'STARTED'")

    def ticks_go_on(self) -> None:
        before = self.ticks()
        eventually(f"more ticks than {before}", lambda: self.ticks() > before >= 0)

    def status(self, *options: str) -> tuple[int, str]:
        """The exit code of `pulseguard status`, and what it says."""
        done = self._beside("status", *options)
        assert "Traceback" not in done.stdout + done.stderr
        return done.returncode, done.stdout

    def reload(self) -> None:
        """Have its code loaded anew, as it is on disk now."""
        self._beside("reload").check_returncode()

    def _beside(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command in a shell in which nothing is set but the folder."""
        return subprocess.run(
            [*PULSEGUARD, *arguments],
            env={**_environment(), "PULSEGUARD_DATA_DIR": str(self.data_dir)},
            cwd=self.data_dir.parent,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def stop(self, signum: int) -> float:
        begun = time.monotonic()
        self.process.send_signal(signum)
        self.process.wait(60)
        return time.monotonic() - begun


def _environment() -> dict[str, str]:
    """This process's own, without settings of PulseGuard that it may have."""
    return {k: v for k, v in os.environ.items() if not k.startswith("PULSEGUARD_")}


def utc_now() -> datetime:
    """The present, in UTC."""
    return datetime.now(timezone.utc)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def open_page(browser: Browser, up: Up, path: str) -> Page:
    """A page of the web interface."""
    page = browser.new_page(viewport={"width": 1500, "height": 950})
    page.set_default_timeout(60_000)
    page.goto(f"http://127.0.0.1:{up.port}{path}")
    return page


def keep_picture(page: Page, name: str) -> None:
    """Keep what a page shows, and close it."""
    ARTEFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTEFACTS / f"{name}.png")
    page.close()
