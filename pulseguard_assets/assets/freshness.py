"""How often each close asset ought to be materialized.

Belongs here: the freshness policies. Does not: whether the tables are young, which a check asks
them (`checks.py`). A policy sees events only, and one of any partition will do: backfilling last
month makes a stale asset look fresh.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import dagster as dg

from pulseguard_assets.timeframes import (
    DAILY,
    HOURLY,
    MINUTE,
    MONTHLY,
    TIMEFRAMES,
    WEEKLY,
    Timeframe,
)

# How often a schedule asks for it: hours and the open day hourly, the open week and month daily.
_EVERY = {
    HOURLY: timedelta(hours=1),
    DAILY: timedelta(hours=1),
    WEEKLY: timedelta(days=1),
    MONTHLY: timedelta(days=1),
}
_SHORTEST = timedelta(minutes=5)


def freshness_policy(timeframe: Timeframe, cadence: timedelta) -> dg.FreshnessPolicy:
    """Warns when one materialization is missing, fails when the next one is as well.

    Args:
        cadence: from poll to poll. Minutes are given 11 minutes at least: a poll may be
            stretched over several by the rate limit.
    """
    every = max(cadence, _SHORTEST) if timeframe is MINUTE else _EVERY[timeframe]
    # A quarter more, for the run that does it.
    return dg.FreshnessPolicy.time_window(warn_window=every * 2.25, fail_window=every * 3.25)


def with_freshness(cadence: timedelta) -> Callable[[dg.AssetSpec], dg.AssetSpec]:
    """What `dg.map_asset_specs(func, assets)` takes: it puts the policies onto the close assets."""
    policies = {
        dg.AssetKey(timeframe.table): freshness_policy(timeframe, cadence)
        for timeframe in TIMEFRAMES
    }

    def add(spec: dg.AssetSpec) -> dg.AssetSpec:
        policy = policies.get(spec.key)
        return spec if policy is None else spec.replace_attributes(freshness_policy=policy)

    return add
