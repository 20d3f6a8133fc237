"""The polling schedule that follows from the settings.

Belongs here: settings in, a schedule of `coingecko/planner.py` out, and its words.
Does not: the arithmetic, or counting calls.
"""

from __future__ import annotations

from pulseguard_assets.coingecko.planner import PollingPlan, plan_polling
from pulseguard_assets.collecting.planning import COINS_THERE_ARE, plan_in_force
from pulseguard_assets.settings import Settings


def polling_in_force(settings: Settings) -> PollingPlan:
    """How often these settings poll, and what it costs.

    Raises:
        PlanCannotPay: the plan cannot pay for it.
    """
    return plan_polling(
        plan_in_force(settings),
        settings.coins_wanted or COINS_THERE_ARE,
        reserve_percent=settings.reserve_percent,
        cadence_minutes=settings.cadence_minutes,
    )


def in_words(polling: PollingPlan) -> str:
    """The schedule in a line."""
    cadence = polling.cadence_minutes
    often = "every minute" if cadence == 1 else f"every {cadence} minutes"
    allowed = polling.credits_allowed
    budget = "a month" if allowed is None else f"of {allowed:,} a month"
    return f"{polling.coins:,} coins {often}, {polling.calls_per_month:,} calls {budget}"
