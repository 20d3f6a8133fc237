"""Rounds of the watchdog outside Dagster: a real database, sinks on loopback, a real process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alerts_support import SECRETS, Addresses, Sink, after, finding

from pulseguard_assets.alerts import lookout
from pulseguard_assets.alerts.channels import channels_of
from pulseguard_assets.alerts.dagster_state import Heartbeat as DaemonHeartbeat
from pulseguard_assets.alerts.heartbeat import Heartbeat
from pulseguard_assets.alerts.incidents import open_incidents
from pulseguard_assets.alerts.lookout import Rounds
from pulseguard_assets.alerts.status_facts import (
    CreditsStatus,
    InstigatorStatus,
    ProcessStatus,
    Status,
)
from pulseguard_assets.settings import Settings, load_settings

UNREACHABLE = "postgresql://me:s3cret@127.0.0.1:1/prices"


@pytest.fixture
def settings(
    only_our_settings: None, database: str, addresses: Addresses, tmp_path: Path
) -> Settings:
    """Of a platform with a webhook."""
    return load_settings(database_url=database, data_dir=tmp_path, alert_urls=addresses.json)


class Beats(Heartbeat):
    """A heartbeat that is only counted."""

    def __init__(self) -> None:
        super().__init__(None, print)
        self.count = 0

    def beat(self) -> None:
        self.count += 1


class Platform:
    """What is found of a platform, and the rounds that are made on it.

    Attributes:
        daemon_alive: whether its daemon gives signs of life.
        level: of the status.
        said: what was written into the log.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.daemon_alive = True
        self.level = 0
        self.said: list[str] = []
        self.beats = Beats()
        self._minutes = 0.0
        self._newest = after(0)
        self._rounds = self.new_rounds(settings)

    def new_rounds(self, settings: Settings) -> Rounds:
        channels = channels_of(settings.alert_urls)
        return Rounds(settings, channels, self.beats, self.said.append)

    def with_database(self, url: str) -> None:
        changed = self.settings.model_copy(
            update={"database_url": load_settings(database_url=url).database_url}
        )
        self._rounds._settings = changed

    def status(self, _: Settings, *, now: datetime) -> Status:
        if self.daemon_alive:
            self._newest = now
        started = after(-60)
        processes = tuple(
            ProcessStatus(name, 9, "running", "alive", started, 0)
            for name in ("up", "code-server", "webserver", "daemon")
        )
        tick = InstigatorStatus("watchdog_schedule", "schedule", True, now, "skipped", "fine")
        return Status(
            level=self.level,
            state="healthy",
            headline="",
            at=now,
            troubles=(),
            data_dir=str(self.settings.data_dir),
            started_at=started,
            database="",
            database_answers=True,
            processes=processes,
            heartbeats=(DaemonHeartbeat("SENSOR", "d", self._newest, ()),),
            instigators=(tick,),
            closes=(),
            coverage=None,
            incidents=(),
            outbox=(),
            channels=(),
            credits=CreditsStatus("keyless", 0, None),
            sizes=None,
            unread={},
        )

    def rounds(self, minutes: float) -> None:
        """For so many minutes, two in each."""
        for _ in range(round(2 * minutes)):
            self._minutes += 0.5
            self._rounds.make(now=after(self._minutes))


@pytest.fixture
def platform(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Platform:
    """A platform that has been well for three minutes."""
    platform = Platform(settings)
    monkeypatch.setattr(lookout, "take_status", platform.status)
    platform.rounds(3)
    return platform


def test_a_daemon_that_dies_is_told_once_and_once_when_it_is_back(
    platform: Platform, webhook: Sink, connection: psycopg.Connection
) -> None:
    platform.daemon_alive = False
    platform.rounds(2)
    assert webhook.titles() == [
        "PulseGuard critical: the daemon is down",
    ]
    platform.rounds(10)
    assert len(webhook.received) == 1
    (incident,) = open_incidents(connection)
    assert incident.cause == "process:daemon:DOWN"

    platform.daemon_alive = True
    platform.rounds(2.5)
    assert len(webhook.received) == 1
    platform.rounds(1)

    assert webhook.titles()[1:] == [
        "PulseGuard recovered: the daemon is down",
    ]
    assert open_incidents(connection) == []
    assert platform.said == []


def test_what_others_have_found_is_left_to_them(
    platform: Platform, connection: psycopg.Connection, watch: Callable[..., Any]
) -> None:
    watch(3, finding())

    platform.rounds(10)

    assert [each.cause for each in open_incidents(connection)] == ["sensor:prices:FAILING"]


def test_the_ping_goes_out_while_all_is_well_and_not_else(platform: Platform) -> None:
    before = platform.beats.count
    assert before == 6

    for platform.level in (1, 2):
        platform.rounds(5)
    assert platform.beats.count == before

    platform.level = 0
    platform.rounds(1)
    assert platform.beats.count == before + 2


def test_a_webhook_that_is_down_ends_nothing_and_is_said_once(
    platform: Platform, webhook: Sink
) -> None:
    webhook.accepting = False
    platform.daemon_alive = False
    platform.rounds(20)

    (said,) = platform.said
    assert said.startswith("Alerts do not get through. json (1): ")
    assert all(secret not in said for secret in SECRETS)

    webhook.accepting = True
    platform.rounds(20)

    assert webhook.titles() == ["PulseGuard critical: the daemon is down"]
    assert platform.said[1:] == ["Alerts get through again."]


def test_a_database_that_is_away_ends_nothing_and_is_said_once(
    platform: Platform, webhook: Sink, database: str
) -> None:
    platform.daemon_alive = False
    platform.with_database(UNREACHABLE)
    platform.rounds(5)

    (said,) = platform.said
    assert said.startswith("Incidents cannot be recorded, trying on. Cannot connect to PostgreSQL")
    assert "s3cret" not in said
    assert webhook.received == []

    platform.with_database(database)
    platform.rounds(1)

    assert platform.said[1:] == ["Incidents are recorded again."]
    assert len(webhook.received) == 1


def test_a_table_that_is_missing_ends_nothing_either(
    platform: Platform, connection: psycopg.Connection
) -> None:
    connection.execute("ALTER TABLE incidents RENAME TO away")
    platform.rounds(1)
    connection.execute("ALTER TABLE away RENAME TO incidents")
    platform.rounds(1)

    begins, ends = platform.said
    assert "Incidents cannot be recorded" in begins
    assert ends == "Incidents are recorded again."


def test_it_says_first_where_alerts_go(settings: Settings) -> None:
    said: list[str] = []
    stop = threading.Event()
    stop.set()

    lookout.run(settings, stop, say=said.append)
    lookout.run(settings.model_copy(update={"alert_urls": ()}), stop, say=said.append)

    assert said[0] == "Alerts go to json (1)."
    assert said[1].startswith("Alerts go nowhere: no channel is configured.")


def test_rounds_go_on_until_it_is_told_to_stop(
    platform: Platform, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = threading.Event()
    made: list[datetime] = []

    def status(given: Settings, *, now: datetime) -> Status:
        made.append(now)
        if len(made) == 3:
            stop.set()
        return platform.status(given, now=now)

    monkeypatch.setattr(lookout, "take_status", status)
    lookout.run(
        settings,
        stop,
        say=platform.said.append,
        now=lambda: after(10),
        every=timedelta(milliseconds=1),
    )

    assert made == [after(10)] * 3


# --- the process itself ---


@pytest.fixture
def process(
    settings: Settings, addresses: Addresses
) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """`process(**settings)`: as `up` would start it; it has made its first round."""
    started: list[subprocess.Popen[str]] = []

    def start(**changed: str) -> subprocess.Popen[str]:
        assert settings.database_url is not None
        given = {
            "DATABASE_URL": settings.database_url.get_secret_value(),
            "DATA_DIR": str(settings.data_dir),
            "ALERT_URLS": addresses.json,
            **changed,
        }
        one = subprocess.Popen(
            [sys.executable, "-m", "pulseguard_assets.cli", "lookout"],
            env={
                "PATH": os.environ["PATH"],
                "PYTHONUNBUFFERED": "1",
                **{f"PULSEGUARD_{name}": value for name, value in given.items()},
            },
            cwd=settings.data_dir,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(one)
        return one

    yield start
    for one in started:
        one.kill()
        one.wait()
        assert one.stdout is not None
        one.stdout.close()


def read(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def ended_after(process: subprocess.Popen[str], signum: signal.Signals) -> float:
    begun = time.monotonic()
    process.send_signal(signum)
    process.wait(20)
    return time.monotonic() - begun


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_at_once(
    process: Callable[..., subprocess.Popen[str]], signum: signal.Signals
) -> None:
    one = process()
    assert read(one).endswith("Alerts go to json (1).\n")
    time.sleep(1)

    assert ended_after(one, signum) < 1
    assert one.returncode == 0


def test_a_service_that_is_slow_to_answer_does_not_keep_it(
    process: Callable[..., subprocess.Popen[str]],
    webhook: Sink,
    connection: psycopg.Connection,
    watch: Callable[..., Any],
    settings: Settings,
) -> None:
    watch(0, finding(), channels=channels_of(settings.alert_urls))
    webhook.delay = 15
    begun = threading.Event()
    took = webhook.took

    def slowly(message: Any) -> bool:
        begun.set()
        return took(message)

    webhook.took = slowly  # type: ignore[method-assign]
    one = process()
    assert begun.wait(20)

    assert ended_after(one, signal.SIGTERM) < 3
    waiting = connection.execute(
        "SELECT count(*) FROM incident_messages WHERE sent_at IS NULL AND dropped_at IS NULL"
    ).fetchone()
    assert waiting == (1,)


def test_a_mistake_of_its_own_ends_it_so_that_it_is_started_again(
    monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    ended = subprocess.run(
        [
            sys.executable,
            "-c",
            "from pulseguard_assets.alerts import lookout\n"
            "lookout.run = lambda *_, **__: 1 / 0\n"
            "lookout.lookout()\n",
        ],
        cwd=settings.data_dir,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert ended.returncode == 1
    assert "ZeroDivisionError" in ended.stderr


def test_it_does_not_load_dagster(settings: Settings) -> None:
    loaded = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys\n"
            "import pulseguard_assets.cli, pulseguard_assets.alerts.lookout\n"
            "print(sorted({'dagster', 'sqlalchemy'} & set(sys.modules)))\n",
        ],
        cwd=settings.data_dir,
        capture_output=True,
        text=True,
        check=True,
    )

    assert loaded.stdout == "[]\n"


def test_the_help_does_not_offer_it(settings: Settings) -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "pulseguard_assets.cli", "--help"],
        cwd=settings.data_dir,
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    assert "incidents" in shown
    assert "lookout" not in shown
