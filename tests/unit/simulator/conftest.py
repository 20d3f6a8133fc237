"""Shared by the simulator's tests: a small market, a served simulator, the recorded answers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import httpx
import pytest

from pulseguard_assets.simulator.market import Market
from pulseguard_assets.simulator.server import RunningSimulator, running_simulator

NOON = datetime(2026, 11, 22, 12, 3, 27, 250_000, tzinfo=timezone.utc)


@pytest.fixture(scope="session")
def market() -> Market:
    """300 coins, all oddities among them."""
    return Market(seed=7, coins=300)


@pytest.fixture(scope="session")
def _served(market: Market) -> Iterator[RunningSimulator]:
    with running_simulator(market=market, now=NOON) as simulator:
        yield simulator


@pytest.fixture
def sim(_served: RunningSimulator) -> RunningSimulator:
    """A served simulator at `NOON`, standing still, without limits or faults."""
    _served.reset()
    _served.set_clock(NOON, rate=0)
    _served.set_limits(
        calls_per_minute=None,
        monthly_credits=None,
        history_days=None,
        host="public",
        require_key=False,
        keys=[],
        retry_after=True,
        max_url_bytes=8_192,
    )
    return _served


@pytest.fixture
def get(sim: RunningSimulator) -> Iterator[Callable[..., httpx.Response]]:
    """`get(path, **params)` over a real socket."""
    with httpx.Client(base_url=sim.url, timeout=20) as client:

        def fetch(
            path: str, *, headers: dict[str, str] | None = None, **params: Any
        ) -> httpx.Response:
            named = {name.rstrip("_"): value for name, value in params.items()}
            return client.get(path, params=named, headers=headers)

        yield fetch


@pytest.fixture
def lever(sim: RunningSimulator) -> Iterator[httpx.Client]:
    """A client for the admin endpoints."""
    with httpx.Client(base_url=sim.admin_url, timeout=20) as client:
        yield client


@pytest.fixture(scope="session")
def recorded() -> Callable[[str], Any]:
    """`recorded(pattern)` reads a recorded answer, or skips the test where there are none."""
    beside = Path(__file__).resolve().parents[4] / "shared" / "samples"
    folder = Path(os.environ.get("PULSEGUARD_SAMPLES", str(beside)))

    def read(pattern: str) -> Any:
        found = sorted(folder.glob(pattern))
        if not found:
            pytest.skip(f"no recorded answers here; set PULSEGUARD_SAMPLES (looked for {pattern})")
        return json.loads(found[0].read_text())

    return read
