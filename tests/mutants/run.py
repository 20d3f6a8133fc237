"""Break one rule at a time, and see that the tests turn red.

    python tests/mutants/run.py                 all mutants; a table; exit code 1 if one survives
    python tests/mutants/run.py --list          their names
    python tests/mutants/run.py --only "NaN"    those whose name contains a text
    python tests/mutants/run.py --jobs 2        two at a time

Each mutant lives in a copy of the checkout of its own. Before them the tests named as killers are
run once on an unbroken copy: a test that fails there would kill every mutant. A mutant is killed
by a test that FAILED; a copy in which no test could even begin proves nothing; it is called broken.

Belongs here: copying, breaking, running, telling. Does not: the mutants (`catalogue.py`).
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from catalogue import MUTANTS, Mutant

CHECKOUT = Path(__file__).resolve().parents[2]
COPIED = (
    *("pulseguard_assets", "sql", "tests"),
    *("docs", "pyproject.toml", "README.md", "workspace.yaml", "dagster.yaml"),
)
# What kills one that its own tests let live: all that knows of the rules.
EVERYTHING = ("tests/database", "tests/properties", "tests/collecting")
PATIENCE = 900


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant: `killed`, `SURVIVED` or `BROKEN`, and by which test."""

    mutant: Mutant
    outcome: str
    by: str
    seconds: float


@contextmanager
def copied() -> Iterator[Path]:
    """A copy of the checkout that may be broken."""
    with tempfile.TemporaryDirectory(prefix="pulseguard-mutant-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        for part in COPIED:
            source = CHECKOUT / part
            if source.is_dir():
                shutil.copytree(
                    source,
                    folder / part,
                    ignore=shutil.ignore_patterns("__pycache__", ".hypothesis", "artefacts"),
                )
            else:
                shutil.copy2(source, folder / part)
        yield folder


def break_rule(mutant: Mutant, folder: Path) -> None:
    """Replace the text.

    Raises:
        ValueError: it is not in the file exactly once, so the catalogue is out of date.
    """
    path = folder / mutant.file
    text = path.read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        raise ValueError(
            f"{mutant.name}: the text to break is {text.count(mutant.old)} times in {mutant.file}, "
            "and not once. The rule was rewritten; rewrite the mutant."
        )
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")


def run_tests(folder: Path, selection: Sequence[str]) -> tuple[int, str]:
    """Run pytest in a copy, up to the first failure; returns its exit code and what it printed."""
    places = (folder, folder / "tests" / "mutants")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, places)),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=line"]
    command += ["-p", "no:cacheprovider", "-p", "no_shrinking"]
    # One PostgreSQL is enough to kill by; the tests of a database would else run on each.
    command += ["-k", "not debian", "-m", "not soak", *selection]
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return -1, f"no end after {PATIENCE} s"
    return done.returncode, done.stdout + done.stderr


def check_copy(folder: Path) -> None:
    """Make sure that a copy tests itself, and not the package that is installed."""
    shown = subprocess.run(
        [sys.executable, "-c", "import pulseguard_assets as p; print(p.__file__)"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    if not shown.startswith(str(folder)):
        raise RuntimeError(f"the copy in {folder} would test {shown}")


def judge(mutant: Mutant) -> Verdict:
    """Break a copy, and look for a test that sees it."""
    begun = time.monotonic()

    def verdict(outcome: str, by: str) -> Verdict:
        return Verdict(mutant, outcome, by, time.monotonic() - begun)

    with copied() as folder:
        break_rule(mutant, folder)
        for selection in (mutant.killers, EVERYTHING):
            code, printed = run_tests(folder, selection)
            failed = re.search(r"^FAILED (.+?)(?: - .*)?$", printed, re.MULTILINE)
            if code == 1 and failed is not None:
                return verdict("killed", failed[1].removeprefix("tests/"))
            if code != 0:
                return verdict("BROKEN", printed.strip().rpartition("\n")[2])
    return verdict("SURVIVED", "")


def check_unbroken(mutants: Sequence[Mutant]) -> None:
    """Run every killer on an unbroken copy.

    Raises:
        RuntimeError: one of them fails by itself.
    """
    killers = sorted({test for mutant in mutants for test in mutant.killers})
    with copied() as folder:
        check_copy(folder)
        code, printed = run_tests(folder, killers)
    if code != 0:
        raise RuntimeError(f"The tests fail without any mutant:\n{printed[-3000:]}")


def table(verdicts: Sequence[Verdict]) -> str:
    """The verdicts as a table of Markdown."""
    lines = ["| mutant | rule that it breaks | outcome | by | s |", "| --- " * 5 + "|"]
    lines += [
        f"| {v.mutant.name} | {v.mutant.rule} | {v.outcome} | {v.by} | {v.seconds:.0f} |"
        for v in verdicts
    ]
    killed = sum(v.outcome == "killed" for v in verdicts)
    return "\n".join([*lines, "", f"{killed} of {len(verdicts)} killed."])


def main() -> int:
    parser = argparse.ArgumentParser(description="Break one rule at a time and run the tests.")
    parser.add_argument("--list", action="store_true", help="name the mutants and stop")
    parser.add_argument("--only", default="", help="mutants whose name contains this")
    parser.add_argument("--jobs", type=int, default=1, help="how many at a time")
    parser.add_argument("--trust", action="store_true", help="do not run the tests unbroken first")
    arguments = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if arguments.only in mutant.name]
    if arguments.list:
        sys.stdout.write("".join(f"{m.name}: {m.rule}\n" for m in chosen))
        return 0
    for mutant in chosen:
        # All of them before the first minute is spent.
        if (CHECKOUT / mutant.file).read_text(encoding="utf-8").count(mutant.old) != 1:
            parser.error(f"{mutant.name}: its text is not exactly once in {mutant.file}")
    if not arguments.trust:
        check_unbroken(chosen)
    verdicts = []
    with ThreadPoolExecutor(arguments.jobs) as workers:
        for verdict in workers.map(judge, chosen):
            verdicts.append(verdict)
            sys.stderr.write(f"{verdict.outcome} {verdict.mutant.name}: {verdict.by}\n")
    sys.stdout.write(table(verdicts) + "\n")
    return 0 if all(v.outcome == "killed" for v in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
