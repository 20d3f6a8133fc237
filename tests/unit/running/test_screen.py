"""What a person sees when the platform is up."""

from __future__ import annotations

import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

import pytest

from pulseguard_assets.running.demo import demo_settings
from pulseguard_assets.running.instance import Folders
from pulseguard_assets.running.screen import Screen
from pulseguard_assets.settings import Settings, load_settings


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No `.env` of the person who runs the tests."""
    monkeypatch.chdir(tmp_path)


def welcome(settings: Settings, *, simulated: bool) -> str:
    lines: list[str] = []
    Screen(lines.append).welcome(settings, Folders(settings.data_dir), simulated=simulated)
    return "\n".join(lines)


def test_the_welcome_says_where_how_often_whose_data_and_how_to_stop(tmp_path: Path) -> None:
    text = welcome(load_settings(data_dir=tmp_path, port=3456), simulated=False)
    assert "http://127.0.0.1:3456" in text
    assert "1,000 coins every 3 minutes" in text
    assert f"{tmp_path / 'postgres'} (embedded PostgreSQL; `pulseguard psql`" in text
    assert "Data provided by CoinGecko" in text
    assert "Ctrl-C" in text


def test_the_demo_does_not_credit_the_provider_with_invented_prices(tmp_path: Path) -> None:
    text = welcome(demo_settings(5000, data_dir=tmp_path), simulated=True)
    assert "every minute" in text
    assert "none of them real" in text
    assert "CoinGecko" not in text
    assert "`pulseguard psql --demo`" in text


def test_no_secret_is_shown(tmp_path: Path) -> None:
    settings = load_settings(
        data_dir=tmp_path,
        plan="demo",
        api_key="CG-hidden",
        database_url="postgresql://me:hidden@db.example.org/prices",
    )
    text = welcome(settings, simulated=False)
    assert "hidden" not in text
    assert "db.example.org" in text


def test_the_welcome_says_where_alerts_go_by_kind_and_place(tmp_path: Path) -> None:
    urls = f"slack://{'a' * 9}/{'b' * 9}/{'c' * 24}\nmailto://me:hidden@example.org"
    text = welcome(load_settings(data_dir=tmp_path, alert_urls=urls), simulated=False)
    assert "  Alerts         slack (1), mailto (2)\n" in text
    assert "hidden" not in text
    assert "example.org" not in text
    assert "aaa" not in text


def test_the_welcome_says_that_nobody_is_told_where_no_channel_is_configured(
    tmp_path: Path,
) -> None:
    text = welcome(load_settings(data_dir=tmp_path), simulated=False)
    assert "  Alerts         nowhere: no channel is configured, so nobody is told" in text
    assert "PULSEGUARD_ALERT_URLS" in text
    assert "`pulseguard alert-test`" in text


def test_the_welcome_needs_no_library_of_channels(tmp_path: Path) -> None:
    shown = (
        "import sys\n"
        "from pulseguard_assets.running.screen import where_alerts_go\n"
        "from pulseguard_assets.settings import load_settings\n"
        "print(where_alerts_go(load_settings()))\n"
        "print([name for name in ('apprise', 'dagster', 'polars') if name in sys.modules])\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", shown], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    where, loaded = told.stdout.splitlines()
    assert where.startswith("nowhere")
    assert loaded == "[]"


def test_steps_tell_how_long_they_took_and_events_when_they_happened() -> None:
    lines: list[str] = []
    ticks = iter((10.0, 12.5, 20.0))
    screen = Screen(
        lines.append,
        now=lambda: datetime(2026, 3, 1, 12, 34, 56, tzinfo=timezone.utc),
        clock=lambda: next(ticks),
    )
    with screen.step("database") as done:
        done("embedded")
    with pytest.raises(KeyError), screen.step("daemon"):
        raise KeyError
    screen.say("daemon is back")
    assert lines == [
        "  ✓ database      embedded (2.5 s)",
        "  ✗ daemon",
        "12:34:56  daemon is back",
    ]
