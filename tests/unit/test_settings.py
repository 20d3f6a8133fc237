"""Settings: what is accepted, and that every refusal says which variable and what to write."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from pulseguard_assets import settings as rooms
from pulseguard_assets.coingecko.plans import PLANS
from pulseguard_assets.settings import Settings, SettingsError, in_words, load_settings, masked_url
from pulseguard_assets.timeframes import TIMEFRAMES

KEY = "CG-thisIsVerySecret"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.upper().startswith("PULSEGUARD_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def refusal(**overrides: object) -> SettingsError:
    with pytest.raises(SettingsError) as caught:
        load_settings(**overrides)
    return caught.value


def test_with_nothing_set_the_platform_starts_keyless_on_the_top_thousand() -> None:
    settings = load_settings()

    assert settings.plan == "keyless"
    assert settings.coins_wanted == 1000
    assert settings.always_include == ("bitcoin", "ethereum", "cardano")
    assert settings.reserve_percent == Decimal(10)
    assert (settings.host, settings.port) == ("127.0.0.1", 3000)
    assert settings.history_start == date(2025, 1, 1)
    assert settings.database_url is None
    assert settings.keep_overrides == {}
    assert settings.alert_urls == ()
    assert settings.alert_reminder == timedelta(hours=6)
    assert settings.heartbeat_url is None
    assert settings.ui_address == "http://127.0.0.1:3000"
    assert settings.ui_read_only is False
    assert settings.definitions == "pulseguard_assets.definitions"


def test_every_setting_is_read_from_its_environment_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = {
        "DATABASE_URL": "postgresql://me:pw@db:5432/prices",
        "DATA_DIR": "there",
        "PLAN": " Demo ",
        "API_KEY": KEY,
        "MODE": "Complete",
        "ALWAYS_INCLUDE": "bitcoin, 1move token ,,bitcoin",
        "BASE_URL": "http://127.0.0.1:8080/api/v3/",
        "CURRENCY": "USD",
        "HISTORY_START": "2025-06-30",
        "CADENCE_MINUTES": "12",
        "RESERVE_PERCENT": "12.5",
        "CALLS_PER_MINUTE": "100",
        "CREDITS_PER_MONTH": "20_000",
        "HISTORY_DAYS": "700",
        "KEEP_MINUTE": "90 minutes",
        "KEEP_HOURLY": "3 days",
        "KEEP_DAILY": "2 weeks",
        "KEEP_WEEKLY": "60 Weeks",
        "KEEP_COLLECTION_STATUS": "720 hours",
        "HOST": "0.0.0.0",
        "PORT": "8000",
        "ALERT_URLS": "json://me:pw@127.0.0.1/x, mailto://me:pw@example.com?to=a@b.c,d@e.f",
        "ALERT_REMINDER": "90 minutes",
        "HEARTBEAT_URL": "https://ping.example.com/3f2a?x=1",
        "UI_URL": "https://pulse.example.com/prices/",
        "UI_READ_ONLY": " Yes ",
        "DEFINITIONS": " my_company.prices ",
    }
    for name, value in given.items():
        monkeypatch.setenv(f"PULSEGUARD_{name}", value)

    settings = load_settings()

    assert {name.lower() for name in given} == set(Settings.model_fields)
    assert settings.database_url is not None
    assert settings.database_url.get_secret_value() == given["DATABASE_URL"]
    assert settings.data_dir == Path.cwd() / "there"
    assert settings.plan == "demo"
    assert settings.api_key is not None
    assert settings.api_key.get_secret_value() == KEY
    assert settings.coins_wanted is None
    assert settings.always_include == ("bitcoin", "1move token")
    assert settings.base_url == "http://127.0.0.1:8080/api/v3"
    assert settings.currency == "usd"
    assert settings.history_start == date(2025, 6, 30)
    assert settings.cadence_minutes == 12
    assert settings.reserve_percent == Decimal("12.5")
    assert settings.calls_per_minute == 100
    assert settings.credits_per_month == 20_000
    assert settings.history_days == 700
    assert settings.keep_overrides == {
        "minute_close": timedelta(minutes=90),
        "hourly_close": timedelta(days=3),
        "daily_close": timedelta(days=14),
        "weekly_close": timedelta(weeks=60),
        "collection_status": timedelta(days=30),
    }
    assert (settings.host, settings.port) == ("0.0.0.0", 8000)
    assert [url.get_secret_value() for url in settings.alert_urls] == [
        "json://me:pw@127.0.0.1/x",
        "mailto://me:pw@example.com?to=a@b.c,d@e.f",
    ]
    assert settings.alert_reminder == timedelta(minutes=90)
    assert settings.heartbeat_url is not None
    assert settings.heartbeat_url.get_secret_value() == given["HEARTBEAT_URL"]
    assert settings.ui_url == settings.ui_address == "https://pulse.example.com/prices"
    assert settings.ui_read_only is True
    assert settings.definitions == "my_company.prices"


def test_the_dotenv_of_the_current_directory_is_read_and_the_environment_wins(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("PULSEGUARD_PORT=4000\nPULSEGUARD_MODE=250\nOTHER_PROGRAM=1\n")
    monkeypatch.setenv("PULSEGUARD_PORT", "5000")

    settings = load_settings()

    assert settings.port == 5000
    assert settings.coins_wanted == 250


def test_arguments_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PULSEGUARD_PORT", "5000")

    assert load_settings(port=6000).port == 6000


def test_an_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PULSEGUARD_API_KEY", "")
    monkeypatch.setenv("PULSEGUARD_CADENCE_MINUTES", "")

    settings = load_settings()

    assert settings.api_key is None
    assert settings.cadence_minutes is None


def test_a_single_comma_means_no_coin_is_always_included() -> None:
    assert load_settings(always_include=",").always_include == ()


def test_settings_cannot_be_changed_once_read() -> None:
    settings = load_settings()

    with pytest.raises(ValueError, match="frozen"):
        settings.port = 1


@pytest.mark.parametrize(
    ("field", "value", "advice"),
    [
        ("plan", "dem", "Did you mean 'demo'"),
        ("mode", "top2000", "top1000, top5000, complete"),
        ("mode", "0", "a number of coins"),
        ("mode", "-5", "a number of coins"),
        ("port", "http", "from 1 to 65535"),
        ("port", "0", "from 1 to 65535"),
        ("port", "65536", "from 1 to 65535"),
        ("cadence_minutes", "1.5", "whole number"),
        ("cadence_minutes", "0", "whole number"),
        ("cadence_minutes", "1441", "from 1 to 1440"),
        ("calls_per_minute", "-1", "whole number"),
        ("credits_per_month", "many", "whole number"),
        ("history_days", "0", "whole number"),
        ("reserve_percent", "91", "from 0 to 90"),
        ("reserve_percent", "nan", "from 0 to 90"),
        ("reserve_percent", "-1", "from 0 to 90"),
        ("reserve_percent", "ten", "from 0 to 90"),
        ("currency", "eur", "US dollars"),
        ("history_start", "01.02.2025", "2025-01-01"),
        ("history_start", "20250101", "2025-01-01"),
        ("history_start", "2025-02-30", "2025-01-01"),
        ("keep_minute", "59 minutes", "shorten the retention of 60 minutes"),
        ("keep_hourly", "23 hours", "shorten the retention of 24 hours"),
        ("keep_daily", "6 days", "shorten the retention of 7 days"),
        ("keep_weekly", "51 weeks", "shorten the retention of 52 weeks"),
        ("keep_collection_status", "29 days", "shorten the retention of 30 days"),
        ("keep_minute", "forever", "for example 3 days"),
        ("keep_minute", "999999999 weeks", "36500 days"),
        ("keep_minute", "-3 days", "for example 3 days"),
        ("always_include", "bit\tcoin", "separated by commas"),
        ("base_url", "localhost:8080", "http:// or https://"),
        ("base_url", "http://host:port/x", "http:// or https://"),
        ("base_url", "https://host/x?key=abc", "only scheme, host"),
        ("host", "my host", "127.0.0.1"),
        ("database_url", "mysql://x", "postgresql://"),
        ("database_url", "host=x dbname=y", "postgresql://"),
        ("alert_urls", "json://", "address 1 (not shown)"),
        ("alert_urls", "me@example.com", "address 1 (not shown)"),
        ("alert_urls", "json://a/x,slack://", "address 2 (not shown)"),
        ("alert_urls", "1a://x", "address 1 (not shown)"),
        ("alert_urls", "json://a/x\nnone", "address 2 (not shown)"),
        ("alert_urls", "json://a/x json://b/y", "address 1 (not shown)"),
        ("alert_reminder", "often", "for example 3 days"),
        ("alert_reminder", "0 hours", "36500 days"),
        ("heartbeat_url", "ping.example.com/x", "http:// or https://"),
        ("heartbeat_url", "ftp://ping.example.com/x", "http:// or https://"),
        ("ui_url", "pulse.example.com", "http:// or https://"),
        ("ui_url", "https://me:pw@pulse.example.com", "without user, password or query"),
        ("ui_url", "https://pulse.example.com/?x=1", "without user, password or query"),
        ("ui_read_only", "maybe", "write yes or no"),
        ("definitions", "my-company/prices.py", "for example my_company.prices"),
        ("definitions", "my_company..prices", "no name of a Python module"),
        ("definitions", "--working-directory", "no name of a Python module"),
    ],
)
def test_a_wrong_value_is_refused_by_the_name_of_its_variable_with_advice(
    field: str, value: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    variable = f"PULSEGUARD_{field.upper()}"
    monkeypatch.setenv(variable, value)

    error = refusal()

    assert error.variables == (variable,)
    assert f"{variable}: " in str(error)
    assert advice in str(error)


def test_all_problems_are_told_at_once_one_to_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PULSEGUARD_PORT", "x")
    monkeypatch.setenv("PULSEGUARD_MODE", "y")
    monkeypatch.setenv("PULSEGUARD_CADENSE_MINUTES", "10")
    monkeypatch.setenv("PULSEGUARD_PLAN", "pro")

    error = refusal()

    lines = str(error).splitlines()[1:]
    assert sorted(line.strip().split(":")[0] for line in lines) == [
        "PULSEGUARD_API_KEY",
        "PULSEGUARD_CADENSE_MINUTES",
        "PULSEGUARD_MODE",
        "PULSEGUARD_PORT",
    ]


@pytest.mark.parametrize("plan", [name for name in PLANS if name != "keyless"])
def test_a_plan_with_a_key_is_refused_without_one(plan: str) -> None:
    error = refusal(plan=plan)

    assert error.variables == ("PULSEGUARD_API_KEY",)
    assert "PULSEGUARD_PLAN=keyless" in str(error)


def test_a_key_without_a_plan_asks_for_the_plan() -> None:
    error = refusal(api_key=KEY)

    assert error.variables == ("PULSEGUARD_PLAN",)


def test_a_misspelt_variable_is_refused_with_the_nearest_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PULSEGUARD_APIKEY", KEY)
    (tmp_path / ".env").write_text("PULSEGUARD_MODES=top5000\n")

    error = refusal()

    assert error.variables == ("PULSEGUARD_APIKEY", "PULSEGUARD_MODES")
    assert "did you mean PULSEGUARD_API_KEY?" in str(error)
    assert "did you mean PULSEGUARD_MODE?" in str(error)
    assert KEY not in str(error)


def test_variables_the_platform_sets_for_its_children_are_not_mistaken_for_typos(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in (*rooms.INTERNAL_VARIABLES, "PULSEGUARD_INTERNAL_X", "PULSEGUARD_TEST_X"):
        monkeypatch.setenv(name, "x")

    assert load_settings().port == 3000


def test_a_dotenv_that_is_no_text_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"PULSEGUARD_PORT=\xff\xfe")

    assert refusal().variables == (".env",)


@pytest.mark.parametrize("key", [f"{KEY}\nx", f"{KEY} x", f"{KEY}é", KEY * 20])
def test_a_key_that_no_header_can_carry_is_refused_and_never_repeated(key: str) -> None:
    error = refusal(plan="demo", api_key=key)

    assert error.variables == ("PULSEGUARD_API_KEY",)
    assert "verysecret" not in str(error).lower()
    assert error.__context__ is None
    assert error.__cause__ is None


def test_a_bad_key_shows_in_no_error_of_the_library_below_either() -> None:
    with pytest.raises(ValidationError) as caught:
        Settings(plan="demo", api_key=SecretStr(f"{KEY} x"), database_url=SecretStr(KEY))

    assert KEY not in str(caught.value)
    assert "input_value" not in str(caught.value)


@pytest.mark.parametrize("field", ["plan", "mode", "port", "currency", "reserve_percent"])
def test_a_key_written_into_the_wrong_variable_is_not_repeated(field: str) -> None:
    assert "verysecret" not in str(refusal(**{field: KEY})).lower()


def test_no_form_in_which_settings_are_shown_holds_a_secret() -> None:
    settings = load_settings(
        plan="demo",
        api_key=KEY,
        database_url="postgresql://me:hidden@db:5432/x?password=hidden",
        alert_urls="json://me:hidden@127.0.0.1/hidden,slack://hidden123/hidden456/hidden7890",
        heartbeat_url="https://ping.example.com/hidden",
    )

    for shown in (repr(settings), str(settings), repr(settings.public())):
        assert "thisIsVerySecret" not in shown
        assert "hidden" not in shown
    assert settings.public()["api_key"] == "***"
    assert settings.public()["database_url"] == "postgresql://me:***@db:5432/x"
    assert settings.public()["alert_urls"] == "json://***,slack://***"
    assert settings.public()["heartbeat_url"] == "***"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql:///db", "postgresql:///db"),
        ("postgresql://[::1]:5/db", "postgresql://[::1]:5/db"),
        ("postgresql://me:pa/ss@h/db", "***"),
        ("postgresql://me:pa?ss@h/db", "***"),
        ("postgresql://me:pa#ss@h/db", "***"),
        ("postgresql://me:1/ss@h/db", "***"),
    ],
)
def test_a_database_address_is_shown_without_any_part_of_its_password(url: str, shown: str) -> None:
    assert masked_url(url) == shown


def test_public_settings_are_plain_values_under_the_names_of_the_fields() -> None:
    public = load_settings(keep_hourly="36 hours").public()

    assert list(public) == list(Settings.model_fields)
    assert public["keep_hourly"] == "36 hours"
    assert public["always_include"] == "bitcoin,ethereum,cardano"
    assert public["port"] == 3000
    assert public["cadence_minutes"] is None


def test_an_override_that_is_no_setting_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(TypeError, match="colour"):
        load_settings(colour="red")


def test_the_shortest_retention_is_the_one_of_the_timeframes() -> None:
    shipped = {f"keep_{frame.name}": frame.keep for frame in TIMEFRAMES if frame.keep}

    assert {**shipped, "keep_collection_status": timedelta(days=30)} == dict(
        rooms.SHIPPED_RETENTION
    )


def test_the_plans_that_can_be_set_are_the_plans_the_provider_has() -> None:
    assert tuple(PLANS) == rooms.PLAN_NAMES


def test_the_embedded_server_of_root_lives_where_an_unprivileged_user_can_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert load_settings().data_dir == Path("/var/lib/pulseguard")

    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert load_settings().data_dir.name == "pulseguard"
    assert load_settings().data_dir != Path("/var/lib/pulseguard")


@pytest.mark.parametrize(
    ("duration", "words"),
    [
        (timedelta(minutes=60), "60 minutes"),
        (timedelta(hours=24), "24 hours"),
        (timedelta(days=7), "7 days"),
        (timedelta(weeks=52), "52 weeks"),
        (timedelta(minutes=90), "90 minutes"),
    ],
)
def test_a_duration_is_written_the_way_it_is_read(duration: timedelta, words: str) -> None:
    assert in_words(duration) == words
    assert rooms.parse_duration(words) == duration


ALERT_TOKEN = "tokenOfAChannel"


@pytest.mark.parametrize(
    "urls",
    [
        ALERT_TOKEN,
        f"{ALERT_TOKEN}://",
        f"{ALERT_TOKEN}:{ALERT_TOKEN}://x",
        f"{ALERT_TOKEN}/{ALERT_TOKEN}://x",
        f"json://me {ALERT_TOKEN}@",
        f"json://ok/x\n{ALERT_TOKEN} {ALERT_TOKEN}",
        f"json://ok/x\n{ALERT_TOKEN}://",
    ],
)
def test_an_address_of_alerts_that_is_wrong_is_refused_and_repeated_nowhere(
    urls: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(0)
    error = refusal(alert_urls=urls)

    assert error.variables == ("PULSEGUARD_ALERT_URLS",)
    assert error.__context__ is None
    for said in (str(error), caplog.text, *capfd.readouterr()):
        assert ALERT_TOKEN not in said
        assert ALERT_TOKEN.lower() not in said


@pytest.mark.parametrize(
    ("given", "count"),
    [
        (",", 0),
        ("json://a/x", 1),
        ("json://a/x,", 1),
        ("json://a/x,json://b/y", 2),
        ("json://a/x ,\n json://b/y\n", 2),
        ("json://a/x\r\njson://b/y", 2),
        ("mailto://me:pw@example.com?to=a@b.c,d@e.f,json://b/y", 2),
        ("https://hooks.slack.com/services/T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ", 1),
    ],
)
def test_addresses_of_alerts_are_separated_by_commas_or_lines(given: str, count: int) -> None:
    assert len(load_settings(alert_urls=given).alert_urls) == count


def test_only_a_kind_that_is_known_is_ever_shown_of_an_address() -> None:
    settings = load_settings(alert_urls=f"{ALERT_TOKEN}://x,SLACK://a/b/c,json://a,d7sms://x")
    assert settings.alert_kinds == ("other", "slack", "json", "other")
    assert settings.public()["alert_urls"] == "other://***,slack://***,json://***,other://***"


def test_settings_load_no_library_of_alerts() -> None:
    program = (
        "import sys; from pulseguard_assets.settings import load_settings; "
        "load_settings(alert_urls='json://example.org/x,slack://a/b/c'); "
        "print('apprise' in sys.modules)"
    )
    said = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert said.stdout == "False\n"


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("0.0.0.0", "http://localhost:3000"),
        ("::", "http://localhost:3000"),
        ("::1", "http://[::1]:3000"),
        ("prices.lan", "http://prices.lan:3000"),
    ],
)
def test_links_lead_to_where_the_interface_can_be_reached(host: str, address: str) -> None:
    assert load_settings(host=host).ui_address == address
