"""What a status consists of, as data.

Belongs here: the facts, and the troubles that follow from them. Does not: finding them out
(`status_reading.py`), nor judging them (`status.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

from pulseguard_assets.alerts.dagster_state import Heartbeat, Instigator
from pulseguard_assets.alerts.instigators import Watched
from pulseguard_assets.running.processes import Condition, State

HEALTHY, DEGRADED, DOWN = 0, 1, 2

# The only verdict on a sensor or schedule that is none of the kinds of `look_at_instigators`.
FINE = "fine"


@dataclass(frozen=True)
class Trouble:
    """Something that keeps the platform from being healthy.

    Attributes:
        level: `DEGRADED` or `DOWN`.
        what: a clause without a full stop, fit to follow "PulseGuard is down: ".
        why: a sentence more, if there is more to say.
        do: what helps; a command where there is one.
    """

    level: int
    what: str
    why: str | None = None
    do: str | None = None

    @property
    def sentence(self) -> str:
        """`what` as a sentence of its own. Names such as `minute_close` stay as they are."""
        first = self.what.partition(" ")[0]
        begin = self.what[:1].upper() if first.isalpha() else self.what[:1]
        return f"{begin}{self.what[1:]}."


@dataclass(frozen=True)
class ProcessStatus:
    """A process of a platform on this machine.

    Attributes:
        name: `up`, which keeps the others, or that of a child.
        state: what `up` wrote down last; see `ProcessRecord`.
        condition: what the system says of it now: `alive`, `suspended` by a signal, or `gone`.
        since: when it was started, UTC.
        not_serving_since: UTC; None while it is `running`.
    """

    name: str
    pid: int
    state: State
    condition: Condition
    since: datetime
    restarts: int
    not_serving_since: datetime | None = None

    @property
    def alive(self) -> bool:
        """Whether it runs, neither ended nor suspended."""
        return self.condition == "alive"


@dataclass(frozen=True)
class InstigatorStatus:
    """A sensor or schedule.

    Attributes:
        on: whether it is switched on; None: nobody has told what the code says of it.
        last_tick: when the newest tick began, UTC; None if there was none.
        outcome: of that tick: `started`, `skipped`, `success` or `failure`.
        verdict: `fine`, or the kind of what is wrong: `FAILING`, `HUNG`, `STALE`, `STOPPED`,
            `NEVER`.
    """

    name: str
    kind: str
    on: bool | None
    last_tick: datetime | None
    outcome: str | None
    verdict: str


@dataclass(frozen=True)
class CloseStatus:
    """The newest label of a table, UTC; None if the table is empty."""

    table: str
    newest: datetime | None


@dataclass(frozen=True)
class CoverageStatus:
    """Of the coins that are collected now, how many have a close in a window that is over.

    Attributes:
        window: `hour` or `day`.
        start: its label, UTC.
    """

    window: str
    start: datetime
    coins_expected: int
    coins_seen: int

    @property
    def share(self) -> float | None:
        """0 to 1; None if no coin is known yet."""
        return self.coins_seen / self.coins_expected if self.coins_expected else None


@dataclass(frozen=True)
class IncidentStatus:
    """An open incident; see `Incident`."""

    cause: str
    title: str
    message: str
    severity: str
    since: datetime
    link: str | None
    help: str | None


@dataclass(frozen=True)
class BacklogStatus:
    """Messages that wait for a channel.

    Attributes:
        channel: its label, such as `slack (1)`.
        refused: how many of them the channel has refused.
        since: when the oldest was queued, UTC.
        error: why the channel refused, most recently.
    """

    channel: str
    waiting: int
    refused: int
    since: datetime
    error: str | None


@dataclass(frozen=True)
class CreditsStatus:
    """Calls to the provider in this UTC month.

    Attributes:
        plan: name of the plan.
        spent: None if it could not be read.
        allowed: by the plan less the reserve; None: it has no such limit.
    """

    plan: str
    spent: int | None
    allowed: int | None


@dataclass(frozen=True)
class SizeStatus:
    """Bytes, with indexes and TOAST."""

    database: int
    tables: Mapping[str, int]
    dagster: int


@dataclass(frozen=True)
class DatabaseFacts:
    """What the database told. None: it did not tell, and `unread` says why.

    Attributes:
        answers: whether it told anything.
        complaint: why it did not, without a full stop and without a password.
        takes_no_writes: whether it can only be read.
        unread: parts that could not be read, with the reason.
        watching_since: since when the watchdog has been ticking without a gap, UTC.
        tolerance: the cadence of polls, at least 5 minutes, as whoever polls has written it down.
        spent: calls to the provider in this UTC month.
    """

    answers: bool = False
    complaint: str | None = None
    takes_no_writes: bool | None = None
    unread: Mapping[str, str] = field(default_factory=dict)
    closes: tuple[CloseStatus, ...] = ()
    heartbeats: tuple[Heartbeat, ...] | None = None
    instigators: tuple[Instigator, ...] | None = None
    watched: tuple[Watched, ...] | None = None
    watching_since: datetime | None = None
    incidents: tuple[IncidentStatus, ...] | None = None
    outbox: tuple[BacklogStatus, ...] | None = None
    tolerance: timedelta | None = None
    spent: int | None = None
    coverage: tuple[CoverageStatus, ...] | None = None
    sizes: SizeStatus | None = None


@dataclass(frozen=True)
class Status:
    """How a platform is at an instant. What could not be read is None, and named in `unread`.

    Attributes:
        level: 0 healthy, 1 degraded (or starting), 2 down.
        state: the same as a word.
        headline: the verdict as a sentence.
        at: the instant, UTC.
        troubles: what keeps it from being healthy, the gravest first.
        data_dir: its data folder on this machine.
        started_at: when `up` was started, UTC; None if it does not run on this machine.
        database: where the database is, without password.
        database_answers: whether it did.
        processes: `up` and its children; None if there are none on this machine, and then the
            database alone was asked.
        heartbeats: the newest of each daemon, the newest of all first.
        channels: labels of the channels that alerts go to.
        outbox: what waits, by channel.
    """

    level: int
    state: Literal["healthy", "starting", "degraded", "down"]
    headline: str
    at: datetime
    troubles: tuple[Trouble, ...]
    data_dir: str
    started_at: datetime | None
    database: str
    database_answers: bool
    processes: tuple[ProcessStatus, ...] | None
    heartbeats: tuple[Heartbeat, ...] | None
    instigators: tuple[InstigatorStatus, ...] | None
    closes: tuple[CloseStatus, ...]
    coverage: tuple[CoverageStatus, ...] | None
    incidents: tuple[IncidentStatus, ...] | None
    outbox: tuple[BacklogStatus, ...] | None
    channels: tuple[str, ...]
    credits: CreditsStatus
    sizes: SizeStatus | None
    unread: Mapping[str, str]

    @property
    def problems(self) -> tuple[str, ...]:
        """`troubles` as sentences, each with what to do about it."""
        return tuple(
            " ".join(filter(None, (each.sentence, each.why, each.do))) for each in self.troubles
        )
