"""The front door: everything Dagster sees is named here.

Belongs here: the list. Does not: any decision.
"""

from __future__ import annotations

import dagster as dg

from pulseguard_assets.assets.checks import close_checks
from pulseguard_assets.assets.coin_priorities import coin_priorities
from pulseguard_assets.assets.freshness import with_freshness
from pulseguard_assets.assets.incidents import incidents
from pulseguard_assets.assets.minute_close import minute_close_asset
from pulseguard_assets.assets.operations import operations_assets
from pulseguard_assets.assets.partitions import partitions_of
from pulseguard_assets.assets.provider import provider_assets
from pulseguard_assets.assets.rollups import rollup_assets
from pulseguard_assets.automation.checking import check_schedules
from pulseguard_assets.automation.polling import price_sensor
from pulseguard_assets.automation.repair import repair_sensor
from pulseguard_assets.automation.rolling_up import rollup_schedules
from pulseguard_assets.automation.sweeping import sweep_schedule
from pulseguard_assets.automation.upkeep import upkeep_schedules
from pulseguard_assets.automation.watchdog import watchdog_schedule
from pulseguard_assets.collecting.planning import expected_cadence
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
    cadence = expected_cadence(platform.settings)
    return dg.Definitions(
        assets=[
            *provider_assets(),
            coin_priorities,
            *dg.map_asset_specs(
                with_freshness(cadence), [minute_close_asset(start), *rollup_assets(start)]
            ),
            *operations_assets(),
            incidents,
        ],
        asset_checks=close_checks(),
        schedules=[
            sweep_schedule(),
            *rollup_schedules(start),
            *upkeep_schedules(),
            *check_schedules(),
            watchdog_schedule(),
        ],
        sensors=[price_sensor(partitions_of(MINUTE, start)), repair_sensor()],
        resources={"platform": platform},
        # Without an interpreter of its own for every step, a run starts seconds sooner.
        executor=dg.in_process_executor,
    )


defs = build_defs()
