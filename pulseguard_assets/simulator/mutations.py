"""What faults do to the values of an answer, and the answers they give instead.

Belongs here: table in, spoilt table out. Does not: when a fault strikes (`faults`), or the wire.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Final

from pulseguard_assets.simulator import answers
from pulseguard_assets.simulator.answers import FIELDS, JSON, Answer, Table, iso
from pulseguard_assets.simulator.faults import Rule
from pulseguard_assets.simulator.limits import Outcome

Change = Callable[[Any], Any]


def spoil(table: Table, rule: Rule) -> None:
    """Apply a fault of stage `values` to a table, in place."""
    if rule.kind in _RECORDS:
        _RECORDS[rule.kind](table, rule)
    elif rule.kind in ("stale", "future"):
        _shift_times(table, rule)
    else:
        _change_fields(table, rule)


def replacement(rule: Rule, now: datetime) -> Answer:
    """The answer that a fault of stage `answer` gives instead of the true one."""
    return _REPLACEMENTS[rule.kind](rule.params, now)


# --- values ---------------------------------------------------------------------------------


def _struck(table: Table, rule: Rule) -> list[int]:
    """Positions of the records a rule is about: its coins', and of those every n-th."""
    mine = [i for i, (coin, _) in enumerate(table.records) if not rule.coins or coin in rule.coins]
    return mine[:: rule.params["every"]]


def _change_fields(table: Table, rule: Rule) -> None:
    keys = [FIELDS[table.shape].get(name, name) for name in rule.params["fields"]]
    if table.shape == "chart":
        for key in keys:
            _change_points(table, rule, key)
        return
    for position in _struck(table, rule):
        record = table.records[position][1]
        for key in keys:
            if key not in record:
                continue
            if rule.kind == "missing_field":
                del record[key]
            else:
                record[key] = _changed(rule, record[key])


def _change_points(table: Table, rule: Rule, key: str) -> None:
    coin_id, series = table.records[0]
    if key not in series or (rule.coins and coin_id not in rule.coins):
        return
    if rule.kind == "missing_field":
        del series[key]
        return
    for point in series[key][:: rule.params["every"]]:
        point[1] = _changed(rule, point[1])


def _changed(rule: Rule, value: Any) -> Any:
    if rule.kind in ("absurd", "replace"):
        factor = rule.params.get("factor")
        return rule.params["value"] if factor is None else _scaled(value, factor)
    return _VALUES[rule.kind](value)


def _scaled(value: Any, factor: float) -> Any:
    """A number times `factor`. Text, and what another fault has spoilt, stays as it is."""
    return value * factor if isinstance(value, (int, float)) else value


_VALUES: Final[dict[str, Change]] = {
    "null": lambda _: None,
    "nan": lambda _: math.nan,
    "infinity": lambda _: math.inf,
    "negative": lambda value: _scaled(value, -1),
    "zero": lambda _: 0,
    "string_number": lambda value: None if value is None else str(value),
}


def _shift_times(table: Table, rule: Rule) -> None:
    sign = 1 if rule.kind == "future" else -1
    seconds = sign * rule.params["seconds"]
    if table.shape == "chart":
        for series in table.records[0][1].values():
            for point in series[:: rule.params["every"]]:
                point[0] += int(seconds * 1000)
        return
    key = FIELDS[table.shape]["last_updated"]
    for position in _struck(table, rule):
        record = table.records[position][1]
        if isinstance(record.get(key), int):
            record[key] += int(seconds)
        elif isinstance(record.get(key), str):
            record[key] = _shifted(record[key], timedelta(seconds=seconds))


def _shifted(text: str, by: timedelta) -> str:
    """A time of `/coins/markets`, moved. What another fault has spoilt stays as it is."""
    try:
        return iso(datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%f%z") + by)
    except ValueError:
        return text


# --- records --------------------------------------------------------------------------------


def _add_unknown(table: Table, rule: Rule) -> None:
    if table.shape == "chart":
        return
    pattern = table.records[0][1] if table.records else {}
    for coin_id in rule.params["ids"]:
        record = dict(pattern)
        if "id" in record:
            record["id"] = coin_id
        table.records.append((coin_id, record))


def _repeat(table: Table, rule: Rule) -> None:
    if table.shape == "chart":
        for series in table.records[0][1].values():
            series[:] = [list(point) for point in series for _ in range(2)]
        return
    key = FIELDS[table.shape]["price"]
    for position in reversed(_struck(table, rule)):
        coin_id, record = table.records[position]
        again = dict(record)
        if isinstance(again.get(key), (int, float)):
            again[key] *= 1.01
        table.records.insert(position + 1, (coin_id, again))


def _leave_out(table: Table, rule: Rule) -> None:
    if table.shape == "chart":
        for series in table.records[0][1].values():
            del series[:: rule.params["every"]]
        return
    for position in reversed(_struck(table, rule)):
        del table.records[position]


def _add_field(table: Table, rule: Rule) -> None:
    for position in _struck(table, rule):
        table.records[position][1][rule.params["name"]] = rule.params["value"]


_RECORDS: Final[dict[str, Callable[[Table, Rule], None]]] = {
    "unknown_ids": _add_unknown,
    "duplicate_ids": _repeat,
    "missing_ids": _leave_out,
    "extra_field": _add_field,
}


# --- instead --------------------------------------------------------------------------------


def _rate_limit(params: dict[str, Any], now: datetime, status: int = 429) -> Answer:
    after = params["retry_after"]
    return answers.rate_limited(now, None if after is None else str(after), status)


def _api_error(params: dict[str, Any], now: datetime) -> Answer:
    code = params["code"]
    if code in (10010, 10011):
        return answers.wrong_host(now, code)
    if code == 10012:
        return answers.too_far_back(now, 365)
    return answers.paid_only(now) if code == 10005 else answers.key_missing(now)


def _raw(params: dict[str, Any], _now: datetime) -> Answer:
    headers = {str(name): str(value) for name, value in params["headers"].items()}
    body = str(params["body"]).encode()
    outcome: Outcome = "successful" if params["status"] < 400 else "failed"
    return Answer(params["status"], body, str(params["content_type"]), headers, outcome)


def _deep(params: dict[str, Any], _now: datetime) -> Answer:
    depth = int(params["depth"])
    return Answer(200, b"[" * depth + b"]" * depth, JSON, {}, "failed")


_REPLACEMENTS: Final[dict[str, Callable[[dict[str, Any], datetime], Answer]]] = {
    "rate_limit": _rate_limit,
    "rate_limit_200": lambda params, now: _rate_limit(params, now, 200),
    "server_error": lambda params, now: answers.server_error(now, params["status"]),
    "html": lambda params, now: answers.html_page(now, params["status"]),
    "api_error": _api_error,
    "not_found": lambda _, now: answers.coin_not_found(now),
    "raw": _raw,
    "deep_json": _deep,
}
