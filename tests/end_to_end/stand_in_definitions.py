"""The least that a code server can serve, for tests of the processes around it."""

from __future__ import annotations

import time

import dagster as dg


@dg.sensor(minimum_interval_seconds=1, default_status=dg.DefaultSensorStatus.RUNNING)
def ticking(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """Record an event at each tick, as the polling sensor does."""
    ticks = int(context.cursor or 0) + 1
    event = dg.AssetMaterialization("ticks", metadata={"ticks": ticks})
    return dg.SensorResult(asset_events=[event], cursor=str(ticks))


@dg.op
def sleep() -> None:
    """Work for longer than any test."""
    time.sleep(600)


@dg.job(executor_def=dg.in_process_executor)
def sleeping() -> None:
    """A run that has to be stopped."""
    sleep()


@dg.sensor(job=sleeping, default_status=dg.DefaultSensorStatus.RUNNING)
def bedtime() -> dg.RunRequest:
    """Start `sleeping`, once."""
    return dg.RunRequest(run_key="once")


defs = dg.Definitions(sensors=[ticking, bedtime], jobs=[sleeping])
