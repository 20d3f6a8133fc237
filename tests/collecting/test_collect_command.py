"""`pulseguard collect --once`, as somebody types it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result

from pulseguard_assets.cli import main
from pulseguard_assets.simulator.server import RunningSimulator

API_KEY = "CG-Sesam0effneDichNicht"
Command = Callable[..., Result]


@pytest.fixture
def pulseguard(
    provider: RunningSimulator,
    database: str,
    only_our_settings: None,
    monkeypatch: pytest.MonkeyPatch,
) -> Command:
    """`pulseguard("collect", "--once", MODE="10")`: the command with settings from outside."""
    # The command lives in real time.
    provider.simulation.clock.follow_source()
    ours = {
        "DATABASE_URL": database,
        "BASE_URL": provider.url,
        "PLAN": "pro",
        "API_KEY": API_KEY,
        "MODE": "300",
    }

    def run(*arguments: str, **settings: Any) -> Result:
        environment = {f"PULSEGUARD_{k}": v for k, v in {**ours, **settings}.items()}
        return CliRunner().invoke(main, list(arguments), env=environment)

    return run


def test_one_cycle_with_a_sweep_fills_an_empty_database(
    pulseguard: Command, connection: psycopg.Connection
) -> None:
    result = pulseguard("collect", "--once", "--sweep")

    assert result.exit_code == 0, result.output
    assert "page 2: 50 coins" in result.output
    assert "coin_priorities: 300 coins stored, 0 set aside" in result.output
    assert "minute_close: 295 of 300 coins stored for " in result.output
    assert "by 1 calls" in result.output
    counts = "SELECT (SELECT count(*) FROM minute_close), (SELECT count(*) FROM hourly_close)"
    assert connection.execute(counts).fetchone() == (295, 295)
    kinds = "SELECT collection_type, status FROM collection_status ORDER BY id"
    assert connection.execute(kinds).fetchall() == [
        ("priority_refresh", "completed"),
        ("manual", "completed"),
    ]


def test_before_the_first_sweep_it_says_how_to_do_one(pulseguard: Command) -> None:
    result = pulseguard("collect", "--once")

    assert result.exit_code == 2
    assert "pulseguard collect --once --sweep" in result.stderr
    assert "Traceback" not in result.output


def test_a_provider_that_fails_is_told_in_a_sentence_without_the_key(
    pulseguard: Command, provider: RunningSimulator
) -> None:
    provider.fault("api_error", code=10002)

    result = pulseguard("collect", "--once", "--sweep")

    assert result.exit_code == 2
    assert "PULSEGUARD_API_KEY" in result.stderr
    assert API_KEY not in result.output


def test_an_unreachable_database_is_told_in_a_sentence(pulseguard: Command) -> None:
    result = pulseguard(
        "collect", "--once", DATABASE_URL="postgresql://me:s3cret@127.0.0.1:1/prices"
    )

    assert result.exit_code == 2
    assert "PULSEGUARD_DATABASE_URL" in result.stderr
    assert "s3cret" not in result.output


def test_somebody_else_who_polls_is_told_in_a_sentence(
    pulseguard: Command, connection: psycopg.Connection
) -> None:
    assert pulseguard("collect", "--once", "--sweep").exit_code == 0
    connection.execute("SELECT pg_advisory_lock(1886678900, hashtext('priority_refresh'))")

    result = pulseguard("collect", "--once", "--sweep")

    assert result.exit_code == 2
    assert "right now" in result.stderr


def test_a_cadence_the_plan_cannot_pay_is_told_in_a_sentence(pulseguard: Command) -> None:
    assert pulseguard("collect", "--once", "--sweep").exit_code == 0

    result = pulseguard("collect", "--once", CREDITS_PER_MONTH="20000", CADENCE_MINUTES="1")

    assert result.exit_code == 2
    assert "PULSEGUARD_CADENCE_MINUTES" in result.stderr


def test_without_once_it_does_nothing(pulseguard: Command, provider: RunningSimulator) -> None:
    result = pulseguard("collect")

    assert result.exit_code == 2
    assert "--once" in result.stderr
    assert provider.calls()["total"] == 0
