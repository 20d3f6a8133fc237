"""Answers of the provider into typed values: polars frames with an explicit schema.

Belongs here: reading bytes, and setting aside what is not the data it should be. Does not: what
a legal price is. A zero, a negative number or the tokens NaN and Infinity stay in the frame, for
the database decides about values in one place; here only the *kind* of a value is judged.

One bad row never costs its batch. It goes to `rejected` with a reason and its JSON, the others
go to the frame. Only an answer that is no such answer at all raises `UnreadableAnswer`.

Exactness. The frames carry 64-bit floats, which reach the database in their shortest decimal
form. A decimal fraction becomes the nearest float, which is what the provider's own servers
computed with, so nothing is lost (17 digits were the most ever recorded). An INTEGER whose digits
would not come back the same, and a literal outside the range of a float, are not changed in
silence: their row is rejected, digits in the payload. No real market reaches such numbers (past
9,007,199,254,740,992 dollars), so carrying decimals for all rows would buy nothing.

Size. An answer has about as many rows as were asked for. One with absurdly many lists and objects
is refused before it is taken apart, for that takes 50 times its bytes. Rows far beyond what was
asked for, and rejects beyond the first thousand, are counted in one row of `rejected`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import polars as pl

from pulseguard_assets.coingecko.errors import UnreadableAnswer

PRICES_SCHEMA = pl.Schema(
    {
        "coin_id": pl.String(),
        "price_usd": pl.Float64(),
        "market_cap_usd": pl.Float64(),
        "volume_24h_usd": pl.Float64(),
        "provider_ts": pl.Datetime("us", "UTC"),
    }
)
MARKETS_SCHEMA = pl.Schema(
    {
        "coin_id": pl.String(),
        "symbol": pl.String(),
        "name": pl.String(),
        "image_url": pl.String(),
        "market_cap_rank": pl.Int32(),
        "market_cap_usd": pl.Float64(),
        "price_usd": pl.Float64(),
        "volume_24h_usd": pl.Float64(),
        "last_updated": pl.Datetime("us", "UTC"),
    }
)
CHART_SCHEMA = pl.Schema(
    {
        "stamp": pl.Datetime("ms", "UTC"),
        "price_usd": pl.Float64(),
        "market_cap_usd": pl.Float64(),
        "volume_24h_usd": pl.Float64(),
    }
)
REJECTED_SCHEMA = pl.Schema({"coin_id": pl.String(), "reason": pl.String(), "payload": pl.String()})

# In characters. The longest id of a real coin has not even half of them, and what has this length
# fits into every index of the database.
LONGEST_ID = 200
# The most a page of /coins/markets can be asked to hold.
ROWS_OF_A_PAGE = 250

# A point of an hour is stamped up to a quarter past it; see `without_partial`.
UNSETTLED = timedelta(minutes=15)

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_EXACT_INTEGERS = 2**53
_LARGEST_INT32 = 2**31 - 1
_YEAR_10000 = 253_402_300_800  # UNIX seconds; the end of what a datetime holds
_LONGEST_PAYLOAD = 8_000
# No answer asks for as many rows that each deserve a word; see `_Rejects`.
_MOST_REJECTS = 1_000
# Rows looked at, as a multiple of those asked for.
_ROWS_TO_SPARE = 4
# Lists and objects that may come with every row, and those that may stand anywhere, in a name too.
_PARTS_OF_A_ROW = 8
_PARTS_TO_SPARE = 20_000
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
# `fromisoformat` of Python 3.10 reads neither "Z" nor a fraction of one or two digits.
_ISO_STAMP = re.compile(
    r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:?\d\d)", re.ASCII
)


@dataclass(frozen=True)
class Parsed:
    """What an answer held.

    Attributes:
        frame: the good rows.
        rejected: the others, `REJECTED_SCHEMA`; `payload` is JSON text that PostgreSQL's
            `jsonb` accepts.
    """

    frame: pl.DataFrame
    rejected: pl.DataFrame


@dataclass(frozen=True)
class ParsedPrices(Parsed):
    """The same, and which of the asked-for ids the answer did not mention, in asked order."""

    missing: list[str]


@dataclass(frozen=True)
class ParsedPage(Parsed):
    """The same for one page, and how many rows it had, good, bad and repeated ones together."""

    rows: int


@dataclass(frozen=True)
class KeyUsage:
    """The provider's own count of a key's use; what it does not tell is None."""

    plan: str | None
    calls_per_minute: int | None
    credits_per_month: int | None
    credits_used: int | None
    credits_left: int | None


class _Bad(Exception):  # noqa: N818 - never leaves this module; carries a reason, not an error
    """This row cannot be used; the argument is the reason."""


class _OutOfRange(str):
    """The text of a number that a float cannot hold."""

    __slots__ = ()


class _Rejects:
    """Collects the rows set aside: the first `_MOST_REJECTS`, and the number of the others."""

    def __init__(self) -> None:
        self._rows: list[tuple[str, str, str]] = []
        self._more = 0

    def add(self, coin_id: str, reason: str, payload: Any) -> None:
        if len(self._rows) >= _MOST_REJECTS:
            self._more += 1
            return
        shown = _storable(coin_id)[:LONGEST_ID]
        self._rows.append((shown, reason, json_text(payload)))

    def unread(self, count: int) -> None:
        """So many rows were not even looked at."""
        self._more += count

    def frame(self) -> pl.DataFrame:
        rows = self._rows
        if self._more:
            rest = f"and {self._more:,} more rows than belong in an answer"
            rows = [*rows, ("", rest, json_text({"more": self._more}))]
        return pl.DataFrame(rows, schema=REJECTED_SCHEMA, orient="row")


def parse_simple_price(body: bytes, asked: Iterable[str]) -> ParsedPrices:
    """Read a `/simple/price` answer in US dollars.

    A coin without a price is rejected; market cap, 24 h volume and time may be null or absent.
    A coin nobody asked for is rejected, and one that was and is absent is in `missing`.

    Args:
        body: the JSON, keyed by coin id.
        asked: the ids of the call.

    Raises:
        UnreadableAnswer: it is no JSON object, or one of far too many parts.
    """
    wanted = dict.fromkeys(asked)
    document = _document(body, dict, "/simple/price", rows=len(wanted))
    rejects = _Rejects()
    rows: list[tuple[Any, ...]] = []
    for coin_id, entry in document.items():
        if coin_id not in wanted:
            rejects.add(coin_id, "not asked for", entry)
            continue
        try:
            rows.append((coin_id, *_price_values(entry)))
        except _Bad as bad:
            rejects.add(coin_id, str(bad), entry)
    missing = [coin_id for coin_id in wanted if coin_id not in document]
    return ParsedPrices(_frame(rows, PRICES_SCHEMA), rejects.frame(), missing)


def parse_coins_markets(body: bytes) -> ParsedPage:
    """Read a page of `/coins/markets` in US dollars.

    Id, symbol and name must be text; the symbol and the name may be empty. Everything else may
    be null. Of a coin that comes twice the last good row counts. What comes after four times the
    rows of a full page is counted, and not looked at.

    Raises:
        UnreadableAnswer: it is no JSON array, or one of far too many parts.
    """
    rejects = _Rejects()
    rows: dict[str, tuple[Any, ...]] = {}
    entries = _document(body, list, "/coins/markets", rows=ROWS_OF_A_PAGE)
    for entry in _first(entries, _ROWS_TO_SPARE * ROWS_OF_A_PAGE, rejects):
        try:
            row = _market_values(entry)
            # Taken out first, so that the later row also takes the later place.
            rows.pop(row[0], None)
            rows[row[0]] = row
        except _Bad as bad:
            coin_id = entry.get("id") if isinstance(entry, dict) else None
            rejects.add(coin_id if isinstance(coin_id, str) else "", str(bad), entry)
    return ParsedPage(_frame(list(rows.values()), MARKETS_SCHEMA), rejects.frame(), len(entries))


def parse_market_chart(body: bytes, coin_id: str, *, most_points: int = 30_000) -> Parsed:
    """Read a `/coins/{id}/market_chart` answer, ranged or not.

    Prices, market caps and volumes are joined by their stamp and sorted; of a stamp that comes
    twice the last good point counts. A stamp without a price is rejected. All points are kept,
    also the unfinished last one: see `without_partial`. A bad market cap or volume is set aside
    by itself and leaves a null beside its price, for here they are points of their own.

    Args:
        body: `{"prices": [[ms, value], ...], "market_caps": ..., "total_volumes": ...}`.
        coin_id: whose chart it is, for `rejected`.
        most_points: of each series that are looked at; those after them are counted.

    Raises:
        UnreadableAnswer: it has not this shape, or far too many parts. Missing market caps or
            volumes are no reason: their columns are null then.
    """
    document = _document(body, dict, "/coins/{id}/market_chart", rows=most_points)
    if "prices" not in document:
        raise UnreadableAnswer("CoinGecko's chart holds no prices.", 200)
    rejects = _Rejects()
    series = [
        _series(document.get(name), name, coin_id, rejects, most_points)
        for name in ("prices", "market_caps", "total_volumes")
    ]
    prices, caps, volumes = series
    for name, others in (("market cap", caps), ("volume", volumes)):
        for stamp in sorted(others.keys() - prices.keys()):
            rejects.add(coin_id, f"a {name} without a price", [stamp, others[stamp]])
    rows = [
        (stamp * 1000, price, caps.get(stamp), volumes.get(stamp))
        for stamp, price in sorted(prices.items())
    ]
    return Parsed(_frame(rows, CHART_SCHEMA), rejects.frame())


def parse_key(body: bytes) -> KeyUsage:
    """Read a `/key` answer; raises `UnreadableAnswer` if it is no JSON object."""
    usage = _document(body, dict, "/key", rows=1)
    plan = usage.get("plan")
    return KeyUsage(
        plan=_storable(plan) if isinstance(plan, str) else None,
        calls_per_minute=_whole(usage.get("rate_limit_request_per_minute")),
        credits_per_month=_whole(usage.get("monthly_call_credit")),
        credits_used=_whole(usage.get("current_total_monthly_calls")),
        credits_left=_whole(usage.get("current_remaining_monthly_calls")),
    )


def parse_ping(body: bytes) -> None:
    """Accept a `/ping` answer; raises `UnreadableAnswer` if it is no JSON object."""
    _document(body, dict, "/ping", rows=1)


def without_partial(frame: pl.DataFrame, now: datetime) -> pl.DataFrame:
    """A chart's points (`CHART_SCHEMA`) that are old enough to be the close of a period.

    A chart ends with the price of the moment it was asked for, in a period still running. That
    point cannot be told by its place: a recorded one is stamped a second before its
    predecessor, and a chart of the past has none. Nor by its stamp: until a quarter past, it
    looks just like the close of the hour before. Only its age tells, so everything of the last
    15 minutes (`UNSETTLED`) is left out. A true close among it is there again when it is next
    asked for; a running price taken for a close would stay wrong.

    Args:
        frame: the chart.
        now: when the answer arrived (aware).
    """
    return frame.filter(pl.col("stamp") <= pl.lit(now - UNSETTLED, pl.Datetime("us", "UTC")))


def json_text(value: Any) -> str:
    """`value` as JSON text for a `jsonb` column, at most about 8,000 characters.

    What `jsonb` refuses is put in a form it takes: NaN and the infinities become text, NUL and
    lone surrogates the replacement character. Something longer becomes `{"cut_off": "..."}`.
    """
    try:
        text = json.dumps(_plain(value), ensure_ascii=False, allow_nan=False)
    except (RecursionError, ValueError):
        return '{"cut_off": "nested too deeply"}'
    if len(text) <= _LONGEST_PAYLOAD:
        return text
    return json.dumps({"cut_off": text[: _LONGEST_PAYLOAD // 2]}, ensure_ascii=False)


# --- documents ---


def _document(body: bytes, kind: type, endpoint: str, *, rows: int) -> Any:
    """The JSON of an answer of about so many rows; what is far beyond that is not taken apart."""
    parts, most = body.count(b"[") + body.count(b"{"), _PARTS_OF_A_ROW * rows + _PARTS_TO_SPARE
    if parts > most:
        raise UnreadableAnswer(
            f"CoinGecko's answer to {endpoint} holds {parts:,} lists and objects, where at most "
            f"{most:,} belong. It will be asked again.",
            200,
        )
    try:
        document = json.loads(body, parse_int=_parse_int, parse_float=_parse_float)
    except (ValueError, RecursionError) as error:
        # The error's own text may quote the body; the body is not ours to print.
        raise UnreadableAnswer(
            f"CoinGecko's answer to {endpoint} is no JSON ({type(error).__name__}, "
            f"{len(body)} bytes). It will be asked again.",
            200,
        ) from None
    if not isinstance(document, kind):
        raise UnreadableAnswer(
            f"CoinGecko's answer to {endpoint} is JSON, but a {type(document).__name__} where a "
            f"{kind.__name__} belongs. It will be asked again.",
            200,
        )
    return document


def _first(entries: Sequence[Any], most: int, rejects: _Rejects) -> Sequence[Any]:
    """So many entries at most; the others are counted among the rejects."""
    if len(entries) <= most:
        return entries
    rejects.unread(len(entries) - most)
    return entries[:most]


def _parse_int(literal: str) -> int | _OutOfRange:
    # Python refuses to convert thousands of digits, and would take the whole batch down.
    return int(literal) if len(literal) <= 400 else _OutOfRange(literal)


def _parse_float(literal: str) -> float | _OutOfRange:
    number = float(literal)
    vanished = number == 0.0 and re.match(r"-?[0.]*[1-9]", literal) is not None
    return _OutOfRange(literal) if vanished or math.isinf(number) else number


def _frame(rows: Sequence[tuple[Any, ...]], schema: pl.Schema) -> pl.DataFrame:
    """Rows to a frame; times are given in microseconds since the epoch."""
    physical = {
        name: pl.Int64() if isinstance(kind, pl.Datetime) else kind for name, kind in schema.items()
    }
    frame = pl.DataFrame(rows, schema=physical, orient="row")
    return frame.with_columns(
        pl.from_epoch(name, time_unit="us").dt.replace_time_zone("UTC").cast(kind)
        for name, kind in schema.items()
        if isinstance(kind, pl.Datetime)
    )


# --- rows ---


def _price_values(entry: Any) -> tuple[float, float | None, float | None, int | None]:
    fields = _object(entry)
    price = _number(fields, "usd")
    if price is None:
        raise _Bad("no price")
    return (
        price,
        _number(fields, "usd_market_cap"),
        _number(fields, "usd_24h_vol"),
        _unix_seconds(fields, "last_updated_at"),
    )


def _market_values(entry: Any) -> tuple[Any, ...]:
    fields = _object(entry)
    coin_id = _text(fields, "id")
    if not coin_id:
        raise _Bad("id is empty")
    if len(coin_id) > LONGEST_ID:
        raise _Bad(f"id is longer than {LONGEST_ID} characters")
    return (
        coin_id,
        _text(fields, "symbol"),
        _text(fields, "name"),
        None if fields.get("image") is None else _text(fields, "image"),
        _rank(fields, "market_cap_rank"),
        _number(fields, "market_cap"),
        _number(fields, "current_price"),
        _number(fields, "total_volume"),
        _iso_stamp(fields, "last_updated"),
    )


def _series(points: Any, name: str, coin_id: str, rejects: _Rejects, most: int) -> dict[int, float]:
    """One series of a chart: value by stamp in milliseconds, without the nulls of the optional."""
    if points is None and name != "prices":
        return {}
    if not isinstance(points, list):
        raise UnreadableAnswer(f"In CoinGecko's chart {name} is no list of points.", 200)
    values: dict[int, float] = {}
    for point in _first(points, most, rejects):
        try:
            stamp, value = _point(point, may_be_null=name != "prices")
            if value is not None:
                values[stamp] = value
        except _Bad as bad:
            rejects.add(coin_id, f"{name}: {bad}", point)
    return values


def _point(point: Any, *, may_be_null: bool) -> tuple[int, float | None]:
    if not isinstance(point, list) or len(point) != 2:
        raise _Bad("a point is not [stamp, value]")
    stamp = _whole(point[0])
    if stamp is None or not 0 < stamp < _YEAR_10000 * 1000:
        raise _Bad("the stamp is no time in milliseconds")
    value = _number({"value": point[1]}, "value")
    if value is None and not may_be_null:
        raise _Bad("no price")
    return stamp, value


# --- values ---


def _object(entry: Any) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise _Bad("not an object")
    return entry


def _number(fields: dict[str, Any], name: str) -> float | None:
    value = fields.get(name)
    if value is None:
        return None
    if type(value) is float:
        return value
    if isinstance(value, _OutOfRange):
        raise _Bad(f"{name} is outside the range of a 64-bit float")
    if type(value) is not int:
        raise _Bad(f"{name} is not a number")
    if -_EXACT_INTEGERS <= value <= _EXACT_INTEGERS:
        return float(value)
    try:
        number = float(value)
    except OverflowError:
        raise _Bad(f"{name} is outside the range of a 64-bit float") from None
    # Compared as it will be written to the database, not as the binary fraction it is.
    if Decimal(repr(number)) != value:
        raise _Bad(f"{name} has more digits than a 64-bit float keeps")
    return number


def _whole(value: object) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return None


def _rank(fields: dict[str, Any], name: str) -> int | None:
    if fields.get(name) is None:
        return None
    rank = _whole(fields[name])
    if rank is None or not 0 < rank <= _LARGEST_INT32:
        raise _Bad(f"{name} is no rank")
    return rank


def _text(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    if type(value) is not str:
        raise _Bad(f"no {name}" if value is None else f"{name} is not text")
    if value != _storable(value):
        raise _Bad(f"{name} holds characters that no database stores")
    return value


def _unix_seconds(fields: dict[str, Any], name: str) -> int | None:
    """Microseconds since the epoch."""
    value = fields.get(name)
    if value is None:
        return None
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0 < value < _YEAR_10000:
        raise _Bad(f"{name} is no time in seconds")
    return int(value * 1_000_000)


def _iso_stamp(fields: dict[str, Any], name: str) -> int | None:
    """Microseconds since the epoch."""
    value = fields.get(name)
    if value is None:
        return None
    match = _ISO_STAMP.fullmatch(value) if type(value) is str else None
    if match is None:
        raise _Bad(f"{name} is no time with its zone")
    day, clock, fraction, zone = match.groups()
    zone = "+00:00" if zone == "Z" else f"{zone[:3]}:{zone[-2:]}"
    try:
        moment = datetime.fromisoformat(f"{day}T{clock}.{(fraction or '').ljust(6, '0')[:6]}{zone}")
        # In UTC it may lie in a year that neither Python nor a frame can hold.
        return (moment.astimezone(timezone.utc) - _EPOCH) // timedelta(microseconds=1)
    except (ValueError, OverflowError):
        raise _Bad(f"{name} is no time with its zone") from None


def _storable(text: str) -> str:
    """`text` with what UTF-8 or PostgreSQL cannot store replaced."""
    return _UNSTORABLE.sub("\ufffd", text)


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return _storable(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {_storable(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return value
