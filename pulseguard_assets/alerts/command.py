"""`pulseguard incidents` and `pulseguard alert-test`.

Belongs here: options, and what is printed. Does not: incidents, messages, sending.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime, timezone

import click

from pulseguard_assets.alerts.channels import ChannelRefused, channels_of, send
from pulseguard_assets.alerts.errors import AlertsError
from pulseguard_assets.alerts.incidents import Incident, incidents, open_incidents
from pulseguard_assets.alerts.messages import greeting, linked, span
from pulseguard_assets.settings import load_settings
from pulseguard_assets.warehouse.at_hand import dsn_in_use
from pulseguard_assets.warehouse.connection import connect
from pulseguard_assets.wording import shortened

_NEWEST = 200


@click.command("incidents")
@click.option("--all", "everything", is_flag=True, help=f"The last {_NEWEST}, those over included.")
@click.option("--json", "as_json", is_flag=True, help="For a machine.")
def list_incidents(everything: bool, as_json: bool) -> None:
    """What is wrong now, since when, how often, and what to do about it."""
    settings = load_settings()
    with connect(dsn_in_use(settings)) as connection:
        found = incidents(connection, _NEWEST) if everything else open_incidents(connection)
    if as_json:
        click.echo(json.dumps([_plain(incident) for incident in found], indent=2))
    elif not found:
        click.echo("No incident is recorded." if everything else "No incident is open.")
    else:
        click.echo("\n\n".join(_for_a_person(each, settings.ui_address) for each in found))


@click.command("alert-test")
def alert_test() -> None:
    """Send one test message to each channel of PULSEGUARD_ALERT_URLS.

    Exit code 2 if there is none, or if one does not accept it. Needs no database.
    """
    settings = load_settings()
    channels = channels_of(settings.alert_urls)
    if not channels:
        raise AlertsError(
            "No channel is configured, so nobody is told when something fails. Set "
            "PULSEGUARD_ALERT_URLS to one or more addresses of Apprise, separated by commas, for "
            "example slack://tokenA/tokenB/tokenC or mailto://user:password@example.com."
        )
    refusals = []
    for channel in channels:
        message = greeting(
            channel.label, now=datetime.now(timezone.utc), ui_url=settings.ui_address
        )
        try:
            send(channel, message.title, message.body)
        except ChannelRefused as refusal:
            refusals.append(str(refusal))
            click.echo(f"{channel.label}: refused")
        else:
            click.echo(f"{channel.label}: accepted")
    if refusals:
        raise AlertsError(
            f"{len(refusals)} of {len(channels)} channels did not accept the test message. "
            f"{'; '.join(refusals)}. See that the service answers, and that its address in "
            "PULSEGUARD_ALERT_URLS is right."
        )


def _plain(incident: Incident) -> dict[str, str | int | None]:
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in asdict(incident).items()
    }


def _for_a_person(incident: Incident, ui_url: str) -> str:
    often = "once" if incident.occurrences == 1 else f"{incident.occurrences:,} times"
    state = incident.severity if incident.is_open else "over"
    when = f"since {incident.first_seen:%Y-%m-%d %H:%M} UTC"
    if not incident.is_open:
        end = incident.absent_since or incident.last_seen
        when = f"{incident.first_seen:%Y-%m-%d %H:%M} UTC, for {span(end - incident.first_seen)}"
    lines = [
        f"{state:<8}  {shortened(incident.title, 100)}",
        f"{when}, {often}",
        shortened(incident.message, 600),
    ]
    if incident.is_open and incident.help is not None:
        lines.append(f"do: {shortened(incident.help, 600)}")
    if incident.link is not None:
        lines.append(linked(ui_url, incident.link))
    return "\n          ".join(lines)
