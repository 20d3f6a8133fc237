"""Shared by the tests of the platform: the definitions on a simulator, and a Dagster instance."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.sensor_definition import SensorExecutionData
from watching_support import Sink, instance_on

from pulseguard_assets.automation.polling import SENSOR
from pulseguard_assets.collecting.platform import Platform
from pulseguard_assets.collecting.sweep import sweep
from pulseguard_assets.definitions import build_defs
from pulseguard_assets.simulator.server import RunningSimulator
from pulseguard_assets.warehouse.connection import ensure_dagster_schema

MINUTE_CLOSE = dg.AssetKey("minute_close")


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    """A Dagster instance that keeps everything in memory."""
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture(scope="session")
def database_with_dagster(postgres: Any) -> Iterator[str]:
    """The name of a migrated database that has Dagster's tables as well, to be copied."""
    with postgres.new_database(postgres.migrated_template()) as dsn:
        ensure_dagster_schema(dsn)
        with instance_on(dsn):
            pass
        yield dsn.rpartition("/")[2].partition("?")[0]


@pytest.fixture
def defs(platform: Platform) -> dg.Definitions:
    """All definitions, on `platform`."""
    return build_defs(platform)


@pytest.fixture
def swept(new_platform: Callable[..., Platform], provider: RunningSimulator) -> None:
    """All coins are known; the calls that took are forgotten by the simulator."""
    platform = new_platform(mode="complete")
    with platform.connect() as connection:
        now = platform.clock()
        connection.execute("SELECT ensure_partitions(%s, %s)", (now, now))
        sweep(platform, connection, now=now, until=now + timedelta(hours=2))
    provider.reset()


@dataclass
class Sensor:
    """The daemon's part: evaluates a sensor, records its events, keeps its cursor."""

    definitions: dg.Definitions
    instance: dg.DagsterInstance
    provider: RunningSimulator
    cursor: str | None = None
    requested: list[dg.RunRequest] = field(default_factory=list)

    def tick(self) -> tuple[SensorExecutionData, str | None]:
        """Evaluate the sensor at the simulated time; returns the result and the next cursor."""
        context = dg.build_sensor_context(
            instance=self.instance,
            cursor=self.cursor,
            definitions=self.definitions,
            resources=self.definitions.resources,
            sensor_name=SENSOR,
        )
        repository = self.definitions.get_repository_def()
        with context:
            result = repository.get_sensor_def(SENSOR).evaluate_tick(context)
        for event in result.asset_events:
            self.instance.report_runless_asset_event(event)
        self.requested += result.run_requests or []
        self.cursor = result.cursor
        return result, self.cursor

    def wait(self, **span: float) -> None:
        """Let simulated time pass."""
        self.provider.advance(timedelta(**span))

    def materializations(self) -> Sequence[dg.EventLogRecord]:
        """Those of minute_close, newest first."""
        return self.instance.fetch_materializations(MINUTE_CLOSE, limit=100).records


@pytest.fixture
def sensor(
    defs: dg.Definitions, instance: dg.DagsterInstance, provider: RunningSimulator
) -> Sensor:
    """The polling sensor on `instance`."""
    return Sensor(defs, instance, provider)


@pytest.fixture
def materialize(
    defs: dg.Definitions, instance: dg.DagsterInstance
) -> Callable[..., dg.ExecuteInProcessResult]:
    """`materialize("minute_close", partition="2025-11-22-12:00")`, as a run of the UI would."""

    def run(
        asset: str, partition: str | None = None, tags: Mapping[str, str] | None = None
    ) -> dg.ExecuteInProcessResult:
        job = defs.resolve_implicit_global_asset_job_def()
        return job.execute_in_process(
            asset_selection=[dg.AssetKey(asset)],
            partition_key=partition,
            instance=instance,
            raise_on_error=False,
            tags=tags,
        )

    return run


def failure_of(result: dg.ExecuteInProcessResult) -> str:
    """What the failed step says, as the UI shows it."""
    failed = [event for event in result.all_events if event.is_step_failure]
    assert len(failed) == 1, "it did not fail"
    error: Any = failed[0].step_failure_data
    return str(error.error_display_string)


@pytest.fixture
def failure() -> Callable[[dg.ExecuteInProcessResult], str]:
    """`failure(result)`: what the failed step says."""
    return failure_of


@pytest.fixture
def sink() -> Iterator[Sink]:
    """A webhook on loopback, for PULSEGUARD_ALERT_URLS."""

    it = Sink()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if it.accepting:
                it.received.append(payload)
            self.send_response(200 if it.accepting else 503)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        it.url = f"json://127.0.0.1:{server.server_port}/t0ken"
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield it
        server.shutdown()
