"""What is told of what was found: causes, and not what follows from them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alerts_support import NOON, Addresses, Sink, after, channels, finding

from pulseguard_assets.alerts.incidents import open_incidents
from pulseguard_assets.alerts.looking import (
    LINGERS,
    lasting_causes,
    tell,
    without_consequences,
)
from pulseguard_assets.alerts.model import Finding, Look
from pulseguard_assets.alerts.outbox import ChannelsFailing
from pulseguard_assets.settings import Settings, load_settings

SENSOR = "sensor:prices:"
OUTAGE = finding(f"{SENSOR}FAILING")
LATE = finding("data:minute_close:LATE", area="data", explained_by=(SENSOR,))
THIN = finding("check:minute_close:coverage", area="checks", explained_by=("data:", SENSOR))
OTHER = finding("retention:minute_close:BLOCKED", area="retention")

Watch = Callable[..., Any]


def causes(findings: list[Finding]) -> list[str]:
    return [each.cause for each in findings]


# --- consequences ---


def test_a_finding_that_nothing_explains_stays_in_its_place() -> None:
    assert without_consequences([OTHER, LATE, OUTAGE], []) == [OTHER, OUTAGE]
    assert without_consequences([OTHER, LATE], []) == [OTHER, LATE], "its cause was not found"
    assert without_consequences([], ["anything"]) == []


def test_one_of_several_explanations_is_enough_and_only_the_beginning_counts() -> None:
    hung = finding(f"{SENSOR}HUNG")
    namesake = finding("another:" + SENSOR)

    assert without_consequences([hung, THIN], []) == [hung]
    assert without_consequences([namesake, THIN], []) == [namesake, THIN]


def test_the_consequence_of_a_consequence_goes_as_well() -> None:
    thin = finding("check:minute_close:coverage", explained_by=("data:",))

    assert without_consequences([thin, LATE, OUTAGE], []) == [OUTAGE]
    assert without_consequences([thin, LATE], []) == [LATE]


def test_what_lasts_explains_without_being_found_again() -> None:
    assert without_consequences([LATE, OTHER], [OUTAGE.cause]) == [OTHER]
    assert without_consequences([LATE, OTHER], ["sensor:another:FAILING"]) == [LATE, OTHER]


def test_nothing_explains_itself() -> None:
    narcissus = finding("sensor:prices:FAILING", explained_by=("sensor:",))

    assert without_consequences([narcissus], [narcissus.cause]) == [narcissus]


def test_findings_that_explain_each_other_are_told_unless_something_else_explains_them() -> None:
    hen = finding("hen:x", explained_by=("egg:",))
    egg = finding("egg:x", explained_by=("hen:",))

    assert without_consequences([hen, egg], []) == [hen, egg]
    assert without_consequences([hen, egg], [hen.cause]) == [hen, egg], "it only came back"
    fox = finding("fox:x")
    caught = finding("egg:x", explained_by=("hen:", "fox:"))
    assert without_consequences([hen, caught, fox], []) == [fox]


def test_what_is_open_already_is_not_called_over_because_it_is_explained_by_now() -> None:
    assert without_consequences([OUTAGE, LATE], [LATE.cause], known=[LATE.cause]) == [OUTAGE, LATE]
    # And goes on explaining others.
    thin = finding("check:minute_close:coverage", explained_by=("data:",))
    assert without_consequences([LATE, thin], [], known=[LATE.cause]) == [LATE]


# --- what lasts ---


def test_an_incident_lasts_while_it_is_open_and_half_an_hour_longer(
    connection: psycopg.Connection, watch: Watch
) -> None:
    watch(0, OUTAGE)
    watch(60, OUTAGE)
    assert lasting_causes(connection, now=after(600)) == {OUTAGE.cause}, "open"
    watch(61)
    watch(64)
    assert open_incidents(connection) == []
    end = after(64) + LINGERS

    assert lasting_causes(connection, now=end - timedelta(seconds=1)) == {OUTAGE.cause}
    assert lasting_causes(connection, now=end) == set()
    assert timedelta(minutes=30) == LINGERS


# --- telling ---


@pytest.fixture
def settings(only_our_settings: None, tmp_path: Path) -> Settings:
    return load_settings(
        data_dir=tmp_path, ui_url="https://ui.example.com", alert_reminder=timedelta(hours=2)
    )


def test_an_outage_with_its_consequences_is_one_message_with_the_address_of_the_interface(
    connection: psycopg.Connection, settings: Settings, webhook: Sink, addresses: Addresses
) -> None:
    look = Look((LATE, OUTAGE, THIN), ("sensors", "data", "checks"))

    entered = tell(connection, look, settings, channels(addresses.json), now=NOON)

    assert (entered.opened, entered.continued) == (1, 0)
    assert webhook.titles() == ["PulseGuard error: prices fails"]
    assert "https://ui.example.com/locations" in webhook.received[0].text
    again = tell(connection, look, settings, channels(addresses.json), now=after(119))
    assert (again.opened, again.continued, len(webhook.received)) == (0, 1, 1)
    tell(connection, look, settings, channels(addresses.json), now=after(120))
    assert webhook.titles()[1:] == ["PulseGuard error, still: prices fails"], "the reminder is set"


def test_a_consequence_found_before_its_cause_stays_open_as_long_as_it_is_found(
    connection: psycopg.Connection, settings: Settings, webhook: Sink, addresses: Addresses
) -> None:
    areas = ("sensors", "data")
    told = channels(addresses.json)
    tell(connection, Look((LATE,), areas), settings, told, now=NOON)
    for minute in range(1, 6):
        tell(connection, Look((LATE, OUTAGE), areas), settings, told, now=after(minute))

    assert {each.cause for each in open_incidents(connection)} == {LATE.cause, OUTAGE.cause}
    assert not [title for title in webhook.titles() if "recovered" in title]


def test_what_was_explained_is_told_when_it_outlives_its_explanation(
    connection: psycopg.Connection, settings: Settings
) -> None:
    areas = ("sensors", "data")
    tell(connection, Look((OUTAGE, LATE), areas), settings, (), now=NOON)
    opened = {
        minute: tell(connection, Look((LATE,), areas), settings, (), now=after(minute)).opened
        for minute in (1, 4, 20, 33, 34, 35)
    }

    assert opened == {1: 0, 4: 0, 20: 0, 33: 0, 34: 1, 35: 0}, "resolved at 4, and half an hour on"


def test_an_area_that_was_not_looked_at_keeps_its_incidents(
    connection: psycopg.Connection, settings: Settings
) -> None:
    tell(connection, Look((OTHER,), ("retention",)), settings, (), now=NOON)
    for minute in range(1, 10):
        tell(connection, Look((), ("sensors",)), settings, (), now=after(minute))

    assert causes_open(connection) == [OTHER.cause]
    for minute in (10, 13):
        tell(connection, Look((), ("retention",)), settings, (), now=after(minute))
    assert causes_open(connection) == []


def causes_open(connection: psycopg.Connection) -> list[str]:
    return [each.cause for each in open_incidents(connection)]


def test_what_no_channel_accepts_is_entered_all_the_same(
    connection: psycopg.Connection, settings: Settings, webhook: Sink, addresses: Addresses
) -> None:
    webhook.accepting = False

    with pytest.raises(ChannelsFailing):
        tell(
            connection, Look((OUTAGE,), ("sensors",)), settings, channels(addresses.json), now=NOON
        )

    assert causes_open(connection) == [OUTAGE.cause]
