"""What is found of a platform that was killed together with its guardian, and ended."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pulseguard_assets.running.instance import Folders
from pulseguard_assets.running.leftovers import MARK, end_leftovers

Start = Callable[[Path], "subprocess.Popen[bytes]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """`start(folder)`: something that a platform in this folder might have started."""
    started: list[subprocess.Popen[bytes]] = []

    def start(folder: Path) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", "import time; print(flush=True); time.sleep(60)"],
            env={MARK: str(Folders(folder).code_server_socket)},
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        started.append(process)
        assert process.stdout is not None
        process.stdout.readline()
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_what_a_platform_of_this_folder_left_running_is_ended_and_nothing_else(
    tmp_path: Path, start: Start
) -> None:
    ours, another = start(tmp_path / "ours"), start(tmp_path / "another")
    # As init does for an orphan: a zombie would count as running.
    reaper = threading.Thread(target=ours.wait)
    reaper.start()
    assert end_leftovers(Folders(tmp_path / "ours")) == 1
    reaper.join(10)
    assert ours.returncode is not None
    assert another.poll() is None
    assert end_leftovers(Folders(tmp_path / "ours")) == 0
