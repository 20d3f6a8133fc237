"""`pulseguard plan backfill` with a database at hand."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, timezone

import psycopg
import pytest
from click.testing import CliRunner

from pulseguard_assets.cli import main

Told = Callable[..., str]


@pytest.fixture
def told(database: str, only_our_settings: None) -> Told:
    """`told("daily", "2025-01-01", ...)`: what the command says, in one line."""

    def run(*arguments: str, **settings: str) -> str:
        ours = {"DATABASE_URL": database, "PLAN": "demo", "API_KEY": "CG-key", **settings}
        environment = {f"PULSEGUARD_{name}": value for name, value in ours.items()}
        result = CliRunner().invoke(main, ["plan", "backfill", *arguments], env=environment)
        assert result.exit_code == 0, result.output
        return " ".join(result.output.split())

    return run


def free(said: str) -> int:
    found = re.search(r"free now ([0-9,]+) credits", said)
    assert found, said
    return int(found[1].replace(",", ""))


def test_the_credits_free_now_are_those_of_the_ledger(
    told: Told, connection: psycopg.Connection
) -> None:
    # So slow a schedule that it hardly matters how much of the month is left.
    days = ("daily", "2025-01-01", "2025-01-03")
    before = told(*days, CADENCE_MINUTES="1440")
    connection.execute(
        "INSERT INTO api_usage_stats (date, total_calls) VALUES (%s, 1234)",
        (datetime.now(timezone.utc).date(),),
    )
    after = told(*days, CADENCE_MINUTES="1440")

    assert "; 0 are spent this month" in before
    assert "; 1,234 are spent this month" in after
    assert free(before) - free(after) == pytest.approx(1234, abs=10)


def test_the_coins_are_those_the_database_knows(told: Told, connection: psycopg.Connection) -> None:
    connection.execute(
        "INSERT INTO coin_priorities (coin_id, symbol, name, market_cap_rank) "
        "SELECT 'coin-' || n, 'c' || n, 'Coin ' || n, n FROM generate_series(1, 7) n"
    )

    assert "coins 7 " in told("daily", "2025-01-01", "2025-01-03")


def test_another_plan_is_told_by_its_figures(told: Told) -> None:
    said = told("daily", "2025-01-01", "2025-01-03", "--plan", "basic")

    assert "by the plan's figures: the calls counted here are those of the plan 'demo'" in said


def test_a_database_without_tables_is_no_reason_to_fail(told: Told, empty_database: str) -> None:
    said = told("daily", "2025-01-01", "2025-01-03", DATABASE_URL=empty_database)

    assert "by the plan's figures: the database has no tables yet" in said


def test_a_database_that_cannot_be_reached_is_no_reason_to_fail(told: Told) -> None:
    said = told("daily", "2025-01-01", "2025-01-03", DATABASE_URL="postgresql://127.0.0.1:1/x")

    assert "by the plan's figures: no database is at hand" in said
