"""Faults on demand: which kinds there are, who asked for which, and when one strikes.

Belongs here: the catalogue, its parameters and the book of rules in force.
Does not: what a fault does to an answer (`mutations`) or to the wire (`delivery`).

A rule, as JSON for `POST /admin/faults` or keywords of `RunningSimulator.fault`:

    kind         one of `KINDS`
    endpoint     simple_price, coins_markets, market_chart_range, market_chart, key or ping;
                 left out: all of them
    coins        strike only requests or answers with one of these ids, and only those records
    count        strike so many times, then retire; left out: until cleared
    skip         let so many matching calls pass first
    probability  strike each matching call with this chance, from a seeded generator
    (any other)  a parameter of the kind, see `KINDS`
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

#: When a fault acts: on the question, on the values, instead of the answer, or on the wire.
Stage = Literal["question", "values", "answer", "wire"]

ENDPOINTS: Final = (
    "simple_price",
    "coins_markets",
    "market_chart_range",
    "market_chart",
    "key",
    "ping",
)


@dataclass(frozen=True)
class Kind:
    """One kind of fault: when it acts, what it does, and its parameters with their defaults."""

    stage: Stage
    does: str
    defaults: Mapping[str, Any] = field(default_factory=dict)


_FIELDS: Final = {"fields": ("price",), "every": 1}

KINDS: Final[dict[str, Kind]] = {
    # Instead of the answer.
    "rate_limit": Kind(
        "answer",
        "429 with its body; retry_after is the header's text, null leaves it out",
        {"retry_after": 119},
    ),
    "rate_limit_200": Kind("answer", "the 429 body under status 200", {"retry_after": None}),
    "server_error": Kind("answer", "a JSON error of the given 5xx status", {"status": 500}),
    "html": Kind("answer", "an HTML page of the CDN under the given status", {"status": 502}),
    "api_error": Kind(
        "answer", "the error of code 10002, 10005, 10010, 10011 or 10012", {"code": 10002}
    ),
    "not_found": Kind("answer", "404, coin not found"),
    "raw": Kind(
        "answer",
        "exactly this answer",
        {"status": 200, "body": "", "content_type": "application/json", "headers": {}},
    ),
    "deep_json": Kind("answer", "arrays nested so deep", {"depth": 100_000}),
    # On the question.
    "page_drift": Kind(
        "question",
        "pages after the first begin `shift` coins early (repeats) or, negative, late (misses)",
        {"shift": 1},
    ),
    "cached": Kind("question", "an answer of `age` seconds ago, as from a cache", {"age": 50}),
    # On the values: `fields` are price, market_cap, volume, last_updated, rank or keys of the
    # answer; every n-th record (or point of a chart) is struck.
    "null": Kind("values", "fields become null", _FIELDS),
    "missing_field": Kind("values", "fields are left out", _FIELDS),
    "nan": Kind("values", "fields become the token NaN", _FIELDS),
    "infinity": Kind("values", "fields become the token Infinity", _FIELDS),
    "negative": Kind("values", "fields change sign", _FIELDS),
    "zero": Kind("values", "fields become 0", _FIELDS),
    "absurd": Kind(
        "values",
        "fields become `value`, or `factor` times themselves",
        {**_FIELDS, "value": 1e30, "factor": None},
    ),
    "string_number": Kind("values", "numbers become text", _FIELDS),
    "replace": Kind("values", "fields become `value`, any JSON", {**_FIELDS, "value": None}),
    "stale": Kind("values", "times go back by `seconds`", {"seconds": 1_036_800, "every": 1}),
    "future": Kind("values", "times go ahead by `seconds`", {"seconds": 3_600, "every": 1}),
    "extra_field": Kind(
        "values", "records get a field nobody knows", {"name": "new_field", "value": 1, "every": 1}
    ),
    "unknown_ids": Kind("values", "records of these ids are added", {"ids": ("no-such-coin",)}),
    "duplicate_ids": Kind(
        "values", "records come twice, the second price 1 % higher", {"every": 1}
    ),
    "missing_ids": Kind("values", "records are left out", {"every": 1}),
    # On the wire.
    "delay": Kind("wire", "`seconds` of silence before the headers", {"seconds": 1.0}),
    "trickle": Kind(
        "wire", "the body in `chunks`, `seconds` between two", {"seconds": 0.1, "chunks": 10}
    ),
    "reset": Kind(
        "wire",
        "the connection is reset after `after_bytes` of the body; null: before the headers",
        {"after_bytes": None},
    ),
    "disconnect": Kind("wire", "the connection is closed without an answer"),
    "truncated": Kind(
        "wire", "only this part of the body, under a length that fits", {"part": 0.5}
    ),
    "empty": Kind("wire", "status 200 and no body"),
    "wrong_content_type": Kind(
        "wire", "the body under another content type", {"content_type": "text/html; charset=UTF-8"}
    ),
    "bomb": Kind("wire", "gzip that unpacks to so many megabytes of blanks", {"megabytes": 100}),
}

_MATCHING: Final = frozenset({"kind", "endpoint", "coins", "count", "skip", "probability"})


class FaultError(ValueError):
    """A rule that makes no sense; the message says what to write instead."""


@dataclass
class Rule:
    """One rule in force, and how often it has struck."""

    number: int
    kind: str
    params: dict[str, Any]
    endpoint: str | None = None
    coins: frozenset[str] = frozenset()
    count: int | None = None
    skip: int = 0
    probability: float = 1.0
    struck: int = 0
    chance: random.Random = field(default_factory=random.Random)

    @property
    def stage(self) -> Stage:
        """When it acts."""
        return KINDS[self.kind].stage

    @property
    def spent(self) -> bool:
        """Whether it has struck as often as it may."""
        return self.count is not None and self.struck >= self.count

    def strikes(self, endpoint: str, coins: Collection[str]) -> bool:
        """Whether it strikes this call; counts the call when it matches."""
        if self.spent or self.endpoint not in (None, endpoint):
            return False
        if self.coins and self.coins.isdisjoint(coins):
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        if self.probability < 1.0 and self.chance.random() >= self.probability:
            return False
        self.struck += 1
        return True

    def as_json(self) -> dict[str, Any]:
        """The rule as shown by the admin endpoint."""
        return {
            "id": self.number,
            "kind": self.kind,
            "endpoint": self.endpoint,
            "coins": sorted(self.coins),
            "count": self.count,
            "skip": self.skip,
            "probability": self.probability,
            "struck": self.struck,
            **self.params,
        }


class FaultBook:
    """The rules in force. Thread-safe.

    Args:
        seed: of the generators behind `probability`; the same seed and the same order of rules
            and calls strike the same calls.
    """

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._lock = threading.Lock()
        self._rules: dict[int, Rule] = {}
        self._numbers = 0

    def add(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """Put a rule in force and return it as shown. Raises FaultError."""
        matching, params = _checked(wanted)
        with self._lock:
            self._numbers += 1
            chance = random.Random(f"{self._seed}/{self._numbers}")  # noqa: S311 - reproducible
            rule = Rule(self._numbers, wanted["kind"], params, chance=chance, **matching)
            self._rules[rule.number] = rule
            return rule.as_json()

    def listing(self) -> list[dict[str, Any]]:
        """All rules, spent ones too."""
        with self._lock:
            return [rule.as_json() for rule in self._rules.values()]

    def clear(self, number: int | None = None) -> int:
        """Remove one rule, or all; returns how many were removed. Numbers are not used again."""
        with self._lock:
            gone = [n for n in self._rules if number in (None, n)]
            for n in gone:
                del self._rules[n]
            return len(gone)

    def reset(self) -> None:
        """Back to the beginning, numbers and generators too."""
        with self._lock:
            self._rules.clear()
            self._numbers = 0

    def draw(self, stages: Collection[Stage], endpoint: str, coins: Collection[str]) -> list[Rule]:
        """The rules of these stages that strike a call with these coins, oldest first."""
        if not self._rules:
            return []
        with self._lock:
            return [
                rule
                for rule in self._rules.values()
                if rule.stage in stages and rule.strikes(endpoint, coins)
            ]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_whole(value: object, least: int = 0, most: int = 1 << 31) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_texts(value: object) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)


#: What each parameter must be, and how to say so. Those that are not here may be anything.
_PARAMS: Final[dict[str, tuple[Callable[[Any], bool], str]]] = {
    "status": (lambda v: _is_whole(v, 200, 599), "a status from 200 to 599"),
    "code": (
        lambda v: _is_whole(v) and v in (10002, 10005, 10010, 10011, 10012),
        "10002, 10005, 10010, 10011 or 10012",
    ),
    "body": (lambda v: isinstance(v, str), "a text"),
    "content_type": (lambda v: isinstance(v, str), "a text"),
    "headers": (lambda v: isinstance(v, dict), "an object of texts"),
    "depth": (lambda v: _is_whole(v, 1, 10_000_000), "a whole number from 1 to 10000000"),
    "shift": (lambda v: _is_whole(v, -100_000), "a whole number"),
    "age": (lambda v: _is_whole(v), "a whole number of seconds"),
    "every": (lambda v: _is_whole(v, 1), "1 for all, 2 for every other, and so on"),
    "fields": (_is_texts, "a list of texts"),
    "ids": (_is_texts, "a list of texts"),
    "name": (lambda v: isinstance(v, str), "a text"),
    "factor": (lambda v: v is None or _is_number(v), "a number or null"),
    "seconds": (lambda v: _is_number(v) and 0 <= v <= 1e9, "a number of seconds, 0 or more"),
    "chunks": (lambda v: _is_whole(v, 1), "a whole number from 1"),
    "after_bytes": (lambda v: v is None or _is_whole(v), "a whole number or null"),
    "part": (lambda v: _is_number(v) and 0 <= v <= 1, "a number from 0 to 1"),
    "megabytes": (lambda v: _is_whole(v, 1, 4096), "a whole number from 1 to 4096"),
}


def _checked(wanted: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a rule into what it matches and the parameters of its kind."""
    name = wanted.get("kind")
    if not isinstance(name, str) or name not in KINDS:
        raise FaultError(f"kind is {name!r}; write one of {', '.join(sorted(KINDS))}.")
    kind = KINDS[name]
    params = {k: v for k, v in wanted.items() if k not in _MATCHING}
    if unknown := sorted(set(params) - set(kind.defaults)):
        known = ", ".join(sorted(kind.defaults)) or "none"
        raise FaultError(f"{name} has no parameter {', '.join(unknown)}; it has {known}.")
    for key, value in params.items():
        fits, wording = _PARAMS.get(key, (lambda _: True, ""))
        if not fits(value):
            raise FaultError(f"{key} is {value!r}; write {wording}.")
    return _matching(wanted), {**kind.defaults, **params}


def _matching(wanted: Mapping[str, Any]) -> dict[str, Any]:
    endpoint = wanted.get("endpoint")
    if endpoint is not None and endpoint not in ENDPOINTS:
        raise FaultError(f"endpoint is {endpoint!r}; write one of {', '.join(ENDPOINTS)}.")
    coins, count, skip = wanted.get("coins", ()), wanted.get("count"), wanted.get("skip", 0)
    if not _is_texts(coins):
        raise FaultError(f"coins is {coins!r}; write a list of ids.")
    for name, number in (("count", count), ("skip", skip)):
        if number is not None and not _is_whole(number):
            raise FaultError(f"{name} is {number!r}; write a whole number.")
    probability = wanted.get("probability", 1.0)
    if not _is_number(probability) or not 0 <= probability <= 1:
        raise FaultError(f"probability is {probability!r}; write a number from 0 to 1.")
    return {
        "endpoint": endpoint,
        "coins": frozenset(coins),
        "count": count,
        "skip": skip or 0,
        "probability": float(probability),
    }
