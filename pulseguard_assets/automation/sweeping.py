"""The daily sweep of `coin_priorities`.

Belongs here: when the ranks are refreshed. Does not: how.
"""

from __future__ import annotations

import dagster as dg

from pulseguard_assets.assets.coin_priorities import KEY

SCHEDULE = "coin_priorities_schedule"


def sweep_schedule() -> dg.ScheduleDefinition:
    """Daily at 00:00 UTC."""
    return dg.ScheduleDefinition(
        name=SCHEDULE,
        target=dg.AssetSelection.assets(KEY),
        cron_schedule="0 0 * * *",
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Refreshes ranks and metadata daily at 00:00 UTC.",
    )
