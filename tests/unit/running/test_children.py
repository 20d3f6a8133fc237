"""Command lines and environments of the children."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import SecretStr

from pulseguard_assets.resources import shipped
from pulseguard_assets.running import children
from pulseguard_assets.running.demo import demo_settings
from pulseguard_assets.running.instance import Folders
from pulseguard_assets.settings import SECRET_FIELDS, Settings, load_settings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DSN = "postgresql://pulseguard@/pulseguard?host=%2Frun%2Fpg&port=5432"


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of the person who runs the tests."""
    import os

    for name in [name for name in os.environ if name.startswith("PULSEGUARD_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"plan": "pro", "api_key": "CG-secret", "mode": "complete", "cadence_minutes": 7},
        {"always_include": ",", "keep_minute": "3 days", "keep_weekly": "60 weeks"},
        {"calls_per_minute": 9, "credits_per_month": 10_000, "history_days": 30, "port": 3999},
        {"base_url": "http://127.0.0.1:8080/api/v3", "reserve_percent": "12.5", "host": "::1"},
        {
            "alert_urls": "mailto://me:pa%2Css@example.org?to=me@example.org,you@example.org\n"
            "json://example.org/a,b,",
            "heartbeat_url": "https://example.org/ping/hidden?a=b,c",
            "alert_reminder": "90 minutes",
            "ui_url": "https://pulse.example.org/",
        },
        {"always_include": "bitcoin,0-5x-long-algorand-token", "history_start": "2026-02-03"},
    ],
)
def test_the_children_read_from_their_environment_the_settings_that_were_in_force(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = load_settings(data_dir=tmp_path, **given)
    variables = children.environment(settings, Folders(tmp_path), DSN, inherited={})
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    read = load_settings()
    assert read.database_url is not None
    assert read.database_url.get_secret_value() == DSN
    assert read.model_dump(exclude={"database_url"}) == settings.model_dump(
        exclude={"database_url"}
    )


# Of every setting a value that is not its default; of a secret, one that is easily mangled.
UNUSUAL: dict[str, Any] = {
    "database_url": DSN,
    "data_dir": "/srv/a folder, of 'mine' $HOME=1",
    "plan": "analyst",
    "api_key": "CG-'\"$#\\,;=%41",
    "mode": "123",
    "always_include": "a,b c,'d',#e",
    "base_url": "http://127.0.0.1:8080/api/v3",
    "currency": "usd",
    "history_start": "2026-02-03",
    "cadence_minutes": 7,
    "reserve_percent": "12.5",
    "calls_per_minute": 9,
    "credits_per_month": 10_000,
    "history_days": 30,
    "keep_minute": "3 days",
    "keep_hourly": "90 hours",
    "keep_daily": "15 days",
    "keep_weekly": "60 weeks",
    "keep_collection_status": "31 days",
    "host": "::1",
    "port": 3999,
    "alert_urls": "mailto://me:pa%2Css'\"#$\\@example.org?to=a@b.org,c@d.org,json://x/***,d7sms://y",
    "alert_reminder": "90 minutes",
    "heartbeat_url": "https://me:pw@example.org/ping/***?a=b,c#'\"$\\",
    "ui_url": "https://pulse.example.org",
    "ui_read_only": "yes",
    "definitions": "my_company.prices",
}


def test_every_setting_a_secret_too_reaches_the_children_as_it_was(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings, defaults = load_settings(**UNUSUAL), load_settings()
    assert list(UNUSUAL) == list(Settings.model_fields)
    for field in Settings.model_fields:
        assert field == "currency" or getattr(settings, field) != getattr(defaults, field)
    for name, value in children.environment(settings, Folders(tmp_path), DSN, {}).items():
        monkeypatch.setenv(name, value)
    read = load_settings()
    for field in Settings.model_fields:
        assert getattr(read, field) == getattr(settings, field), field
    assert len(read.alert_urls) == 3


def test_the_children_inherit_the_environment_but_no_setting_that_up_did_not_read(
    tmp_path: Path,
) -> None:
    inherited = {
        "PATH": "/bin",
        "PULSEGUARD_API_KEY": "CG-of-somebody",
        "DAGSTER_HOME": "/elsewhere",
        "PYTHONSAFEPATH": "1",
        "PGTZ": "Asia/Kolkata",
    }
    variables = children.environment(
        load_settings(data_dir=tmp_path), Folders(tmp_path), DSN, inherited
    )
    assert variables["PATH"] == "/bin"
    assert variables["DAGSTER_HOME"] == str(tmp_path / "dagster")
    assert variables["PULSEGUARD_DAGSTER_DATABASE_URL"].startswith("postgresql+psycopg2://")
    assert not {"PULSEGUARD_API_KEY", "PYTHONSAFEPATH", "PGTZ"} & set(variables)


def test_no_secret_is_on_a_command_line(tmp_path: Path) -> None:
    dsn = "postgresql://me:hidden@db.example.org/prices"
    settings = load_settings(
        data_dir=tmp_path,
        plan="demo",
        api_key="CG-hidden",
        database_url=dsn,
        alert_urls="json://example.org/hidden",
        heartbeat_url="https://example.org/hidden",
    )
    folders = Folders(tmp_path)
    variables = children.environment(settings, folders, dsn, inherited={})
    for spec in (
        children.code_server(settings, folders, variables),
        children.webserver(settings, folders, variables),
        children.daemon(folders, variables),
        children.lookout(folders, variables),
        children.simulator(1, folders, inherited={}),
    ):
        assert "hidden" not in " ".join(spec.command)


SECRETS = {
    "api_key": "CG-hidden",
    "alert_urls": "json://example.org/hidden-hook",
    "heartbeat_url": "https://example.org/hidden-ping",
}


def test_only_what_runs_our_code_knows_our_secrets(tmp_path: Path) -> None:
    settings = load_settings(data_dir=tmp_path, plan="demo", **SECRETS)
    assert {*SECRETS, "database_url"} == set(SECRET_FIELDS)
    folders = Folders(tmp_path)
    variables = children.environment(settings, folders, DSN, inherited={})
    known = {
        spec.name: {name for name, value in SECRETS.items() if value in spec.environment.values()}
        for spec in (
            children.code_server(settings, folders, variables),
            children.webserver(settings, folders, variables),
            children.daemon(folders, variables),
            children.lookout(folders, variables),
        )
    }
    assert known == {
        "code-server": set(SECRETS),
        "webserver": set(),
        "daemon": set(),
        "lookout": set(SECRETS),
    }


def test_every_setting_that_hides_its_value_counts_as_a_secret() -> None:
    settings = load_settings(**UNUSUAL)
    hidden = {
        name
        for name in Settings.model_fields
        if isinstance(value := getattr(settings, name), SecretStr)
        or (isinstance(value, tuple) and value and isinstance(value[0], SecretStr))
    }
    assert hidden == set(SECRET_FIELDS)


def test_the_simulator_sees_no_setting_at_all(tmp_path: Path) -> None:
    spec = children.simulator(1, Folders(tmp_path), inherited={"PULSEGUARD_API_KEY": "CG-x"})
    assert not [name for name in spec.environment if name.startswith("PULSEGUARD_")]


def test_the_files_and_the_code_agree_on_names() -> None:
    (location,) = yaml.safe_load(shipped("workspace.yaml").read_text())["load_from"]
    assert location["grpc_server"]["location_name"] == children.LOCATION
    settings = load_settings()
    variables = children.environment(settings, Folders(settings.data_dir), DSN, inherited={})
    assert location["grpc_server"]["socket"]["env"] in variables
    dagster = yaml.safe_load(shipped("dagster.yaml").read_text())
    assert dagster["storage"]["postgres"]["postgres_url"]["env"] in variables
    assert dagster["compute_logs"]["config"]["base_dir"]["env"] in variables
    project = Path(__file__).parents[3] / "pyproject.toml"
    dg = tomllib.loads(project.read_text("utf-8"))["tool"]["dg"]["project"]
    assert dg["code_location_name"] == children.LOCATION
    assert dg["code_location_target_module"] == load_settings().definitions


def test_the_demo_ignores_the_users_key_plan_and_database(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text(
        "PULSEGUARD_PLAN=pro\nPULSEGUARD_API_KEY=CG-mine\nPULSEGUARD_PORT=3456\n"
        "PULSEGUARD_BASE_URL=https://mine.example.org/api/v3\n"
        "PULSEGUARD_DATABASE_URL=postgresql://db.example.org/prices\n"
    )
    monkeypatch.setenv("PULSEGUARD_DATA_DIR", str(tmp_path))
    demo = demo_settings(5000)
    assert (demo.plan, demo.api_key, demo.database_url) == ("keyless", None, None)
    assert demo.base_url == "http://127.0.0.1:5000/api/v3"
    assert demo.data_dir == tmp_path / "demo"
    assert demo.port == 3456
    assert demo_settings(5000, port=9).port == 9
