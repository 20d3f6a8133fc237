"""Whether each sensor and schedule does what it should: the rules.

Belongs here: what must tick, and the verdict on its newest ticks. Does not: reading the ticks
(`dagster_state.py`), nor the list of what the code defines (`automation/`, `watch_list.py`).

All of it follows from the ticks and from since when somebody has been watching: what was missed
before that, or while it was switched off, is nobody's fault.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cronsim import CronSim

from pulseguard_assets.alerts.dagster_state import Instigator, Tick
from pulseguard_assets.alerts.model import ASK_FOR_STATUS, Finding, Look

PRICE_SENSOR = "coingecko_price_sensor"
WATCHDOG = "watchdog_schedule"
# It ticks every minute. Were two of its ticks further apart, nobody was watching in between.
WATCHDOG_GAP = timedelta(seconds=150)

# Dagster cuts a tick at 60 s, and no tick of ours takes half of that.
HUNG_AFTER = timedelta(seconds=45)
# In a minute the daemon has taken up, or set aside, what one before it left begun.
_SETTLED_AFTER = timedelta(seconds=60)
# Of a sensor that ticks so often a single failure is over before anybody could read of it.
_OFTEN = timedelta(seconds=60)
# The scheduler wakes every minute and then tries a failed tick again.
_TRIED_AGAIN_AFTER = timedelta(seconds=90)
_LEAST_SILENCE = timedelta(seconds=60)
# What lies further ahead was written by a clock that has been set back since.
_CLOCKS_DIFFER = timedelta(seconds=60)
_CRON_PATIENCE = timedelta(minutes=5)
# Ticks that did nothing are kept so long, by dagster.yaml: what is older may just be gone.
_TICKS_KEPT = timedelta(days=7)

AREAS = ("sensors", "schedules")


@dataclass(frozen=True)
class Watched:
    """A sensor or schedule that the code defines.

    Attributes:
        kind: `sensor` or `schedule`.
        runs_by_default: whether it runs unless somebody switches it off.
        every: how often a sensor ticks; None for a schedule.
        cron: when a schedule ticks, in UTC; None for a sensor.
    """

    name: str
    kind: str
    runs_by_default: bool
    every: timedelta | None
    cron: str | None


@dataclass(frozen=True)
class _Case:
    """One sensor or schedule, with what is known of it.

    Attributes:
        state: None if Dagster does not know it.
        watched_from: what was due before it is not judged; None if nothing is that is missing.
    """

    watched: Watched
    state: Instigator | None
    watching_since: datetime | None
    now: datetime

    @property
    def ticks(self) -> tuple[Tick, ...]:
        return self.state.ticks if self.state is not None else ()

    @property
    def finished(self) -> Tick | None:
        return next((tick for tick in self.ticks if tick.status != "STARTED"), None)

    @property
    def watched_from(self) -> datetime | None:
        if self.watching_since is None:
            return None
        started = self.state.started_at if self.state is not None else None
        return self.watching_since if started is None else max(self.watching_since, started)


def look_at_instigators(
    watched: Sequence[Watched],
    states: Sequence[Instigator],
    *,
    now: datetime,
    watching_since: datetime | None,
) -> Look:
    """What is wrong with the sensors and schedules, one finding for each at most.

    Args:
        watched: all that the code defines. Of others nothing is said.
        states: what Dagster knows; with two ticks of each or more.
        watching_since: since when the daemon has run without a break, as far as is known; see
            `unbroken_since`. None if it does not: then neither a missing tick nor one that has
            not ended means anything.
    """
    known = {(state.kind, state.name): state for state in states}
    found = (
        _verdict(_Case(each, known.get((each.kind, each.name)), watching_since, now))
        for each in watched
    )
    return Look(tuple(each for each in found if each is not None), AREAS)


def _verdict(case: _Case) -> Finding | None:
    state = case.state
    if state is not None and state.status == "STOPPED":
        return _stopped(case) if case.watched.runs_by_default else None
    if not case.watched.runs_by_default and (state is None or state.status != "RUNNING"):
        return _never_switched_on(case) if state is None else None
    return _hung(case) or _failing(case) or (_stale(case) if case.ticks else _never(case))


# --- the five kinds of trouble ---


def _stopped(case: _Case) -> Finding:
    return _finding(
        case,
        "STOPPED",
        "is switched off",
        "Somebody has switched it off, though it runs by default. What it does is left undone "
        "until it is switched on again, on the page below.",
        help_=None,
        explained_by=(),
    )


def _hung(case: _Case) -> Finding | None:
    """A tick that does not end, or one after the other that Dagster has cut.

    Between two of them a tick is young for a while, and the one before it failed by its time-out:
    the same trouble, so that this does not end and begin again every minute.
    """
    newest = case.ticks[0] if case.ticks else None
    if newest is not None and _does_not_end(case, newest):
        return _finding(
            case,
            "HUNG",
            "hangs",
            f"Its tick of {_clock(newest.at, case.now)} has not ended for "
            f"{int((case.now - newest.at).total_seconds())} seconds. "
            "Dagster cuts a tick at 60 seconds, and begins the next.",
            occurrences=newest.failures_in_a_row + 1,
        )
    cut = case.finished
    if cut is None or cut.status != "FAILURE" or not cut.timed_out:
        return None
    return _finding(
        case,
        "HUNG",
        "hangs",
        # Dagster goes on with advice for whoever writes sensors.
        f"Its ticks do not end. {_sentence((cut.error or '').split('. ')[0])} "
        f"{_in_a_row(case, cut)}",
        occurrences=max(1, cut.failures_in_a_row),
    )


def _does_not_end(case: _Case, tick: Tick) -> bool:
    if tick.status != "STARTED" or case.watching_since is None:
        return False
    # A tick of a schedule has the time that it is for. After downtime that is long past.
    began = max(tick.at, case.watching_since + _SETTLED_AFTER)
    return case.now - began > HUNG_AFTER


def _failing(case: _Case) -> Finding | None:
    failed = case.finished
    if failed is None or failed.status != "FAILURE" or not _told(case, failed):
        return None
    return _finding(
        case,
        "FAILING",
        "fails",
        f"{_sentence(failed.error)} {_in_a_row(case, failed)}",
        occurrences=max(1, failed.failures_in_a_row),
    )


def _told(case: _Case, failed: Tick) -> bool:
    """Whether a failure stands, or is about to be tried again first."""
    if failed.failures_in_a_row >= 2:
        return True
    if case.watched.every is None:
        return case.now - (failed.ended_at or failed.at) >= _TRIED_AGAIN_AFTER
    return case.watched.every > _OFTEN


def _never(case: _Case) -> Finding | None:
    since = case.watched_from
    if since is None:
        return None
    if case.watched.every is not None:
        if case.now - since < _silence(case.watched.every):
            return None
        due = f"It should tick every {_span(case.watched.every)}"
    else:
        missed = _last_due(case)
        if missed is None or missed <= since:
            return None
        due = f"It should have ticked at {_clock(missed, case.now)}"
    return _finding(
        case,
        "NEVER",
        "has never started",
        f"{due}, but has never done so; it is watched since {_clock(since, case.now)}. "
        "Dagster does not know it, or its daemon does not come to it.",
    )


def _never_switched_on(case: _Case) -> Finding | None:
    """Off is what Dagster makes of a sensor or schedule whose code says nothing of it."""
    # Nothing has to be waited for: Dagster knows it from the moment it is switched on.
    if case.watching_since is None:
        return None
    return _finding(
        case,
        "NEVER",
        "has never started",
        "The code defines it, but not as running by default, and nobody has ever switched it on. "
        "Switch it on, on the page below. If it is to rest, switch it off again after that, and "
        "nobody is told any more.",
        severity="warning",
        help_=None,
    )


def _stale(case: _Case) -> Finding | None:
    since, newest = case.watched_from, case.ticks[0]
    if newest.at - case.now > _CLOCKS_DIFFER:
        return _finding(
            case,
            "STALE",
            "does not tick",
            f"Its last tick was at {_clock(newest.at, case.now)}, which has yet to come: the clock "
            "was set back, and Dagster waits for that time. `pulseguard up` frees it in a minute, "
            "and at its start.",
        )
    # One that has begun either ends or hangs.
    if since is None or newest.status == "STARTED":
        return None
    if case.watched.every is not None:
        missed: datetime | None = case.now - _silence(case.watched.every)
        due = f"though it ticks every {_span(case.watched.every)}"
    else:
        missed = _last_due(case)
        due = f"though it was due at {_clock(missed, case.now)}" if missed is not None else ""
    if missed is None or newest.at >= missed or since >= missed:
        return None
    return _finding(
        case,
        "STALE",
        "does not tick",
        f"Its last tick was at {_clock(newest.at, case.now)}, {due}.",
    )


def _silence(every: timedelta) -> timedelta:
    """How long a sensor may be silent."""
    return max(3 * every, _LEAST_SILENCE)


def _last_due(case: _Case) -> datetime | None:
    """The newest time of the cron line that should have had its tick by now."""
    if case.watched.cron is None:
        return None
    due = next(CronSim(case.watched.cron, case.now - _CRON_PATIENCE, reverse=True), None)
    return due if due is not None and case.now - due < _TICKS_KEPT else None


# --- words ---


def _finding(
    case: _Case,
    kind: str,
    does: str,
    message: str,
    *,
    severity: str = "error",
    occurrences: int = 1,
    help_: str | None = ASK_FOR_STATUS,
    explained_by: tuple[str, ...] | None = None,
) -> Finding:
    name, what = case.watched.name, case.watched.kind
    daemon = "SENSOR" if what == "sensor" else "SCHEDULER"
    if name == PRICE_SENSOR and kind in ("FAILING", "HUNG"):
        help_ = "pulseguard collect --once"
    return Finding(
        area=f"{what}s",
        cause=f"{what}:{name}:{kind}",
        kind=kind,
        severity=severity,
        subject=name,
        title=f"{name} {does}",
        message=message,
        link=f"/locations/pulseguard/{what}s/{name}",
        help=help_,
        occurrences=occurrences,
        explained_by=(f"daemon:{daemon}:OLD", "process:daemon:", "location:")
        if explained_by is None
        else explained_by,
    )


def _in_a_row(case: _Case, failed: Tick) -> str:
    since = case.state.failing_since if case.state is not None else None
    if failed.failures_in_a_row < 2:
        return f"It failed at {_clock(failed.at, case.now)}."
    begun = f", since {_clock(since, case.now)}" if since is not None else ""
    return f"It has failed {failed.failures_in_a_row:,} times in a row{begun}."


def _sentence(error: str | None) -> str:
    said = (error or "").strip() or "The error has no words"
    return said if said.endswith((".", "!", "?", "…")) else f"{said}."


def _span(every: timedelta) -> str:
    seconds = every.total_seconds()
    return f"{seconds / 60:g} minutes" if seconds >= 120 else f"{seconds:g} seconds"


def _clock(at: datetime, now: datetime) -> str:
    """The time, with its day unless that is today; the pages it is looked up in are in UTC too."""
    return f"{at:%H:%M} UTC" if at.date() == now.date() else f"{at:%Y-%m-%d %H:%M} UTC"
