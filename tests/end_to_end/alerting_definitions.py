"""The platform with four sensors more, each of them in a trouble of its own."""

from __future__ import annotations

import time

import dagster as dg

from pulseguard_assets.definitions import build_defs

_RUNNING = dg.DefaultSensorStatus.RUNNING


@dg.op
def nothing() -> None:
    """Work that nobody asks for."""


@dg.job(executor_def=dg.in_process_executor)
def unwanted() -> None:
    """What these sensors would start."""
    nothing()


@dg.sensor(job=unwanted, minimum_interval_seconds=1, default_status=_RUNNING)
def raising() -> dg.SkipReason:
    """Fail at each tick."""
    raise ValueError("The tide tables of Atlantis are out of print. Order them again.")


@dg.sensor(job=unwanted, minimum_interval_seconds=5, default_status=_RUNNING)
def hanging() -> dg.SkipReason:
    """Wait for what never comes, longer than Dagster lets a tick last."""
    time.sleep(600)
    return dg.SkipReason("It came.")


@dg.sensor(job=unwanted, minimum_interval_seconds=5, default_status=_RUNNING)
def stoppable() -> dg.SkipReason:
    """Be well until somebody switches it off."""
    return dg.SkipReason("All is well.")


@dg.sensor(job=unwanted, minimum_interval_seconds=5)
def forgotten() -> dg.SkipReason:
    """Be defined, and never switched on."""
    return dg.SkipReason("Nobody ever asks.")


defs = dg.Definitions.merge(
    build_defs(), dg.Definitions(sensors=[raising, hanging, stoppable, forgotten])
)
