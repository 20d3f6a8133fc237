"""What Dagster has recorded of itself, read from its tables.

Belongs here: every look at Dagster's non-public state, by SQL on its schema `dagster`. Does not:
what follows from it (`instigators.py`, `daemons.py`, `work.py`).

Not by Dagster's own classes: to import them takes seconds, and `pulseguard status` has three. So
this knows the columns and the JSON that dagster 1.13 writes; `tests/alerts/test_dagster_state.py`
has the installed version write each of them, and reads it back. What cannot be read is an error:
a watchdog that takes an unknown field for nothing wrong would be blind and quiet.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

import psycopg
from psycopg import Connection

from pulseguard_assets.alerts.errors import AlertsError

# `location_name` in workspace.yaml.
LOCATION = "pulseguard"

LONGEST_ERROR = 600
# Failures that are looked at one by one; who has more has other worries than the oldest.
_RUNS_READ = 5_000

_KINDS = {"SENSOR": "sensor", "SCHEDULE": "schedule"}
# Of the two kinds of job, those that Dagster makes: of the runs that name assets, which share one,
# and of a schedule or sensor that does.
_ASSET_JOB = "__ASSET_JOB"
_ANONYMOUS_JOB = "__anonymous_asset_job_"

# Dagster wraps what user code raises in errors of its own; what its client of the code server meets
# is the other way round, and gRPC's words are of no use to anybody.
_WRAPPER = "dagster._core.errors."
_BELOW = "grpc."
_TIMED_OUT = "DEADLINE_EXCEEDED"
_CLASS = re.compile(r"(?:(?P<module>[\w.<>]+)\.)?(?P<name>\w+)(?:: |$)")
# Their messages are sentences; of any other error the class is half of what it says.
_SPEAKING = ("dagster.", "pulseguard_assets.")


class DagsterStateUnreadable(AlertsError):  # noqa: N818 - reads as what it says
    """Dagster's tables are not there, or not as they are read here. The message says which."""


@dataclass(frozen=True)
class Tick:
    """One evaluation of a sensor or schedule. Times are UTC.

    Attributes:
        status: `STARTED`, `SKIPPED`, `SUCCESS` or `FAILURE`.
        at: when it began; of a schedule, the time of the cron line that it is for.
        ended_at: None while it is under way.
        failures_in_a_row: how many ticks have failed up to this one, itself included.
        error: the error's own sentence, on one line without a traceback, 600 characters at most.
        skip_reason: why it did nothing, in its own words.
        timed_out: whether it failed because it did not end; Dagster cuts a tick after 60 s.
    """

    id: int
    status: str
    at: datetime
    ended_at: datetime | None
    failures_in_a_row: int
    error: str | None
    skip_reason: str | None
    timed_out: bool = False


@dataclass(frozen=True)
class Instigator:
    """A sensor or schedule as Dagster knows it.

    Attributes:
        kind: `sensor` or `schedule`.
        status: `RUNNING` or `STOPPED` by a person, else `DECLARED_IN_CODE`.
        ticks: the newest first.
        started_at: when it was switched on last, UTC; None if it never was.
        failing_since: when the first of the failures in a row began, UTC; None if there are none.
    """

    name: str
    kind: str
    status: str
    ticks: tuple[Tick, ...]
    started_at: datetime | None = None
    failing_since: datetime | None = None


@dataclass(frozen=True)
class Heartbeat:
    """The newest sign of life of one daemon.

    Attributes:
        daemon: its type, such as `SENSOR`.
        process: key of the process it is part of. All daemons of a process share it.
        at: UTC.
        errors: sentences of the newest errors, newest first.
    """

    daemon: str
    process: str
    at: datetime
    errors: tuple[str, ...]


@dataclass(frozen=True)
class FailedRuns:
    """A job whose newest finished run failed.

    Attributes:
        what: the job, or the schedule or sensor that asks for it, or the names of the assets.
        failures: runs failed since the last success. A run and its retries are one.
        run_id: the newest of them.
        ended_at: when that ended, UTC.
        error: its sentence, as in `Tick`.
        backfill_id: the backfill that it is part of, if any.
    """

    what: str
    failures: int
    run_id: str
    ended_at: datetime
    error: str | None
    backfill_id: str | None


@dataclass(frozen=True)
class FailedCheck:
    """An asset check whose newest evaluation did not pass, or could not be made.

    Attributes:
        asset: key of the asset, its parts joined by slashes.
        severity: `WARN` or `ERROR`.
        at: when it was evaluated, UTC.
        run_id: the run that did it; empty if none did.
        partition: what was looked at, if the asset has partitions.
        query: the query that shows the offenders, if the check names one.
        evaluated: False if its run failed before it could be made.
    """

    asset: str
    check: str
    severity: str
    at: datetime
    description: str | None
    run_id: str
    partition: str | None
    query: str | None = None
    evaluated: bool = True


# --- sensors and schedules ---


def instigators(connection: Connection, *, ticks: int = 5) -> list[Instigator]:
    """The sensors and schedules of location `pulseguard` that Dagster knows, by name.

    The daemon gives each one that runs by default a row as soon as it sees it; one that is off by
    default has none until somebody switches it.

    Args:
        ticks: how many to read of each.

    Raises:
        DagsterStateUnreadable: Dagster's tables are not there, or not as this reads them.
        psycopg.Error: the database cannot be read.
    """
    with _reading("instigators and job_ticks"):
        # A row for each tick, at least one for each instigator. The newest by the index.
        rows = connection.execute(
            "SELECT i.id, i.status, i.instigator_type, i.instigator_body, "
            "  t.id, t.status, t.timestamp, t.tick_body, f.since "
            "FROM dagster.instigators i "
            "LEFT JOIN LATERAL (SELECT id, status, timestamp, tick_body, "
            "  row_number() OVER (ORDER BY timestamp DESC, id DESC) AS place "
            "  FROM dagster.job_ticks WHERE selector_id = i.selector_id "
            "  ORDER BY timestamp DESC, id DESC LIMIT %(ticks)s) t ON true "
            # Of the newest only, and if it may have failed: the failures since the last success.
            "LEFT JOIN LATERAL (SELECT min(timestamp) AS since FROM dagster.job_ticks "
            "  WHERE selector_id = i.selector_id AND status = 'FAILURE' AND timestamp > coalesce("
            "    (SELECT timestamp FROM dagster.job_ticks WHERE selector_id = i.selector_id "
            "     AND status IN ('SKIPPED', 'SUCCESS') ORDER BY timestamp DESC LIMIT 1), "
            "    '-infinity')"
            ") f ON t.place = 1 AND t.status IN ('FAILURE', 'STARTED') "
            "WHERE i.instigator_type = ANY (%(kinds)s) ORDER BY i.id, t.timestamp DESC, t.id DESC",
            {"ticks": ticks, "kinds": list(_KINDS)},
        ).fetchall()
        by_id: dict[int, list[Any]] = {}
        for row in rows:
            by_id.setdefault(row[0], []).append(row)
        found = [_instigator(of_one) for of_one in by_id.values()]
    return sorted((each for each in found if each is not None), key=lambda each: each.name)


def unbroken_since(
    connection: Connection, schedule: str, *, now: datetime, gap: timedelta
) -> datetime | None:
    """Since when a schedule has ticked without a break, up to `now`.

    Args:
        schedule: its name.
        gap: neighbouring ticks that are further apart make a break.

    Returns:
        The oldest tick of the series that reaches up to `now`, UTC; None if none does.

    Raises:
        DagsterStateUnreadable: Dagster's tables are not there, or not as this reads them.
        psycopg.Error: the database cannot be read.
    """
    with _reading("instigators and job_ticks"):
        selectors = [
            selector
            for selector, body in connection.execute(
                "SELECT selector_id, instigator_body FROM dagster.instigators "
                "WHERE instigator_type = 'SCHEDULE'"
            )
            if _origin(json.loads(body)) == (LOCATION, schedule)
        ]
        row = connection.execute(
            "SELECT max(timestamp) FILTER (WHERE coalesce(timestamp - before > %(gap)s, true)), "
            "  max(timestamp) "
            "FROM (SELECT timestamp, lag(timestamp) OVER (ORDER BY timestamp) AS before "
            "  FROM dagster.job_ticks "
            "  WHERE selector_id = ANY (%(selectors)s) AND timestamp <= %(now)s) AS ticks",
            {"gap": gap, "selectors": selectors, "now": _without_zone(now)},
        ).fetchone()
    since, newest = row if row is not None else (None, None)
    if since is None or newest is None or now - _utc(newest) > gap:
        return None
    return _utc(since)


def _instigator(rows: Sequence[Any]) -> Instigator | None:
    """From the rows of one; None if it is of another code location."""
    _, status, kind, instigator_body, *_ = rows[0]
    body = json.loads(instigator_body)
    location, name = _origin(body)
    if location != LOCATION:
        return None
    data = body["job_specific_data"] or {}
    started = data.get("start_timestamp" if kind == "SCHEDULE" else "last_sensor_start_timestamp")
    ticks = tuple(_tick(*row[4:8]) for row in rows if row[4] is not None)
    since = rows[0][8] if ticks and ticks[0].failures_in_a_row else None
    return Instigator(
        name=name,
        kind=_KINDS[kind],
        status=status,
        ticks=ticks,
        started_at=None if started is None else _at(started),
        failing_since=None if since is None else _utc(since),
    )


def _origin(body: Mapping[str, Any]) -> tuple[str, str]:
    """The code location and the name of an instigator."""
    origin = body["origin"]
    location = origin["external_repository_origin"]["repository_location_origin"]
    return location["location_name"], origin["job_name"]


def _tick(number: int, status: str, at: datetime, tick_body: str) -> Tick:
    body = json.loads(tick_body)
    ended, error = body["end_timestamp"], body["error"]
    return Tick(
        id=number,
        status=status,
        at=_utc(at),
        ended_at=None if ended is None else _at(ended),
        failures_in_a_row=body["consecutive_failure_count"],
        error=None if error is None else _sentence(error),
        skip_reason=body["skip_reason"],
        timed_out=error is not None and any(_TIMED_OUT in e["message"] for e in _chain(error)),
    )


# --- daemons ---


def heartbeats(connection: Connection) -> list[Heartbeat]:
    """The newest of each daemon that there ever was, by its type.

    Raises:
        DagsterStateUnreadable: Dagster's tables are not there, or not as this reads them.
        psycopg.Error: the database cannot be read.
    """
    with _reading("daemon_heartbeats"):
        rows = connection.execute(
            "SELECT daemon_type, daemon_id, timestamp, body FROM dagster.daemon_heartbeats "
            "ORDER BY daemon_type"
        ).fetchall()
        return [
            Heartbeat(
                daemon, process, _utc(at), tuple(map(_sentence, json.loads(body)["errors"] or ()))
            )
            for daemon, process, at, body in rows
        ]


# --- runs ---


@dataclass(frozen=True)
class _Run:
    """A row of `runs` that has to do with failures."""

    number: int
    run_id: str
    what: str
    status: str
    ended_at: datetime
    backfill_id: str | None
    root: str
    waits_for_retry: bool


def failed_runs(connection: Connection, *, since: datetime) -> list[FailedRuns]:
    """The jobs whose newest finished run failed and ended at `since` or later, the newest first.

    Runs that name assets share one job, and are told apart by these. A run and what is retried of
    it are one, and as good as the newest of them; while that is queued or under way, or is still
    to come, nothing is known yet. Cancelled runs tell nothing.

    Raises:
        DagsterStateUnreadable: Dagster's tables are not there, or not as this reads them.
        psycopg.Error: the database cannot be read.
    """
    with _reading("runs, run_tags, bulk_actions and event_logs"):
        by_what: dict[str, list[_Run]] = {}
        for run in _outcomes(_runs_since_failure(connection, since)):
            by_what.setdefault(run.what, []).append(run)
        return [
            _failed(connection, what, runs)
            for what, runs in by_what.items()
            if runs[0].status == "FAILURE"
        ]


def _failed(connection: Connection, what: str, runs: Sequence[_Run]) -> FailedRuns:
    """Of the outcomes of one job, newest first, of which the newest is a failure."""
    newest = runs[0]
    good = next((at for at, run in enumerate(runs) if run.status == "SUCCESS"), len(runs))
    return FailedRuns(
        what=what,
        failures=good,
        run_id=newest.run_id,
        ended_at=newest.ended_at,
        error=_error_of_run(connection, newest.run_id),
        backfill_id=newest.backfill_id,
    )


def _runs_since_failure(connection: Connection, since: datetime) -> list[_Run]:
    """All runs of the jobs that had a failure since then, from their first failure on."""
    # Whatever is read of a run's body is read of these only, and there are none on a good day.
    rows = connection.execute(
        "WITH failed AS MATERIALIZED ("
        "  SELECT pipeline_name, min(id) AS first FROM dagster.runs "
        "  WHERE status = 'FAILURE' AND update_timestamp >= %(since)s "
        "  AND coalesce(to_timestamp(end_time) AT TIME ZONE 'UTC', update_timestamp) >= %(since)s "
        "  GROUP BY pipeline_name) "
        "SELECT r.id, r.run_id, r.pipeline_name, r.status, "
        "  coalesce(to_timestamp(r.end_time) AT TIME ZONE 'UTC', r.update_timestamp), "
        "  r.backfill_id, "
        "  CASE WHEN starts_with(r.pipeline_name, %(asset_job)s) THEN "
        "    json_build_array(r.run_body::json -> 'asset_selection', "
        "                     r.run_body::json -> 'asset_check_selection') END, "
        # Of a backfill that is over, Dagster retries nothing, whatever the tag says.
        "  tags.root, tags.retry AND NOT EXISTS (SELECT FROM dagster.bulk_actions b "
        "    WHERE b.key = r.backfill_id AND (b.status = 'FAILED' OR b.status = 'CANCELED' "
        "    OR starts_with(b.status, 'COMPLETED'))) "
        "FROM failed f "
        "JOIN dagster.runs r ON r.pipeline_name = f.pipeline_name AND r.id >= f.first, "
        "LATERAL (SELECT "
        "  max(value) FILTER (WHERE key = 'dagster/root_run_id') AS root, "
        "  bool_or(key = 'dagster/will_retry' AND lower(value) = 'true') "
        "    AND NOT bool_or(key = 'dagster/auto_retry_run_id') AS retry "
        "  FROM dagster.run_tags WHERE run_id = r.run_id) AS tags "
        "ORDER BY r.id DESC LIMIT %(limit)s",
        {"since": _without_zone(since), "asset_job": _ASSET_JOB, "limit": _RUNS_READ},
    ).fetchall()
    return [
        _Run(
            number,
            run_id,
            _what(job, selection),
            status,
            _utc(ended),
            backfill,
            root=root or run_id,
            waits_for_retry=bool(retry),
        )
        for number, run_id, job, status, ended, backfill, selection, root, retry in rows
    ]


def _outcomes(runs: Sequence[_Run]) -> list[_Run]:
    """The newest of each run and its retries, where it has succeeded or failed; newest end first.

    Args:
        runs: newest first.
    """
    newest: dict[str, _Run] = {}
    for run in runs:
        newest.setdefault(run.root, run)
    known = [
        run
        for run in newest.values()
        if run.status == "SUCCESS" or (run.status == "FAILURE" and not run.waits_for_retry)
    ]
    return sorted(known, key=lambda run: (run.ended_at, run.number), reverse=True)


def _what(job: str, selection: Sequence[Any] | None) -> str:
    if selection is None:
        return job.removeprefix(_ANONYMOUS_JOB)
    assets, checks = (each["__frozenset__"] if each is not None else [] for each in selection)
    if assets:
        return ", ".join(sorted("/".join(key["path"]) for key in assets))
    if checks:
        keys = {"/".join(check["asset_key"]["path"]) for check in checks}
        return f"checks of {', '.join(sorted(keys))}"
    return "all assets"


def _error_of_run(connection: Connection, run_id: str) -> str | None:
    row = connection.execute(
        "SELECT event FROM dagster.event_logs "
        "WHERE run_id = %s AND dagster_event_type = 'PIPELINE_FAILURE' ORDER BY id DESC LIMIT 1",
        (run_id,),
    ).fetchone()
    if row is None:
        return None
    event = json.loads(row[0])["dagster_event"]
    error = (event["event_specific_data"] or {}).get("error")
    # Of a run whose process vanished there is no error, only what was found out of it.
    said = event["message"] if error is None else _sentence(error)
    return _one_line(said) if said else None


# --- asset checks ---


def failed_checks(connection: Connection) -> list[FailedCheck]:
    """The checks whose newest evaluation did not pass, or was prevented by its run's failure.

    While another one is under way, the one before it stands.

    Raises:
        DagsterStateUnreadable: Dagster's tables are not there, or not as this reads them.
        psycopg.Error: the database cannot be read.
    """
    with _reading("asset_check_executions"):
        rows = connection.execute(
            # As Dagster reads it: planned for ever, of a run that failed, is not evaluated.
            "WITH newest AS MATERIALIZED (SELECT max(c.id) AS id "
            "  FROM dagster.asset_check_executions c "
            "  WHERE c.execution_status <> 'PLANNED' OR EXISTS (SELECT FROM dagster.runs r "
            "    WHERE r.run_id = c.run_id AND r.status = 'FAILURE') "
            "  GROUP BY c.asset_key, c.check_name) "
            "SELECT asset_key, check_name, execution_status, evaluation_event, "
            "  evaluation_event_timestamp, coalesce(run_id, ''), partition "
            "FROM newest JOIN dagster.asset_check_executions USING (id) "
            "WHERE execution_status <> 'SUCCEEDED' ORDER BY asset_key, check_name"
        ).fetchall()
        return [_check(*row) for row in rows]


def _check(
    asset_key: str,
    check: str,
    status: str,
    event: str,
    at: datetime,
    run_id: str,
    partition: str | None,
) -> FailedCheck:
    evaluated = status != "PLANNED"
    severity, description, query = "ERROR", None, None
    if evaluated:
        data = json.loads(event)["dagster_event"]["event_specific_data"]
        severity = data["severity"]["__enum__"].removeprefix("AssetCheckSeverity.")
        description = data["description"]
        query = _query(data["metadata"])
    return FailedCheck(
        asset="/".join(json.loads(asset_key)),
        check=check,
        severity=severity,
        at=_utc(at),
        description=description,
        run_id=run_id,
        partition=partition,
        query=query,
        evaluated=evaluated,
    )


def _query(metadata: Mapping[str, Any]) -> str | None:
    """The SQL of the metadata `query`, without the fence that the web interface wants."""
    text = (metadata.get("query") or {}).get("md_str")
    return None if text is None else text.removeprefix("```sql").removesuffix("```").strip()


# --- errors, and times ---


def _chain(error: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The error and its causes, the outermost first."""
    step: Mapping[str, Any] | None = error
    while step is not None:
        yield step
        step = step["cause"]


def _sentence(error: Mapping[str, Any]) -> str:
    """What a serialized error says: the first of the chain that Dagster has not wrapped around."""
    said = ""
    for step in _chain(error):
        message = step["message"]
        if message.startswith(_BELOW) and said:
            break
        said = message
        if not message.startswith(_WRAPPER):
            break
    return _one_line(_without_class(said))


def _without_class(message: str) -> str:
    """`pulseguard_assets.a.B: It fails.` is `It fails.`; `ValueError: no` stays, it says more."""
    named = _CLASS.match(message.strip())
    if named is None:
        return message
    module, rest = named["module"] or "", message.strip()[named.end() :]
    if not rest.strip():
        return named["name"]
    return rest if module.startswith(_SPEAKING) else f"{named['name']}: {rest}"


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LONGEST_ERROR else f"{line[: LONGEST_ERROR - 1].rstrip()}…"


def _utc(stored: datetime) -> datetime:
    """Dagster keeps UTC in columns without a time zone."""
    return stored.replace(tzinfo=timezone.utc)


def _without_zone(at: datetime) -> datetime:
    return at.astimezone(timezone.utc).replace(tzinfo=None)


def _at(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, timezone.utc)


@contextmanager
def _reading(tables: str) -> Iterator[None]:
    """Says so where Dagster's tables are missing, or are not what this module knows."""
    try:
        yield
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName) as missing:
        raise DagsterStateUnreadable(
            "The database has no tables of Dagster. They are made when `pulseguard up` starts for "
            "the first time."
        ) from missing
    except (
        psycopg.errors.UndefinedColumn,
        psycopg.errors.UndefinedFunction,
        psycopg.DataError,
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
    ) as other:
        raise DagsterStateUnreadable(
            f"Dagster's tables {tables} hold something else than dagster 1.13 writes "
            f"({type(other).__name__}: {other}). Install the version that pyproject.toml names."
        ) from other
