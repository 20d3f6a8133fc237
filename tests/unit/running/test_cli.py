"""The command line: what it says, what it costs to ask, and how it fails."""

from __future__ import annotations

import subprocess
import sys
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


def test_version_is_the_packages() -> None:
    assert run("version").output.strip() == "0.1.0"
