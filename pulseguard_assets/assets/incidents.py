"""The asset `incidents`: what is wrong, to be looked at where everything else is.

Belongs here: the asset, and what the web interface shows of the open incidents. Does not: a round
(`watching.py`), nor when one is made (`automation/watchdog.py`).
"""

# No `from __future__ import annotations` here: Dagster looks at the annotations as they are.

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import dagster as dg

from pulseguard_assets.alerts.incidents import Incident
from pulseguard_assets.alerts.messages import linked
from pulseguard_assets.assets.operations import GROUP
from pulseguard_assets.assets.tables import OWNERS, with_query
from pulseguard_assets.assets.watching import watch
from pulseguard_assets.collecting.platform import Platform
from pulseguard_assets.wording import shortened

KEY = dg.AssetKey("incidents")

_SEVERITIES = ("critical", "error", "warning")
# In short lines: the web interface does not wrap them.
_QUERY = (
    "SELECT severity, title, message, help,\n"
    "       first_seen, occurrences\n"
    "FROM incidents\n"
    "WHERE resolved_at IS NULL\n"
    "ORDER BY severity = 'warning',\n"
    "         severity = 'error', first_seen;"
)


@dg.asset(
    key=KEY,
    group_name=GROUP,
    kinds={"postgresql"},
    owners=OWNERS,
    metadata={"dagster/table_name": "public.incidents", "dagster/storage_kind": "postgresql"},
    description=with_query(
        "What is wrong with the platform, one incident per cause however often it repeats. The "
        "watchdog looks every minute, without a run, and records an event here when something "
        "begins or is over: the newest one shows what is open. To look at once, materialize it.",
        _QUERY,
    ),
)
def incidents(
    context: dg.AssetExecutionContext, platform: dg.ResourceParam[Platform]
) -> dg.MaterializeResult[None]:
    """Make a round now, at everything, also at what the watchdog looks at seldom."""
    done = watch(platform, now=platform.clock())
    figures = open_metadata(done.open, platform.settings.ui_address)
    for incident in done.open:
        context.log.warning(f"{incident.severity}: {incident.title}. {incident.message}")
    problems = done.problem
    if problems is not None:
        raise dg.Failure(str(problems), metadata=figures) from problems
    return dg.MaterializeResult(metadata=figures)


def open_metadata(open_ones: Sequence[Incident], ui_url: str) -> dict[str, Any]:
    """What the web interface shows of the incidents that are open: figures to plot, and a table."""
    counts = Counter(incident.severity for incident in open_ones)
    return {
        "open": len(open_ones),
        **{severity: counts[severity] for severity in _SEVERITIES},
        "incidents": dg.MetadataValue.md(_table(open_ones, ui_url)),
        "query": dg.MetadataValue.md(f"```sql\n{_QUERY}\n```"),
    }


def _table(open_ones: Sequence[Incident], ui_url: str) -> str:
    if not open_ones:
        return "No incident is open."
    header = ("severity", "what is wrong", "what to do", "since (UTC)", "how often")
    rows = [
        (
            incident.severity,
            _title(incident, ui_url),
            _code(incident.help),
            f"{incident.first_seen:%Y-%m-%d %H:%M}",
            f"{incident.occurrences:,}",
        )
        for incident in open_ones
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *rows])


def _title(incident: Incident, ui_url: str) -> str:
    title = _plain(shortened(incident.title, 100))
    return title if incident.link is None else f"[{title}]({linked(ui_url, incident.link)})"


def _plain(text: str) -> str:
    """Text of which Markdown makes nothing else."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", text)


def _code(text: str | None) -> str:
    if text is None:
        return ""
    # As long as no command holds a backtick, and none of ours does.
    return f"`{shortened(text, 300).replace('|', chr(92) + '|')}`"
