"""Failed runs and checks, as a person is told of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from alerts_support import NOON

from pulseguard_assets.alerts.dagster_state import FailedCheck, FailedRuns
from pulseguard_assets.alerts.model import Finding, Look
from pulseguard_assets.alerts.work import look_at_checks, look_at_runs

RUN = FailedRuns("nightly", 1, "abc", NOON, "It cannot be", None)
CHECK = FailedCheck(
    asset="hourly_close",
    check="coverage",
    severity="WARN",
    at=NOON,
    description="Half the coins are lacking.",
    run_id="abc",
    partition=None,
    query="SELECT 1;",
)


def run(**changes: object) -> Finding:
    (found,) = look_at_runs([replace(RUN, **changes)]).findings  # type: ignore[arg-type]
    return found


def check(**changes: object) -> Finding:
    (found,) = look_at_checks([replace(CHECK, **changes)]).findings  # type: ignore[arg-type]
    return found


def test_nothing_failed_is_a_look_too() -> None:
    assert look_at_runs([]) == Look((), ("runs",))
    assert look_at_checks([]) == Look((), ("checks",))


def test_a_failed_run_is_told_with_its_error() -> None:
    assert run() == Finding(
        area="runs",
        cause="run:nightly:FAILED",
        kind="FAILED",
        severity="error",
        subject="nightly",
        title="A run of nightly failed",
        message="It cannot be. It failed at 2026-11-22 12:00 UTC.",
        link="/runs/abc",
        help="pulseguard status",
        occurrences=1,
        explained_by=("sensor:coingecko_price_sensor:FAILING",),
    )


def test_failures_since_the_last_success_are_counted() -> None:
    found = run(failures=1_200, backfill_id="xyz", error="No!")

    assert found.occurrences == 1_200
    assert found.message == (
        "No! It has failed 1,200 times since the last success, most recently at 2026-11-22 12:00 "
        "UTC. It is part of the backfill xyz."
    )


def test_a_run_without_an_error_is_told_as_well() -> None:
    assert run(error=None).message.startswith("The run left no error. It failed at")


def test_each_job_is_a_cause_of_its_own() -> None:
    found = look_at_runs([RUN, replace(RUN, what="days, hours")]).findings

    assert [each.cause for each in found] == ["run:nightly:FAILED", "run:days, hours:FAILED"]


def test_a_check_that_does_not_pass_is_told_with_its_description() -> None:
    assert check() == Finding(
        area="checks",
        cause="check:hourly_close:coverage",
        kind="CHECK",
        severity="warning",
        subject="hourly_close",
        title="Check coverage of hourly_close does not pass",
        message="Half the coins are lacking. That was at 2026-11-22 12:00 UTC.",
        link="/assets/hourly_close?view=checks&checkDetail=coverage",
        help="SELECT 1;",
        explained_by=("sensor:coingecko_price_sensor:",),
    )


@pytest.mark.parametrize(("severity", "told"), [("WARN", "warning"), ("ERROR", "error")])
def test_a_check_is_as_grave_as_it_says(severity: str, told: str) -> None:
    assert check(severity=severity).severity == told


@pytest.mark.parametrize(
    ("name", "late"),
    [("newest_label_young", True), ("coverage", True), ("labels_aligned", False)],
)
def test_only_what_lacks_prices_follows_from_the_price_sensor(name: str, late: bool) -> None:
    assert check(check=name).explained_by == (("sensor:coingecko_price_sensor:",) if late else ())


def test_a_check_that_could_not_be_evaluated_follows_from_its_run() -> None:
    found = check(check="price_jump", evaluated=False, severity="ERROR", description=None)

    assert found.title == "Check price_jump of hourly_close could not be evaluated"
    assert found.message == (
        "It could not be evaluated, because its run failed. That was at 2026-11-22 12:00 UTC."
    )
    assert found.explained_by == ("run:",)


def test_a_check_without_words_is_told_as_well() -> None:
    found = check(description=None, query=None, partition="2026-11-22")

    assert found.message == "It did not pass. That was at 2026-11-22 12:00 UTC, for 2026-11-22."
    assert found.help == "pulseguard status"
