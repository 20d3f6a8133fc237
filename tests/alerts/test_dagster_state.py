"""The contract with Dagster: what the installed version records is read back as it was meant.

Everything is written by Dagster's own API, on PostgreSQL, where `pulseguard up` puts it.
"""

# No `from __future__ import annotations` here: Dagster looks at the annotations as they are.

import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import dagster as dg
import psycopg
import pytest
from alerts_support import NOON
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.events import JobFailureData, RunFailureReason
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill
from dagster._core.remote_origin import (
    GrpcServerCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    InstigatorTick,
    ScheduleInstigatorData,
    SensorInstigatorData,
    TickData,
    TickStatus,
)
from dagster._core.storage.tags import AUTO_RETRY_RUN_ID_TAG, WILL_RETRY_TAG
from dagster._daemon.types import DaemonHeartbeat
from dagster._utils.error import SerializableErrorInfo, serializable_error_info_from_exc_info

from pulseguard_assets.alerts import dagster_state
from pulseguard_assets.alerts.dagster_state import (
    DagsterStateUnreadable,
    FailedCheck,
    Heartbeat,
    Instigator,
    Tick,
    failed_checks,
    failed_runs,
    heartbeats,
    instigators,
    unbroken_since,
)
from pulseguard_assets.collecting.errors import CollectingError
from pulseguard_assets.warehouse.connection import connect, dagster_url, ensure_dagster_schema

LONG_AGO = datetime(2000, 1, 1, tzinfo=timezone.utc)
RETRIES = {"enabled": True, "max_retries": 2, "retry_on_asset_or_op_failure": False}
SENSOR, SCHEDULE = InstigatorType.SENSOR, InstigatorType.SCHEDULE


@pytest.fixture(scope="module")
def prepared(postgres: Any) -> Iterator[str]:
    """The name of a database with Dagster's tables."""
    with postgres.new_database(postgres.migrated_template()) as dsn:
        ensure_dagster_schema(dsn)
        with _instance_on(dsn), connect(dsn) as connection:
            name = connection.info.dbname
        yield name


@pytest.fixture
def database(postgres: Any, prepared: str) -> Iterator[str]:
    """A copy of it."""
    with postgres.new_database(prepared) as dsn:
        yield dsn


@pytest.fixture
def instance(database: str) -> Iterator[dg.DagsterInstance]:
    """A Dagster instance on `database`, with retries as in dagster.yaml."""
    with _instance_on(database) as instance:
        yield instance


def _instance_on(dsn: str) -> Any:
    storage = {"postgres": {"postgres_url": dagster_url(dsn)}}
    return dg.instance_for_test({"storage": storage, "run_retries": RETRIES})


# --- sensors and schedules ---


def origin(name: str, location: str = "pulseguard") -> RemoteInstigatorOrigin:
    place = GrpcServerCodeLocationOrigin(host="localhost", socket="/tmp/x", location_name=location)
    return RemoteInstigatorOrigin(
        repository_origin=RemoteRepositoryOrigin(
            code_location_origin=place, repository_name="__repository__"
        ),
        instigator_name=name,
    )


def selector(name: str, location: str = "pulseguard") -> str:
    return origin(name, location).get_selector().get_id()


def switch(
    instance: dg.DagsterInstance,
    name: str,
    kind: InstigatorType,
    status: InstigatorStatus = InstigatorStatus.DECLARED_IN_CODE,
    *,
    started: datetime | None = NOON,
    location: str = "pulseguard",
) -> None:
    """Give an instigator its state, as the daemon or the web interface does."""
    stamp = None if started is None else started.timestamp()
    data = (
        SensorInstigatorData(min_interval=20, last_sensor_start_timestamp=stamp)
        if kind is SENSOR
        else ScheduleInstigatorData("* * * * *", start_timestamp=stamp)
    )
    instance.add_instigator_state(InstigatorState(origin(name, location), kind, status, data))


def tick(
    instance: dg.DagsterInstance,
    name: str,
    minutes: float,
    status: TickStatus,
    kind: InstigatorType = SENSOR,
    *,
    location: str = "pulseguard",
    **data: Any,
) -> InstigatorTick:
    """Record a tick so many minutes after noon."""
    return instance.create_tick(
        TickData(
            instigator_origin_id=origin(name, location).get_id(),
            instigator_name=name,
            instigator_type=kind,
            status=status,
            timestamp=(NOON + timedelta(minutes=minutes)).timestamp(),
            selector_id=selector(name, location),
            **data,
        )
    )


def error_of(raise_it: Callable[[], None]) -> SerializableErrorInfo:
    try:
        raise_it()
    except Exception:  # noqa: BLE001 - any that a test wants
        return serializable_error_info_from_exc_info(sys.exc_info())
    raise AssertionError("it did not raise")


def of(connection: psycopg.Connection, name: str) -> Instigator:
    (found,) = [each for each in instigators(connection) if each.name == name]
    return found


def at(minutes: float) -> datetime:
    return NOON + timedelta(minutes=minutes)


def test_each_kind_of_tick_is_read_as_it_was_recorded(
    instance: dg.DagsterInstance, connection: psycopg.Connection
) -> None:
    error = SerializableErrorInfo("ValueError: no\n", [], "ValueError")
    switch(instance, "prices", SENSOR)
    ended = at(0.25).timestamp()
    numbers = [
        tick(instance, "prices", 0, TickStatus.SUCCESS, run_ids=["a"], end_timestamp=ended),
        tick(
            instance,
            "prices",
            1,
            TickStatus.SKIPPED,
            skip_reason="Nothing to do.",
            end_timestamp=at(1.5).timestamp(),
        ),
        tick(
            instance,
            "prices",
            2,
            TickStatus.FAILURE,
            error=error,
            failure_count=0,
            consecutive_failure_count=1,
            end_timestamp=at(2.5).timestamp(),
        ),
        tick(instance, "prices", 3, TickStatus.STARTED, consecutive_failure_count=1),
    ]
    a, b, c, d = (each.tick_id for each in numbers)

    assert instigators(connection) == [
        Instigator(
            name="prices",
            kind="sensor",
            status="DECLARED_IN_CODE",
            ticks=(
                Tick(d, "STARTED", at(3), None, 1, None, None),
                Tick(c, "FAILURE", at(2), at(2.5), 1, "ValueError: no", None),
                Tick(b, "SKIPPED", at(1), at(1.5), 0, None, "Nothing to do."),
                Tick(a, "SUCCESS", at(0), at(0.25), 0, None, None),
            ),
            started_at=NOON,
            failing_since=at(2),
        )
    ]


def test_a_tick_that_ends_is_read_as_dagster_updates_it(
    instance: dg.DagsterInstance, connection: psycopg.Connection
) -> None:
    switch(instance, "prices", SENSOR)
    begun = tick(instance, "prices", 0, TickStatus.STARTED)
    assert [each.status for each in of(connection, "prices").ticks] == ["STARTED"]

    instance.update_tick(begun.with_status(TickStatus.SKIPPED, skip_reason="x"))

    (found,) = of(connection, "prices").ticks
    assert found == Tick(begun.tick_id, "SKIPPED", at(0), found.ended_at, 0, None, "x")
    assert found.ended_at is not None
    assert datetime.now(timezone.utc) - found.ended_at < timedelta(minutes=1)


def test_the_switch_is_read_in_each_of_its_positions(
    instance: dg.DagsterInstance, connection: psycopg.Connection
) -> None:
    for status in InstigatorStatus:
        switch(instance, f"a {status.value}", SENSOR, status)
        switch(instance, f"b {status.value}", SCHEDULE, status)

    known = {"RUNNING", "STOPPED", "DECLARED_IN_CODE", "AUTOMATICALLY_RUNNING"}
    assert {status.value for status in InstigatorStatus} == known
    assert instigators(connection) == [
        Instigator(f"{letter} {status}", kind, status, (), NOON, None)
        for letter, kind in (("a", "sensor"), ("b", "schedule"))
        for status in sorted(known)
    ]


def test_one_that_was_never_switched_on_has_no_such_time(
    instance: dg.DagsterInstance, connection: psycopg.Connection
) -> None:
    switch(instance, "it", SCHEDULE, InstigatorStatus.STOPPED, started=None)

    assert of(connection, "it").started_at is None


def test_of_a_failure_the_first_in_a_row_is_known_however_long_ago(
    instance: dg.DagsterInstance, connection: psycopg.Connection
) -> None:
    switch(instance, "prices", SENSOR)
    error = SerializableErrorInfo("ValueError: no\n", [], "ValueError")
    tick(instance, "prices", 0, TickStatus.FAILURE, error=error, consecutive_failure_count=1)
    tick(instance, "prices", 1, TickStatus.SKIPPED)
    for number in range(2, 12):
        tick(
            instance,
            "prices",
            number,
            TickStatus.FAILURE,
            error=error,
            consecutive_failure_count=number - 1,
        )
    found = of(connection, "prices")
    assert (found.failing_since, found.ticks[0].failures_in_a_row) == (at(2), 10)
    assert [each.at for each in found.ticks] == [at(11), at(10), at(9), at(8), at(7)]

    tick(instance, "prices", 12, TickStatus.SUCCESS, run_ids=["a"])
    assert of(connection, "prices").failing_since is None


def test_as_many_ticks_are_read_as_asked_for_and_each_has_its_own(
    instance: dg.DagsterInstance, connection: psycopg.Connection
) -> None:
    for name in ("b", "a"):
        switch(instance, name, SCHEDULE)
    for number in range(4):
        tick(instance, "a", number, TickStatus.SKIPPED, SCHEDULE)
    tick(instance, "b", 9, TickStatus.SKIPPED, SCHEDULE)

    found = instigators(connection, ticks=2)

    assert [(each.name, [t.at for t in each.ticks]) for each in found] == [
        ("a", [at(3), at(2)]),
        ("b", [at(9)]),
    ]


def test_what_is_of_another_location_is_left_out(
    instance: dg.DagsterInstance, connection: psycopg.Connection
) -> None:
    switch(instance, "prices", SENSOR, location="elsewhere")

    assert instigators(connection) == []


# --- what an error says ---


def _collecting_fails() -> None:
    try:
        _raises(OSError("connection refused"))()
    except OSError as cause:
        raise CollectingError("The provider\ndoes not answer.") from cause


def _sensor_fails(inner: Callable[[], None]) -> Callable[[], None]:
    """As Dagster does: user code's error is the cause of one of Dagster's."""

    def fail() -> None:
        @dg.sensor(name="x", job_name="y")
        def sensor(context: dg.SensorEvaluationContext) -> None:
            inner()

        # As in Dagster's code server.
        from dagster._core.errors import SensorExecutionError, user_code_error_boundary

        with (
            dg.DagsterInstance.ephemeral() as instance,
            dg.build_sensor_context(instance) as context,
            user_code_error_boundary(SensorExecutionError, lambda: "Error in sensor x"),
        ):
            sensor.evaluate_tick(context)

    return fail


def _raises(error: Exception) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def _code_server_hangs() -> None:
    """As dagster's client of the code server tells of a tick that it has cut."""
    import grpc
    from dagster._core.errors import DagsterUserCodeUnreachableError as Unreachable
    from dagster._grpc.client import DagsterGrpcClient

    class Deadline(grpc.RpcError):
        def code(self) -> grpc.StatusCode:
            return grpc.StatusCode.DEADLINE_EXCEEDED

        def __str__(self) -> str:
            return "<_InactiveRpcError of RPC: status = StatusCode.DEADLINE_EXCEEDED>"

    Deadline.__module__ = "grpc._channel"
    client = DagsterGrpcClient.__new__(DagsterGrpcClient)
    try:
        try:
            _raises(Deadline())()
        except Deadline as deadline:
            client._raise_grpc_exception(deadline, 60, "The sensor tick timed out.")
    except Unreachable as unreachable:
        raise Unreachable("Unable to reach the user code server for sensor x.") from unreachable


def _code_server_is_gone() -> None:
    import grpc
    from dagster._core.errors import DagsterUserCodeUnreachableError as Unreachable
    from dagster._grpc.client import DagsterGrpcClient

    class Unavailable(grpc.RpcError):
        def code(self) -> grpc.StatusCode:
            return grpc.StatusCode.UNAVAILABLE

    Unavailable.__module__ = "grpc._channel"
    client = DagsterGrpcClient.__new__(DagsterGrpcClient)
    try:
        try:
            _raises(Unavailable())()
        except Unavailable as unavailable:
            client._raise_grpc_exception(unavailable, 60)
    except Unreachable as unreachable:
        raise Unreachable("Unable to reach the user code server for sensor x.") from unreachable


ERRORS: list[tuple[Callable[[], None], str, bool]] = [
    (_sensor_fails(_collecting_fails), "The provider does not answer.", False),
    (_sensor_fails(_raises(dg.Failure("It cannot be."))), "It cannot be.", False),
    (_sensor_fails(_raises(KeyError("rank"))), "KeyError: 'rank'", False),
    (_sensor_fails(_raises(RuntimeError())), "RuntimeError", False),
    (_sensor_fails(_raises(OSError("a: b"))), "OSError: a: b", False),
    (_collecting_fails, "The provider does not answer.", False),
    (_code_server_hangs, "The sensor tick timed out.", True),
    (
        _code_server_is_gone,
        "Could not reach user code server. gRPC Error code: UNAVAILABLE",
        False,
    ),
    (_raises(dg.DagsterInvariantViolationError("No such job.")), "No such job.", False),
    (_raises(ValueError("x" * 700)), "ValueError: " + "x" * 587 + "…", False),
]


def test_an_error_says_what_our_code_said_in_one_line(
    instance: dg.DagsterInstance, connection: psycopg.Connection
) -> None:
    for number, (fails, *_) in enumerate(ERRORS):
        switch(instance, f"it {number:02}", SENSOR)
        tick(instance, f"it {number:02}", 0, TickStatus.FAILURE, error=error_of(fails))

    ticks = [each.ticks[0] for each in instigators(connection)]

    assert [(each.error, each.timed_out) for each in ticks] == [
        (says, timed_out) for _, says, timed_out in ERRORS
    ]
    assert max(len(each.error or "") for each in ticks) == dagster_state.LONGEST_ERROR


# --- since when somebody watches ---


def since(connection: psycopg.Connection, now: float, gap: float = 2) -> datetime | None:
    return unbroken_since(connection, "watchdog", now=at(now), gap=timedelta(minutes=gap))


def watchdog(instance: dg.DagsterInstance, *minutes: float) -> None:
    switch(instance, "watchdog", SCHEDULE)
    for minute in minutes:
        tick(instance, "watchdog", minute, TickStatus.SKIPPED, SCHEDULE)


def test_the_watch_goes_back_to_the_last_break(
    instance: dg.DagsterInstance, connection: psycopg.Connection
) -> None:
    watchdog(instance, 0, 1, 2, 10, 11, 13, 14)

    assert since(connection, 14.5) == at(10), "neighbours as far apart as the gap are no break"
    assert since(connection, 14.5, gap=1.9) == at(13)
    assert since(connection, 14.5, gap=8) == at(0)


def test_nobody_watches_when_the_newest_tick_is_too_old(
    instance: dg.DagsterInstance, connection: psycopg.Connection
) -> None:
    watchdog(instance, 0, 1, 2)

    assert since(connection, 4) == at(0)
    assert since(connection, 4.01) is None


def test_a_single_tick_is_a_watch_and_one_yet_to_come_is_none(
    instance: dg.DagsterInstance, connection: psycopg.Connection
) -> None:
    watchdog(instance, 5, 6)

    assert since(connection, 5.5) == at(5)
    assert since(connection, 4.5) is None


def test_only_the_ticks_of_that_schedule_and_of_our_location_count(
    instance: dg.DagsterInstance, connection: psycopg.Connection
) -> None:
    switch(instance, "other", SCHEDULE)
    switch(instance, "watchdog", SCHEDULE, location="elsewhere")
    switch(instance, "watchdog", SENSOR)
    for minute in range(3):
        tick(instance, "other", minute, TickStatus.SKIPPED, SCHEDULE)
        tick(instance, "watchdog", minute, TickStatus.SKIPPED, SCHEDULE, location="elsewhere")

    assert since(connection, 2) is None
    assert unbroken_since(connection, "other", now=at(2), gap=timedelta(minutes=2)) == at(0)


# --- daemons ---


def test_heartbeats_are_read_as_daemons_send_them(
    instance: dg.DagsterInstance, connection: psycopg.Connection
) -> None:
    errors = [
        SerializableErrorInfo("ValueError: newest\n", [], "ValueError"),
        error_of(_sensor_fails(_collecting_fails)),
    ]
    instance.add_daemon_heartbeat(DaemonHeartbeat(NOON.timestamp(), "SENSOR", "one", errors))
    instance.add_daemon_heartbeat(DaemonHeartbeat(at(-1).timestamp(), "BACKFILL", "one", None))
    instance.add_daemon_heartbeat(DaemonHeartbeat(at(1).timestamp(), "BACKFILL", "two", []))

    assert heartbeats(connection) == [
        Heartbeat("BACKFILL", "two", at(1), ()),
        Heartbeat("SENSOR", "one", NOON, ("ValueError: newest", "The provider does not answer.")),
    ]


# --- runs ---


@dg.asset
def hours() -> None: ...


@dg.asset
def days(context: dg.AssetExecutionContext) -> None:
    if context.run.tags.get("fail"):
        raise CollectingError("Days cannot be had.")


@dg.asset_check(asset=hours, description="…")
def is_fine(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
    said = context.run.tags.get("check", "pass")
    if said == "raise":
        raise CollectingError("It cannot be checked.")
    return dg.AssetCheckResult(
        passed=said == "pass",
        severity=dg.AssetCheckSeverity.WARN if said == "warn" else dg.AssetCheckSeverity.ERROR,
        description="Hours are lacking.",
        metadata={"query": dg.MetadataValue.md("```sql\nSELECT 1;\n```"), "count": 3},
    )


@dg.op
def work(context: dg.OpExecutionContext) -> None:
    if context.run.tags.get("fail"):
        raise ValueError("no\nluck")


@dg.job
def chores() -> None:
    work()


DEFS = dg.Definitions(
    assets=[hours, days],
    asset_checks=[is_fine],
    jobs=[chores],
    schedules=[dg.ScheduleDefinition("nightly", target=[days], cron_schedule="0 0 * * *")],
    executor=dg.in_process_executor,
)


@pytest.fixture
def run(instance: dg.DagsterInstance) -> Callable[..., str]:
    """`run("chores")`, `run(days, hours, fail=True)`: run to the end; returns the run's id."""

    def run(*what: Any, fail: bool = False, **tags: str) -> str:
        if isinstance(what[0], str):
            job, selection = DEFS.resolve_job_def(what[0]), None
        else:
            job = DEFS.resolve_implicit_global_asset_job_def()
            selection = [asset.key for asset in what]
        return job.execute_in_process(
            instance=instance,
            asset_selection=selection,
            raise_on_error=False,
            tags=tags | ({"fail": "yes"} if fail else {}),
        ).run_id

    return run


def failures(connection: psycopg.Connection, since: datetime = LONG_AGO) -> dict[str, int]:
    return {each.what: each.failures for each in failed_runs(connection, since=since)}


def vanish(
    instance: dg.DagsterInstance,
    *,
    parent: dg.DagsterRun | None = None,
    backfill: str | None = None,
    finish: str = "vanish",
) -> dg.DagsterRun:
    """A run of `chores` whose process vanishes, so that Dagster retries it; or a retry of one."""
    tags = {"dagster/backfill": backfill} if backfill else {}
    root = None if parent is None else parent.root_run_id or parent.run_id
    if parent is not None:
        tags |= {"dagster/root_run_id": str(root), "dagster/parent_run_id": parent.run_id}
    begun = instance.create_run_for_job(
        DEFS.resolve_job_def("chores"),
        parent_run_id=parent.run_id if parent else None,
        root_run_id=root,
        tags=tags,
    )
    if parent is not None:
        instance.add_run_tags(parent.run_id, {AUTO_RETRY_RUN_ID_TAG: begun.run_id})
    if finish == "vanish":
        instance.report_run_failed(
            begun,
            "The process vanished.",
            JobFailureData(None, RunFailureReason.UNEXPECTED_TERMINATION, None),
        )
    return begun


def test_a_failed_run_is_told_with_its_error(
    run: Callable[..., str], connection: psycopg.Connection
) -> None:
    before = datetime.now(timezone.utc)
    run("chores")
    failed = run("chores", fail=True)

    (found,) = failed_runs(connection, since=LONG_AGO)

    assert (found.what, found.failures, found.run_id) == ("chores", 1, failed)
    assert (found.error, found.backfill_id) == ("ValueError: no luck", None)
    assert before < found.ended_at < datetime.now(timezone.utc)
    assert found.ended_at.utcoffset() == timedelta(0)


def test_failures_count_from_the_last_success_which_ends_them(
    run: Callable[..., str], connection: psycopg.Connection
) -> None:
    for fail in (True, False, True, True):
        run("chores", fail=fail)
    assert failures(connection) == {"chores": 2}

    run("chores")
    assert failures(connection) == {}


def test_a_run_has_the_name_that_a_person_knows_it_by(
    run: Callable[..., str], connection: psycopg.Connection
) -> None:
    run("__anonymous_asset_job_nightly", fail=True)
    run(days, fail=True)
    run(hours, days, fail=True)
    run("chores", fail=True)

    assert failures(connection) == {"chores": 1, "days": 1, "days, hours": 1, "nightly": 1}

    run(days)
    assert failures(connection) == {"chores": 1, "days, hours": 1, "nightly": 1}


def test_a_run_of_checks_alone_is_named_by_their_assets(
    instance: dg.DagsterInstance, connection: psycopg.Connection
) -> None:
    key = dg.AssetCheckKey(dg.AssetKey("hours"), "is_fine")
    begun = instance.add_run(
        dg.DagsterRun(
            "__ASSET_JOB",
            run_id="11111111-1111-1111-1111-111111111111",
            asset_selection=frozenset(),
            asset_check_selection=frozenset({key}),
        )
    )
    instance.report_run_failed(begun)
    everything = instance.create_run_for_job(DEFS.resolve_implicit_global_asset_job_def())
    instance.report_run_failed(everything)

    found = failed_runs(connection, since=LONG_AGO)
    for run in (begun, everything):
        tags = instance.get_run_by_id(run.run_id).tags  # type: ignore[union-attr]
        assert tags[WILL_RETRY_TAG] == "true"
    assert found == [], "they will be retried"
    for run in (begun, everything):
        instance.add_run_tags(run.run_id, {WILL_RETRY_TAG: "false"})
    assert failures(connection) == {"all assets": 1, "checks of hours": 1}


def test_a_run_that_will_be_retried_has_not_failed_yet(
    instance: dg.DagsterInstance, connection: psycopg.Connection
) -> None:
    first = vanish(instance)
    tags = instance.get_run_by_id(first.run_id).tags  # type: ignore[union-attr]
    assert tags[WILL_RETRY_TAG] == "true"
    assert failures(connection) == {}

    second = vanish(instance, parent=first, finish="never")
    assert failures(connection) == {}, "its retry is under way"
    instance.report_run_failed(
        second, None, JobFailureData(None, RunFailureReason.UNEXPECTED_TERMINATION, None)
    )
    assert failures(connection) == {}, "and will itself be retried"

    third = vanish(instance, parent=second)

    (found,) = failed_runs(connection, since=LONG_AGO)
    assert (found.failures, found.run_id) == (1, third.run_id), "three runs, one failure"
    assert found.error == "The process vanished."


def test_a_retry_that_succeeds_makes_all_well(
    instance: dg.DagsterInstance, connection: psycopg.Connection
) -> None:
    first = vanish(instance)
    second = vanish(instance, parent=first, finish="later")
    DEFS.resolve_job_def("chores")
    instance.handle_new_event(_ended(second, dg.DagsterEventType.PIPELINE_SUCCESS))

    assert failures(connection) == {}
    assert instance.get_run_by_id(second.run_id).status.value == "SUCCESS"  # type: ignore[union-attr]


def test_a_run_of_a_backfill_that_is_over_is_retried_by_nobody(
    instance: dg.DagsterInstance, connection: psycopg.Connection
) -> None:
    vanish(instance, backfill="abcdefgh")
    assert failures(connection) == {}

    backfill = PartitionBackfill(
        "abcdefgh",
        BulkActionStatus.REQUESTED,
        from_failure=False,
        tags={},
        backfill_timestamp=NOON.timestamp(),
        asset_selection=[dg.AssetKey("days")],
    )
    instance.add_backfill(backfill)
    assert failures(connection) == {}
    for status in (BulkActionStatus.COMPLETED_FAILED, BulkActionStatus.CANCELED):
        instance.update_backfill(backfill.with_status(status))
        (found,) = failed_runs(connection, since=LONG_AGO)
        assert (found.what, found.backfill_id) == ("chores", "abcdefgh")


def test_a_run_again_that_a_person_asks_for_replaces_the_one_that_failed(
    instance: dg.DagsterInstance, run: Callable[..., str], connection: psycopg.Connection
) -> None:
    failed = run("chores", fail=True)
    again = {"dagster/root_run_id": failed, "dagster/parent_run_id": failed}
    run("chores", fail=True, **again)
    assert failures(connection) == {"chores": 1}

    run("chores", **again)
    assert failures(connection) == {}


def test_a_cancelled_run_is_neither_failure_nor_success(
    instance: dg.DagsterInstance, run: Callable[..., str], connection: psycopg.Connection
) -> None:
    cancelled = instance.create_run_for_job(DEFS.resolve_job_def("chores"))
    instance.report_run_canceled(cancelled)
    assert failures(connection) == {}

    run("chores", fail=True)
    instance.report_run_canceled(instance.create_run_for_job(DEFS.resolve_job_def("chores")))
    assert failures(connection) == {"chores": 1}


def test_a_run_under_way_decides_nothing(
    instance: dg.DagsterInstance, run: Callable[..., str], connection: psycopg.Connection
) -> None:
    run("chores", fail=True)
    instance.create_run_for_job(DEFS.resolve_job_def("chores"))

    assert failures(connection) == {"chores": 1}


def test_what_failed_before_is_not_told(
    run: Callable[..., str], connection: psycopg.Connection
) -> None:
    run("chores", fail=True)
    time.sleep(0.01)
    later = datetime.now(timezone.utc)
    assert failures(connection, since=later) == {}
    run(days, fail=True)

    assert failures(connection, since=later) == {"days": 1}
    (found,) = failed_runs(connection, since=later)
    assert failures(connection, since=found.ended_at) == {"days": 1}
    assert failures(connection, since=found.ended_at + timedelta(microseconds=1)) == {}


def _ended(run: dg.DagsterRun, kind: dg.DagsterEventType) -> Any:
    from dagster._core.events import DagsterEvent
    from dagster._core.events.log import EventLogEntry

    return EventLogEntry(
        error_info=None,
        user_message="",
        level=20,
        run_id=run.run_id,
        timestamp=time.time(),
        dagster_event=DagsterEvent(kind.value, run.job_name),
    )


# --- asset checks ---


def checks(connection: psycopg.Connection) -> list[tuple[str, str, str, bool]]:
    return [
        (each.asset, each.check, each.severity, each.evaluated)
        for each in failed_checks(connection)
    ]


def test_a_check_that_does_not_pass_is_read_whole(
    run: Callable[..., str], connection: psycopg.Connection
) -> None:
    before = datetime.now(timezone.utc)
    failed = run(hours, check="warn")

    (found,) = failed_checks(connection)

    assert before < found.at < datetime.now(timezone.utc)
    assert found == FailedCheck(
        asset="hours",
        check="is_fine",
        severity="WARN",
        at=found.at,
        description="Hours are lacking.",
        run_id=failed,
        partition=None,
        query="SELECT 1;",
        evaluated=True,
    )


def test_the_newest_evaluation_decides(
    run: Callable[..., str], connection: psycopg.Connection
) -> None:
    run(hours, check="error")
    assert checks(connection) == [("hours", "is_fine", "ERROR", True)]
    run(hours, check="warn")
    assert checks(connection) == [("hours", "is_fine", "WARN", True)]
    run(hours)
    assert checks(connection) == []


def test_a_check_that_raises_could_not_be_evaluated(
    run: Callable[..., str], connection: psycopg.Connection
) -> None:
    run(hours)
    run(hours, check="raise")

    assert checks(connection) == [("hours", "is_fine", "ERROR", False)]


def test_while_a_check_is_under_way_or_was_cancelled_the_one_before_stands(
    instance: dg.DagsterInstance, run: Callable[..., str], connection: psycopg.Connection
) -> None:
    run(hours, check="warn")
    job = DEFS.resolve_implicit_global_asset_job_def()
    begun = instance.create_run_for_job(job)
    planned = connection.execute(
        "SELECT count(*) FROM dagster.asset_check_executions WHERE execution_status = 'PLANNED' "
        "AND run_id = %s",
        (begun.run_id,),
    ).fetchone()
    assert planned == (1,)
    assert checks(connection) == [("hours", "is_fine", "WARN", True)]

    instance.report_run_canceled(begun)
    assert checks(connection) == [("hours", "is_fine", "WARN", True)]


def test_a_check_without_a_run_and_of_a_partition_is_read_too(
    instance: dg.DagsterInstance, connection: psycopg.Connection
) -> None:
    instance.report_runless_asset_event(
        dg.AssetCheckEvaluation(
            asset_key=dg.AssetKey(["a", "b"]),
            check_name="complete",
            passed=False,
            partition="2026-11-22",
        )
    )

    (found,) = failed_checks(connection)

    assert (found.asset, found.check, found.run_id) == ("a/b", "complete", "")
    assert (found.severity, found.partition) == ("ERROR", "2026-11-22")
    assert (found.description, found.query) == (None, None)


# --- when it is not as expected ---

READERS: dict[str, Callable[[psycopg.Connection], Any]] = {
    "instigators": instigators,
    "unbroken_since": lambda connection: since(connection, 0),
    "heartbeats": heartbeats,
    "failed_runs": lambda connection: failed_runs(connection, since=LONG_AGO),
    "failed_checks": failed_checks,
}


def test_on_an_empty_instance_there_is_nothing(connection: psycopg.Connection) -> None:
    for reader in READERS.values():
        assert not reader(connection)


def test_without_dagsters_tables_a_sentence_says_so(connection: psycopg.Connection) -> None:
    connection.execute("DROP SCHEMA dagster CASCADE")

    for reader in READERS.values():
        with pytest.raises(DagsterStateUnreadable, match=r"no tables of Dagster.*`pulseguard up`"):
            reader(connection)


COLUMNS = {
    "instigators": "job_ticks RENAME tick_body TO body",
    "unbroken_since": "instigators RENAME instigator_body TO body",
    "heartbeats": "daemon_heartbeats RENAME daemon_id TO process",
    "failed_runs": "runs RENAME pipeline_name TO job_name",
    "failed_checks": "asset_check_executions RENAME run_id TO run",
}
FIELDS = [
    "job_ticks SET tick_body = replace(tick_body, '\"consecutive_', '\"')",
    "job_ticks SET tick_body = replace(tick_body, '\"error\"', '\"e\"')",
    "job_ticks SET tick_body = replace(tick_body, '\"end_timestamp\"', '\"end\"')",
    "job_ticks SET tick_body = 'x'",
    "job_ticks SET tick_body = '[]'",
    "instigators SET instigator_body = replace(instigator_body, 'location_name', 'location')",
]
OTHER = r"something else than dagster 1\.13 writes"


def test_another_column_is_told_and_not_taken_for_nothing(connection: psycopg.Connection) -> None:
    for reader, change in COLUMNS.items():
        with connection.transaction(force_rollback=True):
            connection.execute(f"ALTER TABLE dagster.{change}")

            with pytest.raises(DagsterStateUnreadable, match=OTHER):
                READERS[reader](connection)


def test_another_field_is_told_and_not_taken_for_nothing(
    instance: dg.DagsterInstance, connection: psycopg.Connection
) -> None:
    switch(instance, "prices", SENSOR)
    tick(instance, "prices", 0, TickStatus.SKIPPED)
    assert instigators(connection)

    for change in FIELDS:
        with connection.transaction(force_rollback=True):
            connection.execute(f"UPDATE dagster.{change}")

            with pytest.raises(DagsterStateUnreadable, match=OTHER):
                instigators(connection)


@pytest.mark.parametrize("zone", ["Asia/Kolkata", "America/New_York"])
def test_whatever_zone_the_session_has_times_are_utc(
    zone: str, instance: dg.DagsterInstance, run: Callable[..., str], connection: psycopg.Connection
) -> None:
    connection.execute("SELECT set_config('TimeZone', %s, false)", (zone,))
    switch(instance, "prices", SENSOR)
    tick(instance, "prices", 0, TickStatus.SKIPPED)
    watchdog(instance, 0)
    instance.add_daemon_heartbeat(DaemonHeartbeat(NOON.timestamp(), "SENSOR", "one", []))
    before = datetime.now(timezone.utc)
    run("chores", fail=True)
    run(hours, check="warn")

    assert of(connection, "prices").ticks[0].at == NOON
    assert since(connection, 0) == NOON
    assert heartbeats(connection)[0].at == NOON
    (failed,) = failed_runs(connection, since=before)
    (check,) = failed_checks(connection)
    assert before < failed.ended_at < check.at < datetime.now(timezone.utc)
