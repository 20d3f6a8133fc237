"""What the provider really said, and what must have become of it.

Belongs here: asking a twin of the simulator what a call was answered with, reading that answer a
second time without any code of the product, and holding tables and ledger against it. Does not:
making anything happen.

The simulator is a function of its market, its clock and the faults that struck. So a second one,
put to the same instant under the same faults, repeats what the first said to a call of its log,
whether that one lives in this process or in another.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

import httpx
import psycopg
from closes_support import Observation, everything, expected, roll_up_all

from pulseguard_assets.simulator.app import PREFIX
from pulseguard_assets.simulator.faults import KINDS
from pulseguard_assets.simulator.market import Market
from pulseguard_assets.simulator.server import RunningSimulator, running_simulator
from pulseguard_assets.timeframes import TIMEFRAMES

PATHS = {
    "simple_price": "/simple/price",
    "coins_markets": "/coins/markets",
    "market_chart_range": "/coins/{id}/market_chart/range",
}
# The simulator cannot know whether text of its own choice is of use, nor that the content decides
# and not what it is called: about these the two sides may differ.
MATTER_OF_OPINION = {"raw", "wrong_content_type"}
# Nobody waits so long for an answer; faults of the tests stay far below it, or far above.
TOO_SLOW = 25.0
LARGEST = 8 * 1024 * 1024
_YEAR_10000 = 253_402_300_800
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)

Json = Any
Call = Mapping[str, Any]
Rule = Mapping[str, Any]


# -- what was said ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reply:
    """An answer, unpacked; `body` is None if it broke off, or is larger than any should be."""

    status: int
    body: bytes | None


class Twin:
    """The second simulator.

    Attributes:
        market: of both.
    """

    def __init__(self, simulator: RunningSimulator, http: httpx.Client) -> None:
        self._simulator, self._http = simulator, http
        self.market = simulator.market

    def reply(self, call: Call, rules: Sequence[Rule]) -> Reply | None:
        """What a call was answered with; None if nothing arrived, not even a status.

        Args:
            call: as the simulator's log shows it.
            rules: those in force at the time, no kind twice.
        """
        if call["status"] != 200 and not call["faults"]:
            # Refused for its own sake, which the log tells as well.
            return Reply(call["status"], b"")
        struck = [rule for rule in rules if rule["kind"] in call["faults"]]
        assert {rule["kind"] for rule in struck} == set(call["faults"])
        assert len(struck) == len(call["faults"]), "a kind is in force twice"
        self._simulator.reset()
        self._simulator.set_clock(datetime.fromisoformat(call["at"]))
        for rule in struck:
            self._simulator.fault(**_at_once(rule))
        reply = self._ask(call["url"])
        slow = {rule["kind"] for rule in struck if _seconds(rule) > TOO_SLOW}
        if reply is None or "delay" in slow:
            return None
        return Reply(reply.status, None) if slow else reply

    def _ask(self, url: str) -> Reply | None:
        try:
            with self._http.stream("GET", self._simulator.url.removesuffix(PREFIX) + url) as answer:
                return Reply(answer.status_code, _body(answer))
        except httpx.TransportError:
            return None


def _body(answer: httpx.Response) -> bytes | None:
    try:
        body = b"".join(answer.iter_raw())
    except httpx.TransportError:
        return None
    if answer.headers.get("content-encoding") != "gzip":
        return body
    unpacker = zlib.decompressobj(wbits=31)
    unpacked = unpacker.decompress(body, LARGEST)
    return unpacked if unpacker.eof else None


@contextmanager
def running_twin(market: Market) -> Iterator[Twin]:
    """A twin of whatever simulator has this market."""
    limits = httpx.Limits(max_keepalive_connections=0)
    with (
        running_simulator(market=market, now=_EPOCH + timedelta(days=9999)) as simulator,
        httpx.Client(timeout=30, limits=limits, headers={"user-agent": "twin"}) as http,
    ):
        yield Twin(simulator, http)


def _seconds(rule: Rule) -> float:
    """How long a fault of the wire holds an answer up."""
    if KINDS[rule["kind"]].stage != "wire" or "seconds" not in rule:
        return 0.0
    return float(rule["seconds"]) * (int(rule.get("chunks", 2)) - 1)


def _at_once(rule: Rule) -> dict[str, Any]:
    """The rule for a call of which it is known that it struck, and that nobody waits for."""
    kind = KINDS[rule["kind"]]
    wanted = {name: rule[name] for name in ("kind", "coins", *kind.defaults)}
    return wanted | ({"seconds": 0} if kind.stage == "wire" and "seconds" in wanted else {})


# -- what it means ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """What a call came to.

    Attributes:
        path: of its endpoint, as the ledger writes it.
        outcome: `successful`, `failed` or `rate_limited`.
        status: the HTTP status, or None for none.
        document: the JSON of an answer that can be used; None if there is none.
    """

    path: str
    outcome: str
    status: int | None
    document: Json = None


def never_arrived(path: str) -> Verdict:
    """What a call came to that did not reach the provider, or was not answered at all."""
    return Verdict(path, "failed", None)


def verdict(call: Call, reply: Reply | None) -> Verdict:
    """Judge the answer to a call."""
    path = PATHS[call["endpoint"]]
    if reply is None:
        return never_arrived(path)
    document = _json(reply.body)
    code = _error_code(document)
    if 429 in (reply.status, code):
        return Verdict(path, "rate_limited", reply.status)
    if reply.status != 200 or code is not None or not _fits(path, document):
        return Verdict(path, "failed", reply.status)
    return Verdict(path, "successful", 200, document)


def _json(body: bytes | None) -> Json:
    try:
        return json.loads(
            body or b"", parse_int=Decimal, parse_float=Decimal, parse_constant=Decimal
        )
    except (ValueError, RecursionError):
        return None


def _error_code(document: Json) -> Json:
    """The provider's own code, in one of its three places."""
    if not isinstance(document, dict):
        return None
    error = document.get("error")
    places = (error.get("status") if isinstance(error, dict) else None, document.get("status"))
    for place in (*places, document):
        if isinstance(place, dict) and "error_code" in place:
            return place["error_code"]
    return None


def _fits(path: str, document: Json) -> bool:
    if path == PATHS["coins_markets"]:
        return isinstance(document, list)
    return isinstance(document, dict) and ("prices" in document or path == PATHS["simple_price"])


# -- records ---------------------------------------------------------------------------------------


def sound_price(entry: Json) -> tuple[Any, ...] | None:
    """Price, market cap, volume and the provider's time, if a close can be made of them."""
    if not isinstance(entry, dict):
        return None
    numbers = [entry.get(name) for name in ("usd", "usd_market_cap", "usd_24h_vol")]
    updated = entry.get("last_updated_at")
    if not all(value is None or (_is_exact(value) and value.is_finite()) for value in numbers):
        return None
    if numbers[0] is None or numbers[0] <= 0:
        return None
    if updated is None:
        return (*numbers, None)
    if not _is_exact(updated) or not updated.is_finite() or not 0 < updated < _YEAR_10000:
        return None
    return (*numbers, _EPOCH + timedelta(microseconds=int(updated * 1_000_000)))


def sound_coin(entry: Json) -> tuple[Any, ...] | None:
    """Symbol, name, image, rank, market cap and time of a coin of the market list, if sound."""
    if not isinstance(entry, dict):
        return None
    texts = [entry.get(name) for name in ("id", "symbol", "name", "image")]
    if not all(isinstance(text, str) for text in texts[:3]) or not texts[0] or len(texts[0]) > 200:
        return None
    if texts[3] is not None and not isinstance(texts[3], str):
        return None
    values = [entry.get(name) for name in ("market_cap", "current_price", "total_volume")]
    if not all(value is None or _is_exact(value) for value in values):
        return None
    cap, rank, updated = values[0], entry.get("market_cap_rank"), entry.get("last_updated")
    if cap is not None and not (cap.is_finite() and cap >= 0):
        return None
    if rank is not None and not (_is_exact(rank) and rank == rank // 1 and 0 < rank < 2**31):
        return None
    if updated is not None and (updated := _time(updated)) is None:
        return None
    return (*texts[1:], None if rank is None else int(rank), cap, updated)


def _is_exact(value: Json) -> bool:
    """Whether it is a number, and one that a double keeps."""
    if not isinstance(value, Decimal):
        return False
    return not value.is_finite() or Decimal(repr(float(value))) == value


def _time(value: Json) -> datetime | None:
    try:
        return datetime.strptime(value, "%Y-%m-%dT%H:%M:%S.%f%z")
    except (TypeError, ValueError):
        return None


def asked_for(call: Call) -> list[str]:
    """The ids of a call to `/simple/price`."""
    return unquote(call["url"].partition("&ids=")[2]).split(",")


def hold_against(market: Market, found: Iterable[Observation], call: Call) -> None:
    """What was said in a call without faults is the truth, and all of it."""
    known = [coin_id for coin_id in asked_for(call) if market.get(coin_id)]
    truth = market.observations(known, datetime.fromisoformat(call["at"]))
    assert {each.coin_id: float(each.price_usd or 0) for each in found} == {
        coin_id: each.price for coin_id, each in truth.items() if each.price is not None
    }


# -- the account -----------------------------------------------------------------------------------


@dataclass
class Account:
    """All that was said so far, and what the tables must hold because of it.

    Attributes:
        calls: what each call came to, in order.
        stream: every observation that could be stored.
        coins: coin_priorities.
        faulty: by coin id, the records that could not be stored.
        simulated: calls by outcome, as the simulator counts them where that is no opinion.
    """

    calls: list[Verdict] = field(default_factory=list)
    stream: list[Observation] = field(default_factory=list)
    coins: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    faulty: dict[str, list[Json]] = field(default_factory=dict)

    def take(self, call: Call, reply: Reply | None) -> Verdict:
        """Note a call, and hold the simulator's word on how it ended against ours."""
        judged = verdict(call, reply)
        self.calls.append(judged)
        if not MATTER_OF_OPINION & set(call["faults"]) and not _lacks_prices(call):
            assert call["outcome"] == judged.outcome, call
        return judged

    def take_prices(
        self, document: Json, call: Call, label: datetime, arrived: datetime
    ) -> list[Observation]:
        """Note an answer to `/simple/price`, stored under a minute; returns what can be stored."""
        wanted, found = set(asked_for(call)), []
        for coin_id, entry in document.items():
            values = sound_price(entry) if coin_id in wanted else None
            if values is None:
                self.faulty.setdefault(coin_id[:200], []).append(entry)
                continue
            *numbers, provider_ts = values
            rank = self.coins[coin_id][3]
            found.append(Observation(coin_id, label, *numbers, rank, arrived, provider_ts, "live"))
        self.stream += found
        return found

    def take_coins(self, document: Json, arrived: datetime) -> None:
        """Note an answer to `/coins/markets`."""
        for entry in document:
            values = sound_coin(entry)
            if values is not None:
                self.coins[entry["id"]] = (*values, arrived)
                continue
            coin_id = entry.get("id") if isinstance(entry, dict) else None
            key = coin_id[:200] if isinstance(coin_id, str) else ""
            self.faulty.setdefault(key, []).append(entry)

    # -- holding the database against it --

    def check(self, connection: psycopg.Connection) -> None:
        """Everything, to the last column."""
        self.check_closes(connection)
        self.check_coins(connection)
        self.check_faulty(connection)
        self.check_ledger(connection)

    def check_closes(self, connection: psycopg.Connection) -> None:
        """All five tables are those of the observations that could be had, and of nothing else."""
        roll_up_all(connection)
        found = everything(connection)
        for timeframe in TIMEFRAMES:
            assert found[timeframe.table] == expected(timeframe, self.stream), timeframe.table

    def check_coins(self, connection: psycopg.Connection) -> None:
        """Each coin is as the market list described it last."""
        rows = connection.execute(
            "SELECT coin_id, symbol, name, image_url, market_cap_rank, market_cap_usd, "
            "provider_ts, last_updated FROM coin_priorities"
        ).fetchall()
        assert {row[0]: row[1:] for row in rows} == self.coins

    def check_faulty(self, connection: psycopg.Connection) -> None:
        """Each faulty record is set aside, with a reason and its content."""
        rows = connection.execute(
            "SELECT coin_id, reason, payload::text, times, collection_id FROM rejected_observations"
        ).fetchall()
        times: Counter[str] = Counter()
        for coin_id, reason, payload, count, cycle in rows:
            times[coin_id] += count
            assert reason
            assert cycle is not None
            shown = json.loads(payload, parse_int=float)
            assert any(_tells(shown, _plain(entry)) for entry in self.faulty[coin_id]), payload
        assert times == {coin_id: len(entries) for coin_id, entries in self.faulty.items()}

    def check_ledger(self, connection: psycopg.Connection) -> None:
        """Each call is in the ledger by its outcome, in the day's figures and in its cycle's."""
        rows = connection.execute(
            "SELECT endpoint, outcome, http_status FROM api_calls ORDER BY call_id"
        ).fetchall()
        assert len(rows) == len(self.calls)
        for row, call in zip(rows, self.calls, strict=True):
            assert row == (call.path, call.outcome, call.status)
        outcomes = Counter(call.outcome for call in self.calls)
        figures = connection.execute(
            "SELECT sum(total_calls), sum(successful_calls), sum(failed_calls), "
            "sum(rate_limited_calls) FROM api_usage_stats"
        ).fetchone()
        assert figures == (
            len(self.calls),
            outcomes["successful"],
            outcomes["failed"],
            outcomes["rate_limited"],
        )
        cycles = connection.execute("SELECT sum(api_calls_made) FROM collection_status").fetchone()
        assert cycles == (len(self.calls),)


def _lacks_prices(call: Call) -> bool:
    """Whether a chart came without the series that it is for, sent as it was meant to be."""
    return call["endpoint"] == "market_chart_range" and "missing_field" in call["faults"]


def _plain(entry: Json) -> Json:
    """A record as a payload shows it: what JSON has no number for is text."""
    text = json.dumps(entry, default=float)
    return json.loads(text, parse_int=float, parse_constant=lambda token: str(float(token)))


_STAGED = {
    "price_usd": "usd",
    "market_cap_usd": "usd_market_cap",
    "volume_24h_usd": "usd_24h_vol",
}
_STAGED_COIN = {"coin_id": "id", "market_cap_rank": "market_cap_rank", "name": "name"}


def _tells(payload: Json, entry: Json) -> bool:
    """Whether a payload has a record's content, as it came or as it was about to be stored."""
    if payload == entry:
        return True
    if not isinstance(payload, dict) or not isinstance(entry, dict):
        return False
    names = _STAGED if "price_usd" in payload else _STAGED_COIN
    return all(
        _text(payload.get(ours)) == _text(entry.get(theirs)) for ours, theirs in names.items()
    )


def _text(value: Json) -> str:
    """PostgreSQL has its own words for what is no number."""
    return {"NaN": "nan", "Infinity": "inf", "-Infinity": "-inf"}.get(str(value), str(value))
