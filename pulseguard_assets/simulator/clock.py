"""The simulator's clock: real time, moved, stopped or sped up.

Belongs here: what time it is. Does not: anything that happens at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Final

EARLIEST: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)
LATEST: Final = datetime(9000, 1, 1, tzinfo=timezone.utc)
#: Simulated seconds per real second: a year in half a minute.
FASTEST: Final = 1e6


def utc_now() -> datetime:
    """The real time, aware, in UTC."""
    return datetime.now(timezone.utc)


class ClockError(ValueError):
    """The clock was asked to show a time it cannot; the message says which it can."""


class MovableClock:
    """A clock that runs at `rate` simulated seconds per second of `source`. Thread-safe.

    Args:
        source: the time that drives it, aware; must not be the thing it simulates.
        now: where to start; None is the source's own time.
        rate: 1 runs, 0 stands still, 60 lives an hour in a minute.
    """

    def __init__(
        self,
        source: Callable[[], datetime] = utc_now,
        *,
        now: datetime | None = None,
        rate: float = 1.0,
    ) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._driven_from = self._shown_from = source()
        self._rate = 1.0
        self.set(now=now, rate=rate)

    def __call__(self) -> datetime:
        """The simulated time, aware, in UTC."""
        with self._lock:
            return self._shown()

    @property
    def rate(self) -> float:
        """Simulated seconds per real second."""
        with self._lock:
            return self._rate

    def set(
        self,
        *,
        now: datetime | None = None,
        advance: timedelta | None = None,
        rate: float | None = None,
    ) -> datetime:
        """Jump to `now`, or by `advance` (back when negative), and/or change the rate.

        Returns the time then shown. Raises ClockError for a naive or unreachable time or a
        negative rate; the clock is then as it was.
        """
        if now is not None and now.tzinfo is None:
            raise ClockError(f"now is {now.isoformat()} without a zone; write it with +00:00 or Z.")
        if rate is not None and not 0 <= rate <= FASTEST:
            raise ClockError(f"rate is {rate}; write 0 (stands still) to {FASTEST:.0f}.")
        with self._lock:
            shown = now.astimezone(timezone.utc) if now is not None else self._shown()
            try:
                shown += advance or timedelta()
            except OverflowError:
                shown = LATEST
            if not EARLIEST <= shown < LATEST:
                raise ClockError(f"the clock shows times from {EARLIEST:%Y} to {LATEST:%Y} only.")
            self._driven_from, self._shown_from = self._source(), shown
            self._rate = self._rate if rate is None else rate
            return shown

    def follow_source(self) -> datetime:
        """Show the source's own time again, running. Returns it."""
        return self.set(now=self._source(), rate=1.0)

    def _shown(self) -> datetime:
        passed = (self._source() - self._driven_from) * self._rate
        # A fast clock, or a source that leapt back, stays within the times there are.
        if passed >= LATEST - self._shown_from:
            return LATEST - timedelta(microseconds=1)
        return self._shown_from + max(passed, EARLIEST - self._shown_from)
