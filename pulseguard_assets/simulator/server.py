"""Serving the simulator: blocking for the command line, in a thread for tests.

Belongs here: sockets, threads, start and stop. Does not: anything that is answered.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from types import FrameType
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from pulseguard_assets.simulator.app import PREFIX, Simulation, create_app
from pulseguard_assets.simulator.clock import MovableClock
from pulseguard_assets.simulator.limits import Limits
from pulseguard_assets.simulator.market import Market

#: How long a thread may take to start or stop before that is an error of its own, seconds.
PATIENCE = 30.0


class _Connection(H11Protocol):
    """Hands its transport to the application, so that a fault can reset the connection."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {**self.app_state, "transport": transport}


class _Server(uvicorn.Server):
    """A uvicorn server that says when it is ready and hangs up on everybody when it stops.

    It waits to be stopped; uvicorn's own looks ten times a second, which at rest was its only work.
    """

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._stopping = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets=sockets)
        self._on_ready()

    async def main_loop(self) -> None:
        # For the headers that every answer has.
        await self.on_tick(0)
        await self._stopping.wait()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        self.stop()

    def stop(self) -> None:
        """Stop; from a signal's handler or another thread as well."""
        self.should_exit = True
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop has ended by itself
                self._loop.call_soon_threadsafe(self._stopping.set)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # A fault may be holding an answer back for minutes; nobody waits for it now.
        for connection in list(self.server_state.connections):
            cast(_Connection, connection).transport.abort()
        await super().shutdown(sockets=sockets)


def _config(simulation: Simulation) -> uvicorn.Config:
    return uvicorn.Config(
        create_app(simulation),
        loop="asyncio",
        http=_Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        # The simulated provider has its own date, and says it is somebody else.
        date_header=False,
        server_header=False,
        # Longer than any URL the application itself refuses.
        h11_max_incomplete_event_size=1 << 20,
        # Callers that keep a connection between polls must not find it just being closed.
        timeout_keep_alive=75,
        timeout_graceful_shutdown=1,
    )


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named TCP, or asyncio leaves Nagle on and every answer waits 40 ms for an acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    return listener


def _base_url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}{PREFIX}" if ":" in host else f"http://{host}:{port}{PREFIX}"


def serve(
    host: str = "127.0.0.1",
    port: int = 8765,
    *,
    simulation: Simulation | None = None,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM. Prints nothing.

    Args:
        port: 0 picks a free one.
        on_ready: called once with the base URL (`http://host:port/api/v3`) when calls are taken.

    Raises OSError when the address cannot be bound.
    """
    listener = _bind(host, port)
    url = _base_url(listener)
    server = _Server(
        _config(simulation or Simulation()), lambda: on_ready(url) if on_ready else None
    )
    with suppress(KeyboardInterrupt):
        server.run(sockets=[listener])


class RunningSimulator:
    """A simulator that is being served; what `running_simulator` yields.

    Attributes:
        url: base URL including `/api/v3`.
        admin_url: base URL of the levers, including `/admin`.
        simulation, market: what is served. Ask `market` for the truth.
    """

    def __init__(self, url: str, simulation: Simulation) -> None:
        self.url = url
        self.admin_url = url.removesuffix(PREFIX) + "/admin"
        self.simulation = simulation
        self.market = simulation.market

    @property
    def now(self) -> datetime:
        """The simulated time."""
        return self.simulation.clock()

    @property
    def clock(self) -> MovableClock:
        """The simulated clock, callable: give it to whatever must live in the same time."""
        return self.simulation.clock

    def set_clock(self, now: datetime, *, rate: float | None = None) -> datetime:
        """Jump to `now`; the rate stays unless given. Raises ClockError. Returns the time."""
        return self.simulation.clock.set(now=now, rate=rate)

    def advance(self, by: timedelta) -> datetime:
        """Move the clock by so much, back when negative. Returns the time then shown."""
        return self.simulation.clock.set(advance=by)

    def fault(self, kind: str, **wanted: Any) -> dict[str, Any]:
        """Put a fault in force (see `faults`); returns the rule with its `id`.

        Raises FaultError.
        """
        return self.simulation.faults.add({"kind": kind, **wanted})

    def faults(self) -> list[dict[str, Any]]:
        """The rules in force, each with how often it `struck`."""
        return self.simulation.faults.listing()

    def clear_faults(self, number: int | None = None) -> None:
        """Remove one fault by its `id`, or all."""
        self.simulation.faults.clear(number)

    def set_limits(self, **changes: Any) -> Limits:
        """Replace some of the plan's limits. Raises LimitsError. Returns all of them."""
        self.simulation.limits = self.simulation.limits.changed(changes)
        return self.simulation.limits

    def calls(self, recent: int = 20) -> dict[str, Any]:
        """Counts of all calls so far; see `limits.CallLog.summary`."""
        return self.simulation.calls(recent)

    def reset(self) -> None:
        """Forget calls, credits and faults."""
        self.simulation.reset()


@contextmanager
def running_simulator(
    *,
    market: Market | None = None,
    seed: int = 0,
    coins: int = 300,
    now: datetime | None = None,
    rate: float | None = None,
    limits: Limits | None = None,
    clock: Callable[[], datetime] | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
) -> Iterator[RunningSimulator]:
    """Serve a simulator in a thread for as long as the block lasts.

    Args:
        market: the market to serve; by default a new `Market(seed, coins)`.
        now: the simulated time to start at. It then stands still unless `rate` says otherwise;
            without `now` it is real time.
        clock: the time that drives the simulated clock; real time by default.

    Raises RuntimeError when the server does not start or stop, OSError when the port is taken.
    """
    pace = rate if rate is not None else (1.0 if now is None else 0.0)
    source = {} if clock is None else {"source": clock}
    simulation = Simulation(
        market or Market(seed, coins),
        clock=MovableClock(**source, now=now, rate=pace),
        limits=limits,
    )
    listener = _bind(host, port)
    url = _base_url(listener)
    running = threading.Event()
    server = _Server(_config(simulation), running.set)
    thread = threading.Thread(
        target=server.run, kwargs={"sockets": [listener]}, name="simulator", daemon=True
    )
    thread.start()
    if not running.wait(PATIENCE):
        listener.close()
        raise RuntimeError(f"the simulator did not start on {url} within {PATIENCE:.0f} s.")
    try:
        yield RunningSimulator(url, simulation)
    finally:
        server.stop()
        thread.join(PATIENCE)
    if thread.is_alive():
        raise RuntimeError(f"the simulator on {url} did not stop within {PATIENCE:.0f} s.")
