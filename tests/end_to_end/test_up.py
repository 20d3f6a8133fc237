"""`pulseguard up` with real processes: what it starts, restarts, refuses and leaves behind."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from pulseguard_assets.running.instance import Folders, InstanceError, locked
from pulseguard_assets.warehouse.embedded import running_dsn
from pulseguard_assets.warehouse.postmaster import processes_in

HERE = Path(__file__).parent
# A loaded machine starts four interpreters that import Dagster in this time, and more.
PATIENCE = 120.0
STOPS_WITHIN = 10.0

pytestmark = pytest.mark.timeout(600)


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
        kept = {k: v for k, v in os.environ.items() if not k.startswith("PULSEGUARD_")}
        with self.screen_file.open("wb") as screen:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "run_up.py"), *arguments, "--port", str(self.port)],
                env={
                    **kept,
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

    def ticks(self) -> int:
        return self.query("SELECT count(*) FROM dagster.job_ticks WHERE status <> 'STARTED'")

    def ticks_go_on(self) -> None:
        before = self.ticks()
        eventually(f"more ticks than {before}", lambda: self.ticks() > before >= 0)

    def stop(self, signum: int) -> float:
        begun = time.monotonic()
        self.process.send_signal(signum)
        self.process.wait(60)
        return time.monotonic() - begun


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., Up]]:
    """`start("up")` or `start("demo")`, with environment variables as keywords."""
    started: list[Up] = []

    def start(*arguments: str, **environment: str) -> Up:
        data_dir = folder / "data"
        started.append(Up(data_dir, *arguments, **environment))
        if "demo" in arguments:
            started[-1].data_dir = data_dir / "demo"
        return started[-1]

    yield start
    # All of them first: they may have shared one data folder, one after the other.
    for one in started:
        if one.code is None:
            one.process.kill()
            one.process.wait()
    eventually("all is gone", lambda: not any(one.processes() for one in started), within=30)


def test_whatever_dies_is_started_again_and_a_ctrl_c_leaves_nothing_behind(
    start: Callable[..., Up],
) -> None:
    demo = start("demo")
    demo.wait_until_up()
    assert f"http://127.0.0.1:{demo.port}" in demo.screen
    assert "none of them real" in demo.screen
    demo.ticks_go_on()

    second = start("demo")
    assert second.process.wait(60) == 2
    assert f"is already running in {demo.data_dir} (process {demo.process.pid})" in second.screen
    assert "Traceback" not in second.screen

    for child in ("simulator", "code-server", "webserver", "daemon"):
        before = demo.pid(child)
        os.kill(before, signal.SIGKILL)
        eventually(f"{child} is back", lambda child=child: demo.screen.count(f"{child} is back"))  # type: ignore[misc]
        assert demo.pid(child) != before
    assert demo.web()
    demo.ticks_go_on()

    server = processes_in(demo.data_dir / "postgres")
    for process in server:
        process.kill()
    eventually("the database is back", lambda: "The database is back" in demo.screen)
    demo.ticks_go_on()

    assert demo.stop(signal.SIGINT) < STOPS_WITHIN
    assert demo.code == 0, demo.screen
    assert "Stopped." in demo.screen
    assert demo.processes() == []
    assert demo.lock_is_free()


def test_a_killed_up_takes_everything_with_it_and_the_next_one_finds_what_was_collected(
    start: Callable[..., Up],
) -> None:
    first = start("up")
    first.wait_until_up()
    first.ticks_go_on()
    running = "SELECT count(*) FROM dagster.runs WHERE status = 'STARTED'"
    eventually("a run is under way", lambda: first.query(running) == 1)
    ticks = first.ticks()
    first.process.kill()
    first.process.wait()
    eventually("everything is gone", lambda: not first.processes(), within=STOPS_WITHIN)
    eventually("the folder is free", first.lock_is_free, within=STOPS_WITHIN)

    # A shell's `&` and nohup start programs with SIGINT ignored, and Dagster then ignores
    # SIGTERM too, unless somebody puts the handlers back.
    with_sigint_ignored = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        after = start("up")
    finally:
        signal.signal(signal.SIGINT, with_sigint_ignored)
    after.wait_until_up()
    assert after.ticks() >= ticks
    after.ticks_go_on()
    lost = "SELECT count(*) FROM dagster.runs WHERE status = 'FAILURE'"
    eventually("the lost run is known as failed", lambda: after.query(lost) >= 1)

    assert after.stop(signal.SIGTERM) < STOPS_WITHIN
    assert after.code == 0, after.screen
    assert "killed" not in after.screen
    assert after.processes() == []


def test_a_run_in_progress_is_told_to_stop_with_the_platform(start: Callable[..., Up]) -> None:
    up = start("up")
    up.wait_until_up()
    running = "SELECT count(*) FROM dagster.runs WHERE status = 'STARTED'"
    eventually("a run is under way", lambda: up.query(running) == 1)
    assert up.stop(signal.SIGTERM) < STOPS_WITHIN
    assert up.code == 0
    assert up.processes() == []

    again = start("up")
    again.wait_until_up()
    assert again.query("SELECT count(*) FROM dagster.runs WHERE status = 'STARTED'") == 0
    # A second Ctrl-C does not wait for anything.
    again.process.send_signal(signal.SIGINT)
    eventually("it stops", lambda: "Stopping" in again.screen, within=5)
    if again.code is None:
        again.process.send_signal(signal.SIGINT)
    assert again.process.wait(3) in (130, 0)
    eventually("everything is gone", lambda: not again.processes(), within=STOPS_WITHIN)


def test_simulated_and_real_prices_are_never_mixed(start: Callable[..., Up], folder: Path) -> None:
    demo = start("demo")
    demo.wait_until_up()
    dsn = running_dsn(demo.data_dir)
    assert dsn is not None

    on_its_folder = start("up", PULSEGUARD_DATA_DIR=str(demo.data_dir))
    assert on_its_folder.process.wait(60) == 2
    on_its_database = start("up", PULSEGUARD_DATABASE_URL=dsn)
    assert on_its_database.process.wait(60) == 2
    assert "Another PulseGuard already runs on this database" in on_its_database.screen
    assert f"process {demo.process.pid} on" in on_its_database.screen

    demo.stop(signal.SIGTERM)
    afterwards = start("up", PULSEGUARD_DATA_DIR=str(demo.data_dir))
    assert afterwards.process.wait(60) == 2
    assert "holds simulated prices" in afterwards.screen
