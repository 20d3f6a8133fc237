"""`make bench`: run all benchmarks and print their table.

python -m benchmarks [--minutes 3] [--write docs/performance.md]
"""

from __future__ import annotations

import argparse
import platform as machine
from datetime import datetime, timezone
from pathlib import Path

from benchmarks import backfilling, parsing, platform, rolling_up, storing, waking
from benchmarks.report import Row, render

_BEGIN, _END = "<!-- measured: begin -->", "<!-- measured: end -->"


def main() -> None:
    """Measure, print, and write if asked to."""
    options = _options()
    rows: list[Row] = []
    for result in storing.measure():
        rows += _storing(result)
    rows += _rolling_up(*rolling_up.measure())
    rows += _backfilling(backfilling.measure())
    rows.append(Row("parsing 1,000 coins", f"{parsing.measure():.1f} ms", "below 10 ms", ""))
    rows += _running(platform.measure(options.minutes))
    rows.append(_waking(*waking.measure()))
    text = render(rows)
    print(text)
    if options.write:
        _write(Path(options.write), text)


def _storing(seen: storing.Storing) -> list[Row]:
    return [
        Row(
            f"one minute of {seen.coins:,} coins: rows a second by the seed's row trigger",
            f"{seen.seed_to_put:.1f} times",
            "at least 5 times",
            f"{seen.seed_ms:.0f} ms to {seen.put_ms:.1f} ms; "
            f"{seen.seed_trigger_to_put:.1f} times with our keys, indexes and storage given to it",
        ),
        Row(
            f"one minute of {seen.coins:,} coins: time by a bare COPY without rollup",
            f"{seen.put_to_copy:.2f} times",
            "at most 1.8 times; 1.36 to beat TimescaleDB",
            f"{seen.put_ms:.1f} ms to {seen.copy_ms:.1f} ms",
        ),
    ]


def _rolling_up(rolled: rolling_up.RollingUp, cleaned: rolling_up.Cleaning) -> list[Row]:
    return [
        Row(
            f"a day of {rolled.coins:,} coins rolled up: time by a plain DISTINCT ON",
            f"{rolled.roll_up_ratio:.2f} times",
            "at most 2 times",
            f"{rolled.roll_up_ms:.0f} ms to {rolled.distinct_on_ms:.0f} ms; again "
            f"{rolled.again_ratio:.2f} times, {rolled.again_written} rows written",
        ),
        Row(
            f"{cleaned.rows:,} minutes cleaned up with proof: time by a plain DELETE",
            f"{cleaned.ratio:.2f} times",
            "at most 1.5 times",
            f"{cleaned.cleanup_ms:.0f} ms to {cleaned.delete_ms:.0f} ms",
        ),
    ]


def _backfilling(seen: backfilling.Backfilling) -> list[Row]:
    return [
        Row(
            f"{seen.coins:,} coins x {seen.days} days from history: calls",
            f"{seen.calls:,}",
            f"{seen.coins:,}, one a coin",
            f"{seen.stored:,} closes stored in {seen.seconds:.0f} s",
        ),
        Row(
            "the same: fastest minute by the calls allowed in one",
            f"{seen.share_of_rate * 100:.0f} %",
            "at least 95 %",
            f"{seen.rate} of {seen.rate_allowed}; memory grew by "
            f"{seen.growth_bytes / 1e6:.0f} MB at most",
        ),
        Row(
            "a run's own work for an hour of 1,000 coins",
            f"{seen.hour_ms:.0f} ms",
            "below 500 ms",
            "roll-up, evidence and figures, without Dagster's process start",
        ),
    ]


def _running(seen: platform.Running) -> list[Row]:
    daily = seen.bytes_per_poll * 1440 / 1e6
    return [
        Row(
            "due tick to recorded event, 1,000 coins",
            f"{seen.tick_ms:.0f} ms",
            "median below 300 ms",
            f"of which the poll itself {seen.collect_ms:.0f} ms; {seen.polls} polls; an empty "
            f"sensor beside it {seen.bare_tick_ms:.0f} ms",
        ),
        Row(
            "Dagster rows per poll",
            "1 event",
            "1 event",
            f"{seen.bytes_per_poll:.0f} bytes an event row with its indexes, {daily:.1f} MB a day; "
            f"{seen.bytes_per_tick:.0f} bytes a tick",
        ),
        Row(
            "memory of all processes at rest (PSS)",
            f"{seen.memory_bytes / 1e6:.0f} MB",
            "below 1,000 MB",
            "",
        ),
        Row(
            "processor of all processes at rest",
            f"{seen.cpu_share * 100:.1f} % of a core",
            "below 15 %",
            f"over {seen.minutes:g} minutes, polling every minute, simulator included; Dagster and "
            f"PostgreSQL with one empty sensor beside it {seen.bare_cpu_share * 100:.1f} %",
        ),
    ]


def _waking(after_sleep_us: float, at_once_us: float) -> Row:
    return Row(
        "of the machine: a thread wakes up after 0.1 s and adds 300 numbers",
        f"{after_sleep_us:.0f} µs",
        "",
        f"of processor time; without having slept {at_once_us:.0f} µs",
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--minutes", type=float, default=3, help="how long the platform runs")
    parser.add_argument("--write", help="put the table into this file, between its marks")
    return parser.parse_args()


def _write(path: Path, table: str) -> None:
    text = path.read_text()
    head, rest = text.split(_BEGIN)
    _, tail = rest.split(_END)
    made = f"{datetime.now(timezone.utc):%Y-%m-%d}, Python {machine.python_version()}"
    path.write_text(f"{head}{_BEGIN}\n{table}\n\nMeasured {made}.\n{_END}{tail}")


if __name__ == "__main__":
    main()
