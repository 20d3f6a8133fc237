"""The polling schedule in words.

Belongs here: how a schedule of `coingecko/planner.py` is told. Does not: working it out.
"""

from __future__ import annotations

from pulseguard_assets.coingecko.planner import PollingPlan


def in_words(polling: PollingPlan) -> str:
    """The schedule in a line."""
    cadence = polling.cadence_minutes
    often = "every minute" if cadence == 1 else f"every {cadence} minutes"
    allowed = polling.credits_allowed
    budget = "a month" if allowed is None else f"of {allowed:,} a month"
    return f"{polling.coins:,} coins {often}, {polling.calls_per_month:,} calls {budget}"
