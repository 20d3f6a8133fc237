"""What history may spend, as a value that travels.

Belongs here: the figures. Does not: working them out (`budget.py`) nor keeping to them
(`platform.py`, by a ledger): those two need each other's words, not each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class Allowance:
    """What history may spend, as of one instant; work it out anew for every run.

    Attributes:
        calls_per_minute: most calls that anybody, polls included, may have made within 60 seconds
            for history to make another. 0 if the plan leaves none for it.
        credits_per_month: most calls of the month, by anybody, that history may bring it to;
            None for no limit. Polls made meanwhile count against it, to be on the safe side.
        credits_free: calls that history may make now; None for no limit.
        month_end: when the month of these credits ends, and with it the allowance: the next
            month's credits are the polls' first. None if they belong to no month.
    """

    calls_per_minute: int
    credits_per_month: int | None
    credits_free: int | None
    month_end: datetime | None = None
