"""The sensor that polls live prices.

Belongs here: when to poll, as Dagster sees it, and what it is told of a poll. Does not: polling
(`collecting/`).

A tick every 20 s and not every minute: an interval of 60 s drifts and skips a wall-clock minute
every few hours. Most ticks find that nothing is due. A poll is recorded as a materialization
without a run, which is one event row and takes no process start.

A failure is raised, never turned into a skip: a tick that failed is the only thing that a
watchdog, and a person looking at the UI, can see.
"""

# No `from __future__ import annotations` here: Dagster looks at the annotations as they are.

from datetime import datetime

import dagster as dg

from pulseguard_assets.assets.coin_priorities import KEY as COIN_PRIORITIES
from pulseguard_assets.assets.minute_close import KEY, poll_metadata
from pulseguard_assets.assets.partitions import key_at
from pulseguard_assets.automation.repair import first_sweep_lacking
from pulseguard_assets.collecting.errors import NoCoins, plainly_said
from pulseguard_assets.collecting.platform import TICK_BUDGET, Platform
from pulseguard_assets.collecting.polling import (
    NotDue,
    PollFailed,
    PollReport,
    poll_when_due,
)

SENSOR = "coingecko_price_sensor"
INTERVAL_SECONDS = 20
# One request for the first sweep per so many seconds, should one fail.
_SWEEP_RETRY_SECONDS = 300


def price_sensor(minutes: dg.TimeWindowPartitionsDefinition) -> dg.SensorDefinition:
    """The sensor, for `minute_close` partitioned by `minutes`."""

    @dg.sensor(
        name=SENSOR,
        # Not `target`: that would be one job, whose assets must share their partitions.
        asset_selection=dg.AssetSelection.assets(KEY, COIN_PRIORITIES),
        minimum_interval_seconds=INTERVAL_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=(
            "Polls CoinGecko once per due minute and stores the closes in minute_close and, live, "
            "in hourly_close. Requests the first sweep of coin_priorities. A poll that the rate "
            "limit stretches goes on at the next tick."
        ),
    )
    def coingecko_price_sensor(
        context: dg.SensorEvaluationContext, platform: dg.ResourceParam[Platform]
    ) -> dg.SensorResult:
        now = platform.clock()
        with plainly_said(), platform.ticking.lent_or_new() as connection:
            # A first sweep that failed midway leaves coins to poll, and others unknown.
            sweeps = [_first_sweep(now)] if first_sweep_lacking(connection, now=now) else []
            try:
                done = poll_when_due(platform, connection, now=now, until=now + TICK_BUDGET)
            except NoCoins:
                return dg.SensorResult(run_requests=[_first_sweep(now)])
            except PollFailed as failure:
                if failure.report is not None and failure.report.stored:
                    # What came before the failure is stored, so it is recorded as well.
                    context.instance.report_runless_asset_event(
                        _materialization(minutes, failure.report, platform.clock())
                    )
                raise
        if isinstance(done, NotDue):
            return dg.SensorResult(
                run_requests=sweeps,
                skip_reason=None if sweeps else dg.SkipReason(_not_due(done)),
            )
        return dg.SensorResult(
            run_requests=sweeps,
            asset_events=[_materialization(minutes, done, platform.clock())] if done.stored else [],
            cursor=done.minute.isoformat(),
            skip_reason=None if done.stored or sweeps else dg.SkipReason(_nothing_stored(done)),
        )

    return coingecko_price_sensor


def _materialization(
    minutes: dg.TimeWindowPartitionsDefinition, report: PollReport, now: datetime
) -> dg.AssetMaterialization:
    return dg.AssetMaterialization(
        KEY, partition=key_at(minutes, report.minute), metadata=poll_metadata(report, now)
    )


def _first_sweep(now: datetime) -> dg.RunRequest:
    key = int(now.timestamp()) // _SWEEP_RETRY_SECONDS
    return dg.RunRequest(run_key=f"first-sweep-{key}", asset_selection=[COIN_PRIORITIES])


def _not_due(done: NotDue) -> str:
    return f"Nothing to do until {done.until:%H:%M:%S} UTC: {done.why}."


def _nothing_stored(report: PollReport) -> str:
    if report.waiting_until is not None:
        return f"The rate limit frees the next call at {report.waiting_until:%H:%M:%S} UTC."
    return f"The provider answered, but with no usable price for any of {report.asked} coins."
