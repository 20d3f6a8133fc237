"""The asset `incidents`: what the web interface shows of it, and of those that are open."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import datetime, timezone

import psycopg

from pulseguard_assets.alerts.incidents import open_incidents
from pulseguard_assets.alerts.model import Incident
from pulseguard_assets.assets.incidents import KEY, incidents, open_metadata

UI = "https://ui.example.com/"
NOON = datetime(2025, 11, 22, 12, tzinfo=timezone.utc)
FAILING = Incident(
    id=1,
    cause="sensor:prices:FAILING",
    area="sensors",
    kind="FAILING",
    severity="error",
    subject="prices",
    title="prices fails",
    message="The provider answers 503.",
    link="/locations/pulseguard/sensors/prices",
    help="pulseguard collect --once",
    first_seen=NOON,
    last_seen=NOON,
    occurrences=1_234,
    rounds=5,
    absent_since=None,
    resolved_at=None,
    flaps=0,
    last_reminded_at=None,
)


# --- what is shown ---


def test_the_figures_are_numbers_by_severity_which_the_interface_plots() -> None:
    warning = replace(FAILING, severity="warning")

    figures = open_metadata([FAILING, warning, warning], UI)

    counts = {key: value for key, value in figures.items() if isinstance(value, int)}
    assert counts == {"open": 3, "critical": 0, "error": 1, "warning": 2}
    assert open_metadata([], UI)["incidents"].value == "No incident is open."
    assert open_metadata([], UI)["open"] == 0


def test_the_table_tells_what_is_wrong_how_gravely_what_to_do_since_when_and_how_often() -> None:
    rows = open_metadata([FAILING], UI)["incidents"].value.split("\n")

    assert rows == [
        "| severity | what is wrong | what to do | since (UTC) | how often |",
        "| --- | --- | --- | --- | --- |",
        "| error "
        "| [prices fails](https://ui.example.com/locations/pulseguard/sensors/prices) "
        "| `pulseguard collect --once` | 2025-11-22 12:00 | 1,234 |",
    ]


def test_no_words_of_an_error_break_the_table() -> None:
    nasty = replace(
        FAILING,
        title="a | b\n<img src=x> *loud* [here](http://evil)",
        help="psql -c 'SELECT 1'\n| cat",
        link=None,
    )

    *_, row = open_metadata([nasty], UI)["incidents"].value.split("\n")

    assert len(re.findall(r"(?<!\\)\|", row)) == 6
    assert r"a \| b \<img src=x\> \*loud\* \[here\](http://evil)" in row
    assert r"`psql -c 'SELECT 1' \| cat`" in row
    plain = replace(nasty, help=None)
    assert "|  | 2025" in open_metadata([plain], UI)["incidents"].value


def test_the_query_to_copy_finds_what_is_open_the_gravest_first(
    connection: psycopg.Connection,
) -> None:
    for number, severity in enumerate(("warning", "error", "critical", "error")):
        connection.execute(
            "INSERT INTO incidents (cause, area, kind, severity, subject, title, message, "
            "first_seen, last_seen, occurrences, counted, absent_since, resolved_at) VALUES "
            "(%(id)s, 'a', 'K', %(severity)s, 's', %(id)s, 'm', %(at)s, %(at)s, 1, 1, "
            "%(over)s, %(over)s)",
            {
                "id": str(number),
                "severity": severity,
                "at": NOON,
                "over": NOON if number == 3 else None,
            },
        )
    (query,) = re.findall(r"```sql\n(.+?)\n```", description(), re.DOTALL)

    found = connection.execute(query).fetchall()

    assert [row[0] for row in found] == ["critical", "error", "warning"]
    assert [row[1] for row in found] == [each.title for each in open_incidents(connection)]
    assert query in open_metadata([], UI)["query"].value


def description() -> str:
    return incidents.specs_by_key[KEY].description or ""


def test_it_stands_with_the_platforms_own_upkeep_and_has_no_partitions() -> None:
    spec = incidents.specs_by_key[KEY]

    assert (spec.group_name, spec.kinds, spec.owners) == (
        "operations",
        {"postgresql"},
        ["team:data"],
    )
    assert spec.partitions_def is None
    assert spec.metadata["dagster/table_name"] == "public.incidents"
