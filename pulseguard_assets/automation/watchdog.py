"""The watchdog inside Dagster: a round every minute.

Belongs here: when a round is made, what it says in the web interface, and what must tick. Does not:
a round (`assets/watching.py`).

A schedule and not a sensor: it is run by another daemon, which keeps ticking while sensors hang. It
requests no run. A watchdog in here dies with the daemon, which is why one outside belongs to it
(`alerts/lookout.py`).

Dagster evaluates a tick that failed again, up to three times (`max_tick_retries` in dagster.yaml).
That is harmless: an incident is one however often it is found, a message waits until its own next
attempt, and a channel is not asked again before that.
"""

# No `from __future__ import annotations` here: Dagster looks at the annotations as they are.

from collections.abc import Sequence
from datetime import timedelta

import dagster as dg

from pulseguard_assets.alerts.instigators import WATCHDOG, Watched
from pulseguard_assets.alerts.model import Incident
from pulseguard_assets.assets.incidents import KEY, open_metadata
from pulseguard_assets.assets.watching import watch
from pulseguard_assets.collecting.platform import Platform
from pulseguard_assets.wording import shortened

# Every minute leaves a tick with this text.
_MOST_NAMED = 3
_LONGEST_NAME = 80


def watchdog_schedule() -> dg.ScheduleDefinition:
    """Every minute, and on unless somebody switches it off."""

    @dg.schedule(
        name=WATCHDOG,
        target=dg.AssetSelection.assets(KEY),
        cron_schedule="* * * * *",
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=(
            "Looks every minute whether anything is wrong: sensors, schedules, runs, checks, "
            "daemons, data, credits. Opens and resolves incidents, and sends the messages about "
            "them. It starts no run: a tick that was skipped has looked."
        ),
    )
    def schedule(
        context: dg.ScheduleEvaluationContext, platform: dg.ResourceParam[Platform]
    ) -> dg.SkipReason:
        done = watch(platform, now=platform.clock(), watched=watched_of(context.repository_def))
        if done.changed or len(done.open) != _open_when_last_told(context.instance):
            context.instance.report_runless_asset_event(
                dg.AssetMaterialization(
                    KEY, metadata=open_metadata(done.open, platform.settings.ui_address)
                )
            )
        if done.problem is not None:
            raise done.problem
        return dg.SkipReason(_in_words(done.open))

    return schedule


def watched_of(repository: dg.RepositoryDefinition) -> list[Watched]:
    """The sensors and schedules that the code defines, by name."""
    sensors = [
        Watched(
            sensor.name,
            "sensor",
            runs_by_default=sensor.default_status is dg.DefaultSensorStatus.RUNNING,
            # Without an interval of its own, Dagster's.
            every=timedelta(seconds=sensor.minimum_interval_seconds or 30),
            cron=None,
        )
        for sensor in repository.sensor_defs
    ]
    schedules = [
        Watched(
            schedule.name,
            "schedule",
            runs_by_default=schedule.default_status is dg.DefaultScheduleStatus.RUNNING,
            every=None,
            cron=_one_line(schedule.cron_schedule),
        )
        for schedule in repository.schedule_defs
    ]
    return sorted([*sensors, *schedules], key=lambda each: each.name)


def _one_line(cron: str | Sequence[str]) -> str:
    # Of several, the first: fewer times to be late for, and none that is wrong.
    return cron if isinstance(cron, str) else cron[0]


def _open_when_last_told(instance: dg.DagsterInstance) -> int | None:
    """How many the newest event shows as open; the watchdog outside opens and resolves some too."""
    event = instance.get_latest_materialization_event(KEY)
    told = None if event is None else event.asset_materialization
    value = None if told is None or "open" not in told.metadata else told.metadata["open"].value
    return value if isinstance(value, int) else None


def _in_words(open_ones: Sequence[Incident]) -> str:
    if not open_ones:
        return "Looked: no incident is open."
    names = [shortened(incident.title, _LONGEST_NAME) for incident in open_ones[:_MOST_NAMED]]
    if len(open_ones) > _MOST_NAMED:
        names.append(f"and {len(open_ones) - _MOST_NAMED} more")
    are = "1 incident is" if len(open_ones) == 1 else f"{len(open_ones)} incidents are"
    return f"Looked: {are} open. {'; '.join(names)}."
