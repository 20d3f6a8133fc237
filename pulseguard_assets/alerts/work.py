"""Runs that failed and asset checks that did not pass, as findings.

Belongs here: their words, and what explains them. Does not: which they are (`dagster_state.py`),
nor what a check judges (`assets/checks.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from pulseguard_assets.alerts.dagster_state import FailedCheck, FailedRuns
from pulseguard_assets.alerts.instigators import PRICE_SENSOR
from pulseguard_assets.alerts.model import ASK_FOR_STATUS, Finding, Look

RUNS = "runs"
CHECKS = "checks"

_SEVERITY = {"WARN": "warning", "ERROR": "error"}
# What makes each poll fail, the provider or the database, makes runs fail too. A run that fails for
# a reason of its own is told of when that is over.
_POLLS_FAIL = (f"sensor:{PRICE_SENSOR}:FAILING",)
_NO_PRICES = (f"sensor:{PRICE_SENSOR}:",)
# Those that fail when no prices come in, by their names in `assets/checks.py`.
_OF_LATE_DATA = ("newest_label_young", "coverage")


def look_at_runs(failed: Sequence[FailedRuns]) -> Look:
    """One finding for each job whose newest run failed."""
    return Look(tuple(_run(each) for each in failed), (RUNS,))


def look_at_checks(failed: Sequence[FailedCheck]) -> Look:
    """One finding for each check that does not pass."""
    return Look(tuple(_check(each) for each in failed), (CHECKS,))


def _run(failed: FailedRuns) -> Finding:
    often = (
        f"It failed at {_minute(failed.ended_at)}."
        if failed.failures == 1
        else f"It has failed {failed.failures:,} times since the last success, most recently at "
        f"{_minute(failed.ended_at)}."
    )
    part = f" It is part of the backfill {failed.backfill_id}." if failed.backfill_id else ""
    return Finding(
        area=RUNS,
        cause=f"run:{failed.what}:FAILED",
        kind="FAILED",
        severity="error",
        subject=failed.what,
        title=f"A run of {failed.what} failed",
        message=f"{_sentence(failed.error or 'The run left no error')} {often}{part}",
        link=f"/runs/{failed.run_id}",
        help=ASK_FOR_STATUS,
        occurrences=failed.failures,
        explained_by=_POLLS_FAIL,
    )


def _check(failed: FailedCheck) -> Finding:
    explained_by: tuple[str, ...] = _NO_PRICES if failed.check in _OF_LATE_DATA else ()
    if failed.evaluated:
        said = _sentence(failed.description or "It did not pass")
        title = f"Check {failed.check} of {failed.asset} does not pass"
    else:
        said = "It could not be evaluated, because its run failed."
        title = f"Check {failed.check} of {failed.asset} could not be evaluated"
        explained_by += ("run:",)
    of = f", for {failed.partition}" if failed.partition else ""
    return Finding(
        area=CHECKS,
        cause=f"check:{failed.asset}:{failed.check}",
        kind="CHECK",
        severity=_SEVERITY[failed.severity],
        subject=failed.asset,
        title=title,
        message=f"{said} That was at {_minute(failed.at)}{of}.",
        link=f"/assets/{failed.asset}?view=checks&checkDetail={failed.check}",
        help=failed.query or ASK_FOR_STATUS,
        explained_by=explained_by,
    )


def _sentence(said: str) -> str:
    return said if said.rstrip().endswith((".", "!", "?", "…")) else f"{said.rstrip()}."


def _minute(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M} UTC"
