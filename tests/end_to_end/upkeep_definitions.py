"""The platform with one sensor more, which has upkeep done at once instead of at its hour."""

from __future__ import annotations

import dagster as dg

from pulseguard_assets.definitions import build_defs


@dg.sensor(
    target=dg.AssetSelection.assets("retention_cleanup", "maintenance", "dagster_housekeeping"),
    minimum_interval_seconds=5,
    default_status=dg.DefaultSensorStatus.RUNNING,
)
def at_once() -> dg.RunRequest:
    """Ask for one run."""
    return dg.RunRequest(run_key="once")


defs = dg.Definitions.merge(build_defs(), dg.Definitions(sensors=[at_once]))
