"""The command line: what it says, what it costs to ask, and how it fails."""

from __future__ import annotations

import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pulseguard_assets.cli import main


def run(*arguments: str, **environment: str | None) -> Result:
    return CliRunner().invoke(main, arguments, env=environment, catch_exceptions=False)


@pytest.fixture(autouse=True)
def own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nobody's settings, nobody's data."""
    import os

    for name in [name for name in os.environ if name.startswith("PULSEGUARD_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PULSEGUARD_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)


def test_help_names_every_command_and_loads_neither_dagster_nor_polars() -> None:
    code = (
        "import sys\n"
        "from click.testing import CliRunner\n"
        "from pulseguard_assets.cli import main\n"
        "print(CliRunner().invoke(main, ['--help']).output)\n"
        "heavy = {'dagster', 'polars', 'sqlalchemy', 'starlette', 'uvicorn', 'httpx'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in (
        "up",
        "collect",
        "demo",
        "migrate",
        "plan",
        "psql",
        "reload",
        "roles",
        "simulate",
        "version",
    ):
        assert f"\n  {name} " in done.stdout


def test_commands_of_other_rooms_are_loaded_with_all_their_options() -> None:
    result = run("simulate", "--help")
    assert result.exit_code == 0
    assert "--require-key" in result.output


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        (("plan",), {"PULSEGUARD_PORT": "high"}, "PULSEGUARD_PORT"),
        (("plan",), {"PULSEGUARD_CADENCE_MINUTES": "1"}, "PULSEGUARD_CADENCE_MINUTES"),
        (("migrate",), {"PULSEGUARD_DATABASE_URL": "postgresql://127.0.0.1:1/x"}, "DATABASE_URL"),
        (("psql",), {}, "does not run. Start it in another terminal: pulseguard up"),
        (("psql", "--demo"), {}, "pulseguard demo"),
        (("reload",), {}, "No PulseGuard runs in"),
        (("up",), {"PULSEGUARD_HOST": "192.0.2.1"}, "PULSEGUARD_HOST"),
        (("up",), {"PULSEGUARD_CADENCE_MINUTES": "1"}, "PULSEGUARD_CADENCE_MINUTES"),
    ],
)
def test_what_is_known_to_go_wrong_is_one_sentence_and_exit_code_2(
    arguments: tuple[str, ...], environment: dict[str, str], said: str
) -> None:
    result = run(*arguments, **environment)
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stderr.startswith("pulseguard: ")
    assert "Traceback" not in result.output


@pytest.mark.parametrize("command", ["up", "demo"])
def test_an_address_that_alerts_cannot_go_to_is_told_before_anything_starts(
    command: str, tmp_path: Path
) -> None:
    urls = "json://127.0.0.1/x,slack://hidden"
    result = run(command, PULSEGUARD_ALERT_URLS=urls)
    assert result.exit_code == 2
    assert "PULSEGUARD_ALERT_URLS: address 2 (not shown) is none that Apprise" in result.stderr
    assert "hidden" not in result.output
    assert list(tmp_path.iterdir()) == []


def test_plan_shows_the_settings_in_force() -> None:
    result = run("plan")
    assert result.exit_code == 0
    assert "keyless" in result.output
    assert "1,000 coins every" in result.output


def test_plan_compares_plans_and_numbers_of_coins() -> None:
    result = run("plan", "--plan", "demo", "--plan", "pro", "--coins", "250", "--coins", "100000")
    lines = result.output.splitlines()
    assert [line.split()[:2] for line in lines[2:6]] == [
        ["demo", "250"],
        ["demo", "100,000"],
        ["pro", "250"],
        ["pro", "100,000"],
    ]
    assert "The plan 'demo' cannot pay for even one poll a day" in result.output


def test_plan_uses_the_reserve_in_force_also_for_other_plans() -> None:
    spared = run("plan", "--plan", "demo", "--coins", "250", PULSEGUARD_RESERVE_PERCENT="50")
    usual = run("plan", "--plan", "demo", "--coins", "250")
    assert spared.output != usual.output


def test_plan_without_backfill_takes_no_other_word() -> None:
    result = run("plan", "forward")
    assert result.exit_code == 2
    assert "No such command 'forward'" in result.stderr


def test_options_before_backfill_are_not_passed_over() -> None:
    result = run("plan", "--coins", "5", "backfill", "hourly", "2025-01-01", "2025-01-02")
    assert result.exit_code == 2
    assert "Write --plan and --coins after `backfill`." in result.stderr


def days_ago(days: float) -> str:
    return f"{datetime.now(timezone.utc) - timedelta(days=days):%Y-%m-%dT%H:00}"


def told(*arguments: str) -> str:
    """What `plan backfill` says, in one line."""
    result = run("plan", "backfill", *arguments)
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def test_plan_backfill_tells_the_price_without_a_database() -> None:
    said = told("hourly", "2025-01-01", "2025-02-01", "--plan", "pro", "--coins", "250")
    assert "windows 744 hours from 2025-01-01 00:00 to 2025-02-01 00:00 UTC coins 250" in said
    assert "calls 250 at most, 1 for each coin; less than 0.1% of the month's 5,000,000" in said
    assert "credits, the polls to come and the reserve left aside, by the plan's figures: " in said
    assert "time less than a minute at 995.0 calls a minute, beside the polls" in said
    assert "grade one point an hour: the price five minutes before each hour's end" in said
    assert said.endswith("A run would take all that can be had.")


def test_plan_backfill_takes_the_coins_and_the_plan_in_force() -> None:
    said = told("daily", days_ago(30), days_ago(2))
    assert "coins 1,000" in said
    assert "the plan 'keyless' has no monthly credits" in said
    assert "free now no limit but the rate" in said
    assert "time 25.0 hours at 0.7 calls a minute" in said


def test_plan_backfill_says_how_far_the_plan_reaches() -> None:
    said = told("monthly", "2020-01-01", days_ago(100), "--plan", "demo", "--coins", "10")
    assert "The plan 'demo' reaches 365 days back: months before the one that begins at" in said
    assert "PULSEGUARD_PLAN: analyst, lite, pro, enterprise" in said
    assert "grade one point a day" in said
    refused = told("monthly", "2020-01-01", "2021-01-01", "--plan", "demo")
    assert "calls none" in refused
    assert "A run would be refused. The plan 'demo' reaches 365 days back" in refused


def test_plan_backfill_says_what_is_left_of_minutes() -> None:
    said = told("minute", days_ago(2), days_ago(0.5), "--plan", "pro")
    assert "one point every five minutes" in said
    assert "not to be had every minute" in said
    assert "The provider has five-minute points of the last 24 hours only" in said
    assert "`hourly` instead of `minute`" in said


def test_plan_backfill_says_how_to_spend_the_reserve() -> None:
    said = told("daily", days_ago(30), days_ago(2), "--plan", "demo", "--coins", "1000")
    assert "1,000 calls are needed and 72" in said
    assert "spend the reserve (1,000 credits) with `spend_reserve: true`" in said


def test_plan_backfill_says_which_windows_are_too_young() -> None:
    assert "ended too recently to be in the provider's answers" in told(
        "minute", days_ago(0.5), days_ago(-1), "--plan", "pro"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("hour", "2025-01-01", "2025-01-02"), "Did you mean 'hourly'?"),
        (("decade", "2025-01-01", "2025-01-02"), "minute, hourly, daily, weekly, monthly"),
        (("daily", "1.1.2025", "2025-01-02"), "FROM '1.1.2025' is no time; write a date such as"),
        (("daily", "2025-01-01", "2025-02-30"), "TO '2025-02-30' is no time"),
        (("daily", "2025-01-01", "2025-01-02T25:00"), "2026-01-01T10:00"),
        (("daily", "0001-01-01", "2025-01-01"), "write one from 2009 on"),
        (("monthly", "2025-01-01", "9999-12-31"), "TO '9999-12-31'"),
        (("daily", "2025-01-02", "2025-01-02"), "for a single day write the next one as TO"),
        (("daily", "9000-01-02", "9001-01-02"), "lies in the future"),
        (("hourly", "2025-01-01T10:10", "2025-01-01T11:10"), "2025-01-01T10:00 2025-01-01T11:00"),
        (("weekly", "2025-01-01", "2025-01-08"), "Weeks begin on Mondays"),
    ],
)
def test_a_backfill_that_makes_no_sense_is_answered_with_what_to_write(
    arguments: tuple[str, ...], said: str
) -> None:
    result = run("plan", "backfill", *arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stderr.startswith("pulseguard: ")
    assert result.stderr.count("\n") == 1


def test_a_plan_that_cannot_poll_has_nothing_for_history() -> None:
    result = run(
        *("plan", "backfill", "daily", "2025-01-01", "2025-01-03", "--plan", "demo"),
        PULSEGUARD_MODE="complete",
        PULSEGUARD_RESERVE_PERCENT="90",
    )
    assert result.exit_code == 2
    assert "cannot pay" in result.stderr


def test_version_is_the_packages() -> None:
    assert run("version").output.strip() == "0.1.0"
