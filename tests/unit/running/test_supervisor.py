"""The supervisor, with real processes of one line each."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from pulseguard_assets.running.guardian import signal_group
from pulseguard_assets.running.probes import NotServing
from pulseguard_assets.running.supervisor import (
    ChildFailed,
    ChildSpec,
    Guardian,
    Rules,
    StopSignals,
    Supervisor,
)

DIES = "raise SystemExit('the port is taken')"
MakeSpec = Callable[..., ChildSpec]
QUICK = Rules(
    first_delay=0.02,
    longest_delay=0.1,
    probe_every=0.05,
    probe_every_starting=0.02,
    misses=2,
    stop_within=1.0,
)
SLEEP = "import time; time.sleep(60)"


class Heard:
    """The sentences said, and a way to wait for one."""

    def __init__(self) -> None:
        self.sentences: list[str] = []
        self._news = asyncio.Event()

    def __call__(self, sentence: str) -> None:
        self.sentences.append(sentence)
        self._news.set()

    async def wait_for(self, part: str, times: int = 1) -> None:
        async def until_said() -> None:
            while sum(part in sentence for sentence in self.sentences) < times:
                self._news.clear()
                await self._news.wait()

        await asyncio.wait_for(until_said(), 20)


@asynccontextmanager
async def supervising(
    folder: Path, rules: Rules = QUICK
) -> AsyncIterator[tuple[Supervisor, Heard]]:
    heard = Heard()
    guardian = Guardian()
    await guardian.start()
    async with Supervisor(
        logs=folder / "logs", guardian=guardian, say=heard, rules=rules
    ) as supervisor:
        yield supervisor, heard
    await guardian.close()


def file_probe(path: Path) -> Callable[[], Awaitable[None]]:
    async def probe() -> None:
        if not path.exists():
            raise NotServing(f"there is no {path.name}")

    return probe


async def gone(pid: int) -> None:
    while signal_group(pid, 0):
        await asyncio.sleep(0.01)


def test_delays_double_up_to_the_longest() -> None:
    rules = Rules(first_delay=1, longest_delay=60)
    assert [rules.delay(n) for n in (1, 2, 3, 6, 7, 10_000)] == [1, 2, 4, 32, 60, 60]


def test_a_child_is_up_when_its_probe_says_so(child: MakeSpec, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    spec = child(
        f"import time; time.sleep(.1); open({str(ready)!r}, 'w').close(); time.sleep(60)",
        probe=file_probe(ready),
    )

    async def scenario() -> None:
        async with supervising(tmp_path) as (supervisor, _):
            await supervisor.start(spec)
            assert ready.exists()
            assert list(supervisor.pids) == ["child"]

    asyncio.run(scenario())


def test_a_child_that_dies_while_starting_is_noticed_at_once_with_its_last_words(
    child: MakeSpec, tmp_path: Path
) -> None:
    spec = child(DIES, probe=file_probe(tmp_path / "never"), ready_within=60)

    async def scenario() -> None:
        async with supervising(tmp_path) as (supervisor, _):
            with pytest.raises(ChildFailed, match="exit code 1") as failure:
                await supervisor.start(spec)
            assert "the port is taken" in str(failure.value)
            assert str(tmp_path / "logs" / "child.log") in str(failure.value)

    begun = time.monotonic()
    asyncio.run(scenario())
    assert time.monotonic() - begun < 20


def test_a_child_that_does_not_start_is_told_in_the_words_of_who_can_read_its_log(
    child: MakeSpec, tmp_path: Path
) -> None:
    spec = child(
        DIES,
        probe=file_probe(tmp_path / "never"),
        ready_within=60,
        explanation=lambda log: f"It said {log.read_text().splitlines()[-1]!r}.",
    )

    async def scenario() -> None:
        async with supervising(tmp_path) as (supervisor, _):
            with pytest.raises(ChildFailed) as failure:
                await supervisor.start(spec)
            log = tmp_path / "logs" / "child.log"
            assert str(failure.value) == (
                f"The child did not start. It said 'the port is taken'. See {log}"
            )

    asyncio.run(scenario())


def test_a_child_that_never_serves_is_given_up_and_stopped(child: MakeSpec, tmp_path: Path) -> None:
    spec = child(SLEEP, probe=file_probe(tmp_path / "never"), ready_within=0.2)

    async def scenario() -> None:
        async with supervising(tmp_path) as (supervisor, _):
            with pytest.raises(ChildFailed, match="not ready after 0 s: there is no never"):
                await supervisor.start(spec)
            await asyncio.wait_for(gone(supervisor.pids["child"]), 5)

    asyncio.run(scenario())


def test_a_killed_child_comes_back_and_what_it_had_started_is_killed(
    child: MakeSpec, tmp_path: Path
) -> None:
    spec = child(
        "import subprocess, sys, time\n"
        f"inner = subprocess.Popen([sys.executable, '-I', '-S', '-c', {SLEEP!r}])\n"
        f"open({str(tmp_path / 'ready')!r}, 'w').write(str(inner.pid))\n"
        "time.sleep(60)",
        probe=file_probe(tmp_path / "ready"),
    )

    async def scenario() -> None:
        async with supervising(tmp_path) as (supervisor, heard):
            await supervisor.start(spec)
            first = supervisor.pids["child"]
            os.kill(first, signal.SIGKILL)
            await heard.wait_for("child was ended by SIGKILL; starting it again")
            await heard.wait_for("child is back")
            assert supervisor.pids["child"] != first
            await asyncio.wait_for(gone(first), 5)

    asyncio.run(scenario())


def test_a_child_that_keeps_failing_is_tried_ever_more_slowly(
    child: MakeSpec, tmp_path: Path
) -> None:
    rules = Rules(first_delay=0.01, longest_delay=0.04, healthy_after=60)

    async def scenario() -> list[str]:
        async with supervising(tmp_path, rules) as (supervisor, heard):
            await supervisor.start(child("pass"))
            await heard.wait_for("ended by itself with exit code 0", times=4)
            return [s for s in heard.sentences if "starting it again" in s]

    sentences = asyncio.run(scenario())
    assert len(sentences) >= 4
    log = (tmp_path / "logs" / "child.log").read_text("utf-8")
    assert log.count("started as process") >= 4


def test_a_healthy_while_makes_the_next_failure_a_first_one(
    child: MakeSpec, tmp_path: Path
) -> None:
    # It counts as healthy at once, so that the delay must never grow.
    rules = Rules(first_delay=0.01, longest_delay=30, healthy_after=0)

    async def scenario() -> None:
        async with supervising(tmp_path, rules) as (supervisor, heard):
            await supervisor.start(child("pass"))
            await heard.wait_for("child is back", times=15)

    asyncio.run(scenario())


def test_a_child_that_hangs_is_replaced(child: MakeSpec, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    spec = child(f"open({str(ready)!r}, 'w').close(); {SLEEP}", probe=file_probe(ready))

    async def scenario() -> None:
        async with supervising(tmp_path) as (supervisor, heard):
            await supervisor.start(spec)
            first = supervisor.pids["child"]
            ready.unlink()
            await heard.wait_for("child hung: there is no ready")
            await heard.wait_for("child is back")
            assert supervisor.pids["child"] != first

    asyncio.run(scenario())


def test_a_child_can_be_replaced_on_request_without_delay(child: MakeSpec, tmp_path: Path) -> None:
    rules = Rules(first_delay=60)

    async def scenario() -> None:
        async with supervising(tmp_path, rules) as (supervisor, heard):
            await supervisor.start(child(SLEEP))
            first = supervisor.pids["child"]
            supervisor.replace("child")
            supervisor.replace("a stranger")
            await heard.wait_for("child is back")
            assert supervisor.pids["child"] != first

    asyncio.run(scenario())


def test_children_stop_before_those_they_need(child: MakeSpec, tmp_path: Path) -> None:
    ends = tmp_path / "ends"

    def polite(name: str, *needs: str) -> ChildSpec:
        ready = tmp_path / f"{name}-ready"
        code = (
            "import signal, sys, time\n"
            "def end(*_):\n"
            f"    open({str(ends)!r}, 'a').write('{name} ')\n"
            "    sys.exit(0)\n"
            "signal.signal(signal.SIGTERM, end)\n"
            f"open({str(ready)!r}, 'w').close()\n"
            "time.sleep(60)"
        )
        return child(code, name=name, probe=file_probe(ready), needs=needs)

    async def scenario() -> None:
        rules = Rules(stop_within=20, stop_apart=20, probe_every_starting=0.02)
        async with supervising(tmp_path, rules) as (supervisor, _):
            for spec in (polite("one"), polite("two", "one", "absent"), polite("three", "two")):
                await supervisor.start(spec)

    asyncio.run(scenario())
    assert ends.read_text() == "three two one "


def test_a_child_that_will_not_stop_takes_no_time_of_the_others(
    child: MakeSpec, tmp_path: Path
) -> None:
    def taking(name: str, seconds: float, *needs: str) -> ChildSpec:
        ready = tmp_path / f"{name}-ready"
        code = (
            "import os, signal, time\n"
            f"signal.signal(signal.SIGTERM, lambda *_: (time.sleep({seconds}), os._exit(0)))\n"
            f"open({str(ready)!r}, 'w').close()\n"
            "time.sleep(60)"
        )
        return child(code, name=name, probe=file_probe(ready), needs=needs)

    async def scenario() -> list[str]:
        rules = Rules(stop_within=4, stop_apart=0.1, probe_every_starting=0.02)
        async with supervising(tmp_path, rules) as (supervisor, heard):
            await supervisor.start(taking("needed", 0.5))
            await supervisor.start(taking("apart", 0.5))
            await supervisor.start(taking("stubborn", 60, "needed"))
        return heard.sentences

    assert asyncio.run(scenario()) == ["stubborn did not stop in time and was killed"]


def test_a_child_that_ignores_the_stop_is_killed_in_time(child: MakeSpec, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        f"open({str(ready)!r}, 'w').close(); time.sleep(60)"
    )

    async def scenario() -> tuple[int, list[str]]:
        async with supervising(tmp_path, Rules(stop_within=0.3)) as (supervisor, heard):
            await supervisor.start(child(code, probe=file_probe(ready)))
            pid = supervisor.pids["child"]
        return pid, heard.sentences

    begun = time.monotonic()
    pid, sentences = asyncio.run(scenario())
    assert time.monotonic() - begun < 5
    assert not signal_group(pid, 0)
    assert sentences == ["child did not stop in time and was killed"]


def test_a_child_stops_on_sigterm_although_we_were_started_with_signals_ignored(
    child: MakeSpec, tmp_path: Path
) -> None:
    before = [signal.signal(s, signal.SIG_IGN) for s in (signal.SIGINT, signal.SIGTERM)]

    async def scenario() -> list[str]:
        with StopSignals(lambda: None).installed():
            async with supervising(tmp_path) as (supervisor, heard):
                await supervisor.start(child(SLEEP))
        return heard.sentences

    try:
        assert asyncio.run(scenario()) == []
        # And they are put back as they were.
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        for signum, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
            signal.signal(signum, handler)


def test_the_first_signal_asks_and_every_further_one_insists() -> None:
    insisted: list[None] = []

    async def scenario() -> None:
        with StopSignals(lambda: insisted.append(None)).installed() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.wait_for(stop.wait(), 5)
            assert insisted == []
            os.kill(os.getpid(), signal.SIGINT)
            while not insisted:
                await asyncio.sleep(0.01)

    asyncio.run(scenario())


def test_a_guardian_that_was_killed_is_replaced_and_knows_what_to_watch(
    child: MakeSpec, tmp_path: Path
) -> None:
    async def scenario() -> None:
        guardian = Guardian()
        await guardian.start()
        keeping = asyncio.create_task(guardian.keep())
        sleeper = await asyncio.create_subprocess_exec(
            *child(SLEEP).command, start_new_session=True
        )
        guardian.watch(sleeper.pid)
        first = guardian.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        while guardian.pid == first:
            await asyncio.sleep(0.01)
        keeping.cancel()
        # As if we were killed: it is let go while it still watches.
        await guardian.close()
        assert await asyncio.wait_for(sleeper.wait(), 5) == -signal.SIGTERM

    asyncio.run(scenario())


# A supervisor with one child that can be killed, its guardian with it.
SUPERVISING = f"""
import asyncio, sys
from pathlib import Path
from pulseguard_assets.running.supervisor import ChildSpec, Guardian, Supervisor

async def main():
    guardian = Guardian()
    await guardian.start()
    async with Supervisor(logs=Path(sys.argv[1]), guardian=guardian, say=print) as supervisor:
        command = (sys.executable, "-I", "-S", "-c", {SLEEP!r})
        await supervisor.start(ChildSpec("child", command, {{}}, Path(sys.argv[1])))
        print(guardian.pid, supervisor.pids["child"], flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's end")
def test_a_child_ends_although_its_supervisor_and_the_guardian_are_killed_together(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-c", SUPERVISING, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as supervising_process:
        assert supervising_process.stdout is not None
        guardian, orphan = map(int, supervising_process.stdout.readline().split())
        # The one that is asleep cannot act on the other's end.
        os.kill(guardian, signal.SIGSTOP)
        supervising_process.kill()
        os.kill(guardian, signal.SIGKILL)
    asyncio.run(asyncio.wait_for(gone(orphan), 20))


def test_the_guardian_stops_what_is_watched_and_spares_what_is_forgotten(child: MakeSpec) -> None:
    async def scenario() -> None:
        guardian = Guardian()
        await guardian.start()
        command = child(SLEEP).command
        watched = await asyncio.create_subprocess_exec(*command, start_new_session=True)
        spared = await asyncio.create_subprocess_exec(*command, start_new_session=True)
        guardian.watch(spared.pid)
        guardian.watch(watched.pid)
        guardian.forget(spared.pid)
        await guardian.close()
        assert await asyncio.wait_for(watched.wait(), 5) == -signal.SIGTERM
        assert spared.returncode is None
        spared.kill()
        await spared.wait()

    asyncio.run(scenario())
