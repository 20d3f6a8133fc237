"""Whether Dagster's daemons are alive, well, and only one of each: the rules.

Belongs here: the verdict on their heartbeats. Does not: reading these (`dagster_state.py`), nor
whether a process runs (`process_rules.py`).

Dagster calls a daemon healthy for half an hour after its last heartbeat. They come every 30
seconds, the scheduler's every minute; so this goes by their age.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from pulseguard_assets.alerts.dagster_state import Heartbeat
from pulseguard_assets.alerts.model import ASK_FOR_STATUS, Finding, Look

AREA = "daemons"
OLD_AFTER = timedelta(seconds=120)
# A process that starts has all its daemons send a heartbeat at once.
_STARTED_IN = timedelta(seconds=15)

_SCHEDULER = "SCHEDULER"
# Without these two, no price is collected and nothing is watched from inside.
_VITAL = ("SENSOR", _SCHEDULER)
_DOES = {
    "SENSOR": "evaluates the sensors, which collect the prices",
    _SCHEDULER: "evaluates the schedules, and with them the watchdog",
    "QUEUED_RUN_COORDINATOR": "starts runs",
    "MONITORING": "ends runs whose process has vanished",
    "BACKFILL": "works off backfills",
    "EVENT_LOG_CONSUMER": "retries failed runs",
    "FRESHNESS_DAEMON": "judges how fresh assets are",
}


def look_at_daemons(
    heartbeats: Sequence[Heartbeat], *, now: datetime, watching_since: datetime | None
) -> Look:
    """What is wrong with the daemons.

    After a break in the watch, by a machine that slept or a clock that leapt, every heartbeat is
    old, of those daemons too that are well: then none is called silent before it had the time to
    send another, and none that was is taken for back.

    Args:
        heartbeats: the newest of each daemon that there ever was. None at all tells nothing: the
            platform has not run yet.
        watching_since: since when somebody looks without a break; None if nobody did until now.
    """
    if not heartbeats:
        return Look((), (AREA,))
    process = max(heartbeats, key=lambda each: each.at).process
    in_use = [each for each in heartbeats if each.process == process or _young(each, now)]
    silent = [each for each in in_use if not _young(each, now)]
    findings = [_erring(each) for each in in_use if each.errors and _young(each, now)]
    if _two_at_work(in_use, process, now):
        findings.append(_two())
    if silent and (watching_since is None or now - watching_since <= OLD_AFTER):
        return Look(tuple(findings))
    return Look((*(_old(each, now) for each in silent), *findings), (AREA,))


def _young(heartbeat: Heartbeat, now: datetime) -> bool:
    return now - heartbeat.at <= OLD_AFTER


def _two_at_work(in_use: Sequence[Heartbeat], newest: str, now: datetime) -> bool:
    """Whether two processes send heartbeats, and not one after the other.

    Each daemon has one row, which the processes overwrite in turn. So they are two if neither was
    silent when the other began; or if what there is of one has stood for some time against the
    other, which would have overwritten all of it when it started.
    """
    ours = [each.at for each in in_use if each.process == newest]
    others = [each.at for each in in_use if each.process != newest]
    if not ours or not others:
        return False
    return max(others) > min(ours) or now - min(ours) > _STARTED_IN


def _old(heartbeat: Heartbeat, now: datetime) -> Finding:
    daemon = heartbeat.daemon
    also = () if daemon == _SCHEDULER else (f"daemon:{_SCHEDULER}:OLD",)
    does = f", which {_DOES[daemon]}," if daemon in _DOES else ""
    silent = int((now - heartbeat.at).total_seconds())
    return _finding(
        daemon,
        "OLD",
        f"Daemon {daemon} gives no sign of life",
        f"Dagster's daemon {daemon}{does} has sent no heartbeat for {silent:,} seconds; one is "
        "due every 30 to 60. The web interface shows it as running for half an hour more.",
        severity="critical" if daemon in _VITAL else "error",
        explained_by=("process:daemon:", *also),
    )


def _erring(heartbeat: Heartbeat) -> Finding:
    daemon = heartbeat.daemon
    by_ticks = {"SENSOR": ("sensor:",), _SCHEDULER: ("schedule:",)}
    return _finding(
        daemon,
        "ERRORS",
        f"Daemon {daemon} reports errors",
        f"Dagster's daemon {daemon} goes on, but has met an error in the last minutes: "
        f"{heartbeat.errors[0]}",
        explained_by=(*by_ticks.get(daemon, ()), "location:"),
    )


def _two() -> Finding:
    return Finding(
        area=AREA,
        cause="daemons:TWO",
        kind="TWO",
        severity="error",
        subject="dagster-daemon",
        title="Two Dagster daemons are at work",
        message="Two processes of Dagster's daemon work on this database, so that sensors and "
        "schedules tick twice and calls are paid for twice. Stop the one that `pulseguard up` did "
        "not start.",
        link="/deployment/daemons",
        help="ps -eo pid,ppid,lstart,args | grep '[d]agster.*daemon'",
    )


def _finding(
    daemon: str,
    kind: str,
    title: str,
    message: str,
    *,
    severity: str = "error",
    explained_by: tuple[str, ...],
) -> Finding:
    return Finding(
        area=AREA,
        cause=f"daemon:{daemon}:{kind}",
        kind=kind,
        severity=severity,
        subject=daemon,
        title=title,
        message=message,
        link="/deployment/daemons",
        help=ASK_FOR_STATUS,
        explained_by=explained_by,
    )
