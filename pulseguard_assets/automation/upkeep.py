"""The schedules of the platform's own upkeep.

Belongs here: when it is done. Does not: what is done (`assets/operations.py`).

A tick that was missed needs no catching up: each finds everything there is to do by looking.
"""

from __future__ import annotations

import dagster as dg

from pulseguard_assets.assets.operations import CLEANUP, HOUSEKEEPING, MAINTENANCE

CLEANUP_SCHEDULE = "retention_cleanup_schedule"
MAINTENANCE_SCHEDULE = "maintenance_schedule"


def upkeep_schedules() -> list[dg.ScheduleDefinition]:
    """Cleanup every 15 minutes; maintenance, and Dagster's own tables with it, daily."""
    return [
        dg.ScheduleDefinition(
            name=CLEANUP_SCHEDULE,
            target=dg.AssetSelection.assets(CLEANUP),
            cron_schedule="*/15 * * * *",
            execution_timezone="UTC",
            default_status=dg.DefaultScheduleStatus.RUNNING,
            description="Deletes what retention no longer keeps, every 15 minutes.",
        ),
        dg.ScheduleDefinition(
            name=MAINTENANCE_SCHEDULE,
            target=dg.AssetSelection.assets(MAINTENANCE, HOUSEKEEPING),
            # After the rollups of the day, week and month, and between two cleanups.
            cron_schedule="20 0 * * *",
            execution_timezone="UTC",
            default_status=dg.DefaultScheduleStatus.RUNNING,
            description=(
                "Partitions ahead and behind, indexes, sizes, and Dagster's own tables, daily at "
                "00:20 UTC."
            ),
        ),
    ]
