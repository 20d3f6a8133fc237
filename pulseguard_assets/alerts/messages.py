"""The words of a message: an incident as a person reads it on a phone.

Belongs here: title and text, plain. Does not: when one is due (`sql/`), nor sending it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from pulseguard_assets.alerts.model import Incident
from pulseguard_assets.wording import cut, shortened

# A lock screen and the subject line of a mail show about so much.
LONGEST_TITLE = 80
_LONGEST_SENTENCE = 600
_LONGEST_HELP = 600


@dataclass(frozen=True)
class Message:
    """A title of at most 80 characters in one line, and a text of a few lines."""

    title: str
    body: str


def worded(kind: str, incident: Incident, *, now: datetime, ui_url: str) -> Message:
    """The message of a kind (`opened`, `reminder`, `recovered`) about an incident, at `now`."""
    if kind == "recovered":
        return Message(_title("recovered", incident), _over(incident, ui_url))
    still = ", still" if kind == "reminder" else ""
    return Message(_title(f"{incident.severity}{still}", incident), _lasting(incident, now, ui_url))


def greeting(label: str, *, now: datetime, ui_url: str) -> Message:
    """The message that `pulseguard alert-test` sends."""
    return Message(
        "PulseGuard test: alerts reach you here",
        f"Sent to {label} at {_minute(now)} by pulseguard alert-test. Nothing is wrong.\n\n"
        f"Link: {ui_url}",
    )


def _title(state: str, incident: Incident) -> str:
    return shortened(f"PulseGuard {state}: {incident.title}", LONGEST_TITLE)


def _lasting(incident: Incident, now: datetime, ui_url: str) -> str:
    since = f"Since: {_minute(incident.first_seen)}"
    if now - incident.first_seen >= timedelta(minutes=1):
        since += f" ({span(now - incident.first_seen)})"
    return _paragraphs(incident.message, [since, _how_often(incident)], incident, ui_url)


def _over(incident: Incident, ui_url: str) -> str:
    end = incident.absent_since or incident.last_seen
    lasted = (
        f"Lasted: {_minute(incident.first_seen)} to {_minute(end)} "
        f"({span(end - incident.first_seen)})"
    )
    lines = [lasted, _how_often(incident)]
    return _paragraphs(f"It is over. It was: {incident.message}", lines, incident, ui_url)


def _paragraphs(sentence: str, figures: list[str], incident: Incident, ui_url: str) -> str:
    lines = [shortened(sentence, _LONGEST_SENTENCE), "", *figures]
    if incident.help is not None and incident.is_open:
        lines.append(f"What to do: {cut(incident.help.strip(), _LONGEST_HELP)}")
    lines.append(f"Link: {linked(ui_url, incident.link)}")
    return "\n".join(lines)


def _how_often(incident: Incident) -> str:
    often = "once" if incident.occurrences == 1 else f"{incident.occurrences:,} times"
    if incident.flaps:
        back = "once" if incident.flaps == 1 else f"{incident.flaps:,} times"
        often += f", and came back {back}"
    return f"How often: {often}"


def linked(ui_url: str, path: str | None) -> str:
    """The address of a page of the web interface; without a path, of its first."""
    return ui_url.rstrip("/") + (path or "")


def span(duration: timedelta) -> str:
    """A duration in its two largest units: "3 d 4 h", "2 h 5 min", "38 min"."""
    minutes = int(duration.total_seconds() // 60)
    if minutes < 1:
        return "less than 1 min"
    days, hours = minutes // 1_440, minutes % 1_440 // 60
    parts = [(days, "d"), (hours, "h"), (minutes % 60, "min")]
    return " ".join(f"{number} {unit}" for number, unit in parts[0 if days else 1 :][:2] if number)


def _minute(at: datetime) -> str:
    return f"{at.astimezone(timezone.utc):%Y-%m-%d %H:%M} UTC"
