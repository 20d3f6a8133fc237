"""What the caller may do, and what it did: plan limits and the count of every call.

Belongs here: refusals that depend on the caller (key, host, rate, credits) and the call log.
Does not: the wording of the refusals (`answers`) or faults (`faults`).
"""

from __future__ import annotations

import math
import threading
from collections import Counter, deque
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timedelta
from typing import Any, Final, Literal

Outcome = Literal["successful", "failed", "rate_limited"]
Refusal = Literal["rate", "credits"]

WINDOW: Final = timedelta(seconds=60)
#: How many of the latest calls are kept in full.
RECENT: Final = 2_000


class LimitsError(ValueError):
    """Limits that make no sense; the message says what to write instead."""


@dataclass(frozen=True)
class Limits:
    """What a plan allows. None: no limit.

    Attributes:
        calls_per_minute: granted calls in any 60 simulated seconds; refused ones do not count.
        monthly_credits: calls in a UTC calendar month, refused ones for the rate included.
        history_days: how far back charts reach.
        host: `public` (keyless and Demo) or `pro` (paid plans); decides which key header is right.
        require_key: refuse calls without a key (always so on the pro host).
        keys: the keys that are accepted; none given accepts any.
        retry_after: whether a refusal for the rate carries the Retry-After header.
        max_url_bytes: path and query beyond this are answered with 414.
    """

    calls_per_minute: int | None = None
    monthly_credits: int | None = None
    history_days: int | None = None
    host: Literal["public", "pro"] = "public"
    require_key: bool = False
    keys: tuple[str, ...] = ()
    retry_after: bool = True
    max_url_bytes: int = 8_192

    def __post_init__(self) -> None:
        for name in ("calls_per_minute", "monthly_credits", "history_days", "max_url_bytes"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise LimitsError(f"{name} is {value!r}; write a whole number.")
            if value is not None and value < 0:
                raise LimitsError(f"{name} is {value}; write 0 or more, or leave it out.")
        if self.max_url_bytes is None:
            raise LimitsError("max_url_bytes is missing; write a number of bytes, such as 8192.")
        for name in ("require_key", "retry_after"):
            if getattr(self, name) not in (True, False):
                raise LimitsError(f"{name} is {getattr(self, name)!r}; write true or false.")
        if self.host not in ("public", "pro"):
            raise LimitsError(f"host is {self.host!r}; write public or pro.")

    def changed(self, changes: dict[str, Any]) -> Limits:
        """These limits with some replaced, from JSON. Raises LimitsError saying what is wrong."""
        known = {f.name for f in fields(self)}
        if unknown := sorted(set(changes) - known):
            raise LimitsError(f"no limit is called {unknown}; there are {sorted(known)}.")
        if "keys" in changes:
            if not isinstance(changes["keys"], (list, tuple)):
                raise LimitsError(f"keys is {changes['keys']!r}; write a list of texts.")
            changes = {**changes, "keys": tuple(map(str, changes["keys"]))}
        return replace(self, **changes)


@dataclass
class Call:
    """One call as the simulator saw it; `outcome` is None while it is being answered."""

    number: int
    at: datetime
    endpoint: str
    url: str
    outcome: Outcome | None = None
    status: int | None = None
    faults: list[str] = field(default_factory=list)

    def settle(self, outcome: Outcome, status: int | None) -> None:
        """Say how it ended; a later word replaces an earlier one."""
        self.outcome, self.status = outcome, status

    def as_json(self) -> dict[str, Any]:
        """The call as shown by the admin endpoint."""
        return {
            "number": self.number,
            "at": self.at.isoformat(),
            "endpoint": self.endpoint,
            "url": self.url,
            "outcome": self.outcome,
            "status": self.status,
            "faults": self.faults,
        }


class CallLog:
    """Counts every call, by endpoint, outcome, status and fault. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._total = 0
            self._open: dict[int, Call] = {}
            self._closed: Counter[tuple[str, Outcome | None, int | None]] = Counter()
            self._faults: Counter[str] = Counter()
            self._minutes: Counter[datetime] = Counter()
            self._recent: deque[Call] = deque(maxlen=RECENT)

    def begin(self, endpoint: str, url: str, at: datetime) -> Call:
        """Note a call that has arrived."""
        with self._lock:
            self._total += 1
            call = Call(self._total, at, endpoint, url)
            self._open[call.number] = call
            self._recent.append(call)
            self._minutes[at.replace(second=0, microsecond=0)] += 1
            return call

    def end(self, call: Call) -> None:
        """Fold a call whose answer is on its way, or lost, into the totals."""
        with self._lock:
            if self._open.pop(call.number, None) is call:
                self._closed[call.endpoint, call.outcome, call.status] += 1
                self._faults.update(call.faults)

    def amend(self, call: Call, outcome: Outcome) -> None:
        """Replace the outcome of a call that was folded in before its answer broke off."""
        with self._lock:
            before = (call.endpoint, call.outcome, call.status)
            if self._closed[before] > 0:
                self._closed[before] -= 1
                self._closed[call.endpoint, outcome, call.status] += 1
            call.outcome = outcome

    def summary(self, recent: int = 20) -> dict[str, Any]:
        """Totals for the admin endpoint: `total`, `open`, `outcomes`, `endpoints` (each by
        outcome), `statuses`, `faults`, `peak_per_minute` and the `recent` latest calls."""
        with self._lock:
            outcomes: Counter[str] = Counter(successful=0, failed=0, rate_limited=0)
            endpoints: dict[str, Counter[str]] = {}
            statuses: Counter[str] = Counter()
            for (endpoint, outcome, status), times in self._closed.items():
                if times:
                    outcomes[str(outcome)] += times
                    endpoints.setdefault(endpoint, Counter())[str(outcome)] += times
                    statuses[str(status)] += times
            latest = list(self._recent)[-recent:] if recent > 0 else []
            return {
                "total": self._total,
                "open": len(self._open),
                "outcomes": dict(outcomes),
                "endpoints": {name: dict(counts) for name, counts in endpoints.items()},
                "statuses": dict(statuses),
                "faults": dict(self._faults),
                "peak_per_minute": max(self._minutes.values(), default=0),
                "recent": [call.as_json() for call in latest],
            }


class Meter:
    """Grants calls within the limits, on the simulated clock. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.clear()

    def clear(self) -> None:
        """Forget all calls: the window is empty and no credit is spent."""
        with self._lock:
            self._granted: deque[datetime] = deque()
            self._spent: Counter[tuple[int, int]] = Counter()

    def spent(self, now: datetime) -> int:
        """Credits used in the UTC month of `now`."""
        with self._lock:
            return self._spent[now.year, now.month]

    def take(self, limits: Limits, now: datetime) -> tuple[Refusal, int] | None:
        """Count a call at `now`; None when it is granted.

        Otherwise why not, and after how many whole seconds (at least 1) the next is granted, by
        the window alone: spent credits come back with the month.
        """
        with self._lock:
            # A clock that was put back leaves calls in its future; they are no longer true.
            while self._granted and self._granted[-1] > now:
                self._granted.pop()
            while self._granted and now - self._granted[0] >= WINDOW:
                self._granted.popleft()
            month = (now.year, now.month)
            if limits.monthly_credits is not None and self._spent[month] >= limits.monthly_credits:
                return "credits", 60
            self._spent[month] += 1
            allowed = limits.calls_per_minute
            if allowed is not None and len(self._granted) >= allowed:
                free_at = self._granted[-allowed] + WINDOW if allowed else now + WINDOW
                return "rate", max(1, math.ceil((free_at - now).total_seconds()))
            self._granted.append(now)
            return None
