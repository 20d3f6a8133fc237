"""The provider's plan and the polling schedule as the settings have them.

Light to import: the command line and `status` show them. Belongs here: settings in, a plan or a
schedule out. Does not: the plans (`coingecko/plans.py`), the arithmetic (`coingecko/planner.py`),
nor what only the warehouse knows (`budget.py`).
"""

from __future__ import annotations

from datetime import timedelta

from pulseguard_assets.coingecko.planner import PlanCannotPay, PollingPlan, plan_polling
from pulseguard_assets.coingecko.plans import Plan, plan_for
from pulseguard_assets.settings import Settings

# "All there are" before they have been counted: the provider listed about 18,000 in 2026.
COINS_THERE_ARE = 18_000


def plan_in_force(settings: Settings) -> Plan:
    """The plan with the user's figures in place of the published ones."""
    return plan_for(
        settings.plan,
        calls_per_minute=settings.calls_per_minute,
        credits_per_month=settings.credits_per_month,
        history_days=settings.history_days,
    )


def polling_by_settings(settings: Settings, plan: Plan | None = None) -> PollingPlan:
    """The schedule of the polls for the mode's number of coins.

    Args:
        plan: in place of the plan in force; the cadence is then the shortest it pays for.

    Raises:
        PlanCannotPay: the plan cannot pay for it.
    """
    return plan_polling(
        plan_in_force(settings) if plan is None else plan,
        settings.coins_wanted or COINS_THERE_ARE,
        reserve_percent=settings.reserve_percent,
        cadence_minutes=settings.cadence_minutes if plan is None else None,
    )


def expected_cadence(settings: Settings) -> timedelta:
    """From poll to poll, also where the plan cannot pay for it: then as somebody configured it.

    Whoever polls refuses such a cadence with a sentence; to show what was expected is no reason to
    fail.
    """
    try:
        return timedelta(minutes=polling_by_settings(settings).cadence_minutes)
    except PlanCannotPay:
        return timedelta(minutes=settings.cadence_minutes or 1)
