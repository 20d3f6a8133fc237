"""The schedule of the checks of `minute_close`.

Belongs here: when they run. Does not: what they judge (`assets/checks.py`). The checks of a rollup
run with every run that materializes it; a poll is recorded without a run, so nothing would ever run
those of the minutes.
"""

from __future__ import annotations

import dagster as dg

from pulseguard_assets.assets.minute_close import KEY

JOB = "minute_close_checks_job"
SCHEDULE = "minute_close_checks_schedule"


def check_schedules() -> list[dg.ScheduleDefinition]:
    """Hourly at minute 20: the rollups and the cleanup of the hour are done by then."""
    return [
        dg.ScheduleDefinition(
            name=SCHEDULE,
            job=dg.define_asset_job(JOB, selection=dg.AssetSelection.checks_for_assets(KEY)),
            cron_schedule="20 * * * *",
            execution_timezone="UTC",
            default_status=dg.DefaultScheduleStatus.RUNNING,
            description="Runs the checks of minute_close hourly, 20 minutes after the hour.",
        )
    ]
