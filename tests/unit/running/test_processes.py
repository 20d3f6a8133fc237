"""The list of processes that a platform keeps in a file, and whom it takes for alive."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from pulseguard_assets.running.instance import Folders
from pulseguard_assets.running.probes import NotServing
from pulseguard_assets.running.processes import (
    UP,
    ProcessFile,
    ProcessList,
    ProcessRecord,
    processes_file,
    read_processes,
    record_of,
    write_processes,
)
from pulseguard_assets.running.supervisor import ChildFailed, ChildSpec, Guardian, Rules, Supervisor

MakeSpec = Callable[..., ChildSpec]
NOON = datetime(2026, 11, 22, 12, tzinfo=timezone.utc)
SLEEP = "import time; time.sleep(60)"
QUICK = Rules(first_delay=0.02, longest_delay=0.1, probe_every=0.05, probe_every_starting=0.02)


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that does nothing."""
    process = subprocess.Popen([sys.executable, "-I", "-S", "-c", SLEEP])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def silent(sentence: str) -> None:
    raise AssertionError(sentence)


# --- the file ---


def test_what_is_written_is_read(tmp_path: Path) -> None:
    folders = Folders(tmp_path)
    daemon = record_of("daemon", os.getpid(), at=NOON)

    with ProcessFile(folders, silent) as file:
        empty = read_processes(folders)
        file.write([daemon, replace(daemon.now("restarting", at=NOON), name="lookout")])
        full = read_processes(folders)

    assert empty is not None
    assert (empty.up.name, empty.up.pid, empty.up.state) == (UP, os.getpid(), "running")
    assert empty.children == ()
    assert full is not None
    assert full.up == empty.up
    assert full.children[0] == daemon
    assert [child.name for child in full.children] == ["daemon", "lookout"]


def test_the_list_goes_with_its_platform(tmp_path: Path) -> None:
    folders = Folders(tmp_path)

    with ProcessFile(folders, silent):
        pass

    assert read_processes(folders) is None
    assert list(tmp_path.iterdir()) == []


def test_a_platform_that_never_got_so_far_leaves_the_list_of_another_alone(tmp_path: Path) -> None:
    folders = Folders(tmp_path)
    with ProcessFile(folders, silent):
        ProcessFile(folders, silent).remove()
        assert read_processes(folders) is not None


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"up": {}, "children": []}', "\xff"])
def test_a_list_that_cannot_be_read_is_none(tmp_path: Path, content: str) -> None:
    processes_file(Folders(tmp_path)).write_bytes(content.encode("latin-1"))
    assert read_processes(Folders(tmp_path)) is None


def test_a_reader_sees_the_old_list_or_the_new_one(tmp_path: Path) -> None:
    file = processes_file(Folders(tmp_path))
    up = record_of(UP, os.getpid())
    write_processes(file, ProcessList(up))
    with file.open("rb") as reader:
        half = reader.read(10)
        write_processes(file, ProcessList(up, (up,)))
        old = json.loads(half + reader.read())
    assert old["children"] == []
    found = read_processes(Folders(tmp_path))
    assert found is not None
    assert found.children == (up,)


def test_a_list_that_cannot_be_written_is_said_once_and_stops_nobody(tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "data").mkdir()
    file = ProcessFile(Folders(tmp_path / "data"), said.append)
    (tmp_path / "data").rmdir()

    file.write(())
    file.write(())

    assert len(said) == 1
    assert "processes.json cannot be written: No such file or directory." in said[0]
    (tmp_path / "data").mkdir()
    file.write(())
    (tmp_path / "data" / "processes.json").unlink()
    (tmp_path / "data").rmdir()
    file.write(())
    assert len(said) == 2


# --- who is alive ---


def test_a_process_is_alive_suspended_and_gone(sleeper: subprocess.Popen[bytes]) -> None:
    record = record_of("daemon", sleeper.pid)
    assert record.condition == "alive"

    sleeper.send_signal(signal.SIGSTOP)
    os.waitpid(sleeper.pid, os.WUNTRACED)
    assert record.condition == "suspended"

    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert record.condition == "gone"  # a zombie: nobody has asked how it ended

    sleeper.wait()
    assert record.condition == "gone"


def test_a_stranger_with_the_same_pid_is_not_taken_for_the_process(
    sleeper: subprocess.Popen[bytes],
) -> None:
    record = record_of("daemon", sleeper.pid)
    assert record.born is not None
    assert replace(record, born=record.born - 3).condition == "gone"
    assert replace(record, born=record.born + 3).condition == "gone"
    assert replace(record, born=None).condition == "gone"


def test_setting_the_clock_kills_nobody(
    sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    record = record_of("daemon", sleeper.pid)
    import psutil

    boot = psutil.boot_time()
    created = psutil.Process.create_time
    # What Linux says of both follows the clock.
    monkeypatch.setattr(psutil, "boot_time", lambda: boot + 3600)
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: created(self) + 3600)
    assert record.condition == "alive"


# --- kept current by the supervisor ---


class Lists:
    """The lists that were published, as `name state restarts`, without repetitions."""

    def __init__(self) -> None:
        self.seen: list[list[str]] = []
        self.newest: list[ProcessRecord] = []

    def __call__(self, records: Sequence[ProcessRecord]) -> None:
        self.newest = list(records)
        told = [f"{each.name} {each.state} {each.restarts}" for each in records]
        if told not in self.seen[-1:]:
            self.seen.append(told)

    async def until(self, *told: str) -> None:
        async def wait() -> None:
            while list(told) not in self.seen:
                await asyncio.sleep(0.01)

        await asyncio.wait_for(wait(), 20)


def supervised(folder: Path, scenario: Callable[[Supervisor, Lists], object]) -> Lists:
    lists = Lists()

    async def run() -> None:
        guardian = Guardian()
        await guardian.start()
        async with Supervisor(
            logs=folder / "logs",
            guardian=guardian,
            say=lambda _: None,
            publish=lists,
            rules=QUICK,
        ) as supervisor:
            await scenario(supervisor, lists)  # type: ignore[misc]
        await guardian.close()

    asyncio.run(run())
    return lists


def test_a_start_and_a_stop_are_published(child: MakeSpec, tmp_path: Path) -> None:
    async def scenario(supervisor: Supervisor, lists: Lists) -> None:
        await supervisor.start(child(SLEEP, name="first"))
        await supervisor.start(child(SLEEP, name="second", needs=("first",)))
        assert [each.pid for each in lists.newest] == list(supervisor.pids.values())
        assert all(each.condition == "alive" for each in lists.newest)
        assert all(each.not_serving_since is None for each in lists.newest)

    lists = supervised(tmp_path, scenario)
    assert lists.seen == [
        ["first starting 0"],
        ["first running 0"],
        ["first running 0", "second starting 0"],
        ["first running 0", "second running 0"],
        ["first running 0", "second stopped 0"],
        ["first stopped 0", "second stopped 0"],
    ]
    assert {each.condition for each in lists.newest} == {"gone"}


def test_a_death_and_the_return_are_published(child: MakeSpec, tmp_path: Path) -> None:
    async def scenario(supervisor: Supervisor, lists: Lists) -> None:
        await supervisor.start(child(SLEEP))
        first = lists.newest[0]
        os.kill(first.pid, signal.SIGKILL)
        await lists.until("child restarting 0")
        away = lists.newest[0]
        assert away.not_serving_since is not None
        assert away.not_serving_since >= first.started_at
        await lists.until("child running 1")
        back = lists.newest[0]
        assert back.pid == supervisor.pids["child"] != first.pid
        assert (back.condition, back.not_serving_since) == ("alive", None)
        assert back.started_at > first.started_at

    lists = supervised(tmp_path, scenario)
    assert ["child restarting 1"] in lists.seen  # started again, and not serving yet


def test_a_child_that_keeps_failing_has_been_away_since_the_first_failure(
    child: MakeSpec, tmp_path: Path
) -> None:
    ready = tmp_path / "ready"
    ready.touch()
    away: set[datetime | None] = set()

    async def probe() -> None:
        if not ready.exists():
            raise NotServing("it is not ready")

    async def scenario(supervisor: Supervisor, lists: Lists) -> None:
        await supervisor.start(child(SLEEP, probe=probe, ready_within=0.05))
        ready.unlink()
        os.kill(supervisor.pids["child"], signal.SIGKILL)
        await lists.until("child restarting 1")
        away.add(lists.newest[0].not_serving_since)
        await lists.until("child restarting 3")
        away.add(lists.newest[0].not_serving_since)

    supervised(tmp_path, scenario)
    assert len(away) == 1
    assert None not in away


def test_a_child_that_does_not_come_up_is_published_as_stopped(
    child: MakeSpec, tmp_path: Path
) -> None:
    async def probe() -> None:
        raise NotServing("never")

    async def scenario(supervisor: Supervisor, lists: Lists) -> None:
        with pytest.raises(ChildFailed):
            await supervisor.start(child(SLEEP, probe=probe, ready_within=0.05))
        assert lists.seen == [["child starting 0"], ["child stopped 0"]]
        assert lists.newest[0].condition == "gone"

    supervised(tmp_path, scenario)


def test_serving_again_after_long_ends_the_time_away() -> None:
    record = record_of("daemon", os.getpid(), at=NOON)
    away = record.now("running").now("restarting", at=NOON + timedelta(hours=1))
    assert away.not_serving_since == NOON + timedelta(hours=1)
    assert away.now("running").not_serving_since is None
