"""How the platform is, seen from outside: with the daemon dead, and with the database down.

Belongs here: the verdict. Does not: asking the database (`status_reading.py`), nor how it is shown
(`status_screen.py`).

Neither Dagster nor polars nor Apprise is imported: a container asks every half minute.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta, timezone
from typing import Literal

from pulseguard_assets.alerts.instigators import look_at_instigators
from pulseguard_assets.alerts.messages import linked
from pulseguard_assets.alerts.model import ASK_FOR_STATUS, Finding
from pulseguard_assets.alerts.status_facts import (
    DEGRADED,
    DOWN,
    FINE,
    HEALTHY,
    BacklogStatus,
    CreditsStatus,
    DatabaseFacts,
    IncidentStatus,
    InstigatorStatus,
    ProcessStatus,
    Status,
    Trouble,
)
from pulseguard_assets.alerts.status_reading import CLOCKS_DIFFER, NOT_THERE, read_database
from pulseguard_assets.coingecko.planner import PlanCannotPay
from pulseguard_assets.collecting.planning import expected_cadence, polling_by_settings
from pulseguard_assets.running.instance import REAL, SIMULATED, Folders
from pulseguard_assets.running.processes import ProcessList, ProcessRecord, read_processes
from pulseguard_assets.settings import Settings, masked_url
from pulseguard_assets.timeframes import MINUTE
from pulseguard_assets.warehouse.at_hand import dsn_at_hand

__all__ = ["DEGRADED", "DOWN", "HEALTHY", "Status", "Trouble", "take_status"]

PATIENCE = 2.0

# For so long after its start a platform need not have what it has later.
STARTING = timedelta(minutes=2)
# Daemons write a heartbeat every 30 s. Dagster's own verdict tolerates half an hour.
HEARTBEAT_DEAD = timedelta(seconds=45)
# Longer than a code server or a daemon takes to load.
RESTART_TAKES = timedelta(seconds=60)
# In cadences of the polls; with a minute for the poll itself.
CLOSES_LATE, CLOSES_GONE = 2, 5
_MARGIN = timedelta(minutes=1)
# Two segments of its journal: with less, PostgreSQL ends.
_JOURNAL_BYTES = 32 * 1024 * 1024

# Without these nothing is collected.
_VITAL = ("code-server", "daemon")
# What cannot be judged when these cannot be read. Without the others it can.
_NEEDED = {
    "heartbeats": "the heartbeats of the daemons",
    MINUTE.table: MINUTE.table,
    "incidents": "the open incidents",
    "outbox": "the outbox of alerts",
    "watched": "the list of sensors and schedules",
    "instigators": "the ticks of sensors and schedules",
}


def take_status(settings: Settings, *, now: datetime, patience: float = PATIENCE) -> Status:
    """Look at everything once. Never raises for anything that is down.

    Args:
        settings: those of the platform: its data folder and its database.
        now: the present, UTC.
        patience: seconds that the database is given to answer in. It returns within a second more.
    """
    found = read_processes(Folders(settings.data_dir))
    processes = None if found is None else _looked_at(found)
    started_at = found.up.started_at if found and processes and processes[0].alive else None
    dsn, where = _database(settings)
    facts = (
        DatabaseFacts(complaint="its server does not run")
        if dsn is None
        else read_database(dsn, now=now, patience=patience)
    )
    states, findings = _verdicts(facts, _watching_since(processes, facts), now)
    starting = (
        started_at is not None
        and now - started_at < STARTING
        and not any(each.condition == "suspended" for each in processes or ())
    )
    troubles = [
        *_process_troubles(settings, processes, now),
        *_database_troubles(settings, facts, where, processes),
        *_heartbeat_troubles(settings, facts, processes, now),
        *_close_troubles(settings, facts, started_at, now),
        *(() if starting else _unread_troubles(facts)),
        *_incident_troubles(settings, facts.incidents or (), now),
        *_finding_troubles(settings, findings, facts, now),
        *_outbox_troubles(facts.outbox or ()),
    ]
    troubles.sort(key=lambda trouble: -trouble.level)
    state, level = _verdict(troubles, starting=starting)
    return Status(
        level=level,
        state=state,
        headline=_headline(state, troubles, started_at, now),
        at=now,
        troubles=tuple(troubles),
        data_dir=str(settings.data_dir),
        started_at=started_at,
        database=where,
        database_answers=facts.answers,
        processes=processes,
        heartbeats=facts.heartbeats,
        instigators=states,
        closes=facts.closes,
        coverage=facts.coverage,
        incidents=facts.incidents,
        outbox=facts.outbox,
        # As they were written; making channels of them would load Apprise.
        channels=settings.alert_labels,
        credits=_credits(settings, facts.spent),
        sizes=facts.sizes,
        unread=facts.unread,
    )


# --- what is there ---


def _looked_at(found: ProcessList) -> tuple[ProcessStatus, ...]:
    return tuple(_process(record) for record in (found.up, *found.children))


def _process(record: ProcessRecord) -> ProcessStatus:
    return ProcessStatus(
        name=record.name,
        pid=record.pid,
        state=record.state,
        condition=record.condition,
        since=record.started_at,
        restarts=record.restarts,
        not_serving_since=record.not_serving_since,
    )


def _database(settings: Settings) -> tuple[str | None, str]:
    """Where the database is: for connecting, None if its server does not run; and to be shown."""
    dsn = dsn_at_hand(settings)
    if settings.database_url is not None:
        return dsn, masked_url(settings.database_url.get_secret_value())
    return dsn, f"embedded, in {settings.data_dir / 'postgres'}"


def _credits(settings: Settings, spent: int | None) -> CreditsStatus:
    try:
        allowed = polling_by_settings(settings).credits_allowed
    except PlanCannotPay:
        allowed = None
    return CreditsStatus(settings.plan, spent, allowed)


def _cadence(settings: Settings, tolerance: timedelta | None) -> timedelta:
    """From poll to poll: as whoever polls has written it down, if that is more than 5 minutes."""
    if tolerance is not None and tolerance > timedelta(minutes=5):
        return tolerance
    return expected_cadence(settings)


def _watching_since(
    processes: Sequence[ProcessStatus] | None, facts: DatabaseFacts
) -> datetime | None:
    """Since when ticks can be expected."""
    daemons = [each for each in processes or () if each.name == "daemon"]
    if not daemons:
        return facts.watching_since
    return daemons[0].since if daemons[0].alive else None


def _verdicts(
    facts: DatabaseFacts, watching_since: datetime | None, now: datetime
) -> tuple[tuple[InstigatorStatus, ...] | None, tuple[Finding, ...]]:
    if facts.instigators is None or facts.watched is None:
        return None, ()
    look = look_at_instigators(
        facts.watched, facts.instigators, now=now, watching_since=watching_since
    )
    kinds = {(each.cause.partition(":")[0], each.subject): each.kind for each in look.findings}
    by_default = {(each.kind, each.name): each.runs_by_default for each in facts.watched}
    known = {(each.kind, each.name): each for each in facts.instigators}
    states = []
    # Sensors first: they are what prices depend on.
    for kind, name in sorted({*by_default, *known}, key=lambda key: (key[0] != "sensor", key[1])):
        instigator = known.get((kind, name))
        tick = instigator.ticks[0] if instigator and instigator.ticks else None
        switched = {"RUNNING": True, "STOPPED": False}.get(instigator.status if instigator else "")
        states.append(
            InstigatorStatus(
                name=name,
                kind=kind,
                on=by_default.get((kind, name)) if switched is None else switched,
                last_tick=tick.at if tick else None,
                outcome=tick.status.lower() if tick else None,
                verdict=kinds.get((kind, name), FINE),
            )
        )
    return tuple(states), look.findings


# --- what is wrong with it ---


def _process_troubles(
    settings: Settings, processes: Sequence[ProcessStatus] | None, now: datetime
) -> Iterator[Trouble]:
    if processes is None:
        if settings.database_url is None:
            yield Trouble(
                DOWN,
                f"no platform runs in {settings.data_dir}",
                None,
                f"{_how_to_start(settings)} (or name its folder in PULSEGUARD_DATA_DIR)",
            )
        return
    up, *children = processes
    if up.condition == "gone":
        yield Trouble(
            DOWN,
            "it was killed",
            f"Process {up.pid}, which kept the others in {settings.data_dir}, is gone, and had no "
            "time to say so.",
            _how_to_start(settings),
        )
        return
    if up.condition == "suspended":
        yield _suspended(up)
    missing = [name for name in _VITAL if name not in {child.name for child in children}]
    if missing:
        have = "has" if len(missing) == 1 else "have"
        yield Trouble(DOWN, f"the {' and the '.join(missing)} {have} not been started yet")
    for child in children:
        yield from _child_troubles(settings, child, now)


def _child_troubles(settings: Settings, child: ProcessStatus, now: datetime) -> Iterator[Trouble]:
    log = f"Its log: {Folders(settings.data_dir).logs / child.name}.log"
    vital = child.name in _VITAL
    if child.condition == "suspended":
        yield _suspended(child)
    elif child.not_serving_since is not None:
        lasting = now - child.not_serving_since
        word = "is being restarted" if child.state == "restarting" else f"is {child.state}"
        again = f"It was replaced {child.restarts} times." if child.restarts > 1 else None
        yield Trouble(
            DOWN if vital and lasting > RESTART_TAKES else DEGRADED,
            f"the {child.name} {word} (since {clock(child.not_serving_since, now)})",
            again,
            log,
        )
    elif child.condition == "gone":
        yield Trouble(
            DOWN if vital else DEGRADED,
            f"the {child.name} is gone",
            f"Process {child.pid} has ended, and nobody has replaced it.",
            log,
        )


def _suspended(process: ProcessStatus) -> Trouble:
    return Trouble(
        DOWN if process.name in (*_VITAL, "up") else DEGRADED,
        f"{'pulseguard up' if process.name == 'up' else f'the {process.name}'} is suspended",
        f"A signal has stopped process {process.pid}.",
        f"Let it go on: kill -CONT {process.pid}",
    )


def _database_troubles(
    settings: Settings,
    facts: DatabaseFacts,
    where: str,
    processes: Sequence[ProcessStatus] | None,
) -> Iterator[Trouble]:
    if facts.answers:
        if facts.takes_no_writes:
            yield Trouble(
                DOWN,
                "the database takes no writes",
                f"{where} is a standby, or default_transaction_read_only is on. Nothing can be "
                "collected.",
                "Name the primary in PULSEGUARD_DATABASE_URL, or have the setting switched off",
            )
        return
    if settings.database_url is not None:
        do = "See that its server runs, and that PULSEGUARD_DATABASE_URL is right."
    elif processes and processes[0].condition != "gone":
        do = (
            f"{_room_needed(settings)}`pulseguard up` starts it again by itself; why it ended is "
            f"in {settings.data_dir / 'postgres' / 'log'}"
        )
    else:
        # It lives and dies with the platform, of which that has been said.
        return
    yield Trouble(DOWN, "the database does not answer", f"{where}: {facts.complaint}.", do)


def _room_needed(settings: Settings) -> str:
    """That the disk is full, if it is. PostgreSQL cannot start where no journal fits."""
    try:
        free = shutil.disk_usage(settings.data_dir).free
    except OSError:
        return ""
    if free >= _JOURNAL_BYTES:
        return ""
    return f"The disk of {settings.data_dir} is full: make room on it. "


def _heartbeat_troubles(
    settings: Settings,
    facts: DatabaseFacts,
    processes: Sequence[ProcessStatus] | None,
    now: datetime,
) -> Iterator[Trouble]:
    daemon = [each.pid for each in processes or () if each.name == "daemon" and each.alive]
    if facts.heartbeats is None or (processes is not None and not daemon) or facts.takes_no_writes:
        # It cannot be told, or has been told: there is no daemon to give any, or none can be kept.
        return
    if not facts.heartbeats:
        yield Trouble(DOWN, "no daemon has ever reported", None, _how_to_start(settings))
        return
    newest = max(each.at for each in facts.heartbeats)
    if newest - now > CLOCKS_DIFFER:
        yield Trouble(
            DEGRADED,
            "the clock was set back",
            f"The daemon's last sign of life is of {clock(newest, now)}, which has yet to come; it "
            "waits for that time.",
            "`pulseguard up` restarts the daemon by itself. If it does not run, restart it by hand",
        )
    elif now - newest > HEARTBEAT_DEAD:
        yield Trouble(
            DOWN,
            f"the daemon is dead (since {clock(newest, now)})",
            f"Its last sign of life is {age(now - newest)} old; it gives one every 30 s. Nothing "
            "is collected, whatever the web interface shows.",
            # Nobody restarts one that hangs: of the daemon, being there is all that is asked.
            f"Have it started again: kill -KILL {daemon[0]}"
            if daemon
            else "Look at its log where the platform runs; `pulseguard up` starts it again there",
        )


def _how_to_start(settings: Settings) -> str:
    try:
        purpose = Folders(settings.data_dir).purpose.read_text("utf-8").strip()
    except (OSError, ValueError):
        purpose = REAL
    return f"Start it: pulseguard {'demo' if purpose == SIMULATED else 'up'}"


def _close_troubles(
    settings: Settings, facts: DatabaseFacts, started_at: datetime | None, now: datetime
) -> Iterator[Trouble]:
    close = next((each for each in facts.closes if each.table == MINUTE.table), None)
    if close is None:
        return
    cadence = _cadence(settings, facts.tolerance)
    do = "See why: pulseguard incidents"
    # What was missed while nothing ran is no sign that it does not run now.
    begun = started_at or facts.watching_since
    reference = max((each for each in (close.newest, begun) if each), default=None)
    if reference is None:
        yield Trouble(DOWN, "nothing has been collected yet", None, do)
        return
    late = now - reference
    if late <= CLOSES_LATE * cadence + _MARGIN:
        return
    what = (
        "nothing has been collected yet"
        if close.newest is None
        else f"the newest close is {age(now - close.newest)} old"
    )
    minutes = int(cadence.total_seconds() // 60)
    often = "every minute" if minutes == 1 else f"every {minutes} minutes"
    level = DOWN if late > CLOSES_GONE * cadence + _MARGIN else DEGRADED
    yield Trouble(level, what, f"Prices are polled {often}.", do)


def _unread_troubles(facts: DatabaseFacts) -> Iterator[Trouble]:
    if facts.unread.get(MINUTE.table) == NOT_THERE:
        yield Trouble(
            DOWN, "the database has no tables of PulseGuard", None, "Make them: pulseguard migrate"
        )
        return
    for part, words in _NEEDED.items():
        if part in facts.unread:
            yield Trouble(
                DEGRADED, f"{words} could not be read", f"{_sentence(facts.unread[part])}"
            )


def _incident_troubles(
    settings: Settings, incidents: Sequence[IncidentStatus], now: datetime
) -> Iterator[Trouble]:
    for incident in incidents:
        if incident.severity != "warning":
            yield Trouble(
                DEGRADED,
                f"{incident.title} (since {clock(incident.since, now)})",
                incident.message,
                _remedy(settings, incident),
            )


def _remedy(settings: Settings, told: IncidentStatus | Finding) -> str | None:
    """What helps, for somebody who has asked for the status already."""
    if told.help is not None and told.help != ASK_FOR_STATUS:
        return told.help
    if told.link is None:
        return "More of it: pulseguard incidents"
    return f"See {linked(settings.ui_address, told.link)}"


def _finding_troubles(
    settings: Settings, findings: Sequence[Finding], facts: DatabaseFacts, now: datetime
) -> Iterator[Trouble]:
    told = {incident.cause for incident in facts.incidents or ()}
    failing_since = {each.name: each.failing_since for each in facts.instigators or ()}
    for finding in findings:
        if finding.cause in told or finding.severity == "warning":
            continue
        since = failing_since.get(finding.subject)
        when = f" (since {clock(since, now)})" if since else ""
        yield Trouble(
            DEGRADED, f"{finding.title}{when}", finding.message, _remedy(settings, finding)
        )


def _outbox_troubles(outbox: Sequence[BacklogStatus]) -> Iterator[Trouble]:
    for backlog in outbox:
        if backlog.refused:
            yield Trouble(
                DEGRADED,
                f"{backlog.channel} does not accept alerts",
                _sentence(backlog.error or "It gave no reason"),
                "Try it: pulseguard alert-test",
            )


# --- the verdict ---


def _verdict(
    troubles: Sequence[Trouble], *, starting: bool
) -> tuple[Literal["healthy", "starting", "degraded", "down"], int]:
    level = max((trouble.level for trouble in troubles), default=HEALTHY)
    if level == HEALTHY:
        return "healthy", HEALTHY
    if level == DEGRADED:
        return "degraded", DEGRADED
    return ("starting", DEGRADED) if starting else ("down", DOWN)


def _headline(
    state: str, troubles: Sequence[Trouble], started_at: datetime | None, now: datetime
) -> str:
    if not troubles:
        return "PulseGuard is healthy."
    since = f" since {clock(started_at, now)}" if state == "starting" and started_at else ""
    more = f", and {len(troubles) - 1} more" if len(troubles) > 1 else ""
    return f"PulseGuard is {state}{since}: {troubles[0].what}{more}."


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def clock(at: datetime, now: datetime) -> str:
    """An instant as a person says it: "12:03 UTC", with the date if it was on another day."""
    at, now = at.astimezone(timezone.utc), now.astimezone(timezone.utc)
    return f"{at:%H:%M} UTC" if at.date() == now.date() else f"{at:%Y-%m-%d %H:%M} UTC"


def age(duration: timedelta) -> str:
    """An age in its largest unit or two: "8 s", "12 min", "3 h 5 min", "2 d 4 h"."""
    seconds = max(0, int(duration.total_seconds()))
    if seconds < 120:
        return f"{seconds} s"
    days, hours, minutes = seconds // 86_400, seconds % 86_400 // 3_600, seconds % 3_600 // 60
    parts = [(days, "d"), (hours, "h"), (minutes, "min")][0 if days else 1 :][:2]
    return " ".join(f"{number} {unit}" for number, unit in parts if number)
