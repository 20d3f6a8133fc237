"""The error that keeps the code server from starting, as its log holds it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pulseguard_assets.running.load_error import load_error
from pulseguard_assets.running.logs import ChildLog

IMPORTS_WHAT_IS_NOT_THERE = "import dagster\n\nimport pandaz\n"
HAS_ITS_SETTINGS_WRONG = (
    "from pulseguard_assets.settings import load_settings\nload_settings(plan='prou', mode='x')\n"
)


def started(log: ChildLog, *lines: str) -> None:
    """As the supervisor and the child write it."""
    log.note("started as process 17")
    log.write("".join(f"{line}\n" for line in lines).encode())


def traceback(error: str, *, file: str = "/somewhere/prices.py") -> list[str]:
    return [
        "Traceback (most recent call last):",
        '  File "/usr/lib/python3.11/importlib/__init__.py", line 126, in import_module',
        "    return _bootstrap._gcd_import(name[level:], package, level)",
        f'  File "{file}", line 6, in <module>',
        "    import pandaz",
        error,
    ]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[ChildLog]:
    log = ChildLog(tmp_path, "code-server")
    yield log
    log.close()


def test_what_dagster_prints_is_told_in_the_words_of_the_error_itself(
    log: ChildLog, tmp_path: Path
) -> None:
    (tmp_path / "broken_code.py").write_text(IMPORTS_WHAT_IS_NOT_THERE)
    started(log)
    log.write(_what_the_code_server_prints(tmp_path))
    log.note("code-server ended by itself with exit code 1; starting it again in 1 s")
    log.note("started as process 18")

    assert (
        load_error(log.path)
        == "ModuleNotFoundError: No module named 'pandaz' (broken_code.py, line 3)"
    )


def test_all_that_is_wrong_with_the_settings_is_told_in_one_line(
    log: ChildLog, tmp_path: Path
) -> None:
    (tmp_path / "broken_code.py").write_text(HAS_ITS_SETTINGS_WRONG)
    started(log)
    log.write(_what_the_code_server_prints(tmp_path))

    told = load_error(log.path)

    assert told is not None
    assert told.startswith(
        "SettingsError: PulseGuard cannot start with these settings: PULSEGUARD_PLAN: 'prou' is no "
        "plan"
    )
    assert "\n" not in told
    assert len(told) <= 300


def _what_the_code_server_prints(folder: Path) -> bytes:
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "dagster", "api", "grpc", "--socket", str(folder / "socket")),
            *("--module-name", "broken_code", "--empty-working-directory"),
        ],
        env={"PYTHONPATH": str(folder), "DAGSTER_HOME": str(folder)},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    assert ended.returncode == 1, ended.stdout
    return ended.stdout


def test_without_an_error_nothing_is_told(log: ChildLog, tmp_path: Path) -> None:
    assert load_error(tmp_path / "never-written.log") is None
    started(log, "Starting Dagster code server")
    assert load_error(log.path) is None


def test_what_was_said_before_the_last_two_starts_is_past(log: ChildLog) -> None:
    started(log, *traceback("ValueError: long ago"))
    started(log, "all is well")
    assert load_error(log.path) == "ValueError: long ago (prices.py, line 6)"
    assert load_error(log.path, starts=1) is None
    started(log, "all is well")
    assert load_error(log.path) is None


def test_the_newest_error_is_told(log: ChildLog) -> None:
    started(log, *traceback("ValueError: mended"))
    started(log, *traceback("TypeError: broken anew."))
    assert load_error(log.path) == "TypeError: broken anew (prices.py, line 6)"


def test_an_error_that_came_while_another_was_handled_is_told_and_not_that_other(
    log: ChildLog,
) -> None:
    started(
        log,
        *traceback("KeyError: 'looked for in vain, which is no trouble'"),
        "",
        "During handling of the above exception, another exception occurred:",
        "",
        *traceback("psycopg.OperationalError: connection refused"),
        "",
        "The above exception was the direct cause of the following exception:",
        "",
        *traceback("dagster._core.errors.DagsterUserCodeLoadError: Error occurred during"),
    )
    assert load_error(log.path) == "OperationalError: connection refused (prices.py, line 6)"


def test_code_of_others_is_no_place_to_look(log: ChildLog) -> None:
    started(log, *traceback("ValueError: no", file="/v/site-packages/polars/frame.py"))
    assert load_error(log.path) == "ValueError: no"


def test_a_log_of_any_size_is_read_from_its_end(log: ChildLog) -> None:
    started(log, *["x" * 1_000] * 400, *traceback("ValueError: at the end"))
    assert load_error(log.path) == "ValueError: at the end (prices.py, line 6)"
