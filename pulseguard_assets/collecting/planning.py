"""The provider's plan as the settings have it. Light to import: the command line shows it.

Belongs here: settings in, a plan out. Does not: the plans (`coingecko/plans.py`).
"""

from __future__ import annotations

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
