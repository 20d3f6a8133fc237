"""What is known of something that is wrong: as it was found, and as it is recorded.

Belongs here: both, as data. Does not: any rule; those are in `sql/`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

# What helps where the next step depends on how everything else is.
ASK_FOR_STATUS = "pulseguard status"


@dataclass(frozen=True)
class Finding:
    """Something that is wrong at this moment.

    Attributes:
        area: what had to be looked at to find it, e.g. `sensors`; see `observe`.
        cause: stable key, e.g. `sensor:coingecko_price_sensor:FAILING`. The same cause found again
            is the same incident.
        kind: kind of trouble, e.g. `FAILING`.
        severity: `warning`, `error` or `critical`.
        subject: the asset, sensor, schedule or table concerned.
        title: a few words, e.g. `coingecko_price_sensor fails`.
        message: a sentence that says what is wrong, with the error's own words if there are any.
        link: path in the web interface, beginning with a slash.
        help: command or query to copy.
        occurrences: how often it happened since the cause began, such as the failures in a row. A
            counter: what it has more than in the last round is added, and a smaller figure counts
            as begun anew. So it is no place for a figure that goes up and down.
        explained_by: beginnings of causes. While one of them lasts, or has just ended, this is its
            consequence and nobody is told of it; see `without_consequences`.
    """

    area: str
    cause: str
    kind: str
    severity: str
    subject: str
    title: str
    message: str
    link: str | None = None
    help: str | None = None
    occurrences: int = 1
    explained_by: tuple[str, ...] = ()


@dataclass(frozen=True)
class Look:
    """What was looked at, and what was found there.

    Attributes:
        areas: all that could be looked at, also where nothing was found: see `observe`.
    """

    findings: tuple[Finding, ...] = ()
    areas: tuple[str, ...] = ()

    def __add__(self, other: Look) -> Look:
        return Look(self.findings + other.findings, self.areas + other.areas)


@dataclass(frozen=True)
class Incident:
    """A row of `incidents`. Times are UTC.

    Attributes:
        occurrences: how often it happened in all.
        rounds: in how many rounds it was found.
        absent_since: since when it is no longer found; None while it is.
        resolved_at: when it was taken for gone; None while the incident is open.
        flaps: how often it came back soon after it was resolved.
    """

    id: int
    cause: str
    area: str
    kind: str
    severity: str
    subject: str
    title: str
    message: str
    link: str | None
    help: str | None
    first_seen: datetime
    last_seen: datetime
    occurrences: int
    rounds: int
    absent_since: datetime | None
    resolved_at: datetime | None
    flaps: int
    last_reminded_at: datetime | None

    @property
    def is_open(self) -> bool:
        """Whether it still lasts, as far as is known."""
        return self.resolved_at is None
