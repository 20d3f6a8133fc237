"""A status as a person reads it, and as a machine does.

Belongs here: words, their layout, and keys. Does not: the verdict.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timezone
from typing import Any

from pulseguard_assets.alerts.status import age, clock
from pulseguard_assets.alerts.status_facts import DOWN, FINE, Status, Trouble
from pulseguard_assets.wording import shortened

_WIDTH = 100
_TITLE = 14
_LONGEST_WHY = 400


def for_a_person(status: Status) -> list[str]:
    """Lines of at most 100 characters: the verdict, what is wrong, then everything else."""
    lines = [*_wrapped(status.headline, "", "  "), ""]
    for trouble in status.troubles:
        lines += [*_trouble(trouble), ""]
    for title, rows in _sections(status):
        for number, row in enumerate(rows):
            lines.append(f"  {'' if number else title:<{_TITLE}} {row}".rstrip()[:_WIDTH])
    return lines


def for_a_machine(status: Status) -> dict[str, Any]:
    """Plain values under keys that stay. Times are ISO 8601 in UTC, ages are in seconds.

    What could not be read is null, with the reason in `unread`. The keys are explained in
    docs/running.md.
    """
    now = status.at
    return {
        "state": status.state,
        "level": status.level,
        "headline": status.headline,
        "at": _iso(now),
        "problems": [
            {"level": each.level, "what": each.what, "why": each.why, "do": each.do}
            for each in status.troubles
        ],
        "data_dir": status.data_dir,
        "started_at": _iso(status.started_at),
        "database": {"answers": status.database_answers, "address": status.database},
        "processes": _each(
            status.processes,
            lambda process: {
                "name": process.name,
                "pid": process.pid,
                "state": process.state,
                "condition": process.condition,
                "alive": process.alive,
                "since": _iso(process.since),
                "restarts": process.restarts,
            },
        ),
        "heartbeats": _each(
            status.heartbeats,
            lambda beat: {
                "daemon": beat.daemon,
                "at": _iso(beat.at),
                "age_seconds": _seconds(beat.at, now),
            },
        ),
        "instigators": _each(
            status.instigators,
            lambda each: {
                "name": each.name,
                "kind": each.kind,
                "on": each.on,
                "last_tick": _iso(each.last_tick),
                "age_seconds": _seconds(each.last_tick, now),
                "outcome": each.outcome,
                "verdict": each.verdict,
            },
        ),
        "closes": [
            {
                "table": close.table,
                "newest": _iso(close.newest),
                "age_seconds": _seconds(close.newest, now),
            }
            for close in status.closes
        ],
        "coverage": _each(
            status.coverage,
            lambda each: {
                "window": each.window,
                "start": _iso(each.start),
                "coins_expected": each.coins_expected,
                "coins_seen": each.coins_seen,
                "share": None if each.share is None else round(each.share, 4),
            },
        ),
        "incidents": _each(
            status.incidents,
            lambda each: {
                "cause": each.cause,
                "title": each.title,
                "severity": each.severity,
                "since": _iso(each.since),
                "age_seconds": _seconds(each.since, now),
            },
        ),
        "channels": list(status.channels),
        "outbox": _each(
            status.outbox,
            lambda each: {
                "channel": each.channel,
                "waiting": each.waiting,
                "refused": each.refused,
                "since": _iso(each.since),
                "error": each.error,
            },
        ),
        "credits": {
            "plan": status.credits.plan,
            "spent": status.credits.spent,
            "allowed": status.credits.allowed,
        },
        "sizes": None
        if status.sizes is None
        else {
            "database_bytes": status.sizes.database,
            "table_bytes": dict(status.sizes.tables),
            "dagster_bytes": status.sizes.dagster,
        },
        "unread": dict(status.unread),
    }


def _each(found: Iterable[Any] | None, plain: Any) -> list[dict[str, Any]] | None:
    return None if found is None else [plain(each) for each in found]


def _iso(at: datetime | None) -> str | None:
    return None if at is None else at.astimezone(timezone.utc).isoformat()


def _seconds(at: datetime | None, now: datetime) -> float | None:
    return None if at is None else round((now - at).total_seconds(), 1)


# --- for a person ---


def _trouble(trouble: Trouble) -> Iterator[str]:
    sign = "✗" if trouble.level == DOWN else "!"
    yield from _wrapped(trouble.sentence, f"  {sign} ", "    ")
    if trouble.why:
        yield from _wrapped(shortened(trouble.why, _LONGEST_WHY), "    ", "    ")
    if trouble.do:
        # In one piece however long it is: it is to be copied.
        yield f"    → {shortened(trouble.do, 1_000)}"


def _wrapped(text: str, first: str, later: str) -> list[str]:
    return textwrap.wrap(
        shortened(text, 1_000),
        _WIDTH,
        initial_indent=first,
        subsequent_indent=later,
        break_on_hyphens=False,
    )


def _sections(status: Status) -> Iterator[tuple[str, Sequence[str]]]:
    yield "Processes", _processes(status)
    if status.database_answers:
        yield "Daemon", [_daemon(status)]
        yield "Last ticks", _ticks(status)
        yield "Newest closes", _closes(status)
        yield "Coverage", _coverage(status)
        yield "Incidents", _incidents(status)
        yield "Credits", [_credits(status)]
    yield "Alerts", [_alerts(status)]
    if status.sizes is not None:
        yield "Sizes", _sizes(status)
    yield "Database", [status.database]


def _processes(status: Status) -> list[str]:
    if status.processes is None:
        return ["not on this machine" if status.database_answers else "none on this machine"]
    rows = []
    for each in status.processes:
        state = each.state if each.alive or each.state != "running" else each.condition
        row = (
            f"{each.name:<12} {state:<10} process {each.pid:<8} "
            f"since {clock(each.since, status.at)} ({age(status.at - each.since)})"
        )
        if each.restarts:
            row += f", {each.restarts} restart{'' if each.restarts == 1 else 's'}"
        rows.append(row)
    return rows


def _daemon(status: Status) -> str:
    if status.heartbeats is None:
        return _unread(status, "heartbeats")
    if not status.heartbeats:
        return "never gave a sign of life"
    return f"gave a sign of life {age(status.at - status.heartbeats[0].at)} ago"


def _ticks(status: Status) -> list[str]:
    if status.instigators is None:
        return [_unread(status, "instigators", "watched")]
    if not status.instigators:
        return ["none yet"]
    width = max(len(each.name) for each in status.instigators)
    rows = []
    for each in status.instigators:
        ago = "never" if each.last_tick is None else f"{age(status.at - each.last_tick)} ago"
        verdict = each.verdict
        if verdict == FINE and each.on is False:
            verdict = "off"
        rows.append(f"{each.name:<{width}}  {ago:<14} {each.outcome or '':<8} {verdict}")
    return rows


def _closes(status: Status) -> list[str]:
    rows = [
        f"{close.table:<14} "
        + ("none yet" if close.newest is None else f"{age(status.at - close.newest)} old")
        for close in status.closes
    ]
    return rows + [
        f"{table:<14} {_unread(status, table)}"
        for table in status.unread
        if table.endswith("_close")
    ]


def _coverage(status: Status) -> list[str]:
    if status.coverage is None:
        return [_unread(status, "coverage")]
    rows = []
    for each in status.coverage:
        label = f"{each.start:%H:%M}" if each.window == "hour" else f"{each.start:%Y-%m-%d}"
        share = "no coin is known yet" if each.share is None else f"{each.share:.1%}"
        if each.share is not None:
            share += f" of {each.coins_expected:,} coins"
        if not each.coins_seen and status.started_at and status.started_at > each.start:
            share += " (it was started since)"
        rows.append(f"last {each.window:<4} ({label})  {share}")
    return rows


def _incidents(status: Status) -> list[str]:
    if status.incidents is None:
        return [_unread(status, "incidents")]
    if not status.incidents:
        return ["none is open"]
    return [
        f"{each.severity:<8}  {shortened(each.title, 45)} (since {clock(each.since, status.at)})"
        for each in status.incidents
    ]


def _alerts(status: Status) -> str:
    if not status.channels:
        return "go nowhere: set PULSEGUARD_ALERT_URLS, and try it with `pulseguard alert-test`"
    waiting = sum(each.waiting for each in status.outbox or ())
    where = ", ".join(status.channels)
    if status.outbox is None:
        return f"go to {where}"
    return f"go to {where}; {f'{waiting:,} waiting' if waiting else 'none is waiting'}"


def _credits(status: Status) -> str:
    spent = "unknown" if status.credits.spent is None else f"{status.credits.spent:,}"
    allowed = "" if status.credits.allowed is None else f" of {status.credits.allowed:,}"
    return f"{spent}{allowed} spent this month, plan {status.credits.plan}"


def _sizes(status: Status) -> list[str]:
    assert status.sizes is not None  # noqa: S101 - asked before
    tables = ", ".join(
        f"{name.removesuffix('_close')} {_bytes(size)}"
        for name, size in status.sizes.tables.items()
    )
    return [
        f"{_bytes(status.sizes.database)} in all, Dagster {_bytes(status.sizes.dagster)}",
        tables,
    ]


def _bytes(number: int) -> str:
    for unit, size in (("GB", 1_000_000_000), ("MB", 1_000_000)):
        if number >= size:
            return f"{number / size:,.1f} {unit}"
    return f"{number / 1_000:,.0f} KB"


def _unread(status: Status, *parts: str) -> str:
    reason = next((status.unread[part] for part in parts if part in status.unread), "not asked")
    return f"could not be read: {shortened(reason, 60)}"
