from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from click.testing import CliRunner

from pulseguard_assets.simulator.command import simulate
from pulseguard_assets.simulator.faults import KINDS
from pulseguard_assets.simulator.market import Market
from pulseguard_assets.simulator.server import RunningSimulator, running_simulator

Get = Callable[..., httpx.Response]
UTC = timezone.utc


def test_a_simulator_starts_and_stops_without_a_trace() -> None:
    threads = threading.active_count()
    began = time.perf_counter()
    with running_simulator(coins=3) as sim, httpx.Client() as client:
        assert client.get(sim.url + "/ping").json() == {"gecko_says": "(V3) To the Moon!"}
        url = sim.url
    assert time.perf_counter() - began < 5
    assert threading.active_count() == threads
    parts = urlsplit(url)
    with socket.socket() as probe:
        assert probe.connect_ex((str(parts.hostname), parts.port or 0)) != 0


def test_an_answer_does_not_wait_for_an_acknowledgement(get: Get) -> None:
    # With Nagle's algorithm on, an answer of two writes takes the 40 ms of a delayed one.
    elapsed = sorted(get("/ping").elapsed for _ in range(15))
    assert elapsed[7] < timedelta(milliseconds=30)


def test_two_simulators_run_side_by_side_with_clocks_of_their_own() -> None:
    early, late = datetime(2025, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)
    market = Market(coins=3)
    with (
        running_simulator(market=market, now=early) as one,
        running_simulator(market=market, now=late) as two,
        httpx.Client() as client,
    ):
        dates = [client.get(sim.url + "/ping").headers["date"] for sim in (one, two)]
    assert dates == ["Wed, 01 Jan 2025 00:00:00 GMT", "Thu, 01 Jan 2026 00:00:00 GMT"]


def test_an_answer_held_back_does_not_hold_up_the_end() -> None:
    began = time.perf_counter()
    failures: list[Exception] = []

    def call(url: str) -> None:
        try:
            httpx.get(url + "/ping", timeout=60)
        except httpx.TransportError as error:
            failures.append(error)

    with running_simulator(coins=3) as sim:
        sim.fault("delay", seconds=600)
        caller = threading.Thread(target=call, args=(sim.url,))
        caller.start()
        while not sim.calls()["total"]:
            httpx.get(sim.admin_url + "/clock")
    caller.join(10)
    assert not caller.is_alive()
    assert len(failures) == 1
    assert time.perf_counter() - began < 10


def test_a_clock_can_be_handed_in_and_runs_the_simulation() -> None:
    shown = datetime(2026, 3, 1, tzinfo=UTC)
    with running_simulator(coins=3, clock=lambda: shown) as sim, httpx.Client() as client:
        params = {"ids": "bitcoin", "vs_currencies": "usd", "precision": "full"}
        price = client.get(sim.url + "/simple/price", params=params).json()["bitcoin"]["usd"]
        truth = sim.market.observation("bitcoin", shown)
    assert truth is not None
    assert price == truth.price


# --- levers ---------------------------------------------------------------------------------


def test_the_overview_names_every_lever_and_fault(sim: RunningSimulator) -> None:
    answer = httpx.get(sim.admin_url).json()
    assert set(answer["faults"]) == set(KINDS)
    assert "/admin/clock" in answer["levers"]
    assert answer["market"] == {"seed": 7, "coins": 300}


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"now": "2026-03-01T00:00:00Z"}, datetime(2026, 3, 1, tzinfo=UTC)),
        ({"now": "2026-03-01T05:30:00+05:30"}, datetime(2026, 3, 1, tzinfo=UTC)),
        ({"now": 1_772_323_200}, datetime(2026, 3, 1, tzinfo=UTC)),
        (
            {"now": "2026-03-01T00:00:00Z", "advance": -60},
            datetime(2026, 2, 28, 23, 59, tzinfo=UTC),
        ),
    ],
)
def test_the_clock_is_moved_over_http(
    sim: RunningSimulator, lever: httpx.Client, get: Get, wanted: dict[str, Any], expected: datetime
) -> None:
    answer = lever.post("/clock", json=wanted).json()
    assert datetime.fromisoformat(answer["now"]) == expected
    assert answer["rate"] == 0
    assert sim.now == expected
    assert get("/ping").headers["date"] == f"{expected:%a, %d %b %Y %H:%M:%S} GMT"


def test_the_clock_follows_real_time_again_when_told(
    sim: RunningSimulator, lever: httpx.Client
) -> None:
    lever.post("/clock", json={"real": True})
    assert abs(datetime.now(UTC) - sim.now) < timedelta(seconds=10)
    assert lever.get("/clock").json()["rate"] == 1


def test_faults_are_made_listed_and_cleared_over_http(
    sim: RunningSimulator, lever: httpx.Client, get: Get
) -> None:
    made = lever.post("/faults", json={"kind": "rate_limit", "retry_after": 5, "count": 1})
    assert made.status_code == 201
    assert get("/ping").headers["retry-after"] == "5"
    [listed] = lever.get("/faults").json()
    assert listed == {**made.json(), "struck": 1}
    assert lever.delete(f"/faults/{listed['id']}").json() == {"cleared": 1}
    assert lever.delete(f"/faults/{listed['id']}").status_code == 404
    lever.post("/faults", json={"kind": "empty"})
    assert lever.delete("/faults").json() == {"cleared": 1}
    assert get("/ping").status_code == 200


def test_counts_limits_and_truth_are_told_over_http(
    sim: RunningSimulator, lever: httpx.Client, get: Get
) -> None:
    assert lever.post("/limits", json={"calls_per_minute": 1}).json()["calls_per_minute"] == 1
    assert [get("/ping").status_code for _ in range(2)] == [200, 429]
    calls = lever.get("/calls", params={"recent": 1}).json()
    assert calls["outcomes"] == {"successful": 1, "failed": 0, "rate_limited": 1}
    assert len(calls["recent"]) == 1
    lever.post("/reset")
    assert lever.get("/calls").json()["total"] == 0
    at = datetime(2026, 3, 1, tzinfo=UTC)
    truth = lever.get("/truth", params={"coin": "bitcoin", "at": at.isoformat()}).json()
    close = sim.market.close("bitcoin", at, "history")
    assert close is not None
    told = truth["close_if_a_bucket_ended_now"]["history"]
    assert (told["price"], told["market_cap"], told["volume"]) == close[:3]
    assert datetime.fromisoformat(told["close_ts"]) == close.close_ts


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/clock", b"{"),
        ("/clock", b"[]"),
        ("/clock", b'{"nou": 1}'),
        ("/clock", b'{"now": "soon"}'),
        ("/clock", b'{"now": "2026-03-01T00:00:00"}'),
        ("/clock", b'{"now": true}'),
        ("/clock", b'{"rate": -1}'),
        ("/clock", b'{"now": -1e30}'),
        ("/clock", b'{"advance": NaN}'),
        ("/clock", b'{"now": -9000000000}'),
        ("/faults", b'{"kind": "gremlins"}'),
        ("/limits", b'{"calls_per_minute": "x"}'),
        ("/limits", b'{"keys": 3}'),
    ],
)
def test_a_lever_pulled_wrongly_answers_with_a_sentence(
    lever: httpx.Client, path: str, body: bytes
) -> None:
    answer = lever.post(path, content=body)
    assert answer.status_code == 422
    assert answer.json()["error"].endswith(".")


@pytest.mark.parametrize(
    ("params", "status"),
    [
        ({"coin": "no-such"}, 404),
        ({"coin": "bitcoin", "at": "yesterday"}, 422),
        ({"coin": "bitcoin", "at": "0001-01-01T00:00:00Z"}, 422),
        ({"coin": "bitcoin", "at": "9999-12-31T23:59:59Z"}, 422),
    ],
)
def test_a_truth_that_cannot_be_told_is_refused_with_a_sentence(
    lever: httpx.Client, params: dict[str, str], status: int
) -> None:
    answer = lever.get("/truth", params=params)
    assert answer.status_code == status
    assert answer.json()["error"]


# --- command --------------------------------------------------------------------------------

RUN = "from pulseguard_assets.simulator.command import simulate; simulate()"


def test_the_command_says_when_it_is_ready_and_ends_on_sigterm() -> None:
    options = ["--port", "0", "--coins", "50", "--plan-calls-per-minute", "1", "--require-key"]
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", RUN, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    with process:
        assert process.stdout is not None
        ready = re.search(r"http://\S+/api/v3", process.stdout.readline())
        assert ready is not None
        with httpx.Client(headers={"x-cg-demo-api-key": "CG-x"}) as client:
            assert client.get(ready[0] + "/ping").status_code == 200
            assert client.get(ready[0] + "/ping").status_code == 429
        assert httpx.get(ready[0] + "/ping").json()["status"]["error_code"] == 10002
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=10)
    assert out == err == ""
    assert process.returncode in (0, -signal.SIGTERM)


def test_a_taken_port_is_one_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = CliRunner().invoke(simulate, ["--port", str(port), "--coins", "5"])
    assert result.exit_code == 1
    assert f"cannot listen on 127.0.0.1:{port}" in result.output
    assert "choose another --port" in result.output


@pytest.mark.parametrize(
    ("options", "words"), [(["--now", "soon"], "is no time"), (["--rate", "-1"], "write 0")]
)
def test_impossible_options_are_explained(options: list[str], words: str) -> None:
    result = CliRunner().invoke(simulate, options)
    assert result.exit_code == 2
    assert words in result.output
