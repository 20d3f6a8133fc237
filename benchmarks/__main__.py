"""`make bench`: run all benchmarks and print their table.

python -m benchmarks [--minutes 3] [--write docs/performance.md]
"""

from __future__ import annotations

import argparse
import platform as machine
from datetime import datetime, timezone
from pathlib import Path

from benchmarks import parsing, platform, storing
from benchmarks.report import Row, render

_BEGIN, _END = "<!-- measured: begin -->", "<!-- measured: end -->"


def main() -> None:
    """Measure, print, and write if asked to."""
    options = _options()
    rows: list[Row] = []
    for result in storing.measure():
        rows += [
            Row(
                f"one minute of {result.coins:,} coins: rows a second by the seed's row trigger",
                f"{result.seed_to_put:.1f} times",
                "at least 5 times",
                f"{result.seed_ms:.0f} ms to {result.put_ms:.0f} ms; "
                f"{result.seed_our_storage_to_put:.1f} times with our fillfactor given to the seed",
            ),
            Row(
                f"one minute of {result.coins:,} coins: time by a bare COPY without rollup",
                f"{result.put_to_copy:.2f} times",
                "at most 1.8 times; 1.36 to beat TimescaleDB",
                f"{result.put_ms:.0f} ms to {result.copy_ms:.0f} ms",
            ),
        ]
    rows.append(Row("parsing 1,000 coins", f"{parsing.measure():.1f} ms", "below 10 ms", ""))
    rows += _running(platform.measure(options.minutes))
    text = render(rows)
    print(text)
    if options.write:
        _write(Path(options.write), text)


def _running(seen: platform.Running) -> list[Row]:
    daily = seen.bytes_per_poll * 1440 / 1e6
    return [
        Row(
            "due tick to recorded event, 1,000 coins",
            f"{seen.tick_ms:.0f} ms",
            "median below 300 ms",
            f"of which the poll itself {seen.collect_ms:.0f} ms; {seen.polls} polls",
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
            f"over {seen.minutes:g} minutes, polling every minute, simulator included",
        ),
    ]


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
