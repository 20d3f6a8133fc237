"""`pulseguard collect`: one cycle without Dagster.

Belongs here: options, and what is printed. Does not: collecting.
"""

from __future__ import annotations

from contextlib import closing
from datetime import timedelta

import click
from psycopg import Connection

from pulseguard_assets.collecting.errors import CollectingError
from pulseguard_assets.collecting.platform import Platform
from pulseguard_assets.collecting.polling import PollReport, poll_by_hand
from pulseguard_assets.collecting.sweep import sweep
from pulseguard_assets.settings import load_settings
from pulseguard_assets.warehouse.collections import CollectorBusy

# Somebody waits at the terminal, and all coins on a small plan still fit.
_PATIENCE = timedelta(hours=1)


@click.command()
@click.option(
    "--once", is_flag=True, required=True, expose_value=False, help="Do one cycle, and end."
)
@click.option("--sweep", "ranks", is_flag=True, help="Refresh coin_priorities first.")
def collect(ranks: bool) -> None:
    """Poll the coins of the mode once and store their closes, without Dagster.

    The database is that of PULSEGUARD_DATABASE_URL, or the one that a running `pulseguard up`
    keeps. The platform collects by itself; this is for trying things out, and for a scheduler of
    your own.
    """
    with closing(Platform(load_settings())) as platform, platform.connect() as connection:
        try:
            report = _collect(platform, connection, ranks=ranks)
        except CollectorBusy as busy:
            raise CollectingError(str(busy)) from busy
    click.echo(
        f"minute_close: {report.stored} of {report.coins} coins stored for "
        f"{report.minute:%Y-%m-%d %H:%M} UTC by {report.calls} calls in "
        f"{report.took.total_seconds():.1f} s; {report.rejected} set aside, {report.missing} "
        "not in the answer"
    )


def _collect(platform: Platform, connection: Connection, *, ranks: bool) -> PollReport:
    now = platform.clock()
    if ranks:
        swept = sweep(platform, connection, now=now, until=now + _PATIENCE, log=click.echo)
        click.echo(f"coin_priorities: {swept.stored} coins stored, {swept.rejected} set aside")
        now = platform.clock()
    return poll_by_hand(platform, connection, now=now, until=now + _PATIENCE)
