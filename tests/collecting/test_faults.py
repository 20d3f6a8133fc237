"""The simulator's whole catalogue of faults, singly and mixed: what is stored, counted, set aside.

Belongs here: polls and sweeps in simulated time, held after each trouble against what was said.
Does not: any fault by its name. Whatever kind the catalogue gets is tried here by itself; a running
platform meets them in `tests/end_to_end/test_faults.py`.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

import httpx
import psycopg
import pytest
from faults_support import Account, Twin, hold_against, never_arrived, running_twin

from pulseguard_assets.collecting.errors import CollectingError
from pulseguard_assets.collecting.history import materialize_window
from pulseguard_assets.collecting.platform import TICK_BUDGET, Platform
from pulseguard_assets.collecting.polling import poll_when_due
from pulseguard_assets.collecting.sweep import sweep
from pulseguard_assets.simulator.app import PREFIX
from pulseguard_assets.simulator.faults import KINDS
from pulseguard_assets.simulator.server import RunningSimulator
from pulseguard_assets.timeframes import DAILY
from pulseguard_assets.warehouse.coins import coins_to_poll

TICK = timedelta(seconds=20)
# Dagster cuts a tick at 60.
LONGEST_TICK = timedelta(seconds=45)
# A Retry-After of two minutes, and the tick after it.
LONGEST_PAUSE = timedelta(seconds=140)
# All oddities are among them: one coin without any price, and one of nulls.
COINS, PRICED = 80, 78

pytestmark = pytest.mark.parametrize("coins", [COINS])


class Network(httpx.HTTPTransport):
    """The network; a call for which `broken` says so never reaches the provider.

    Attributes:
        sent: for each call the path, and whether it was let through.
        lost: how many were not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.broken: Callable[[], bool] = lambda: False
        self.sent: list[tuple[str, bool]] = []
        self.lost = 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        lost = self.broken()
        self.sent.append((request.url.path.removeprefix(PREFIX), not lost))
        if lost:
            self.lost += 1
            raise httpx.ConnectError("no route to host", request=request)
        return super().handle_request(request)


@dataclass
class World:
    """A platform in simulated time, with an account of all that it was told."""

    provider: RunningSimulator
    connection: psycopg.Connection
    platform: Platform
    network: Network
    twin: Twin
    account: Account = field(default_factory=Account)
    seen: int = 0
    stored: int = 0

    def sweep(self) -> None:
        """Read the market list, as a run does."""
        now = self.provider.now
        self._do(lambda: sweep(self.platform, self.connection, now=now, until=now + TICK_BUDGET))

    def tick(self) -> None:
        """Poll if one is due, as the sensor does; then 20 seconds pass."""
        now = self.provider.now
        until = now + TICK_BUDGET
        self._do(lambda: poll_when_due(self.platform, self.connection, now=now, until=until))
        self.provider.advance(TICK)

    def minutes(self, count: int) -> None:
        """Let minutes pass, with their ticks."""
        end = self.provider.now + timedelta(minutes=count)
        while self.provider.now < end:
            self.tick()

    def recover(self) -> None:
        """Have no more faults, and see prices again within the longest pause there is."""
        self.provider.clear_faults()
        self.sweep()
        self.stored = 0
        end = self.provider.now + LONGEST_PAUSE
        while self.stored < PRICED:
            assert self.provider.now < end
            self.tick()

    def _do(self, work: Callable[[], object]) -> None:
        began, really = self.provider.now, time.monotonic()
        with suppress(CollectingError):
            work()
        took = self.provider.now - began + timedelta(seconds=time.monotonic() - really)
        assert took < LONGEST_TICK
        self._account_for(began)

    def _account_for(self, began: datetime) -> None:
        """Take the calls that were made since `began` into the account."""
        log = self.provider.calls(recent=200)
        assert log["open"] == 0
        made = iter(call for call in log["recent"] if call["number"] > self.seen)
        sent, self.network.sent = self.network.sent, []
        self.stored = 0
        for path, arrived in sent:
            if arrived:
                self._take(next(made), began)
            else:
                self.account.calls.append(never_arrived(path))
        assert next(made, None) is None
        self.seen = log["total"]

    def _take(self, call: dict[str, Any], began: datetime) -> None:
        document = self.account.take(call, self.twin.reply(call, self.provider.faults())).document
        at = began.fromisoformat(call["at"])
        if document is not None and call["endpoint"] == "coins_markets":
            self.account.take_coins(document, at)
        elif document is not None:
            label = began.replace(second=0, microsecond=0)
            found = self.account.take_prices(document, call, label, at)
            self.stored += len(found)
            if not call["faults"]:
                hold_against(self.provider.market, found, call)

    def check(self) -> None:
        """Hold tables and ledger against the account, and the simulator's total against both."""
        self.account.check(self.connection)
        assert self.provider.calls()["total"] == len(self.account.calls) - self.network.lost
        running = "SELECT count(*) FROM collection_status WHERE status = 'running'"
        assert self.connection.execute(running).fetchone() == (0,)


@pytest.fixture
def world(
    provider: RunningSimulator,
    connection: psycopg.Connection,
    new_platform: Callable[..., Platform],
) -> Iterator[World]:
    """A world shortly before an hour's end, after a sweep and a poll."""
    random.seed(0)  # the client's jitter
    provider.advance(timedelta(minutes=55))
    network = Network()
    platform = new_platform(mode=str(2 * COINS), transport=network)
    with running_twin(provider.market) as twin:
        world = World(provider, connection, platform, network, twin)
        world.sweep()
        world.minutes(1)
        assert world.account.stream
        yield world


# -- singly ----------------------------------------------------------------------------------------


def brief(kind: str) -> dict[str, Any]:
    """The kind's own parameters, without the waiting."""
    is_wait = KINDS[kind].stage == "wire" and "seconds" in KINDS[kind].defaults
    return {"seconds": 0.01} if is_wait else {}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_after_a_fault_the_tables_are_the_truth_that_could_be_had(world: World, kind: str) -> None:
    """It lasts over the end of an hour; what it is not about is stored, and then all of it."""
    rule = world.provider.fault(kind, **brief(kind))
    world.minutes(1)
    world.sweep()
    if "every" in KINDS[kind].defaults:
        world.provider.clear_faults(rule["id"])
        world.provider.fault(kind, every=3)
        world.minutes(1)
        world.sweep()
    assert world.provider.calls()["faults"].keys() == {kind}
    world.recover()
    world.check()


# -- mixed -----------------------------------------------------------------------------------------

MOST_AT_ONCE = 4
# Longer than this no mixture takes until each kind has struck.
LONGEST_MIXTURE = timedelta(hours=4)
STATUSES = (400, 403, 404, 408, 418, 500, 502, 503, 504, 520, 599)
# By parameter, what else it may be than the kind's own default.
CHOICES: dict[str, tuple[Any, ...]] = {
    "age": (1, 50, 3_600),
    "after_bytes": (None, 0, 1),
    "body": ("", "{}", "[]", "null", '{"bitcoin": 1}', '[{"id": 7}, 7]', "<html>", "\x00"),
    "chunks": (1, 2, 7),
    "code": (10002, 10005, 10010, 10011, 10012),
    "content_type": ("text/html; charset=UTF-8", "image/png", "application/json; charset=utf-7"),
    "depth": (100_000, 200_000),
    "every": (1, 2, 3, 7),
    "factor": (None, 1_000, 1e-3, -1),
    "fields": (
        ("price",),
        ("market_cap", "volume"),
        ("last_updated",),
        ("rank", "price"),
        ("id",),
        ("symbol", "name", "image"),
    ),
    "headers": ({}, {"retry-after": "3"}),
    "ids": (("no-such-coin",), ("'; DROP TABLE minute_close; --", "x" * 300), ("\U0001f680",)),
    "megabytes": (20, 21),
    "name": ("new_field", "usd", "id", "last_updated_at"),
    "part": (0, 0.1, 0.5, 0.999),
    "retry_after": (None, 0, 2, 10, 119, "soon", "-1", "Sat, 22 Nov 2025 12:10:00 GMT"),
    "shift": (-3, 1, 5),
    "value": (1e30, 1e-30, 123_456_789_012_345_678, -1e-5, True, "7", "", [], {"usd": 1}, None),
}
CHOICES_OF: dict[str, dict[str, tuple[Any, ...]]] = {
    "delay": {"seconds": (0.01,)},
    "trickle": {"seconds": (0.002,)},
    "stale": {"seconds": (60, 1_036_800, 1e9)},
    "future": {"seconds": (60, 3_600, 1e9)},
    "server_error": {"status": (500, 502, 503, 504)},
    "html": {"status": (200, *STATUSES)},
    "raw": {"status": (200, 200, 201, 302, 429, *STATUSES)},
}


def some_rule(kind: str, luck: random.Random, coin_ids: list[str]) -> dict[str, Any]:
    """A rule of a kind as it may come: any parameters, any coins, now and then or always."""
    rule: dict[str, Any] = {"kind": kind}
    for name, default in KINDS[kind].defaults.items():
        choices = CHOICES_OF.get(kind, CHOICES).get(name, CHOICES.get(name, ()))
        rule[name] = luck.choice((default, *choices)) if choices[1:] else (*choices, default)[0]
    if KINDS[kind].stage == "values" and luck.random() < 0.6:
        rule["coins"] = luck.sample(coin_ids, 5)
    rule["probability"] = luck.choice((1, 1, 0.6))
    rule["skip"] = luck.choice((0, 0, 1, 2))
    if luck.random() < 0.3:
        rule["count"] = luck.choice((1, 2))
    return rule


class Mixture:
    """Kinds of the whole catalogue, a few at a time, each until it has struck."""

    def __init__(self, provider: RunningSimulator, luck: random.Random) -> None:
        self._provider, self._luck = provider, luck
        self._coin_ids = [coin.id for coin in provider.market.coins]
        self._waiting = luck.sample(sorted(KINDS), len(KINDS))

    @property
    def over(self) -> bool:
        """Whether each kind has struck."""
        return not self._waiting and not self._provider.faults()

    def turn(self) -> None:
        """Take away what has struck, perhaps, and put others in force."""
        for rule in self._provider.faults():
            if rule["struck"] and self._luck.random() < 0.6:
                self._provider.clear_faults(rule["id"])
        room = self._luck.randint(0, MOST_AT_ONCE) - len(self._provider.faults())
        for _ in range(max(0, room)):
            if self._waiting:
                rule = some_rule(self._waiting.pop(), self._luck, self._coin_ids)
                self._provider.fault(**rule)


def live_through(world: World, luck: random.Random) -> None:
    """Let the whole catalogue come and go, with sweeps and a network that fails in between."""
    mixture = Mixture(world.provider, luck)
    world.network.broken = lambda: luck.random() < 0.05
    end = world.provider.now + LONGEST_MIXTURE
    while not mixture.over:
        assert world.provider.now < end
        mixture.turn()
        if luck.random() < 0.2:
            world.sweep()
        world.minutes(1)
    assert world.provider.calls()["faults"].keys() == set(KINDS)
    world.network.broken = lambda: False


@pytest.mark.parametrize("seed", range(1))
def test_after_all_faults_in_a_mixture_the_tables_are_the_truth_that_could_be_had(
    world: World, seed: int
) -> None:
    live_through(world, random.Random(seed))
    world.recover()
    world.check()
    assert world.network.lost


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", range(100, 104))
def test_after_hours_of_mixtures_the_tables_are_the_truth_that_could_be_had(
    world: World, seed: int
) -> None:
    luck = random.Random(seed)
    for _ in range(5):
        live_through(world, luck)
        world.recover()
        world.check()


# -- the past --------------------------------------------------------------------------------------

FEW = 12


@dataclass
class History:
    """Days taken from the provider's past, and what was said of each coin meanwhile."""

    world: World
    coin_ids: list[str]
    said: dict[str, set[float]] = field(default_factory=dict)
    struck: set[str] = field(default_factory=set)

    def fill(self, day: datetime) -> None:
        """Ask for the closes of a day."""
        world, before = self.world, self.world.seen
        now = world.provider.now
        materialize_window(
            world.platform,
            world.connection,
            DAILY,
            day,
            day + timedelta(days=1),
            now=now,
            until=now + timedelta(minutes=5),
        )
        log = world.provider.calls(recent=200)
        world.seen = log["total"]
        for call in log["recent"]:
            if call["number"] > before:
                self._take(call)

    def _take(self, call: dict[str, Any]) -> None:
        rules = self.world.provider.faults()
        judged = self.world.account.take(call, self.world.twin.reply(call, rules))
        coin_id = unquote(call["url"].split("/")[4])
        if call["faults"]:
            self.struck.add(coin_id)
        if judged.document is not None:
            points = [point[1] for point in judged.document["prices"]]
            numbers = {float(value) for value in points if isinstance(value, Decimal)}
            self.said.setdefault(coin_id, set()).update(numbers)

    def check(self, day: datetime) -> None:
        """Each close is one that was said, and the true one where no fault was in the way."""
        connection, market = self.world.connection, self.world.provider.market
        stored = dict(
            connection.execute(
                "SELECT coin_id, price_usd FROM daily_close WHERE day_ts = %s", (day,)
            ).fetchall()
        )
        lost = connection.execute(
            "SELECT coin_id FROM unrecoverable_closes WHERE timeframe = 'daily'"
        ).fetchall()
        assert stored
        assert set(stored) <= set(self.coin_ids)
        for coin_id in self.coin_ids:
            truth = market.close(coin_id, day + timedelta(days=1), "history")
            assert truth is not None
            price = stored.get(coin_id)
            if price is None:
                assert coin_id in self.struck
                assert (coin_id,) in lost, "it is said why it is not there"
            elif coin_id in self.struck:
                assert float(price) in self.said[coin_id]
            else:
                assert float(price) == truth.price

    def check_ledger(self) -> None:
        """Calls go by several at a time, so they have no order."""
        rows = self.world.connection.execute(
            "SELECT endpoint, outcome, http_status FROM api_calls"
        ).fetchall()
        calls = self.world.account.calls
        assert Counter(rows) == Counter((each.path, each.outcome, each.status) for each in calls)
        assert self.world.provider.calls()["total"] == len(calls)


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("stage", ["question", "values", "answer", "wire"])
def test_after_a_fault_the_past_is_the_truth_that_could_be_had(
    world: World, new_platform: Callable[..., Platform], stage: str
) -> None:
    """Kind after kind, each for a day of its own; what a run did not get the next one asks for."""
    world.platform = new_platform(mode=str(FEW))
    wanted = world.platform.settings.always_include
    history = History(world, coins_to_poll(world.connection, FEW, wanted)["coin_id"].to_list())
    today = world.provider.now.replace(hour=0, minute=0, second=0, microsecond=0)
    kinds = [kind for kind in sorted(KINDS) if KINDS[kind].stage == stage]
    for place, kind in enumerate(kinds, start=2):
        day = today - timedelta(days=place)
        history.struck.clear()
        rule = {**brief(kind), "endpoint": "market_chart_range", "probability": 0.4}
        world.provider.fault(kind, **rule)
        while not history.struck:
            history.fill(day)
        world.provider.clear_faults()
        world.provider.advance(LONGEST_PAUSE)
        history.fill(day)
        history.check(day)
    history.check_ledger()
