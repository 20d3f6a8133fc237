"""Keeps child processes running, and stops them together.

Belongs here: spawning, watching, restarting, stopping; the rules of back-off.
Does not: which children there are (`children.py`), or what they need before (`platform.py`).

Two traps this avoids. A process that was started with SIGINT ignored (a shell's `&`, nohup) hands
that on, and Dagster then ignores SIGTERM as well: a second daemon ends up on the same database.
`StopSignals` replaces both handlers before anything is spawned, and a signal that is handled in
the parent is back at its default in a child after exec. And Dagster starts processes of its own
for runs: every child therefore leads a process group, and groups are what is killed.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from pulseguard_assets.running.guardian import signal_group
from pulseguard_assets.running.logs import ChildLog
from pulseguard_assets.running.probes import NotServing, Probe
from pulseguard_assets.running.processes import ProcessRecord, State, record_of
from pulseguard_assets.warehouse.launching import launched

Clock = Callable[[], float]


@dataclass(frozen=True)
class ChildSpec:
    """A process to keep running.

    Attributes:
        name: for the screen and for its log file.
        command: program and arguments.
        environment: the whole environment; nothing is inherited.
        directory: where it runs.
        probe: how to ask whether it serves; None: being alive is enough.
        ready_within: seconds it may take from its start to its first good answer.
        stops_group: send the stop signal to the whole group, because it has workers which are
            to be told too.
        needs: names of children without which it cannot work. They are told to stop after it.
        explanation: why it does not start and what to do, by its log; None where that does not say.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    directory: Path
    probe: Probe | None = None
    ready_within: float = 90.0
    stops_group: bool = False
    needs: tuple[str, ...] = ()
    explanation: Callable[[Path], str | None] = lambda _: None


@dataclass(frozen=True)
class Rules:
    """Times, in seconds, and counts; tests shorten them.

    Attributes:
        first_delay, longest_delay: a restart waits `first_delay` and twice as long each time.
        healthy_after: running this long makes the next restart a first one again.
        probe_every: between two questions while it runs, and while it starts.
        misses: so many bad answers in a row count as hung.
        stop_within: for all children together, before the rest is killed.
        stop_apart: so long a child waits for those that need it before it is told to stop too.
    """

    first_delay: float = 1.0
    longest_delay: float = 60.0
    healthy_after: float = 60.0
    probe_every: float = 15.0
    probe_every_starting: float = 0.2
    misses: int = 4
    stop_within: float = 6.0
    stop_apart: float = 2.0

    def delay(self, failures: int) -> float:
        """Seconds to wait before the restart after `failures` in a row, the first being 1."""
        # The exponent is bounded because 2.0 ** 2000 is an OverflowError, not a long delay.
        return min(self.longest_delay, self.first_delay * 2.0 ** min(failures - 1, 32))


class ChildFailed(RuntimeError):  # noqa: N818 - reads as what it says
    """A child did not come up; the message says which, why, and what it said last."""


class Guardian:
    """Our end of the guardian process (see `guardian.py`).

    Args:
        holding: a file descriptor the guardian keeps open until it has finished.
    """

    def __init__(self, *, holding: int | None = None) -> None:
        self._holding = holding
        self._process: asyncio.subprocess.Process | None = None
        self._watched: dict[int, int] = {}

    async def start(self) -> None:
        """Start it; also used to replace one that was killed."""
        script = Path(__file__).with_name("guardian.py")
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", str(script)),
            stdin=asyncio.subprocess.PIPE,
            pass_fds=() if self._holding is None else (self._holding,),
            start_new_session=True,
            env={},
        )
        for group, signum in self._watched.items():
            self._say(f"watch {group} {signum}")

    @property
    def pid(self) -> int | None:
        """Its pid; None before it was started."""
        return None if self._process is None else self._process.pid

    def watch(self, group: int, signum: signal.Signals = signal.SIGTERM) -> None:
        """Have this group stopped should we be killed."""
        self._watched[group] = int(signum)
        self._say(f"watch {group} {int(signum)}")

    def forget(self, group: int) -> None:
        """It has been stopped; its number may soon belong to somebody else."""
        if self._watched.pop(group, None) is not None:
            self._say(f"forget {group}")

    async def keep(self) -> None:
        """Replace the guardian whenever it is gone. Runs until cancelled."""
        while True:
            if self._process is not None:
                await self._process.wait()
            await self.start()

    async def close(self) -> None:
        """Let it go. What is still watched is killed by it."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            await self._process.wait()

    def _say(self, line: str) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.write(f"{line}\n".encode("ascii"))


class StopSignals:
    """SIGINT, SIGTERM and SIGHUP as an event; a second one as a call.

    Args:
        on_repeat: called for every signal after the first.
    """

    def __init__(self, on_repeat: Callable[[], None]) -> None:
        self.requested = asyncio.Event()
        self.received: signal.Signals | None = None
        self._on_repeat = on_repeat

    @contextmanager
    def installed(self) -> Iterator[asyncio.Event]:
        """Handle the signals while inside; a hang-up that was ignored (nohup) stays ignored."""
        loop = asyncio.get_running_loop()
        before = {signum: signal.getsignal(signum) for signum in _STOP_SIGNALS}
        if before[signal.SIGHUP] == signal.SIG_IGN:
            del before[signal.SIGHUP]
        for signum in before:
            loop.add_signal_handler(signum, self._receive, signum)
        try:
            yield self.requested
        finally:
            for signum, handler in before.items():
                loop.remove_signal_handler(signum)
                signal.signal(signum, handler)

    def _receive(self, signum: signal.Signals) -> None:
        if self.requested.is_set():
            self._on_repeat()
        self.received = self.received or signum
        self.requested.set()


_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass
class _Child:
    """A spec and the process that runs it now."""

    spec: ChildSpec
    log: ChildLog
    process: asyncio.subprocess.Process
    reader: asyncio.Task[None]
    started_at: float
    record: ProcessRecord
    failures: int = 0
    keeper: asyncio.Task[None] | None = None
    # Set to have it replaced at once, which is not a failure.
    replace: asyncio.Event = field(default_factory=asyncio.Event)


class Supervisor:
    """Runs children until told to stop. An async context manager: leaving it stops them all.

    Args:
        logs: the folder of the children's log files.
        guardian: is told of every process group.
        say: takes a sentence for the screen.
        echo: takes every line a child prints; None: only the files get them.
        publish: takes the list of the children whenever one is started, fails or is stopped.
        rules: times and counts.
        clock: a monotonic clock, in seconds.
    """

    def __init__(
        self,
        *,
        logs: Path,
        guardian: Guardian,
        say: Callable[[str], None],
        echo: Callable[[str], None] | None = None,
        publish: Callable[[Sequence[ProcessRecord]], None] | None = None,
        rules: Rules | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self._logs = logs
        self._guardian = guardian
        self._say = say
        self._echo = echo
        self._publish = publish
        self._rules = rules or Rules()
        self._clock = clock
        self._children: dict[str, _Child] = {}

    async def __aenter__(self) -> Supervisor:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    @property
    def pids(self) -> dict[str, int]:
        """The pids of the children, by name, in the order of their start."""
        return {name: child.process.pid for name, child in self._children.items()}

    async def start(self, spec: ChildSpec) -> None:
        """Start a child, wait until it serves, and keep it running from then on.

        Raises:
            ChildFailed: it ended, or did not serve in time. It is not running then.
        """
        log = ChildLog(self._logs, spec.name, echo=self._echo, say=self._say)
        child = self._children[spec.name] = await self._spawn(spec, log)
        self._tell(child, "starting")
        try:
            await self._await_ready(child)
        except NotServing as error:
            await self._kill(child)
            self._tell(child, "stopped")
            raise ChildFailed(self._failure(child, error)) from error
        self._tell(child, "running")
        child.keeper = asyncio.create_task(self._keep(child), name=f"keep {spec.name}")

    async def run(self, stop: asyncio.Event) -> None:
        """Keep the children running until `stop` is set. A mistake of our own is raised."""
        stopped = asyncio.create_task(stop.wait())
        keepers = [child.keeper for child in self._children.values() if child.keeper is not None]
        try:
            await asyncio.wait({stopped, *keepers}, return_when=asyncio.FIRST_COMPLETED)
            for keeper in keepers:
                if keeper.done():
                    keeper.result()
        finally:
            stopped.cancel()

    def replace(self, name: str) -> None:
        """Stop a child and start it again, without waiting. Harmless when it is not there yet."""
        if name in self._children:
            self._children[name].replace.set()

    async def stop(self) -> None:
        """Stop all children, those that others need after them, within `Rules.stop_within`."""
        children = list(self._children.values())
        for child in children:
            if child.keeper is not None:
                child.keeper.cancel()
        await asyncio.gather(
            *(child.keeper for child in children if child.keeper is not None),
            return_exceptions=True,
        )
        deadline = self._clock() + self._rules.stop_within
        stopping: set[asyncio.Task[None]] = set()
        for wave in _waves(children):
            stopping |= {asyncio.create_task(self._stop(each, until=deadline)) for each in wave}
            await asyncio.wait(stopping, timeout=self._rules.stop_apart)
        await asyncio.gather(*stopping)
        for child in children:
            child.log.close()
        self._children.clear()

    def kill(self) -> None:
        """Kill every child at once; `stop` then finds nothing to wait for."""
        for child in self._children.values():
            signal_group(child.process.pid, signal.SIGKILL)

    def _tell(self, child: _Child, state: State) -> None:
        child.record = child.record.now(state)
        if self._publish is not None:
            self._publish([each.record for each in self._children.values()])

    async def _spawn(self, spec: ChildSpec, log: ChildLog) -> _Child:
        # A pipe of our own: with asyncio's, waiting for the process can mean waiting for the
        # pipe, which grandchildren keep open.
        read_end, write_end = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                # The guardian reaches groups, but it can be killed together with us.
                *launched(signal.SIGTERM),
                *spec.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=write_end,
                stderr=write_end,
                start_new_session=True,
                env=dict(spec.environment),
                cwd=spec.directory,
            )
        except BaseException:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
        self._guardian.watch(process.pid)
        log.note(f"started as process {process.pid}")
        reader = asyncio.create_task(_pump(read_end, log), name=f"read {spec.name}")
        record = record_of(spec.name, process.pid)
        return _Child(spec, log, process, reader, self._clock(), record)

    async def _await_ready(self, child: _Child) -> None:
        """Wait for the first good answer; NotServing says why there will be none."""
        probe = child.spec.probe
        if probe is None:
            return
        ended = asyncio.create_task(child.process.wait())
        deadline = child.started_at + child.spec.ready_within
        try:
            while True:
                complaint = await _complaint_of(probe, unless=ended)
                if ended.done():
                    raise NotServing(_describe_exit(ended.result()))
                if complaint is None:
                    return
                if self._clock() > deadline:
                    raise NotServing(
                        f"not ready after {child.spec.ready_within:.0f} s: {complaint}"
                    )
                await asyncio.wait({ended}, timeout=self._rules.probe_every_starting)
        finally:
            ended.cancel()

    async def _keep(self, child: _Child) -> None:
        """Replace the child whenever it fails. Runs until cancelled."""
        while True:
            failure = await self._watch(child)
            self._tell(child, "restarting")
            await self._kill(child)
            await self._pause(child, failure)
            while not await self._start_again(child):
                pass

    async def _watch(self, child: _Child) -> str | None:
        """Wait for a reason to replace the child: a failure, or None if it was asked for."""
        misses = 0
        ended = asyncio.create_task(child.process.wait())
        asked = asyncio.create_task(child.replace.wait())
        try:
            while True:
                await asyncio.wait(
                    {ended, asked},
                    timeout=self._rules.probe_every,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if ended.done():
                    return _describe_exit(ended.result())
                if asked.done():
                    return None
                if child.spec.probe is None:
                    continue
                complaint = await _complaint_of(child.spec.probe, unless=ended)
                misses = 0 if complaint is None else misses + 1
                if misses >= self._rules.misses:
                    return f"hung: {complaint}"
        finally:
            ended.cancel()
            asked.cancel()

    async def _pause(self, child: _Child, failure: str | None) -> None:
        child.replace.clear()
        if failure is None:
            self._say(f"{child.spec.name} is restarted as asked")
            return
        if self._clock() - child.started_at >= self._rules.healthy_after:
            child.failures = 0
        child.failures += 1
        delay = self._rules.delay(child.failures)
        sentence = f"{child.spec.name} {failure}; starting it again in {delay:.0f} s"
        child.log.note(sentence)
        self._say(f"{sentence} (log: {child.log.path})")
        await asyncio.sleep(delay)

    async def _start_again(self, child: _Child) -> bool:
        """One attempt; True when it serves."""
        fresh = await self._spawn(child.spec, child.log)
        child.process, child.reader = fresh.process, fresh.reader
        child.started_at = fresh.started_at
        child.record = child.record.replaced_by(fresh.record)
        self._tell(child, "restarting")
        try:
            await self._await_ready(child)
        except NotServing as error:
            await self._kill(child)
            await self._pause(child, str(error))
            return False
        self._tell(child, "running")
        self._say(f"{child.spec.name} is back")
        return True

    async def _stop(self, child: _Child, *, until: float) -> None:
        if child.process.returncode is None:
            if child.spec.stops_group:
                signal_group(child.process.pid, signal.SIGTERM)
            else:
                child.process.terminate()
            try:
                await asyncio.wait_for(child.process.wait(), max(0.1, until - self._clock()))
            except asyncio.TimeoutError:
                child.log.note("did not stop in time and was killed")
                self._say(f"{child.spec.name} did not stop in time and was killed")
        await self._kill(child)
        self._tell(child, "stopped")

    async def _kill(self, child: _Child) -> None:
        """Kill whatever is left of the child's group, and read its last words."""
        signal_group(child.process.pid, signal.SIGKILL)
        await child.process.wait()
        self._guardian.forget(child.process.pid)
        # The pipe ends with the last of the group; a stranger who inherited it is not awaited.
        await asyncio.wait({child.reader}, timeout=1.0)
        child.reader.cancel()
        await asyncio.gather(child.reader, return_exceptions=True)

    def _failure(self, child: _Child, error: NotServing) -> str:
        explanation = child.spec.explanation(child.log.path)
        if explanation is not None:
            return f"The {child.spec.name} did not start. {explanation} See {child.log.path}"
        said = "\n".join(f"    {line}" for line in child.log.tail())
        return (
            f"The {child.spec.name} did not start: {error}. Its last lines "
            f"(all of them are in {child.log.path}):\n{said}"
        )


def _waves(children: Sequence[_Child]) -> Iterator[list[_Child]]:
    """Those whom nobody needs, then those whom nobody needs who is left, and so on."""
    left = {child.spec.name: child for child in children}
    while left:
        needed = {name for child in left.values() for name in child.spec.needs}
        # Should some need each other, they go together.
        yield [left.pop(name) for name in set(left) - needed or set(left)]


async def _complaint_of(probe: Probe, *, unless: asyncio.Task[int]) -> str | None:
    """What the probe complains about; None when all is well or the child ended meanwhile."""
    answer = asyncio.ensure_future(probe())
    await asyncio.wait({answer, unless}, return_when=asyncio.FIRST_COMPLETED)
    if not answer.done():
        answer.cancel()
        await asyncio.gather(answer, return_exceptions=True)
        return None
    error = answer.exception()
    if error is None or isinstance(error, NotServing):
        return None if error is None else str(error)
    raise error


async def _pump(read_end: int, log: ChildLog) -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read_end, "rb", buffering=0)
    )
    try:
        while data := await reader.read(64 * 1024):
            log.write(data)
    finally:
        transport.close()


def _describe_exit(code: int) -> str:
    if code >= 0:
        return f"ended by itself with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
