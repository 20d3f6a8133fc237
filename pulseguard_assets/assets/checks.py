"""The checks of the five close tables, by one factory.

Belongs here: what is judged, how bad it is, and what a person is told. Does not: finding the
offenders (`sql/`, `warehouse/checks.py`), nor when the checks of `minute_close` run, whose events
have no run (`automation/checking.py`).

They look at the tables and never at Dagster's events: one of any partition makes an asset look
fresh. All checks of a table are one step with one connection, since a step costs more than most of
these queries.

Only an offence that would spread blocks what is downstream: rows in the wrong bucket, and closes
that disagree with their children although they were just rolled up.
"""

# No `from __future__ import annotations` here: Dagster looks at the annotations as they are.

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import dagster as dg
from psycopg import Connection

from pulseguard_assets.assets.partitions import partitions_of
from pulseguard_assets.assets.tables import with_query
from pulseguard_assets.collecting.platform import Platform
from pulseguard_assets.timeframes import (
    HOURLY,
    MINUTE,
    MONTHLY,
    TIMEFRAMES,
    WEEKLY,
    Timeframe,
    bucket_end,
    bucket_start,
)
from pulseguard_assets.warehouse import checks as warehouse
from pulseguard_assets.warehouse.checks import Found
from pulseguard_assets.warehouse.upkeep import blocked_rows

NEWEST_LABEL_YOUNG = "newest_label_young"
COVERAGE = "coverage"
LABELS_ALIGNED = "labels_aligned"
PARENT_AGREES_WITH_CHILDREN = "parent_agrees_with_children"
NOTHING_DOMINATED_LEFT = "nothing_dominated_left"
DELETIONS_AUDITED = "deletions_audited"
PARTITION_RUNWAY = "partition_runway"
PRICE_JUMP = "price_jump"
STALE_PROVIDER_TIMES = "stale_provider_times"

COVERAGE_WANTED, COVERAGE_NEEDED = 0.95, 0.5
MONTHS_AHEAD = 2
STALE_SHARE = 0.1
# Cleanup runs every 15 minutes: two turns may fail.
_CLEANUP_PATIENCE = timedelta(minutes=30)
# A closed bucket is rolled up within the hour. Until then its close is older than its children.
_ROLLED_UP_WITHIN = timedelta(hours=1)
# A poll of the bucket's last minute may be stored while the run that rolls it up is under way.
_STILL_ARRIVING = timedelta(minutes=2)

# Rows of offenders in a result.
_SHOWN = 20

_Severity = dg.AssetCheckSeverity


@dataclass(frozen=True)
class _Look:
    """What one look at a table is about.

    Attributes:
        window: the partitions that the run has just materialized; None in a run without any.
    """

    connection: Connection
    timeframe: Timeframe
    now: datetime
    window: dg.TimeWindow | None


@dataclass(frozen=True)
class _Verdict:
    """What a check says.

    Attributes:
        figures: numbers, which the UI plots over time.
        found: the offenders, or whatever shows what was looked at.
    """

    passed: bool
    says: str
    severity: dg.AssetCheckSeverity = _Severity.WARN
    figures: dict[str, Any] = field(default_factory=dict)
    found: Found | None = None


# --- is it there, and young? ---


def _newest_label_young(look: _Look) -> _Verdict:
    timeframe, now = look.timeframe, look.now
    if _polls_outlive_minutes(look):
        return _Verdict(True, _SEE_HOURLY)
    found = warehouse.newest_label(look.connection, timeframe)
    newest: datetime | None = found.first[0][0]
    if newest is None:
        return _Verdict(False, f"{timeframe.table} is empty.", _Severity.ERROR, found=found)
    figures = {"age_seconds": round((now - newest).total_seconds(), 1)}
    if newest > now:
        says = (
            f"The newest label, {_at(newest)}, lies in the future. Some clock is wrong, or a row "
            "was written by hand; how old the others are cannot be told."
        )
        return _Verdict(False, says, _Severity.ERROR, figures, found)
    oldest_good = _oldest_young_label(look)
    says = f"The newest label is {_at(newest)}"
    if newest >= oldest_good:
        return _Verdict(True, f"{says}.", _Severity.ERROR, figures)
    says += f", and should be {_at(oldest_good)} or later: {_who_writes(timeframe)}"
    return _Verdict(False, says, _Severity.ERROR, figures, found)


def _oldest_young_label(look: _Look) -> datetime:
    cadences = 2 * warehouse.polling_tolerance(look.connection)
    polled = bucket_start(look.timeframe, look.now - cadences)
    if look.timeframe is MINUTE:
        return polled
    return min(polled, _last_closed(look.timeframe, look.now))


def _polls_outlive_minutes(look: _Look) -> bool:
    """On a small plan all coins are polled every few hours, and no minute is kept that long."""
    keep = MINUTE.keep or timedelta.max
    return look.timeframe is MINUTE and 2 * warehouse.polling_tolerance(look.connection) > keep


_SEE_HOURLY = (
    "Polls are further apart than minutes are kept, so that none may be stored at times. The same "
    "check of hourly_close judges."
)


def _who_writes(timeframe: Timeframe) -> str:
    if timeframe is MINUTE:
        return "nothing was stored for two polling cadences. See the ticks of the price sensor."
    if timeframe is HOURLY:
        return "a trigger of minute_close keeps it live, so no minute was stored either."
    return f"see the ticks of {timeframe.table}_schedule, and the runs it requested."


def _coverage(look: _Look) -> _Verdict:
    if _polls_outlive_minutes(look):
        return _Verdict(True, _SEE_HOURLY)
    start, end = _covered(look)
    since = warehouse.known_since(look.connection)
    if since is None or since >= end:
        return _Verdict(True, f"No coin was known before {_at(end)}.")
    expected = warehouse.coins_expected(look.connection)
    if not expected:
        return _Verdict(True, "No coin is collected.")
    found = warehouse.coins_unseen(look.connection, look.timeframe, start, end)
    seen = expected - found.count
    share = seen / expected
    return _Verdict(
        share >= COVERAGE_WANTED,
        f"{seen:,} of {expected:,} coins have a close from {_at(start)} to {_at(end)}.",
        _Severity.WARN if share >= COVERAGE_NEEDED else _Severity.ERROR,
        {"coverage": round(share, 4), "coins_expected": expected, "coins_seen": seen},
        found,
    )


def _covered(look: _Look) -> tuple[datetime, datetime]:
    """The last closed bucket; as many as hold a poll, where a bucket may hold none."""
    timeframe, tolerance = look.timeframe, warehouse.polling_tolerance(look.connection)
    end = bucket_start(timeframe, look.now)
    if timeframe is MINUTE:
        # A poll is under way in the one cadence, and was stored in the other.
        return end - 2 * tolerance, end
    return min(_last_closed(timeframe, look.now), bucket_start(timeframe, end - tolerance)), end


# --- is it right? ---


def _labels_aligned(look: _Look) -> _Verdict:
    found = warehouse.misaligned(look.connection, look.timeframe, now=look.now)
    return _Verdict(
        found.count == 0,
        "Every close of the last 60 buckets lies in the bucket it is labelled with."
        if found.count == 0
        else f"{found.count:,} closes do not lie in a bucket that begins with their label, "
        f"although {look.timeframe.table} has constraints against it. Were they dropped?",
        _Severity.ERROR,
        {"offenders": found.count},
        found,
    )


def _parent_agrees(look: _Look) -> _Verdict:
    """Those just rolled up must agree, or the merge rule is broken; others may be late."""
    connection, timeframe, now = look.connection, look.timeframe, look.now
    start, end = _recent_buckets(timeframe, now)
    found = warehouse.parents_behind(
        connection, timeframe, start, end, recorded_before=_asked_about(timeframe, now)
    )
    # The hours are merged in the very transaction that stores their minutes.
    broken = timeframe is HOURLY
    window = _settled(look)
    if window is not None:
        just_merged = warehouse.parents_behind(
            connection,
            timeframe,
            window.start,
            window.end,
            recorded_before=_asked_about(timeframe, now),
        )
        if just_merged.count:
            found, broken = just_merged, True
    if not found.count:
        return _Verdict(
            True,
            f"Every {timeframe.name} close equals its last stored child or is newer, and carries "
            "the evidence of all of them.",
            figures={"offenders": 0},
        )
    return _Verdict(
        False,
        f"{found.count:,} closes disagree with their stored children"
        + (
            ", which the merge rule rules out: somebody wrote past it, or it is broken."
            if broken
            else f": they were not rolled up. See the runs of {timeframe.table}."
        ),
        _Severity.ERROR if broken else _Severity.WARN,
        {"offenders": found.count},
        found,
    )


def _recent_buckets(timeframe: Timeframe, now: datetime) -> tuple[datetime, datetime]:
    """The last two buckets that must agree by now; of hours the open one and that before."""
    if timeframe is HOURLY:
        return _last_closed(HOURLY, now), bucket_end(HOURLY, now)
    end = bucket_start(timeframe, now - _ROLLED_UP_WITHIN)
    return _last_closed(timeframe, _last_closed(timeframe, end)), end


def _settled(look: _Look) -> dg.TimeWindow | None:
    """The closed part of what this run has materialized; into the open bucket, polls go on."""
    if look.window is None:
        return None
    end = min(look.window.end, bucket_start(look.timeframe, look.now))
    return dg.TimeWindow(look.window.start, end) if look.window.start < end else None


def _asked_about(timeframe: Timeframe, now: datetime) -> datetime | None:
    return None if timeframe is HOURLY else now - _STILL_ARRIVING


def _price_jump(look: _Look) -> _Verdict:
    span = None
    if look.timeframe is MINUTE:
        # Of any coin three polls, whatever the cadence: a spike is told by its neighbours.
        span = 3 * warehouse.polling_tolerance(look.connection)
    found = warehouse.price_jumps(look.connection, look.timeframe, now=look.now, span=span)
    coins = list(dict.fromkeys(row[0] for row in found.first))
    return _Verdict(
        found.count == 0,
        "No close is ten times away from its neighbours."
        if found.count == 0
        else f"{found.count:,} closes are more than ten times away from their neighbours: "
        f"{', '.join(coins)}. A wrong price is mended by a newer observation of the same minute "
        "with the source 'correction'.",
        figures={"offenders": found.count},
        found=found,
    )


def _stale_provider_times(look: _Look) -> _Verdict:
    found = warehouse.stale_provider_times(look.connection, look.timeframe, now=look.now)
    told = found.first[0][found.columns.index("told")] if found.count else 0
    share = found.count / told if told else 0.0
    return _Verdict(
        share <= STALE_SHARE,
        f"{found.count:,} coins of the newest label had a price that was over an hour old when it "
        "was observed, by the provider's own time"
        + (f"; the oldest is that of {found.first[0][0]}." if found.count else "."),
        figures={"stale_share": round(share, 4), "offenders": found.count},
        found=found,
    )


# --- is it kept, and no longer than it should be? ---


def _nothing_dominated_left(look: _Look) -> _Verdict:
    found = warehouse.overdue(
        look.connection, look.timeframe, now=look.now, patience=_CLEANUP_PATIENCE
    )
    if found.count:
        closes = sum(row[1] for row in found.first)
        return _Verdict(
            False,
            f"{closes:,} closes are past their retention by more than half an hour, though their "
            f"rollups carry them; the oldest of those looked at is of {_at(found.first[0][0])}. "
            "No cleanup runs; see its schedule, or call cleanup_old_data() yourself.",
            figures={"overdue": closes},
            found=found,
        )
    # Only now: without a cleanup there may be millions of them.
    rows = blocked_rows(look.connection, now=look.now).get(look.timeframe.table, 0)
    says = "Nothing is kept that a cleanup should have deleted."
    if rows:
        says += (
            f" {rows:,} closes stay beyond their retention, because no rollup carries them yet; "
            "retention_blocked() tells how old they are."
        )
    return _Verdict(True, says, figures={"overdue": 0, "blocked": rows})


def _deletions_audited(look: _Look) -> _Verdict:
    found = warehouse.audit_failures(look.connection, look.timeframe, now=look.now)
    return _Verdict(
        found.count == 0,
        "Every close that was deleted is in the evidence of its rollup."
        if found.count == 0
        else f"From {found.count:,} buckets more closes of {look.timeframe.table} were deleted "
        "than their rollups carry. Closes are lost: stop the cleanup schedule, and restore them "
        "from a backup or by a backfill.",
        _Severity.ERROR,
        {"offenders": found.count},
        found,
    )


def _partition_runway(look: _Look) -> _Verdict:
    months = warehouse.partition_runway(look.connection, look.timeframe, now=look.now)
    return _Verdict(
        months >= MONTHS_AHEAD,
        f"Partitions exist for {months} months ahead."
        if months >= 0
        else "There is no partition for this month.",
        _Severity.WARN if months >= 1 else _Severity.ERROR,
        {"months_ahead": months},
    )


# --- the list ---


@dataclass(frozen=True)
class _Check:
    """One check of every close table it applies to.

    Attributes:
        query: what a person runs to see the offenders of now; {label}, {table} and {timeframe}
            stand for those of the table.
        skips: the timeframes it has nothing to say about.
    """

    name: str
    judge: Callable[[_Look], _Verdict]
    description: str
    query: str
    blocking: bool = False
    skips: tuple[Timeframe, ...] = ()


_CHECKS = (
    _Check(
        NEWEST_LABEL_YOUNG,
        _newest_label_young,
        "The newest close in the table is young enough: a minute at most two polling cadences old "
        "(10 minutes, if polls are closer), a rollup that of the open or the last closed bucket.",
        "SELECT max({label}) FROM {table};",
    ),
    _Check(
        COVERAGE,
        _coverage,
        f"In the last closed bucket at least {COVERAGE_WANTED:.0%} of the coins of the mode have a "
        f"close; less than {COVERAGE_NEEDED:.0%} is an error. Of minutes, in the last two polling "
        "cadences.",
        "SELECT * FROM coverage WHERE timeframe = '{timeframe}' ORDER BY window_start DESC;",
    ),
    _Check(
        LABELS_ALIGNED,
        _labels_aligned,
        "Every label is the start of its bucket in UTC, and every close was observed inside it.",
        "SELECT * FROM misaligned_closes('{timeframe}');",
        blocking=True,
    ),
    _Check(
        PARENT_AGREES_WITH_CHILDREN,
        _parent_agrees,
        "While its children are stored, a close equals the last of them or is newer, and its "
        "evidence holds each of them. A warning if a roll-up is late; an error, which stops what "
        "is downstream, if it was done.",
        "SELECT * FROM parents_behind('{timeframe}', now() - interval '2 months', "
        "bucket_start('{timeframe}', now()));",
        blocking=True,
        skips=(MINUTE,),
    ),
    _Check(
        NOTHING_DOMINATED_LEFT,
        _nothing_dominated_left,
        "No close is kept half an hour past its retention, once its rollups carry it. Those that "
        "they do not carry yet stay, and are counted as blocked.",
        "SELECT * FROM overdue_closes('{timeframe}');\nSELECT * FROM retention_blocked();",
        skips=(MONTHLY,),
    ),
    _Check(
        DELETIONS_AUDITED,
        _deletions_audited,
        "Of no bucket were more closes deleted than the evidence of its rollup accounts for.",
        "SELECT * FROM retention_audit_failures() WHERE table_name = '{table}';",
        # No wider evidence counts weeks, and months stay.
        skips=(WEEKLY, MONTHLY),
    ),
    _Check(
        PARTITION_RUNWAY,
        _partition_runway,
        f"Partitions exist for at least {MONTHS_AHEAD} months ahead.",
        "SELECT * FROM close_partitions('{table}') ORDER BY upper_bound DESC;",
    ),
    _Check(
        PRICE_JUMP,
        _price_jump,
        "No closed bucket is more than ten times away from what is usual: neither the newest from "
        "the median of those before it, nor any from both its neighbours.",
        "SELECT * FROM price_jumps('{timeframe}');",
    ),
    _Check(
        STALE_PROVIDER_TIMES,
        _stale_provider_times,
        f"At most {STALE_SHARE:.0%} of the coins of the newest label had a price that was over an "
        "hour old when it was observed, by the provider's own time.",
        "SELECT * FROM stale_provider_times('{timeframe}');",
    ),
)


def close_checks() -> list[dg.AssetChecksDefinition]:
    """All checks of the five close tables, one step for each table."""
    return [_checks_of(timeframe) for timeframe in TIMEFRAMES]


def _checks_of(timeframe: Timeframe) -> dg.AssetChecksDefinition:
    key = dg.AssetKey(timeframe.table)
    applying = {check.name: check for check in _CHECKS if timeframe not in check.skips}

    @dg.multi_asset_check(
        name=f"{timeframe.table}_checks",
        specs=[
            dg.AssetCheckSpec(
                check.name,
                asset=key,
                description=with_query(check.description, _query(check, timeframe)),
                blocking=check.blocking,
            )
            for check in applying.values()
        ],
        can_subset=True,
    )
    def checks(
        context: dg.AssetCheckExecutionContext, platform: dg.ResourceParam[Platform]
    ) -> Iterator[dg.AssetCheckResult]:
        asked = {each.name for each in context.selected_asset_check_keys}
        with platform.connect() as connection:
            look = _Look(
                connection, timeframe, platform.clock(), _materialized(context, platform, timeframe)
            )
            for name, check in applying.items():
                if name in asked:
                    yield _result(key, name, check.judge(look))

    return checks


def _query(check: _Check, timeframe: Timeframe) -> str:
    return check.query.format(
        label=timeframe.label, table=timeframe.table, timeframe=timeframe.name
    )


def _materialized(
    context: dg.AssetCheckExecutionContext, platform: Platform, timeframe: Timeframe
) -> dg.TimeWindow | None:
    """The windows of the partitions that this run is for."""
    if not (context.has_partition_key or context.has_partition_key_range):
        return None
    keys = context.partition_key_range
    partitions = partitions_of(timeframe, platform.settings.history_start)
    return dg.TimeWindow(
        partitions.time_window_for_partition_key(keys.start).start,
        partitions.time_window_for_partition_key(keys.end).end,
    )


def _result(key: dg.AssetKey, name: str, verdict: _Verdict) -> dg.AssetCheckResult:
    metadata = dict(verdict.figures)
    if verdict.found is not None:
        metadata["query"] = dg.MetadataValue.md(f"```sql\n{verdict.found.query}\n```")
        if not verdict.passed and verdict.found.first:
            metadata["first"] = _table(verdict.found)
    return dg.AssetCheckResult(
        asset_key=key,
        check_name=name,
        passed=verdict.passed,
        severity=verdict.severity,
        description=verdict.says,
        metadata=metadata,
    )


def _table(found: Found) -> dg.TableMetadataValue:
    return dg.MetadataValue.table(
        [
            dg.TableRecord(
                {name: _cell(value) for name, value in zip(found.columns, row, strict=True)}
            )
            for row in found.first[:_SHOWN]
        ],
        schema=dg.TableSchema(columns=[dg.TableColumn(name, "string") for name in found.columns]),
    )


def _cell(value: Any) -> str:
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S.%f}".rstrip("0").rstrip(".") + " UTC"
    if isinstance(value, Decimal):
        return f"{value:f}"
    return "" if value is None else str(value)


def _at(instant: datetime) -> str:
    return f"{instant:%Y-%m-%d %H:%M} UTC"


def _last_closed(timeframe: Timeframe, now: datetime) -> datetime:
    """The label of the newest bucket that had ended at `now`."""
    return bucket_start(timeframe, bucket_start(timeframe, now) - timedelta(microseconds=1))
