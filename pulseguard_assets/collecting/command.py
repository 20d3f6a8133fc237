"""`pulseguard collect`: one cycle without Dagster.

Belongs here: options, and what is printed. Does not: collecting.
"""

from __future__ import annotations

from datetime import timedelta

import click

from pulseguard_assets.collecting.platform import Platform
from pulseguard_assets.collecting.polling import poll_by_hand
from pulseguard_assets.collecting.sweep import sweep
from pulseguard_assets.settings import load_settings

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
    platform = Platform(load_settings())
    now = platform.clock()
    with platform.connect() as connection:
        if ranks:
            swept = sweep(platform, connection, now=now, until=now + _PATIENCE, log=click.echo)
            click.echo(f"coin_priorities: {swept.stored} coins stored, {swept.rejected} set aside")
        report = poll_by_hand(
            platform, connection, now=platform.clock(), until=platform.clock() + _PATIENCE
        )
    platform.close()
    click.echo(
        f"minute_close: {report.stored} of {report.coins} coins stored for "
        f"{report.minute:%Y-%m-%d %H:%M} UTC by {report.calls} calls in "
        f"{report.took.total_seconds():.1f} s; {report.rejected} set aside, {report.missing} "
        "not in the answer"
    )
