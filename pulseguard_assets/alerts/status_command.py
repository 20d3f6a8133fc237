"""`pulseguard status`.

Belongs here: options, and the exit code. Does not: the verdict (`status.py`), nor its words
(`status_screen.py`).
"""

from __future__ import annotations

import json
from datetime import datetime, timezone

import click

from pulseguard_assets.alerts.status import take_status
from pulseguard_assets.alerts.status_screen import for_a_machine, for_a_person
from pulseguard_assets.running.demo import demo_settings
from pulseguard_assets.running.in_force import settings_in_force
from pulseguard_assets.settings import load_settings

# What is left of 3 s for a database that says nothing, with a start on a busy machine taken off.
_PATIENCE = 1.5

# The simulator's is not needed: no price is asked for.
_ANY_PORT = 1


@click.command("status")
@click.option("--demo", is_flag=True, help="Of the running demo.")
@click.option("--json", "as_json", is_flag=True, help="For a machine.")
@click.pass_context
def status_command(ctx: click.Context, demo: bool, as_json: bool) -> None:
    """Is it well? Works with the daemon dead and with the database down, in under 3 s.

    Exit code 0 healthy, 1 degraded or just starting, 2 down.
    """
    with settings_in_force(demo=demo):
        settings = demo_settings(_ANY_PORT) if demo else load_settings()
    status = take_status(settings, now=datetime.now(timezone.utc), patience=_PATIENCE)
    if as_json:
        click.echo(json.dumps(for_a_machine(status), indent=2))
    else:
        click.echo("\n".join(for_a_person(status)))
    ctx.exit(status.level)
