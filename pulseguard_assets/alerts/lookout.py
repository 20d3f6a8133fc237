"""The watchdog outside Dagster: a child of `pulseguard up` that lives while the daemon does not.

Belongs here: its rounds, and how it starts and stops. Does not: looking (`status.py`), judging
(`process_rules.py`), telling (`looking.py`).

A watchdog inside Dagster cannot say that Dagster does not run. This one imports nothing of it. What
it cannot say itself, that the whole machine is gone, is said by the service behind
PULSEGUARD_HEARTBEAT_URL, when the ping stays away.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta, timezone

import click
import psycopg

from pulseguard_assets.alerts.channels import Channel, channels_of
from pulseguard_assets.alerts.complaint import Complaint, Say
from pulseguard_assets.alerts.heartbeat import Heartbeat
from pulseguard_assets.alerts.looking import tell
from pulseguard_assets.alerts.model import Look
from pulseguard_assets.alerts.outbox import ChannelsFailing
from pulseguard_assets.alerts.process_rules import Trail, followed, look_at_processes
from pulseguard_assets.alerts.status import Status, take_status
from pulseguard_assets.running.instance import Folders
from pulseguard_assets.running.load_error import load_error
from pulseguard_assets.settings import Settings, load_settings
from pulseguard_assets.warehouse.at_hand import dsn_at_hand
from pulseguard_assets.warehouse.connection import (
    DatabaseUnavailable,
    UnsupportedPostgres,
    connect,
)

EVERY = timedelta(seconds=30)

# All children together have 7 s to stop, and this one is stopped first.
_SECONDS_TO_FINISH = 1.0

Now = Callable[[], datetime]


def _utc_now() -> datetime:
    return datetime.now(timezone.utc)


@click.command("lookout")
def lookout() -> None:
    """Watch the platform from outside Dagster. `pulseguard up` runs this."""
    settings = load_settings()
    stop, failed = threading.Event(), threading.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: stop.set())

    def work() -> None:
        failed.set()
        run(settings, stop, say=_say)
        failed.clear()

    # Beside this thread, so that a stop need not wait for a slow mail server. A message that is
    # given up so is sent again, maybe for the second time.
    worker = threading.Thread(target=work, name="rounds", daemon=True)
    worker.start()
    while worker.is_alive() and not stop.is_set():
        stop.wait(1.0)
    worker.join(_SECONDS_TO_FINISH)
    # Apprise sends from threads that Python would wait for.
    os._exit(1 if failed.is_set() and not stop.is_set() else 0)


def _say(sentence: str) -> None:
    click.echo(f"{_utc_now():%Y-%m-%d %H:%M:%S}  {sentence}")


def run(
    settings: Settings,
    stop: threading.Event,
    *,
    say: Say,
    now: Now = _utc_now,
    every: timedelta = EVERY,
) -> None:
    """Make rounds until `stop` is set. Nothing that is down ends it.

    Args:
        say: takes sentences for the log, without any secret.
        now: the time of day, UTC.
        every: from the end of a round to the next.
    """
    channels = channels_of(settings.alert_urls)
    say(
        f"Alerts go to {', '.join(channel.label for channel in channels)}."
        if channels
        else "Alerts go nowhere: no channel is configured. Set PULSEGUARD_ALERT_URLS."
    )
    with Heartbeat(settings.heartbeat_url, say) as heartbeat:
        rounds = Rounds(settings, channels, heartbeat, say)
        while not stop.is_set():
            rounds.make(now=now())
            stop.wait(every.total_seconds())


class Rounds:
    """One round after the other, and what is remembered in between.

    Args:
        channels: those of the settings.
        heartbeat: pinged while all is well.
        say: takes sentences for the log.
    """

    def __init__(
        self, settings: Settings, channels: Sequence[Channel], heartbeat: Heartbeat, say: Say
    ) -> None:
        self._settings = settings
        self._folders = Folders(settings.data_dir)
        self._channels = channels
        self._heartbeat = heartbeat
        self._trail: Trail | None = None
        self._recording = Complaint(say, over="Incidents are recorded again.")
        self._sending = Complaint(say, over="Alerts get through again.")

    def make(self, *, now: datetime) -> Status:
        """Look, tell, and ping if all is well."""
        status = take_status(self._settings, now=now)
        if status.level == 0:
            self._heartbeat.beat()
        self._tell(self._look(status, now), now)
        return status

    def _look(self, status: Status, now: datetime) -> Look:
        self._trail = followed(self._trail, status, now=now)
        logs = self._folders.logs
        # Its log is read only while there is something to explain.
        away = self._trail is not None and "code-server" in self._trail.away
        return look_at_processes(
            status,
            self._trail,
            now=now,
            logs=str(logs),
            load_error=load_error(logs / "code-server.log") if away else None,
        )

    def _tell(self, look: Look, now: datetime) -> None:
        try:
            with self._connected() as connection:
                tell(connection, look, self._settings, self._channels, now=now)
        except ChannelsFailing as failing:
            self._recording.ends()
            self._sending.lasts(str(failing))
        except (DatabaseUnavailable, UnsupportedPostgres, psycopg.Error) as error:
            said = " ".join(str(error).split()) or type(error).__name__
            self._recording.lasts(f"Incidents cannot be recorded, trying on. {said}")
        else:
            self._recording.ends()
            self._sending.ends()

    def _connected(self) -> psycopg.Connection:
        dsn = dsn_at_hand(self._settings)
        if dsn is None:
            raise DatabaseUnavailable(f"No database runs in {self._settings.data_dir}.")
        return connect(
            dsn,
            application_name="pulseguard lookout",
            connect_timeout=timedelta(seconds=5),
            statement_timeout=timedelta(seconds=20),
            lock_timeout=timedelta(seconds=10),
        )
