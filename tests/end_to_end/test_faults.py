"""The simulator's whole catalogue of faults against a running platform: `pulseguard demo`.

Belongs here: what only daemon, sensors and real time can show. Does not: every parameter of every
fault, which `tests/collecting/test_faults.py` tries in simulated time.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import httpx
import psycopg
import pytest
from closes_support import one
from faults_support import Account, Twin, hold_against, running_twin
from up_support import OURS, Up, eventually

from pulseguard_assets.automation.polling import SENSOR
from pulseguard_assets.simulator.faults import KINDS
from pulseguard_assets.simulator.market import Market
from pulseguard_assets.warehouse.connection import connect
from pulseguard_assets.warehouse.embedded import running_dsn

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

COINS = 60
# So short that a poll of these coins is asked for in several calls, each of which has faults.
MOST_URL_BYTES = 300
# From one poll to the next is a minute, and a poll that failed is paused after.
A_POLL = 200.0
# Dagster cuts a tick at 60, and a call that is under way at its 25th second may last 12 more.
LONGEST_TICK = 50.0
LONGEST_POLL = timedelta(minutes=2)
# Nobody waits for these.
ENDLESS = ({"kind": "delay", "seconds": 60}, {"kind": "trickle", "seconds": 2, "chunks": 50})
# An answer that is asked for again a moment later, rather than a minute.
SOON = {"rate_limit": {"retry_after": 1}, "rate_limit_200": {"retry_after": 1}}


@dataclass
class Levers:
    """The simulator of a demo, by its admin endpoints, and its log as far as it was read."""

    http: httpx.Client
    log: dict[int, dict[str, Any]] = field(default_factory=dict)

    def total(self) -> int:
        """Calls so far, all of them read into `log`."""
        told = self.http.get("/calls", params={"recent": 2_000}).json()
        self.log |= {call["number"]: call for call in told["recent"]}
        assert len(self.log) == told["total"]
        return int(told["total"])

    def fault(self, rule: dict[str, Any]) -> dict[str, Any]:
        """Put a rule in force; returns the whole of it."""
        answer = self.http.post("/faults", json={"endpoint": "simple_price", **rule})
        shown: dict[str, Any] = answer.raise_for_status().json()
        return shown

    def all_struck(self) -> bool:
        """Whether every rule has done what it was for."""
        return all(rule["struck"] for rule in self.http.get("/faults").json())

    def clear(self) -> None:
        """Take all rules away."""
        self.http.delete("/faults").raise_for_status()


@dataclass
class Faults:
    """The rules that were in force, each for one call, and the number of that call."""

    up: Up
    levers: Levers
    by_call: dict[int, list[dict[str, Any]]] = field(default_factory=dict)

    def strike(self, calls: Sequence[list[dict[str, Any]]]) -> None:
        """Have the next calls struck by these rules, call by call, and wait until they were."""
        eventually("a quiet moment", self._is_quiet)
        before = self.levers.total()
        in_force = [
            [self.levers.fault({**rule, "skip": place, "count": 1}) for rule in rules]
            for place, rules in enumerate(calls)
        ]
        assert self.levers.total() == before, "posted between two polls"
        eventually("all have struck", self.levers.all_struck, within=len(calls) * 60 + A_POLL)
        self.levers.total()
        # Those that were too long for the simulator met no fault, and count for none.
        met = (n for n, call in sorted(self.levers.log.items()) if n > before and _met(call))
        self.by_call |= dict(zip(met, in_force, strict=False))
        self.levers.clear()

    def recover(self) -> None:
        """Wait for a poll that has all it asked for."""
        before = self.up.query(ALL_STORED)
        eventually("a whole poll", lambda: self.up.query(ALL_STORED) > before, within=2 * A_POLL)

    def _is_quiet(self) -> bool:
        """Whether a poll has just ended, so that the next is some while away."""
        return self.up.query(JUST_ENDED) == 1


POLLED = "collection_type = 'continuous'"
ALL_STORED = (
    f"SELECT count(*) FROM collection_status WHERE {POLLED} AND status = 'completed' "
    f"AND coins_processed >= {COINS} AND coins_failed = 0"
)
JUST_ENDED = (
    "SELECT count(*) FROM (SELECT status, end_time FROM collection_status "
    f"WHERE {POLLED} ORDER BY id DESC LIMIT 1) AS latest "
    "WHERE status <> 'running' AND end_time > now() - INTERVAL '15 seconds' "
    "AND extract(second FROM now()) < 50"
)


def _met(call: dict[str, Any]) -> bool:
    return call["endpoint"] == "simple_price" and call["status"] != 414


@pytest.fixture
def twin() -> Iterator[Twin]:
    """A twin of the simulator of `pulseguard demo`."""
    with running_twin(Market(seed=0)) as twin:
        yield twin


def test_after_every_fault_of_the_catalogue_the_tables_are_the_truth_that_could_be_had(
    start: Callable[..., Up], twin: Twin
) -> None:
    up = start("demo", definitions=OURS, PULSEGUARD_MODE=str(COINS))
    up.wait_until_up()
    with httpx.Client(base_url=_admin_url(up), timeout=30) as http:
        levers = Levers(http)
        faults = Faults(up, levers)
        faults.recover()
        http.post("/limits", json={"max_url_bytes": MOST_URL_BYTES}).raise_for_status()
        for calls in _catalogue(twin, random.Random(7)):
            faults.strike(calls)
        faults.recover()
        assert http.get("/calls").json()["faults"].keys() == set(KINDS)
        with _snapshot(up, levers) as connection:
            _account(connection, faults, twin).check(connection)
            _look_at_ticks(connection)


def _admin_url(up: Up) -> str:
    log = (up.folders.logs / "simulator.log").read_text("utf-8")
    return re.findall(r"levers: (\S+/admin)", log)[-1]


def _catalogue(twin: Twin, luck: random.Random) -> Iterator[list[list[dict[str, Any]]]]:
    """Polls, each as the rules for its calls: all kinds, and none of them left out.

    What comes in place of an answer, or happens to it on the wire, has calls of its own, two of
    them and then one with faults of values; so a poll that tries a call three times goes on. What
    a poll gives up at comes last, a poll for each.
    """
    rough = [kind for kind in KINDS if KINDS[kind].stage in ("answer", "wire")]
    mild = luck.sample([kind for kind in KINDS if kind not in rough], len(KINDS) - len(rough))
    final = [kind for kind in rough if _is_final(twin, kind)]
    rough = luck.sample([kind for kind in rough if kind not in final], len(rough) - len(final))
    calls: list[list[dict[str, Any]]] = []
    while rough or mild:
        calls += [[_rule(rough.pop())] for _ in range(2) if rough]
        calls.append([_some_coins(mild.pop()) for _ in range(3) if mild])
    for first in range(0, len(calls), 12):
        yield calls[first : first + 12]
    last = [*ENDLESS, *map(_rule, final)]
    yield [[rule] for rule in last[:3]]
    yield from ([[rule]] for rule in last[3:])


def _rule(kind: str) -> dict[str, Any]:
    return {"kind": kind, **SOON.get(kind, {})}


def _some_coins(kind: str) -> dict[str, Any]:
    return {"kind": kind} | ({"every": 2} if "every" in KINDS[kind].defaults else {})


def _is_final(twin: Twin, kind: str) -> bool:
    """Whether a fault is an answer that says not to ask again."""
    url = "/api/v3/simple/price?vs_currencies=usd&ids=bitcoin"
    call = {"status": 200, "at": "2026-01-01T00:00:00+00:00", "url": url, "faults": [kind]}
    reply = twin.reply(call, [{"kind": kind, "coins": [], **KINDS[kind].defaults}])
    return reply is not None and 400 <= reply.status < 500 and reply.status != 429


# -- what is there afterwards ----------------------------------------------------------------------


@contextmanager
def _snapshot(up: Up, levers: Levers) -> Iterator[psycopg.Connection]:
    """The tables as they are while nobody calls the provider, with a log that goes as far."""
    eventually("a quiet moment", lambda: up.query(JUST_ENDED) == 1)
    before = levers.total()
    dsn = running_dsn(up.folders.root)
    assert dsn is not None
    with connect(dsn) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        with connection.transaction(force_rollback=True):
            # The snapshot is taken by the first statement.
            assert one(connection, "SELECT count(*) FROM api_calls") == before
            assert levers.total() == before
            yield connection


def _account(connection: psycopg.Connection, faults: Faults, twin: Twin) -> Account:
    """What was said in all calls of the log; when it arrived, and under which minute, as stored."""
    account = Account()
    stored = dict(
        connection.execute("SELECT DISTINCT created_at, minute_ts FROM minute_close").fetchall()
    )
    swept = one(connection, "SELECT max(last_updated) FROM coin_priorities")
    for number, call in sorted(faults.levers.log.items()):
        reply = twin.reply(call, faults.by_call.get(number, []))
        document = account.take(call, reply).document
        at = datetime.fromisoformat(call["at"])
        if document is not None and call["endpoint"] == "coins_markets":
            account.take_coins(document, swept)
        elif document is not None:
            arrived = min((each for each in stored if each >= at), default=at)
            found = account.take_prices(document, call, stored.get(arrived, at), arrived)
            assert all(timedelta(0) <= at - each.minute_ts < LONGEST_POLL for each in found)
            if not call["faults"]:
                hold_against(twin.market, found, call)
    return account


def _look_at_ticks(connection: psycopg.Connection) -> None:
    """None came near the time at which Dagster cuts it, and the failed ones say so."""
    rows = connection.execute(
        "SELECT status, tick_body FROM dagster.job_ticks WHERE tick_body LIKE %s",
        (f"%{SENSOR}%",),
    ).fetchall()
    ticks = [(status, json.loads(body)) for status, body in rows if status != "STARTED"]
    assert max(tick["end_timestamp"] - tick["timestamp"] for _, tick in ticks) < LONGEST_TICK
    failures = [tick for status, tick in ticks if status == "FAILURE"]
    assert failures, "or no fault was grave enough to be seen"
    assert all("PollFailed" in json.dumps(tick["error"]) for tick in failures)
