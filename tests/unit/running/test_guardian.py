"""The guardian: what `up` leaves behind when it is killed, it stops."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pulseguard_assets.running import guardian

# Says when its handlers are in place, so that no test signals too early.
OBEDIENT = "import time; print(flush=True); time.sleep(60)"
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "print(flush=True); time.sleep(60)"
)


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes to be cleared away."""
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


def start(started: list[subprocess.Popen[bytes]], code: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", code], stdout=subprocess.PIPE, start_new_session=True
    )
    started.append(process)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_what_was_forgotten_is_not_watched_at_the_end() -> None:
    lines = ["watch 10 15\n", "watch 11 2\n", "forget 10\n", "forget 99\n", "watch 12 15\n"]
    assert guardian.watched_at_the_end(lines) == {11: 2, 12: 15}


def test_a_group_that_obeys_gets_its_own_signal_and_no_more(
    started: list[subprocess.Popen[bytes]],
) -> None:
    process = start(started, OBEDIENT)
    begun = time.monotonic()
    # A zombie's group still exists until its parent, this test, has waited for it.
    guardian.stop({process.pid: int(signal.SIGTERM)}, patience=0.5)
    assert process.wait(5) == -signal.SIGTERM
    assert time.monotonic() - begun < 5


def test_a_group_that_does_not_obey_is_killed(started: list[subprocess.Popen[bytes]]) -> None:
    process = start(started, STUBBORN)
    guardian.stop({process.pid: int(signal.SIGTERM)}, patience=0.3)
    assert process.wait(5) == -signal.SIGKILL


def test_children_of_children_go_with_their_group(
    started: list[subprocess.Popen[bytes]],
) -> None:
    code = (
        "import subprocess, sys, time\n"
        f"inner = subprocess.Popen([sys.executable, '-I', '-S', '-c', {STUBBORN!r}])\n"
        "print(inner.pid, flush=True)\n"
        "time.sleep(60)"
    )
    outer = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", code], stdout=subprocess.PIPE, start_new_session=True
    )
    started.append(outer)
    assert outer.stdout is not None
    lines = [outer.stdout.readline(), outer.stdout.readline()]
    inner = next(int(line) for line in lines if line.strip())
    guardian.stop({outer.pid: int(signal.SIGTERM)}, patience=0.3)
    outer.wait(5)
    # The pipe ends when its last holder is gone; a pid could be somebody else's by then.
    assert outer.stdout.read() == b""
    assert inner != outer.pid


def test_it_acts_when_its_input_ends_and_holds_the_lock_until_then(
    started: list[subprocess.Popen[bytes]],
) -> None:
    process = start(started, OBEDIENT)
    read_end, write_end = os.pipe()
    keeper = subprocess.Popen(
        [sys.executable, "-I", "-S", str(Path(guardian.__file__))],
        stdin=subprocess.PIPE,
        pass_fds=(write_end,),
        start_new_session=True,
    )
    started.append(keeper)
    os.close(write_end)
    assert keeper.stdin is not None
    keeper.stdin.write(f"watch {process.pid} {int(signal.SIGTERM)}\n".encode())
    keeper.stdin.flush()
    with pytest.raises(subprocess.TimeoutExpired):
        keeper.wait(0.3)
    assert process.poll() is None
    keeper.stdin.close()
    assert process.wait(5) == -signal.SIGTERM
    assert os.read(read_end, 1) == b""
    os.close(read_end)
    assert keeper.wait(10) == 0
