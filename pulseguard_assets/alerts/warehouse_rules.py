"""What is wrong with what is stored, paid for and asked of the provider.

Belongs here: how late, how much and how long is too much, and the words for it. Does not: finding
rows (`sql/`, `warehouse/`), nor whether anybody is told (`looking.py`).

Nothing is judged that cannot have happened yet. A watchdog that has just begun, on a new platform
or after downtime, has given nobody the time to do what it would miss; then the area is left out of
the look, so that an incident that lasted before is not taken for gone either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from psycopg import Connection, sql

from pulseguard_assets.alerts.messages import span
from pulseguard_assets.alerts.model import Finding, Look
from pulseguard_assets.timeframes import DAILY, HOURLY, MINUTE, TIMEFRAMES, Timeframe, bucket_end
from pulseguard_assets.warehouse.checks import known_since, overdue, partition_runway
from pulseguard_assets.warehouse.history import Lacking, lacking
from pulseguard_assets.warehouse.statements import one_row

# Without these nothing is collected, cleaned or repaired.
_NOTHING_RUNS = ("daemon", "process:", "location:")
_POLLS_FAIL = ("sensor:coingecko_price_sensor:", "credits:REFUSED", *_NOTHING_RUNS)

_PRICE_SENSOR = "/locations/pulseguard/sensors/coingecko_price_sensor"


# --- is it late? ---

# A poll begins up to 25 s after its minute, and ends 25 s later at most, but for the answer that
# it waits for then.
_STORED_WITHIN = timedelta(minutes=1)
# The clocks of those who write and those who look may differ by so much.
_CLOCKS_DIFFER = timedelta(minutes=1)


def look_at_data(
    connection: Connection, *, now: datetime, cadence: timedelta, watching_since: datetime | None
) -> Look:
    """Whether two polls in a row have stored nothing.

    The newest minute is late when it is older than two cadences and a minute: at that instant the
    second poll after it should have been stored. So one poll may fail, and an outage is seen within
    two cadences and a round. Where polls are further apart than minutes are kept, the wider tables
    tell when a price was seen last. Points of history do not count; they come while polls fail.

    Args:
        cadence: from poll to poll, as planned.
        watching_since: since when somebody looks without a break; None if nobody did until now.
    """
    patience = 2 * cadence + _STORED_WITHIN
    newest, future = _seen(connection, patience, until=now + _CLOCKS_DIFFER)
    ahead = () if future is None else (_lies_ahead(future, now),)
    if newest is not None and now - newest <= patience:
        return Look(ahead, ("data",))
    known = known_since(connection)
    if known is None or now - known <= patience:
        return Look(ahead, ("data",))
    if not _watched(watching_since, now, patience):
        return Look(ahead)
    return Look((*ahead, _late(newest, known, now, cadence, patience)), ("data",))


def _watched(since: datetime | None, now: datetime, patience: timedelta) -> bool:
    """Whether whoever should have acted had the time to, since the look-out began."""
    return since is not None and now - since > patience


def _seen(
    connection: Connection, patience: timedelta, *, until: datetime
) -> tuple[datetime | None, datetime | None]:
    """The newest minute seen live up to an instant, and the newest label of a minute after it."""
    minutes = sql.SQL(
        "SELECT (SELECT max(minute_ts) FROM minute_close"
        " WHERE minute_ts <= %(until)s AND source <> 'history'),"
        " (SELECT max(minute_ts) FROM minute_close WHERE minute_ts > %(until)s)"
    )
    newest, future = one_row(connection, minutes, {"until": until})
    seen = [newest]
    # What retention has taken of a table is in the next: users can lengthen it, not shorten it.
    for narrower, timeframe in ((MINUTE, HOURLY), (HOURLY, DAILY)):
        if narrower.keep is not None and patience > narrower.keep:
            seen.append(_newest_close(connection, timeframe, until))
    return max((each for each in seen if each is not None), default=None), future


def _newest_close(connection: Connection, timeframe: Timeframe, until: datetime) -> datetime | None:
    label = sql.Identifier(timeframe.label)
    statement = sql.SQL(
        "SELECT max(coalesce(close_ts, {label})) FROM {table}"
        " WHERE {label} <= %(until)s AND coalesce(close_ts, {label}) <= %(until)s"
        " AND source <> 'history'"
    ).format(label=label, table=sql.Identifier("public", timeframe.table))
    newest: datetime | None = one_row(connection, statement, {"until": until})[0]
    return newest


def _late(
    newest: datetime | None,
    known: datetime,
    now: datetime,
    cadence: timedelta,
    patience: timedelta,
) -> Finding:
    stored = (
        f"No price was stored since the first coin was known, at {_at(known)}"
        if newest is None
        else f"The newest prices are of {_at(newest)}, {span(now - newest)} ago"
    )
    return Finding(
        area="data",
        cause="data:minute_close:LATE",
        kind="LATE",
        severity="critical",
        subject="minute_close",
        title="prices are late",
        message=(
            f"{stored}. With a poll every {_every(cadence)} they are never older than "
            f"{span(patience)}: two polls in a row stored nothing. See the ticks of "
            "coingecko_price_sensor."
        ),
        link=_PRICE_SENSOR,
        help=(
            "SELECT start_time, status, error_message FROM collection_status "
            "ORDER BY id DESC LIMIT 5;"
        ),
        explained_by=_POLLS_FAIL,
    )


def _lies_ahead(future: datetime, now: datetime) -> Finding:
    return Finding(
        area="data",
        cause="data:minute_close:FUTURE",
        kind="FUTURE",
        severity="error",
        subject="minute_close",
        title="prices of the future are stored",
        message=(
            f"minute_close holds a price of {_at(future)}, {span(future - now)} from now. Some "
            "clock is wrong, or a row was written by hand. In its hour it wins over every true "
            "price before it: set the clock right, or delete it here and in hourly_close."
        ),
        link="/assets/minute_close",
        help="SELECT * FROM minute_close WHERE minute_ts > now() ORDER BY minute_ts;",
    )


# --- was it repaired? ---


@dataclass(frozen=True)
class _Window:
    """Which closed buckets are asked about.

    Attributes:
        patience: how long repair has, from the end of a bucket and from whatever gave it work.
        back: how long ago a bucket may have ended. Repair looks for hours no further back.
    """

    patience: timedelta
    back: timedelta


_WINDOWS = {
    HOURLY: _Window(timedelta(hours=2), timedelta(hours=24)),
    DAILY: _Window(timedelta(hours=6), timedelta(days=7)),
}

# A repair stores what it gets every few seconds, and the next is asked for within five minutes.
_STILL_REPAIRING = timedelta(minutes=20)


def look_at_windows(
    connection: Connection,
    timeframe: Timeframe,
    *,
    now: datetime,
    watching_since: datetime | None,
    not_before: datetime | None = None,
) -> Look:
    """Whether closed hours or days lack closes that repair should have taken from history by now.

    Not judged for as long as repair had no chance: since the look-out began, and since the last
    sweep, which makes other coins expected, whose past is lacking at once. Nor while repair gets
    on; on a small plan that takes hours. What history could not give, what a wider table carries,
    and buckets that ended before a sweep first saw their coin are not lacking.

    Args:
        timeframe: `HOURLY`, of which those are looked at that ended 2 to 24 hours ago, or `DAILY`,
            6 hours to 7 days ago.
        watching_since: as in `look_at_data`.
        not_before: earlier buckets are nobody's to repair: before the history that is wanted, or
            beyond the plan's reach.
    """
    window = _WINDOWS[timeframe]
    swept = one_row(
        connection, "SELECT max(last_updated) FROM coin_priorities WHERE isfinite(last_updated)"
    )[0]
    if not _watched(watching_since, now, window.patience) or (
        swept is not None and now - swept <= window.patience
    ):
        return Look()
    start, end = now - window.back, now - window.patience
    if not_before is not None:
        start = max(start, not_before)
    area = f"windows:{timeframe.name}"
    found = lacking(connection, timeframe, start, end, now=now, known_only=True)
    if not found:
        return Look((), (area,))
    if _repair_gets_on(connection, now):
        return Look()
    return Look((_unrepaired(area, timeframe, found, window),), (area,))


def _repair_gets_on(connection: Connection, now: datetime) -> bool:
    """Whether anything came from history lately: of hours or days, since days wait for hours."""
    statement = (
        "SELECT EXISTS (SELECT FROM hourly_close WHERE source = 'history' AND created_at > %(ago)s)"
        " OR EXISTS (SELECT FROM daily_close WHERE source = 'history' AND created_at > %(ago)s)"
        " OR EXISTS (SELECT FROM unrecoverable_closes WHERE recorded_at > %(ago)s)"
    )
    return bool(one_row(connection, statement, {"ago": now - _STILL_REPAIRING})[0])


def _unrepaired(
    area: str, timeframe: Timeframe, found: Sequence[Lacking], window: _Window
) -> Finding:
    first = min(each.first for each in found)
    end = bucket_end(timeframe, max(each.last for each in found))
    closes = _many(sum(each.buckets for each in found), f"{timeframe.name} close")
    written = "%Y-%m-%dT%H:%M" if timeframe is HOURLY else "%Y-%m-%d"
    return Finding(
        area=area,
        cause=f"windows:{timeframe.table}:UNREPAIRED",
        kind="UNREPAIRED",
        severity="error",
        subject=timeframe.table,
        title=f"{timeframe.table} has gaps",
        message=(
            f"Within {span(window.patience)}, repair has not taken {closes} of "
            f"{_many(len(found), 'coin')} from the provider's history, between {_at(first)} and "
            f"{_at(end)}. The ticks of close_repair_sensor say why. To try at once, materialize "
            f"these partitions of {timeframe.table} in the web interface; the command below tells "
            "what that costs."
        ),
        link="/locations/pulseguard/sensors/close_repair_sensor",
        help=f"pulseguard plan backfill {timeframe.name} {first:{written}} {end:{written}}",
        explained_by=("sensor:close_repair_sensor:", *_POLLS_FAIL),
    )


# --- does it stay too long? ---

# Two cleanups, 15 minutes apart, and the time they take.
_CLEANED_WITHIN = timedelta(minutes=45)


def look_at_retention(
    connection: Connection, *, now: datetime, watching_since: datetime | None
) -> Look:
    """Whether rows stay past their period because no wider table carries them.

    Only those that two cleanups have left standing. Where no cleanup runs at all, which others
    tell of, nobody can know, and to ask might take minutes.

    Args:
        watching_since: as in `look_at_data`.
    """
    if not _watched(watching_since, now, _CLEANED_WITHIN):
        return Look()
    for timeframe in TIMEFRAMES:
        if overdue(connection, timeframe, now=now, patience=_CLEANED_WITHIN).count:
            return Look()
    blocked = connection.execute(
        "SELECT table_name, rows_kept, oldest FROM retention_blocked(%s) WHERE rows_kept > 0",
        (now - _CLEANED_WITHIN,),
    )
    return Look(tuple(_blocked(*row) for row in blocked), ("retention",))


def _blocked(table: str, rows: int, oldest: datetime) -> Finding:
    child = next(timeframe for timeframe in TIMEFRAMES if timeframe.table == table)
    wider = [timeframe.table for timeframe in TIMEFRAMES if timeframe.child == child.name]
    # A week has no parent of its own; its days are in their months.
    carriers = " and ".join(wider) or "monthly_close"
    return Finding(
        area="retention",
        cause=f"retention:{table}:BLOCKED",
        kind="BLOCKED",
        severity="warning",
        subject=table,
        title=f"{table} keeps rows too long",
        message=(
            f"{_many(rows, 'row')} of {table} should be gone and may not go, the oldest of "
            f"{_at(oldest)}: {carriers} "
            f"{'do' if len(wider) > 1 else 'does'} not carry {'it' if rows == 1 else 'them'}, "
            "although cleanup rolls up what it is about to delete. The runs of retention_cleanup "
            "warn of it."
        ),
        link="/assets/retention_cleanup",
        help="SELECT * FROM retention_blocked();",
        explained_by=("schedule:retention_cleanup_schedule:", *_NOTHING_RUNS),
    )


# --- where will it go? ---

_MONTHS_AHEAD = 2
_LAST_DAYS = timedelta(days=3)


def look_at_partitions(connection: Connection, *, now: datetime) -> Look:
    """Whether each table has partitions for this month and the two that follow.

    Critical when this month has none, or ends within 3 days and the next has none.
    """
    findings = []
    for timeframe in TIMEFRAMES:
        months = partition_runway(connection, timeframe, now=now)
        if months < _MONTHS_AHEAD:
            findings.append(_short(timeframe, months, now))
    return Look(tuple(findings), ("partitions",))


def _short(timeframe: Timeframe, months: int, now: datetime) -> Finding:
    end = bucket_end(TIMEFRAMES[-1], now)
    at_once = months < 0 or (months == 0 and end - now <= _LAST_DAYS)
    if months < 0:
        there_are = "no partition for this month"
    elif months == 0:
        there_are = f"no partition from {_at(end)} on"
    else:
        there_are = "partitions for this month and the next only"
    return Finding(
        area="partitions",
        cause=f"partitions:{timeframe.table}:SHORT",
        kind="SHORT",
        severity="critical" if at_once else "warning",
        subject=timeframe.table,
        title=f"{timeframe.table} runs out of partitions",
        message=(
            f"{timeframe.table} has {there_are}. The daily maintenance makes those of the next 12 "
            "months; its runs say why it did not."
        ),
        link="/assets/maintenance",
        help="SELECT ensure_partitions(now(), now() + interval '12 months');",
    )


# --- is it paid for? ---

# What is still to come is counted at most: three polls and a sweep of it may have been made
# already, or never be made. At the pace of the whole that is a day at most, or three cadences where
# polls are more than 8 hours apart. A plan that just pays must not be told that it will not.
_FORECAST_IS_GOOD_TO = timedelta(days=1)


@dataclass(frozen=True)
class Credits:
    """The credits of a month.

    Attributes:
        spent: calls made in it, by anybody.
        to_come: calls that polls and sweeps make until its end, at most.
        allowed: most calls that may be made in it; None for no limit.
        month_end: when the next month's credits begin.
        reserved: how many more are allowed in a month whose reserve somebody released.
    """

    spent: int
    to_come: int
    allowed: int | None
    month_end: datetime
    reserved: int = 0


def look_at_credits(connection: Connection, credits: Credits, *, now: datetime) -> Look:
    """Whether the credits are spent, or will be more than a day before the month ends."""
    allowed = _allowed(connection, credits, now)
    if allowed is None:
        return Look((), ("credits",))
    if credits.spent >= allowed:
        return Look((_refused(connection, credits, allowed, now),), ("credits",))
    last = _lasting_until(credits, allowed, now)
    if credits.month_end - last <= _FORECAST_IS_GOOD_TO:
        return Look((), ("credits",))
    return Look((_forecast(connection, credits, allowed, last, now),), ("credits",))


def _allowed(connection: Connection, credits: Credits, now: datetime) -> int | None:
    """What the ledger allows, by the rule of `reserve_api_call()`."""
    if credits.allowed is None or credits.spent + credits.to_come <= credits.allowed:
        return credits.allowed
    month = now.astimezone(timezone.utc).date().replace(day=1)
    released = one_row(connection, "SELECT reserve_released_in FROM api_budget")[0]
    return credits.allowed + (credits.reserved if released == month else 0)


def _lasting_until(credits: Credits, allowed: int, now: datetime) -> datetime:
    """When the credits are spent at the pace of what is to come; the month's end if they last."""
    left = allowed - credits.spent
    if credits.to_come <= left:
        return credits.month_end
    return now + (credits.month_end - now) * (left / credits.to_come)


def _refused(connection: Connection, credits: Credits, allowed: int, now: datetime) -> Finding:
    return _of_credits(
        "REFUSED",
        "error",
        "no credits are left",
        f"All {allowed:,} calls that may be made this month are made: nothing is polled until "
        f"{_at(credits.month_end)}. {_spender(connection, now)}A larger plan (PULSEGUARD_PLAN) "
        "or a smaller reserve (PULSEGUARD_RESERVE_PERCENT) helps at once.",
    )


def _forecast(
    connection: Connection, credits: Credits, allowed: int, last: datetime, now: datetime
) -> Finding:
    return _of_credits(
        "FORECAST",
        "error" if last - now <= _LAST_DAYS else "warning",
        "credits will not last the month",
        f"{credits.spent:,} of {allowed:,} calls of this month are made, and polls and sweeps need "
        f"{credits.to_come:,} more: at that pace nothing is left from {last:%Y-%m-%d} on. "
        f"{_spender(connection, now)}Rarer polls (PULSEGUARD_CADENCE_MINUTES), fewer coins "
        "(PULSEGUARD_MODE) or a larger plan (PULSEGUARD_PLAN) make them last.",
    )


def _of_credits(kind: str, severity: str, title: str, message: str) -> Finding:
    return Finding(
        area="credits",
        cause=f"credits:{kind}",
        kind=kind,
        severity=severity,
        subject="api_usage_stats",
        title=title,
        message=message,
        link=_PRICE_SENSOR,
        help="pulseguard plan",
    )


def _spender(connection: Connection, now: datetime) -> str:
    """What most calls of the last day were made for; nothing if there were none."""
    rows = connection.execute(
        "SELECT endpoint, count(*), (sum(count(*)) OVER ())::bigint FROM api_calls "
        "WHERE called_at > %s AND called_at <= %s GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 1",
        (now - timedelta(days=1), now),
    ).fetchall()
    return "".join(
        f"Of {_many(calls, 'call')} in 24 hours, {most:,} went to {endpoint}. "
        for endpoint, most, calls in rows
    )


# --- does the provider answer? ---

_LATELY = timedelta(minutes=15)
_FEW_CALLS = 5
_TOO_MANY_FAIL = 0.5

# That the provider does not know a coin is an answer, and no failure of its.
_CALLS = """
SELECT kind, http_status, count(*)
FROM api_calls, LATERAL (
    SELECT CASE WHEN outcome = 'failed' AND http_status = 404 AND endpoint LIKE '/coins/%%/%%'
                THEN 'successful' ELSE outcome END AS kind) AS judged
WHERE called_at > %s AND called_at <= %s AND outcome IS NOT NULL
GROUP BY 1, 2 ORDER BY 3 DESC, 2
"""


def look_at_provider(connection: Connection, *, now: datetime) -> Look:
    """Whether half or more of the calls of the last 15 minutes failed, if they were 5 or more."""
    counts = connection.execute(_CALLS, (now - _LATELY, now)).fetchall()
    calls = sum(count for _, _, count in counts)
    bad = [each for each in counts if each[0] != "successful"]
    failed = sum(count for _, _, count in bad)
    if calls < _FEW_CALLS or failed < _TOO_MANY_FAIL * calls:
        return Look((), ("provider",))
    limited = sum(count for kind, _, count in bad if kind == "rate_limited")
    commonest = bad[0][1]
    finding = Finding(
        area="provider",
        cause="provider:ERRORS",
        kind="ERRORS",
        severity="warning",
        subject="coingecko",
        title="the provider fails",
        message=(
            f"{failed:,} of the {calls:,} calls of the last 15 minutes came to nothing: "
            f"{failed - limited:,} failed and {limited:,} were refused by the rate limit, most "
            + ("without an answer." if commonest is None else f"with HTTP {commonest}.")
        ),
        link=_PRICE_SENSOR,
        help=(
            "SELECT called_at, endpoint, outcome, http_status, response_ms FROM api_calls "
            "ORDER BY called_at DESC LIMIT 20;"
        ),
        explained_by=_POLLS_FAIL,
    )
    return Look((finding,), ("provider",))


# --- words ---


def _at(instant: datetime) -> str:
    return f"{instant:%Y-%m-%d %H:%M} UTC"


def _every(cadence: timedelta) -> str:
    minutes = int(cadence.total_seconds() // 60)
    return "minute" if minutes == 1 else f"{minutes:,} minutes"


def _many(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
