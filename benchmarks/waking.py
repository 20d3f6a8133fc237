"""What it costs on this machine that a thread wakes up.

Dagster's processes sleep most of the time and look around many times a second. On a virtual machine
whose processor stops meanwhile, each of these looks costs a multiple of its own work, and that is
most of what a platform at rest takes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

_TIMES = 100
_SLEEP = 0.1


def measure() -> tuple[float, float]:
    """Microseconds of processor time for a moment's work: after a sleep, and without one."""
    return _median_us(lambda: time.sleep(_SLEEP)), _median_us(lambda: None)


def _median_us(before: Callable[[], None]) -> float:
    taken = []
    for _ in range(_TIMES):
        begun = time.thread_time()
        before()
        sum(range(300))
        taken.append(time.thread_time() - begun)
    return statistics.median(taken) * 1e6
