"""Whether the platform's own processes do their work: the rules.

Belongs here: the verdict on what a watchdog inside Dagster cannot tell, since it would not run.
Does not: finding out how things are (`status.py`), nor when to (`lookout.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from pulseguard_assets.alerts.instigators import WATCHDOG
from pulseguard_assets.alerts.messages import span
from pulseguard_assets.alerts.model import Finding, Look
from pulseguard_assets.alerts.status_facts import InstigatorStatus, ProcessStatus, Status

AREA = "processes"

# Starting takes 20 s on a slow machine, and a first tick a minute more.
SETTLING = timedelta(minutes=2)
# The daemon writes a heartbeat every 30 s.
_HEARTBEAT = timedelta(seconds=90)
# A process that has died is back sooner than that.
_AWAY = timedelta(seconds=60)
# It ticks every minute.
_SILENCE = timedelta(minutes=3)
# Rounds are 30 s apart. Longer: the machine slept, and so did everything else on it.
_GAP = timedelta(seconds=120)

_NOTHING_COLLECTED = "Meanwhile nothing is collected, and no sensor and no schedule runs."


@dataclass(frozen=True)
class Trail:
    """What one round alone does not tell: since when things are as they are.

    Attributes:
        since: the first of an unbroken series of rounds in which the database answered.
        last: the newest of them.
        away: by process, since when it has not served.
        whole_since: since when daemon and code server have both been at work; None: they are not.
    """

    since: datetime
    last: datetime
    away: Mapping[str, datetime] = field(default_factory=dict)
    whole_since: datetime | None = None


def followed(trail: Trail | None, status: Status, *, now: datetime) -> Trail | None:
    """The trail with one round more, which saw `status`.

    It begins anew after a gap, such as a machine that slept, and after a round without a database:
    whatever writes signs of life into it needs time to do so again.
    """
    if status.heartbeats is None:
        return None
    if trail is None or not timedelta(0) <= now - trail.last <= _GAP:
        trail = Trail(since=now, last=now)
    away = {
        process.name: trail.away.get(process.name) or process.not_serving_since or now
        for process in status.processes or ()
        if _complaint(process) is not None
    }
    whole = _beats(status, now) and "code-server" not in away
    whole_since = (trail.whole_since or now) if whole else None
    return Trail(since=trail.since, last=now, away=away, whole_since=whole_since)


def look_at_processes(
    status: Status,
    trail: Trail | None,
    *,
    now: datetime,
    logs: str,
    load_error: str | None = None,
) -> Look:
    """What is wrong with the processes. While the platform starts, nothing is looked at.

    Args:
        trail: with this round in it; see `followed`.
        logs: the folder of what the processes print.
        load_error: why the code server does not start, if its log tells.
    """
    if trail is None or status.started_at is None:
        return Look()
    # The lookout is started together with what it looks at.
    if now - trail.since < SETTLING:
        return Look()
    found = (
        _daemon(status, now, logs),
        _code_server(status, trail, now, logs, load_error),
        _webserver(status, trail, now, logs),
        _watchdog(status, trail, now, logs),
    )
    # Where the ticks could not be read, silence is neither found nor over.
    areas = () if status.instigators is None else (AREA,)
    return Look(tuple(finding for finding in found if finding is not None), areas)


def _daemon(status: Status, now: datetime, logs: str) -> Finding | None:
    if _beats(status, now):
        return None
    heartbeat = _heartbeat(status)
    silent = "ever" if heartbeat is None else f"for {span(now - heartbeat)}"
    process = _process(status, "daemon")
    if process is None or process.condition == "gone":
        how, remedy = "has ended and does not start again", _last_words(logs, "daemon")
    elif process.condition == "suspended":
        how, remedy = "is suspended by a signal", f"kill -CONT {process.pid}"
    else:
        # Nobody restarts one that hangs: of the daemon, being there is all that is asked.
        how, remedy = "hangs", f"kill -KILL {process.pid}  (PulseGuard then starts it again)"
    return Finding(
        area=AREA,
        cause="process:daemon:DOWN",
        kind="DOWN",
        severity="critical",
        subject="daemon",
        title="the daemon is down",
        message=f"Dagster's daemon {how}: no sign of life {silent}. {_NOTHING_COLLECTED}",
        link="/deployment/daemons",
        help=remedy,
    )


def _code_server(
    status: Status, trail: Trail, now: datetime, logs: str, load_error: str | None
) -> Finding | None:
    process = _away("code-server", status, trail, now)
    if process is None:
        return None
    restarting = process.state != "running"
    if restarting and load_error is not None:
        title = "the code does not load"
        why = f"The code cannot be loaded: {load_error.rstrip('.')}. It is tried again each minute"
    else:
        title = "the code server is down"
        why = f"The code server {_complaint(process)}"
    return Finding(
        area=AREA,
        cause="location:pulseguard:UNLOADABLE",
        kind="UNLOADABLE",
        severity="critical",
        subject="pulseguard",
        title=title,
        message=f"{why}. {_NOTHING_COLLECTED}",
        link="/deployment/locations",
        help=_last_words(logs, "code-server"),
    )


def _webserver(status: Status, trail: Trail, now: datetime, logs: str) -> Finding | None:
    process = _away("webserver", status, trail, now)
    if process is None:
        return None
    return Finding(
        area=AREA,
        cause="process:webserver:DOWN",
        kind="DOWN",
        severity="error",
        subject="webserver",
        title="the web interface is down",
        message=f"The web interface {_complaint(process)}. Prices are collected without it.",
        help=_last_words(logs, "webserver"),
    )


def _watchdog(status: Status, trail: Trail, now: datetime, logs: str) -> Finding | None:
    # Without daemon or code server it cannot tick. That is told already, and when they are back it
    # is given time to be so too.
    if trail.whole_since is None or status.instigators is None:
        return None
    state = _instigator(status, WATCHDOG)
    tick = None if state is None else state.last_tick
    switched_off = state is not None and state.on is False
    quiet_since = max(filter(None, (trail.whole_since, tick)))
    if not switched_off and now - quiet_since <= _SILENCE:
        return None
    if switched_off:
        title, why = "the watchdog is switched off", f"{WATCHDOG} is switched off"
        remedy = f"open the link and switch {WATCHDOG} on"
    else:
        title = "the watchdog is silent"
        why = f"{WATCHDOG} has not ticked {'yet' if tick is None else f'for {span(now - tick)}'}"
        remedy = _last_words(logs, "daemon")
    return Finding(
        area=AREA,
        cause="watchdog:SILENT",
        kind="SILENT",
        severity="critical",
        subject=WATCHDOG,
        title=title,
        message=f"{why}. Nobody would be told now that a sensor fails, hangs or stops.",
        link=f"/locations/pulseguard/schedules/{WATCHDOG}",
        help=remedy,
    )


def _heartbeat(status: Status) -> datetime | None:
    return max((each.at for each in status.heartbeats or ()), default=None)


def _beats(status: Status, now: datetime) -> bool:
    heartbeat = _heartbeat(status)
    return heartbeat is not None and now - heartbeat <= _HEARTBEAT


def _complaint(process: ProcessStatus) -> str | None:
    """What is wrong with it, fit to follow its name; None if it serves."""
    if process.condition == "suspended":
        return f"is suspended (process {process.pid}), and is replaced within two minutes"
    if process.state != "running":
        again = "once" if process.restarts == 1 else f"{process.restarts:,} times"
        return f"does not serve, although it was started again {again}"
    # Its end is noticed at once: this one was seen in between.
    return "has ended" if process.condition == "gone" else None


def _away(name: str, status: Status, trail: Trail, now: datetime) -> ProcessStatus | None:
    """The process, if it has not served for so long that it does not come back by itself."""
    long_enough = name in trail.away and now - trail.away[name] > _AWAY
    return _process(status, name) if long_enough else None


def _process(status: Status, name: str) -> ProcessStatus | None:
    return next((each for each in status.processes or () if each.name == name), None)


def _instigator(status: Status, name: str) -> InstigatorStatus | None:
    return next((each for each in status.instigators or () if each.name == name), None)


def _last_words(logs: str, name: str) -> str:
    return f"tail -n 40 '{logs}/{name}.log'"
