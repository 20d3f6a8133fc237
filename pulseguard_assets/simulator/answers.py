"""The shapes of the provider's answers: rows, numbers, headers and the three bodies of an error.

Belongs here: how something is written. Does not: what is written (`endpoints`) or when it is
refused (`app`). The error texts are quoted from recordings as far as a client may depend on them.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import format_datetime
from typing import Any, Final, Literal

from pulseguard_assets.simulator.limits import Outcome

JSON: Final = "application/json; charset=utf-8"
HTML: Final = "text/html; charset=UTF-8"
PRICING: Final = "https://www.coingecko.com/en/api/pricing"

Shape = Literal["simple_price", "coins_markets", "chart"]

#: Under which keys each shape shows a value; faults speak of values by these names.
FIELDS: Final[dict[Shape, dict[str, str]]] = {
    "simple_price": {
        "price": "usd",
        "market_cap": "usd_market_cap",
        "volume": "usd_24h_vol",
        "last_updated": "last_updated_at",
    },
    "coins_markets": {
        "price": "current_price",
        "market_cap": "market_cap",
        "volume": "total_volume",
        "last_updated": "last_updated",
        "rank": "market_cap_rank",
    },
    "chart": {"price": "prices", "market_cap": "market_caps", "volume": "total_volumes"},
}


@dataclass
class Table:
    """An answer before it is written: records by coin id, in order, ids possibly repeated."""

    shape: Shape
    records: list[tuple[str, dict[str, Any]]]

    def body(self) -> bytes:
        """The JSON of the table, as the endpoint of its shape writes it."""
        if self.shape == "simple_price":
            # Joined by hand: a fault may want one key twice, which no dict can hold.
            pairs = (f"{dumps(coin_id)}:{dumps(values)}" for coin_id, values in self.records)
            return ("{" + ",".join(pairs) + "}").encode()
        if self.shape == "coins_markets":
            return dumps([values for _, values in self.records]).encode()
        return dumps(self.records[0][1]).encode()


@dataclass
class Answer:
    """An answer ready for the wire. `outcome` is how the caller should book it."""

    status: int
    body: bytes
    content_type: str = JSON
    headers: dict[str, str] = field(default_factory=dict)
    outcome: Outcome = "successful"


class AnsweredError(Exception):
    """Raised while an answer is being made, to answer with an error instead."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status, answer.body)
        self.answer = answer


def dumps(value: object) -> str:
    """JSON as the provider writes it: no blanks, UTF-8 as is, doubles in their shortest form.

    NaN and infinities come out as the tokens `NaN` and `Infinity`, which JSON does not have:
    only faults put them there.
    """
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def iso(instant: datetime) -> str:
    """`2024-11-21T22:24:18.609Z`, the form of times in `/coins/markets`."""
    return f"{instant:%Y-%m-%dT%H:%M:%S}.{instant.microsecond // 1000:03d}Z"


def rounded(value: float | None, precision: str | None) -> float | None:
    """A price as shown: all of it for `full`, `precision` decimals, or the default rounding.

    The default, read off recorded pages: whole from 10,000 up, then 2 decimals, 3 just above
    1, then 6, 8, 12, 15 and 18 the smaller the price gets.
    """
    if value is None or precision == "full":
        return value
    if precision is not None and precision.isdecimal() and len(precision) <= 2:
        return round(value, int(precision))
    return _default_rounding(value)


_DECIMALS: Final = ((1.1, 2), (1.0, 3), (0.05, 6), (1e-6, 8), (1e-9, 12), (1e-12, 15))


def _default_rounding(value: float) -> float:
    size = abs(value)
    if size >= 10_000:
        return round(value)
    for least, decimals in _DECIMALS:
        if size >= least:
            return round(value, decimals)
    return round(value, 18)


def success(table: Table, now: datetime, runtime: float) -> Answer:
    """The table with the headers of a successful answer. `runtime` in seconds."""
    body = table.body()
    return json_answer(body, now, runtime)


def json_answer(body: bytes, now: datetime, runtime: float = 0.001) -> Answer:
    """A successful answer with the cache headers of the recordings."""
    etag = hashlib.md5(body, usedforsecurity=False).hexdigest()
    headers = {
        "date": format_datetime(now, usegmt=True),
        "cache-control": "max-age=30, public, must-revalidate, s-maxage=60",
        "cf-cache-status": "MISS",
        "etag": f'W/"{etag}"',
        "vary": "Accept-Encoding, Origin",
        "x-runtime": f"{runtime:.6f}",
    }
    return Answer(200, body, JSON, headers)


def _refusal(
    status: int, body: object, now: datetime, outcome: Outcome = "failed", **headers: str
) -> Answer:
    base = {"date": format_datetime(now, usegmt=True), "cache-control": "no-cache"}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, dumps(body).encode(), JSON, {**base, **named}, outcome)


def _stamp(now: datetime) -> str:
    return f"{now:%Y-%m-%dT%H:%M:%S}.{now.microsecond // 1000:03d}+00:00"


def missing_parameter(name: str, now: datetime) -> Answer:
    """422 with the plain shape, `{"error": "..."}`."""
    return _refusal(422, {"error": f"Missing parameter {name}"}, now)


def invalid_parameter(name: str, now: datetime) -> Answer:
    """A parameter that is there and makes no sense, in the plain shape."""
    status = 400 if name == "vs_currency" else 422
    return _refusal(status, {"error": f"invalid {name}"}, now)


def coin_not_found(now: datetime) -> Answer:
    """404 of the `/coins/{id}` endpoints."""
    return _refusal(404, {"error": "coin not found"}, now)


def incorrect_path(now: datetime) -> Answer:
    """404 of a path that is no endpoint."""
    text = "Incorrect path. Please check https://www.coingecko.com/api/"
    return _refusal(404, {"error": text}, now)


def rate_limited(now: datetime, retry_after: str | None = None, status: int = 429) -> Answer:
    """The 429 body under `status` (200 has been seen), with Retry-After when given."""
    text = (
        "You've exceeded the Rate Limit. Please visit "
        f"{PRICING} to subscribe to our API plans for higher rate limits."
    )
    body = {"status": {"error_code": 429, "error_message": text}}
    headers = {} if retry_after is None else {"retry_after": retry_after}
    return _refusal(status, body, now, "rate_limited", **headers)


def too_far_back(now: datetime, days: int) -> Answer:
    """401 with the nested shape and code 10012."""
    text = (
        "Your request exceeds the allowed time range. Public API users are limited to querying "
        f"historical data within the past {days} days. Upgrade to a paid plan to enjoy full "
        f"historical data access: {PRICING}. "
    )
    status = {"timestamp": _stamp(now), "error_code": 10012, "error_message": text}
    return _refusal(401, {"error": {"status": status}}, now)


def key_missing(now: datetime) -> Answer:
    """401 with code 10002, also for a key that is not accepted."""
    text = (
        "API Key Missing. Please make sure you're using the right authentication method. For Pro "
        "API, please visit: https://docs.coingecko.com/reference/authentication."
    )
    status = {"timestamp": _stamp(now), "error_code": 10002, "error_message": text}
    return _refusal(401, {"status": status}, now)


def paid_only(now: datetime) -> Answer:
    """401 with code 10005: the endpoint or parameter needs a paid plan."""
    text = f"This request is limited to PRO API subscribers. Please visit {PRICING} to subscribe."
    return _refusal(401, {"status": {"error_code": 10005, "error_message": text}}, now)


def wrong_host(now: datetime, code: int) -> Answer:
    """400 with the code at the top: 10010 a pro key on the public host, 10011 the reverse."""
    kind, other, right = (
        ("Pro", "api.coingecko.com", "pro-api.coingecko.com")
        if code == 10010
        else ("Demo", "pro-api.coingecko.com", "api.coingecko.com")
    )
    text = f"If you are using {kind} API key, please change your root URL from {other} to {right}"
    body = {"timestamp": _stamp(now), "error_code": code, "status": {"error_message": text}}
    return _refusal(400, body, now)


def server_error(now: datetime, status: int = 500) -> Answer:
    """A 5xx in JSON, with the recorded spelling of its content type."""
    phrase = "Internal Server Error" if status == 500 else "Service Unavailable"
    answer = _refusal(status, {"status": status, "error": phrase}, now)
    answer.content_type = "application/json; charset=UTF-8"
    return answer


def html_page(now: datetime, status: int) -> Answer:
    """A page of the CDN: it never reached the API."""
    titles = {403: "Forbidden", 414: "URI Too Large", 502: "Bad Gateway", 504: "Gateway Time-out"}
    title = f"{status} {titles.get(status, 'Service Unavailable')}"
    page = (
        f"<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n"
        f"<center><h1>{title}</h1></center>\r\n<hr><center>cloudflare</center>\r\n"
        "</body>\r\n</html>\r\n"
    )
    headers = {"date": format_datetime(now, usegmt=True), "server": "cloudflare"}
    return Answer(status, page.encode(), HTML, headers, "failed")
