"""The front door: everything Dagster sees is named here.

Belongs here: the list. Does not: any decision.
"""

from __future__ import annotations

import dagster as dg

from pulseguard_assets.assets.coin_priorities import coin_priorities
from pulseguard_assets.assets.minute_close import minute_close_asset
from pulseguard_assets.assets.partitions import partitions_of
from pulseguard_assets.assets.provider import provider_assets
from pulseguard_assets.assets.rollups import rollup_assets
from pulseguard_assets.automation.polling import price_sensor
from pulseguard_assets.automation.sweeping import sweep_schedule
from pulseguard_assets.collecting.platform import Platform
from pulseguard_assets.settings import load_settings
from pulseguard_assets.timeframes import MINUTE


def build_defs(platform: Platform | None = None) -> dg.Definitions:
    """All definitions, on the given platform or on the one that the environment describes.

    Raises:
        SettingsError: a setting is wrong; the message names it.
    """
    platform = platform or Platform(load_settings())
    start = platform.settings.history_start
    return dg.Definitions(
        assets=[
            *provider_assets(),
            coin_priorities,
            minute_close_asset(start),
            *rollup_assets(start),
        ],
        schedules=[sweep_schedule()],
        sensors=[price_sensor(partitions_of(MINUTE, start))],
        resources={"platform": platform},
        # Without an interpreter of its own for every step, a run starts seconds sooner.
        executor=dg.in_process_executor,
    )


defs = build_defs()
