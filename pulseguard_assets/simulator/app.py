"""The provider as a web application: the API under `/api/v3`, its levers under `/admin`.

Belongs here: the order in which a call is let through, and the admin endpoints.
Does not: what an endpoint says (`endpoints`), what a fault does, or serving (`server`).

A call meets, in this order: the CDN (no User-Agent 403, too long a URL 414), the key (10002, 10010,
10011), the plan's limits (429), the endpoint's own errors, then faults. Every call is counted,
refused ones too; only those that got past the key spend a credit.

The levers, with curl (B=http://127.0.0.1:8765):

    curl $B/admin                                     # what there is, and every kind of fault
    curl $B/admin/clock                               # the simulated time
    curl $B/admin/clock -d '{"now": "2026-03-01T00:00:00Z"}'       # jump; UNIX seconds do too
    curl $B/admin/clock -d '{"now": "2026-03-01T00:00:00Z", "rate": 0}'     # jump, stand still
    curl $B/admin/clock -d '{"advance": 3600}'        # seconds ahead; negative goes back
    curl $B/admin/clock -d '{"rate": 60}'             # an hour a minute
    curl $B/admin/clock -d '{"real": true}'           # real time again
    curl $B/admin/faults -d '{"kind": "rate_limit", "retry_after": 5, "count": 2}'
    curl $B/admin/faults -d '{"kind": "zero", "endpoint": "simple_price", "coins": ["cardano"]}'
    curl $B/admin/faults -d '{"kind": "html", "status": 502, "probability": 0.1}'
    curl $B/admin/faults                              # the rules in force, how often each struck
    curl -X DELETE $B/admin/faults/3                  # one away; without a number all
    curl $B/admin/calls?recent=5                      # calls by outcome, endpoint, status, fault
    curl $B/admin/limits -d '{"calls_per_minute": 30, "monthly_credits": 10000}'
    curl "$B/admin/truth?coin=bitcoin&at=2026-03-01T00:00:00Z"     # what was true, and the closes
    curl -X POST $B/admin/reset                       # counts, credits, faults; the clock stays
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from datetime import datetime, timedelta, timezone
from typing import Any
from urllib.parse import parse_qsl

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from pulseguard_assets.simulator import answers
from pulseguard_assets.simulator.answers import Answer, AnsweredError
from pulseguard_assets.simulator.catalogue import EPOCH
from pulseguard_assets.simulator.clock import EARLIEST, LATEST, ClockError, MovableClock
from pulseguard_assets.simulator.delivery import HungUpError, deliver
from pulseguard_assets.simulator.endpoints import DATA, Asked, requested_coins
from pulseguard_assets.simulator.faults import KINDS, FaultBook, FaultError, Rule
from pulseguard_assets.simulator.limits import (
    Call,
    CallLog,
    Limits,
    LimitsError,
    Meter,
    Outcome,
)
from pulseguard_assets.simulator.market import Close, Market, UnknownCoinError
from pulseguard_assets.simulator.mutations import replacement, spoil

PREFIX = "/api/v3"
DEMO_HEADER, PRO_HEADER = "x-cg-demo-api-key", "x-cg-pro-api-key"

# Faults after which the caller holds nothing it can use, and those that may leave no status either.
_RUINOUS = frozenset({"reset", "disconnect", "truncated", "empty", "wrong_content_type", "bomb"})
_CUTTING = frozenset({"reset", "disconnect"})


class Simulation:
    """Everything the simulated provider is: a market, a clock, limits, faults and counts."""

    def __init__(
        self,
        market: Market | None = None,
        *,
        clock: MovableClock | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.market = market or Market()
        self.clock = clock or MovableClock()
        self.limits = limits or Limits()
        self.faults = FaultBook(self.market.seed)
        self.log = CallLog()
        self.meter = Meter()

    def calls(self, recent: int = 20) -> dict[str, Any]:
        """The call counts (`CallLog.summary`) with `credits_used` this simulated month."""
        return {**self.log.summary(recent), "credits_used": self.meter.spent(self.clock())}

    def reset(self) -> None:
        """Forget calls, credits and faults. The clock, the limits and the market stay."""
        self.faults.reset()
        self.log.clear()
        self.meter.clear()


class _Api:
    """The API itself, as an ASGI application mounted under its prefix."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        simulation = self._simulation
        now = simulation.clock()
        endpoint, coin_id = resolve(scope["path"].removeprefix(PREFIX))
        call = simulation.log.begin(endpoint, _url(scope), now)
        answer, wire = self._answer(scope, now, endpoint, coin_id, call)
        # Counted before it is sent: who reads the answer and then the counts finds it there.
        call.settle(_booked(answer, wire), answer.status)
        simulation.log.end(call)
        try:
            await deliver(answer, wire, scope, receive, send)
        except HungUpError as hung_up:
            if call.outcome == "successful" or not hung_up.answered:
                simulation.log.amend(call, "failed")

    def _answer(
        self, scope: Scope, now: datetime, endpoint: str, coin_id: str, call: Call
    ) -> tuple[Answer, list[Rule]]:
        if (refusal := self._refusal(scope, now)) is not None:
            return refusal, []
        if endpoint == "unknown" or scope["method"] != "GET":
            return answers.incorrect_path(now), []
        query = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
        asked = Asked(query, self._simulation.market, now, self._simulation.limits, coin_id)
        return self._spoilt(endpoint, asked, call)

    def _refusal(self, scope: Scope, now: datetime) -> Answer | None:
        headers, limits = Headers(scope=scope), self._simulation.limits
        if not headers.get("user-agent"):
            return answers.html_page(now, 403)
        if len(_url(scope)) > limits.max_url_bytes:
            return answers.html_page(now, 414)
        if (wrong := _key_refusal(headers, limits, now)) is not None:
            return wrong
        if (refused := self._simulation.meter.take(limits, now)) is None:
            return None
        why, seconds = refused
        tells = limits.retry_after and why == "rate"
        return answers.rate_limited(now, str(seconds) if tells else None)

    def _spoilt(self, endpoint: str, asked: Asked, call: Call) -> tuple[Answer, list[Rule]]:
        """The endpoint's answer with the faults that strike it, those of the wire still ahead."""
        book, named = self._simulation.faults, requested_coins(endpoint, asked)
        before = book.draw({"question"}, endpoint, named)
        call.faults += [rule.kind for rule in before]
        try:
            answer, rules = self._compute(endpoint, _ask_otherwise(asked, before), call, named)
        except AnsweredError as refused:
            answer = refused.answer
            rules = book.draw({"answer", "wire"}, endpoint, named)
            call.faults += [rule.kind for rule in rules]
        for rule in before:
            if rule.kind == "cached":
                answer.headers |= {"cf-cache-status": "HIT", "age": str(rule.params["age"])}
        if instead := [rule for rule in rules if rule.stage == "answer"]:
            answer = replacement(instead[0], asked.now)
        return answer, [rule for rule in rules if rule.stage == "wire"]

    def _compute(
        self, endpoint: str, asked: Asked, call: Call, named: set[str]
    ) -> tuple[Answer, list[Rule]]:
        began, book = time.perf_counter(), self._simulation.faults
        if endpoint not in DATA:
            rules = book.draw({"values", "answer", "wire"}, endpoint, named)
            call.faults += [rule.kind for rule in rules]
            return self._small(endpoint, asked), rules
        table = DATA[endpoint](asked)
        there = named | {coin_id for coin_id, _ in table.records}
        rules = book.draw({"values", "answer", "wire"}, endpoint, there)
        call.faults += [rule.kind for rule in rules]
        for rule in rules:
            if rule.stage == "values":
                spoil(table, rule)
        return answers.success(table, asked.now, time.perf_counter() - began), rules

    def _small(self, endpoint: str, asked: Asked) -> Answer:
        if endpoint == "ping":
            body: dict[str, Any] = {"gecko_says": "(V3) To the Moon!"}
        elif asked.limits.host != "pro":
            raise AnsweredError(answers.paid_only(asked.now))
        else:
            body = self._account(asked)
        return answers.json_answer(answers.dumps(body).encode(), asked.now)

    def _account(self, asked: Asked) -> dict[str, Any]:
        limits, spent = asked.limits, self._simulation.meter.spent(asked.now)
        credits_ = limits.monthly_credits or 500_000
        return {
            "plan": "Simulated",
            "rate_limit_request_per_minute": limits.calls_per_minute or 500,
            "monthly_call_credit": credits_,
            "current_total_monthly_calls": spent,
            "current_remaining_monthly_calls": max(0, credits_ - spent),
        }


def _booked(answer: Answer, wire: list[Rule]) -> Outcome:
    """How the caller should book an answer after what happens to it on the wire.

    A refusal for the rate is one by its status alone, if that arrives.
    """
    unanswered = any(r.kind in _CUTTING and r.params.get("after_bytes") is None for r in wire)
    ruined = any(rule.kind in _RUINOUS for rule in wire)
    return "failed" if unanswered or (ruined and answer.status != 429) else answer.outcome


def _ask_otherwise(asked: Asked, rules: list[Rule]) -> Asked:
    """The question as changed by faults of stage `question`."""
    shift, now = asked.shift, asked.now
    for rule in rules:
        if rule.kind == "page_drift":
            shift += int(rule.params["shift"])
        else:
            now -= timedelta(seconds=rule.params["age"])
    return Asked(asked.query, asked.market, now, asked.limits, asked.coin_id, shift)


def _url(scope: Scope) -> str:
    query = scope["query_string"].decode("latin-1")
    path = (scope.get("raw_path") or scope["path"].encode()).decode("latin-1")
    return f"{path}?{query}" if query else path


def resolve(path: str) -> tuple[str, str]:
    """The endpoint and coin id of a decoded path below the prefix; `unknown` for any other."""
    fixed = {
        "/simple/price": "simple_price",
        "/coins/markets": "coins_markets",
        "/ping": "ping",
        "/key": "key",
    }
    path = path.removesuffix("/")
    if path in fixed:
        return fixed[path], ""
    for suffix, endpoint in (
        ("/market_chart/range", "market_chart_range"),
        ("/market_chart", "market_chart"),
    ):
        coin_id = path.removeprefix("/coins/").removesuffix(suffix)
        if path.startswith("/coins/") and path.endswith(suffix) and coin_id:
            return endpoint, coin_id
    return "unknown", ""


def _key_refusal(headers: Headers, limits: Limits, now: datetime) -> Answer | None:
    right, wrong, code = (
        (DEMO_HEADER, PRO_HEADER, 10010)
        if limits.host == "public"
        else (PRO_HEADER, DEMO_HEADER, 10011)
    )
    if wrong in headers:
        return answers.wrong_host(now, code)
    key = headers.get(right, "")
    needed = limits.require_key or limits.host == "pro"
    if (needed and not key) or (key and limits.keys and key not in limits.keys):
        return answers.key_missing(now)
    return None


# --- levers ---------------------------------------------------------------------------------


class LeverError(ValueError):
    """An admin request that makes no sense; the message says what to write instead."""


class _Levers:
    """The admin endpoints. Bodies are JSON; anything wrong is a 422 with a sentence."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation

    async def overview(self, request: Request) -> JSONResponse:
        market = self._simulation.market
        kinds = {
            name: {"does": kind.does, "acts on": kind.stage, "parameters": dict(kind.defaults)}
            for name, kind in KINDS.items()
        }
        return JSONResponse(
            {
                "api": str(request.base_url).removesuffix("/") + PREFIX,
                "market": {"seed": market.seed, "coins": len(market.coins)},
                "clock": self._clock(),
                "limits": asdict(self._simulation.limits),
                "levers": [route.path for route in self.routes()],
                "faults": kinds,
            }
        )

    async def clock(self, request: Request) -> JSONResponse:
        if request.method == "POST":
            wanted = await _json(request)
            _only(wanted, {"now", "advance", "rate", "real"})
            if wanted.get("real"):
                self._simulation.clock.follow_source()
            else:
                self._simulation.clock.set(
                    now=_instant(wanted.get("now")),
                    advance=_seconds(wanted.get("advance")),
                    rate=_number("rate", wanted.get("rate")),
                )
        return JSONResponse(self._clock())

    async def faults(self, request: Request) -> JSONResponse:
        book = self._simulation.faults
        if request.method == "POST":
            return JSONResponse(book.add(await _json(request)), status_code=201)
        if request.method == "DELETE":
            return JSONResponse({"cleared": book.clear()})
        return JSONResponse(book.listing())

    async def fault(self, request: Request) -> JSONResponse:
        cleared = self._simulation.faults.clear(request.path_params["number"])
        return JSONResponse({"cleared": cleared}, status_code=200 if cleared else 404)

    async def calls(self, request: Request) -> JSONResponse:
        recent = request.query_params.get("recent", "20")
        return JSONResponse(self._simulation.calls(int(recent) if recent.isdecimal() else 20))

    async def limits(self, request: Request) -> JSONResponse:
        if request.method == "POST":
            self._simulation.limits = self._simulation.limits.changed(await _json(request))
        return JSONResponse(asdict(self._simulation.limits))

    async def truth(self, request: Request) -> JSONResponse:
        at = _instant(request.query_params.get("at")) or self._simulation.clock()
        if not EARLIEST + timedelta(days=1) <= at < LATEST:
            raise LeverError(f"at is {at.isoformat()}; write a time from {EARLIEST:%Y} on.")
        market, coin_id = self._simulation.market, request.query_params.get("coin", "")
        seen = market.observation(coin_id, at)
        return JSONResponse(
            {
                "coin": coin_id,
                "at": at.isoformat(),
                "observation": None
                if seen is None
                else {**seen._asdict(), "last_updated": seen.last_updated.isoformat()},
                "close_if_a_bucket_ended_now": {
                    "live": _close_json(market.close(coin_id, at, "live")),
                    "history": _close_json(market.close(coin_id, at, "history")),
                },
            }
        )

    async def reset(self, _request: Request) -> JSONResponse:
        self._simulation.reset()
        return JSONResponse({"reset": ["calls", "credits", "faults"]})

    def _clock(self) -> dict[str, Any]:
        clock = self._simulation.clock
        return {"now": clock().isoformat(), "rate": clock.rate}

    def routes(self) -> list[Route]:
        return [
            Route("/admin", self.overview),
            Route("/admin/clock", self.clock, methods=["GET", "POST"]),
            Route("/admin/faults", self.faults, methods=["GET", "POST", "DELETE"]),
            Route("/admin/faults/{number:int}", self.fault, methods=["DELETE"]),
            Route("/admin/calls", self.calls),
            Route("/admin/limits", self.limits, methods=["GET", "POST"]),
            Route("/admin/truth", self.truth),
            Route("/admin/reset", self.reset, methods=["POST"]),
        ]


def _close_json(close: Close | None) -> dict[str, Any] | None:
    if close is None:
        return None
    times = {"close_ts": close.close_ts, "last_updated": close.last_updated}
    return {**close._asdict(), **{name: at.isoformat() for name, at in times.items()}}


async def _json(request: Request) -> dict[str, Any]:
    try:
        value = json.loads(await request.body())
    except ValueError as wrong:
        raise LeverError(f"the body is not JSON: {wrong}.") from None
    if not isinstance(value, dict):
        raise LeverError("the body is not a JSON object; write {...}.")
    return value


def _only(wanted: dict[str, Any], known: set[str]) -> None:
    if unknown := sorted(set(wanted) - known):
        raise LeverError(f"unknown: {', '.join(unknown)}; there are {', '.join(sorted(known))}.")


def _number(name: str, value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= 1e10:
        raise LeverError(f"{name} is {value!r}; write a number.")
    return float(value)


def _seconds(value: object) -> timedelta | None:
    number = _number("advance", value)
    return None if number is None else timedelta(seconds=number)


def _instant(value: object) -> datetime | None:
    """ISO 8601 with a zone, or UNIX seconds."""
    if value is None:
        return None
    if isinstance(value, str):
        try:
            # Python 3.10 does not read Z.
            instant = datetime.fromisoformat(value.replace("Z", "+00:00"))
        except ValueError:
            raise LeverError(f"{value!r} is no time; write 2026-03-01T00:00:00Z.") from None
        if instant.tzinfo is None:
            raise LeverError(f"{value!r} has no zone; write 2026-03-01T00:00:00Z.")
        return instant.astimezone(timezone.utc)
    number = _number("now", value) or 0.0
    return EPOCH + timedelta(seconds=number)


async def _explain(_request: Request, wrong: Exception) -> JSONResponse:
    status = 404 if isinstance(wrong, UnknownCoinError) else 422
    return JSONResponse({"error": str(wrong)}, status_code=status)


def create_app(simulation: Simulation) -> Starlette:
    """The web application of a simulation: the API under `PREFIX`, the levers under `/admin`."""
    return Starlette(
        routes=[
            Route(PREFIX + "/{path:path}", _Api(simulation)),
            *_Levers(simulation).routes(),
        ],
        exception_handlers=dict.fromkeys(
            (LeverError, FaultError, ClockError, LimitsError, UnknownCoinError), _explain
        ),
    )
