"""`pulseguard up` with real processes: what it starts, restarts, refuses and leaves behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from up_support import PATIENCE, Up, eventually

from pulseguard_assets.warehouse.embedded import running_dsn
from pulseguard_assets.warehouse.postmaster import processes_in

# On a machine of its own it is 10; here several tests share two cores.
STOPS_WITHIN = 30.0

pytestmark = pytest.mark.timeout(600)


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
        # A backend may end by itself between our look and our blow.
        with suppress(psutil.NoSuchProcess):
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

    # Whether they stop in time depends on what else runs here; whether they can, on this.
    for child in ("code-server", "webserver", "daemon"):
        assert not {signal.SIGINT, signal.SIGTERM} & ignored_signals(after.pid(child)), child
    assert after.stop(signal.SIGTERM) < STOPS_WITHIN
    assert after.code == 0, after.screen
    assert after.processes() == []


def ignored_signals(pid: int) -> set[int]:
    """The numbers of the signals that a process ignores."""
    status = Path(f"/proc/{pid}/status").read_text("ascii")
    mask = int(status.split("SigIgn:")[1].split()[0], 16)
    return {number for number in range(1, 65) if mask >> (number - 1) & 1}


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


def test_code_that_cannot_be_loaded_is_told_by_its_setting_and_leaves_nothing_running(
    start: Callable[..., Up],
) -> None:
    up = start("demo", definitions="nowhere.prices")

    assert up.process.wait(PATIENCE) == 2

    assert "The code cannot be loaded: ModuleNotFoundError: No module named 'nowhere'" in up.screen
    assert "PULSEGUARD_DEFINITIONS" in up.screen
    assert "Traceback" not in up.screen
    assert not up.processes()


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
