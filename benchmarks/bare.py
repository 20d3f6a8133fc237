"""The least that Dagster can run: one sensor that records an event every minute.

    PULSEGUARD_DEFINITIONS=benchmarks.bare pulseguard up

Belongs here: what both sides of a comparison with Dagster itself have in common. Does not: anything
of closes.
"""

from __future__ import annotations

import time

import dagster as dg

from pulseguard_assets.automation.polling import INTERVAL_SECONDS

ASSET = "bare"


@dg.sensor(minimum_interval_seconds=INTERVAL_SECONDS, default_status=dg.DefaultSensorStatus.RUNNING)
def bare_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """Record an event in each minute's first tick, as the polling sensor does, and no more."""
    minute = str(int(time.time()) // 60)
    due = context.cursor != minute
    return dg.SensorResult(asset_events=[dg.AssetMaterialization(ASSET)] * due, cursor=minute)


defs = dg.Definitions(sensors=[bare_sensor])
