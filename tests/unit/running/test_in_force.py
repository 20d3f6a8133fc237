"""What a command typed beside a running platform takes from it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

from pulseguard_assets import cli
from pulseguard_assets.running import children
from pulseguard_assets.running.in_force import settings_in_force
from pulseguard_assets.running.instance import Folders
from pulseguard_assets.running.processes import (
    ProcessList,
    ProcessRecord,
    processes_file,
    record_of,
    write_processes,
)
from pulseguard_assets.settings import Settings, SettingsError, load_settings

EMBEDDED = "postgresql://pulseguard@/pulseguard?host=%2Fsomewhere"
SLEEP = "import sys; print(flush=True); sys.stdin.read()"

Running = Callable[..., None]


@pytest.fixture(autouse=True)
def _nothing_set(only_our_settings: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PULSEGUARD_DATA_DIR", str(tmp_path))


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    """`running(**settings)`: a platform with these settings, which is one process that waits."""
    started: list[subprocess.Popen[bytes]] = []

    def running(
        *,
        name: str = "lookout",
        folder: Path = tmp_path,
        up: Callable[[ProcessRecord], ProcessRecord] = lambda record: record,
        **settings: object,
    ) -> None:
        given = load_settings(**settings)
        url = given.database_url
        dsn = EMBEDDED if url is None else url.get_secret_value()
        child = subprocess.Popen(
            [sys.executable, "-c", SLEEP],
            env=children.environment(given, Folders(folder), dsn),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        started.append(child)
        assert child.stdout is not None
        child.stdout.readline()
        write_processes(
            processes_file(Folders(folder)),
            ProcessList(
                up(record_of("up", os.getpid()).now("running")),
                (record_of("daemon", os.getpid()), record_of(name, child.pid).now("running")),
            ),
        )

    yield running
    for child in started:
        child.communicate()


def in_force_now(*, demo: bool = False) -> Settings:
    with settings_in_force(demo=demo):
        return load_settings()


def test_what_this_shell_does_not_set_is_the_platforms(running: Running) -> None:
    theirs = {
        "plan": "pro",
        "api_key": "CG-ofThePlatform",
        "database_url": "postgresql://me:pw@db.example.org/prices",
        "alert_urls": "json://127.0.0.1/a,mailto://me:pw@example.com?to=a@b.c,d@e.f",
        "always_include": ",",
        "keep_minute": "3 days",
    }
    running(**theirs)

    assert in_force_now() == load_settings(**theirs)
    assert load_settings().plan == "keyless", "it is over with the command"


def test_what_this_shell_sets_stands(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    running(mode="250", port=4000, database_url="postgresql://theirs.example.org/prices")
    monkeypatch.setenv("PULSEGUARD_MODE", "20")
    Path(".env").write_text("PULSEGUARD_DATABASE_URL=postgresql://ours.example.org/prices\n")

    settings = in_force_now()

    assert settings.mode == "20"
    assert settings.database_url is not None
    assert "ours.example.org" in settings.database_url.get_secret_value()
    assert settings.port == 4000
    assert os.environ["PULSEGUARD_MODE"] == "20"


def test_an_empty_variable_sets_nothing_and_is_empty_again_afterwards(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    running(mode="250")
    monkeypatch.setenv("PULSEGUARD_MODE", "")

    assert in_force_now().mode == "250"
    assert os.environ["PULSEGUARD_MODE"] == ""


@pytest.mark.parametrize(
    ("name", "value"), [("PLAN", "keyless"), ("BASE_URL", "http://127.0.0.1:8080/api/v3")]
)
def test_another_access_to_the_provider_is_not_mixed_with_the_platforms(
    running: Running, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    running(plan="pro", api_key="CG-ofThePlatform", calls_per_minute=7, mode="250")
    monkeypatch.setenv(f"PULSEGUARD_{name}", value)

    settings = in_force_now()

    assert (settings.plan, settings.api_key, settings.calls_per_minute) == ("keyless", None, None)
    assert settings.mode == "250"


def test_the_embedded_server_is_found_by_its_folder_also_when_it_is_down(running: Running) -> None:
    running(mode="250")

    assert in_force_now().database_url is None


def test_the_demo_is_asked_for_its_own(running: Running, tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    folder.mkdir()
    running(data_dir=folder, folder=folder, mode="250")

    assert in_force_now().mode == "top1000"
    assert in_force_now(demo=True).mode == "250"
    assert in_force_now(demo=True).data_dir == tmp_path


def test_of_a_process_that_knows_no_secrets_nothing_is_asked(running: Running) -> None:
    running(name="webserver", mode="250")

    assert in_force_now().mode == "top1000"


def test_what_a_killed_platform_left_is_not_in_force(running: Running) -> None:
    running(mode="250", up=lambda record: replace(record, born=None))

    assert in_force_now().mode == "top1000"


def test_where_nothing_ever_ran_nothing_is_in_force() -> None:
    assert in_force_now() == load_settings()


def test_settings_that_may_not_be_read_are_done_without(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    running(mode="250")

    def refused(process: psutil.Process) -> dict[str, str]:
        raise psutil.AccessDenied(process.pid)

    monkeypatch.setattr(psutil.Process, "environ", refused)
    assert in_force_now().mode == "top1000"


def test_a_mistake_of_this_shell_is_told_by_whoever_loads_its_settings(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    running(mode="250")
    monkeypatch.setenv("PULSEGUARD_PORT", "x")

    with pytest.raises(SettingsError, match="PULSEGUARD_PORT"):
        in_force_now()


def test_a_plan_is_printed_for_the_platform_that_runs(running: Running) -> None:
    running(plan="pro", api_key="CG-ofThePlatform", mode="250")

    done = CliRunner().invoke(cli.main, ["plan"])

    assert done.exit_code == 0, done.output
    assert "pro" in done.output
    assert "250" in done.output
