"""A platform under watch: its daemon in simulated time, and a sink for what is told.

Belongs here: what knows of no single test. Does not: fixtures (`conftest.py`).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from functools import cached_property
from typing import Any

import dagster as dg
from cronsim import CronSim
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.definitions.schedule_definition import ScheduleExecutionData
from dagster._core.errors import (
    ScheduleExecutionError,
    SensorExecutionError,
    user_code_error_boundary,
)
from dagster._core.remote_origin import (
    GrpcServerCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    ScheduleInstigatorData,
    SensorInstigatorData,
    TickData,
    TickStatus,
)
from dagster._daemon.types import DaemonHeartbeat
from dagster._utils.error import serializable_error_info_from_exc_info
from psycopg import Connection

from pulseguard_assets.alerts.instigators import WATCHDOG, Watched
from pulseguard_assets.assets.incidents import KEY
from pulseguard_assets.automation.polling import SENSOR
from pulseguard_assets.automation.watchdog import watched_of
from pulseguard_assets.collecting.platform import Platform
from pulseguard_assets.simulator.server import RunningSimulator
from pulseguard_assets.warehouse.connection import dagster_url

MINUTE = timedelta(minutes=1)
_STEP = timedelta(seconds=20)
_DAEMONS = ("ASSET", "BACKFILL", "MONITORING", "QUEUED_RUN_COORDINATOR", "SCHEDULER", "SENSOR")


@dataclass
class Sink:
    """What a webhook on loopback has received; and whether it takes anything."""

    url: str = ""
    accepting: bool = True
    received: list[dict[str, Any]] = field(default_factory=list)

    def titles(self) -> list[str]:
        """The titles of what was accepted."""
        return [each["title"] for each in self.received]


@dataclass
class World:
    """Everything that the daemon does, as it records it, minute by minute.

    The price sensor and the watchdog are evaluated; all others tick when they should, and skip.
    """

    platform: Platform
    definitions: dg.Definitions
    instance: dg.DagsterInstance
    provider: RunningSimulator
    connection: Connection
    sensor: Any
    failures: int = 0
    rounds_failed: int = 0
    said: list[str] = field(default_factory=list)

    def begin(self, *, unknown: str | None = None) -> None:
        """What a daemon does at its start: it files all it finds, but for one of that name."""
        for each in self.watched:
            if each.name == unknown:
                continue
            start = self.now.timestamp()
            if each.every is not None:
                kind = InstigatorType.SENSOR
                data: Any = SensorInstigatorData(
                    min_interval=int(each.every.total_seconds()), last_sensor_start_timestamp=start
                )
            else:
                kind = InstigatorType.SCHEDULE
                data = ScheduleInstigatorData(each.cron or "", start)
            self.instance.add_instigator_state(
                InstigatorState(origin_of(each.name), kind, InstigatorStatus.DECLARED_IN_CODE, data)
            )

    @cached_property
    def repository(self) -> dg.RepositoryDefinition:
        """What the code server holds."""
        return self.definitions.get_repository_def()

    @cached_property
    def watched(self) -> list[Watched]:
        """What the code defines."""
        return watched_of(self.repository)

    @property
    def now(self) -> datetime:
        """The simulated present."""
        return self.provider.now.astimezone(timezone.utc)

    def run(self, minutes: int) -> None:
        """Let that many minutes pass, from one full minute to another."""
        for _ in range(minutes):
            self.minute()

    def minute(self, watchdog: bool = True) -> None:
        """One minute: three ticks of the price sensor, then one of the watchdog."""
        for _ in range(3):
            self.poll()
            self.provider.advance(_STEP)
        self.others()
        if watchdog:
            self.said.append(self.watch_as_daemon())

    # --- the price sensor ---

    def poll(self) -> None:
        """One tick of it, recorded."""
        boundary = user_code_error_boundary(
            SensorExecutionError, lambda: f"Error occurred during the evaluation of {SENSOR}"
        )
        try:
            with boundary:
                self.sensor.tick()
        except SensorExecutionError:
            self.failures += 1
            self.record(SENSOR, "sensor", "FAILURE", failures=self.failures)
        else:
            self.failures = 0
            self.record(SENSOR, "sensor", "SKIPPED")

    # --- the watchdog ---

    def tick(self) -> ScheduleExecutionData:
        """Evaluate the watchdog now; what it raises is raised."""
        at = self.now.replace(second=0, microsecond=0)
        context = dg.build_schedule_context(
            self.instance,
            scheduled_execution_time=at,
            repository_def=self.repository,
            resources={"platform": self.platform},
        )
        try:
            with context:
                return self.repository.get_schedule_def(WATCHDOG).evaluate_tick(context)
        except ScheduleExecutionError as error:
            raise (error.__cause__ or error) from None

    def watch_as_daemon(self) -> str:
        """Evaluate it, and record its tick; returns what that says."""
        at = self.now.replace(second=0, microsecond=0)
        tick = self.record(WATCHDOG, "schedule", "STARTED", at=at)
        try:
            said = self.tick().skip_message or ""
        except Exception as error:  # noqa: BLE001 - as the daemon does
            said = f"{type(error).__name__}: {error}"
            info = serializable_error_info_from_exc_info(sys.exc_info())
            self.rounds_failed += 1
            self.instance.update_tick(
                tick.with_status(
                    TickStatus.FAILURE,
                    error=info,
                    end_timestamp=at.timestamp(),
                    consecutive_failure_count=self.rounds_failed,
                )
            )
        else:
            self.rounds_failed = 0
            self.instance.update_tick(
                tick.with_status(TickStatus.SKIPPED, skip_reason=said, end_timestamp=at.timestamp())
            )
        return said

    # --- everything else ---

    def others(self) -> None:
        """What the rest of the daemon does in a minute that has just passed."""
        for daemon in _DAEMONS:
            self.instance.add_daemon_heartbeat(
                DaemonHeartbeat(self.now.timestamp(), daemon, f"process-{daemon}", [])
            )
        for each in self.watched:
            if each.name in (SENSOR, WATCHDOG):
                continue
            if each.cron is not None:
                due = next(CronSim(each.cron, self.now + timedelta(seconds=1), reverse=True))
                if due > self.now - MINUTE:
                    self.record(each.name, "schedule", "SKIPPED", at=due)
            elif each.every is not None and self.now.timestamp() % each.every.total_seconds() < 60:
                self.record(each.name, "sensor", "SKIPPED")

    def record(
        self, name: str, kind: str, status: str, *, at: datetime | None = None, failures: int = 0
    ) -> Any:
        """A tick as the daemon writes it, with the error that is being handled if it failed."""
        when = (at or self.now).timestamp()
        failed = status == "FAILURE"
        origin = origin_of(name)
        return self.instance.create_tick(
            TickData(
                origin.get_id(),
                name,
                InstigatorType.SENSOR if kind == "sensor" else InstigatorType.SCHEDULE,
                TickStatus[status],
                when,
                error=serializable_error_info_from_exc_info(sys.exc_info()) if failed else None,
                skip_reason="Nothing to do." if status == "SKIPPED" else None,
                selector_id=origin.get_selector().get_id(),
                end_timestamp=None if status == "STARTED" else when,
                failure_count=1 if failed else 0,
                consecutive_failure_count=failures,
            )
        )

    def switch(self, name: str, status: InstigatorStatus = InstigatorStatus.STOPPED) -> None:
        """Stop a sensor, as somebody does in the web interface; or start it again."""
        origin = origin_of(name)
        state = self.instance.get_instigator_state(origin.get_id(), origin.get_selector().get_id())
        assert state is not None
        self.instance.update_instigator_state(state.with_status(status))

    # --- what came of it ---

    def incidents(self) -> dict[str, int]:
        """Every incident ever opened, by cause: how often it happened."""
        rows = self.connection.execute("SELECT cause, occurrences FROM incidents ORDER BY id")
        return dict(rows.fetchall())

    def open(self) -> set[str]:
        """The causes of the open ones."""
        rows = self.connection.execute("SELECT cause FROM incidents WHERE resolved_at IS NULL")
        return {cause for (cause,) in rows.fetchall()}

    def messages(self) -> list[tuple[str, bool]]:
        """The kinds of messages that were queued, and whether they were accepted."""
        return self.connection.execute(
            "SELECT kind, sent_at IS NOT NULL FROM incident_messages ORDER BY id"
        ).fetchall()

    def events(self) -> list[dict[str, Any]]:
        """The metadata of the materializations of `incidents`, oldest first."""
        records = self.instance.fetch_materializations(KEY, limit=1_000).records
        return [
            {key: value.value for key, value in metadata.items()}
            for each in reversed(records)
            if (materialization := each.asset_materialization) is not None
            and (metadata := materialization.metadata) is not None
        ]


def origin_of(name: str) -> RemoteInstigatorOrigin:
    """What Dagster files a sensor or schedule of ours under."""
    location = GrpcServerCodeLocationOrigin(
        "localhost", socket="/somewhere", location_name="pulseguard"
    )
    return RemoteInstigatorOrigin(RemoteRepositoryOrigin(location, "__repository__"), name)


def instance_on(dsn: str, *, role: str | None = None) -> Any:
    """A Dagster instance where `pulseguard up` puts it: the schema `dagster` of the database."""
    url = dagster_url(dsn, role=role)
    return dg.instance_for_test({"storage": {"postgres": {"postgres_url": url}}})
