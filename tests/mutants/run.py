"""Break one rule at a time, and see that the tests turn red.

    python tests/mutants/run.py                 all mutants; a table; exit code 1 if one survives
    python tests/mutants/run.py --list          their names
    python tests/mutants/run.py --only "NaN"    those whose name or promise contains a text
    python tests/mutants/run.py --jobs 2        two at a time

Each mutant lives in a copy of the checkout of its own. Before them the tests named as killers are
run once on an unbroken copy: a test that fails there would kill every mutant. A mutant is killed
by a test that FAILED; a copy in which no test could even begin proves nothing; it is called broken.
The tests that the README names for its promise are run first, all of them: one that stays green
whatever is broken of its promise is told, and fails this program as a survivor does.

Belongs here: copying, breaking, running, telling. Does not: the mutants (`catalogue.py`), the
promises (`promises.py`).
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
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from catalogue import MUTANTS, Mutant
from promises import Promise, promises_in

CHECKOUT = Path(__file__).resolve().parents[2]
PROMISES = {
    promise.words: promise
    for promise in promises_in((CHECKOUT / "README.md").read_text(encoding="utf-8"))
}
COPIED = (
    *("pulseguard_assets", "sql", "tests"),
    *("docs", "pyproject.toml", "README.md", "workspace.yaml", "dagster.yaml"),
)
# What kills one that its own tests let live: all that knows of the rules.
EVERYTHING = ("tests/database", "tests/properties", "tests/collecting")
PATIENCE = 900


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant: `killed`, `SURVIVED` or `BROKEN`, and by which tests."""

    mutant: Mutant
    outcome: str
    by: tuple[str, ...]
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


def run_tests(folder: Path, selection: Sequence[str], *options: str) -> tuple[int, str]:
    """Run pytest in a copy; returns its exit code and what it printed."""
    places = (folder, folder / "tests" / "mutants")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, places)),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "--tb=line", *options]
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
    """Break a copy, and look for tests that see it."""
    begun = time.monotonic()

    def verdict(outcome: str, *by: str) -> Verdict:
        return Verdict(mutant, outcome, by, time.monotonic() - begun)

    with copied() as folder:
        break_rule(mutant, folder)
        for selection, options in (
            (PROMISES[mutant.promise].tests, ()),
            (mutant.killers, ("-x",)),
            (EVERYTHING, ("-x",)),
        ):
            code, printed = run_tests(folder, selection, *options)
            failed = re.findall(r"^FAILED (.+?)(?: - .*)?$", printed, re.MULTILINE)
            if code == 1 and failed:
                return verdict("killed", *failed)
            if code != 0:
                return verdict("BROKEN", printed.strip().rpartition("\n")[2])
    return verdict("SURVIVED")


def promised_in_vain(
    promises: Collection[Promise], verdicts: Sequence[Verdict]
) -> list[tuple[Promise, str]]:
    """Tests that a promise names and that stayed green with each of its mutants."""
    found = []
    for promise in promises:
        of_it = [v for v in verdicts if v.mutant.promise == promise.words]
        seen = {test.partition("[")[0] for v in of_it for test in v.by}
        found += [(promise, test) for test in promise.tests if test not in seen]
    return found


def check_unbroken(mutants: Sequence[Mutant]) -> None:
    """Run every killer, and every test of the promises, on an unbroken copy.

    Raises:
        RuntimeError: one of them fails by itself.
    """
    killers = {test for mutant in mutants for test in mutant.killers}
    named = {test for mutant in mutants for test in PROMISES[mutant.promise].tests}
    with copied() as folder:
        check_copy(folder)
        code, printed = run_tests(folder, sorted(killers | named), "-x")
    if code != 0:
        raise RuntimeError(f"The tests fail without any mutant:\n{printed[-3000:]}")


def killers(verdict: Verdict) -> str:
    """The first of the tests that saw it, and how many more did."""
    more = f" and {len(verdict.by) - 1} more" if len(verdict.by) > 1 else ""
    return "".join(verdict.by[:1]).removeprefix("tests/") + more


def table(verdicts: Sequence[Verdict]) -> str:
    """The verdicts as a table of Markdown."""
    lines = ["| mutant | rule that it breaks | outcome | by | s |", "| --- " * 5 + "|"]
    lines += [
        f"| {v.mutant.name} | {v.mutant.rule} | {v.outcome} | {killers(v)} | {v.seconds:.0f} |"
        for v in verdicts
    ]
    killed = sum(v.outcome == "killed" for v in verdicts)
    return "\n".join([*lines, "", f"{killed} of {len(verdicts)} killed."])


def main() -> int:
    parser = argparse.ArgumentParser(description="Break one rule at a time and run the tests.")
    parser.add_argument("--list", action="store_true", help="name the mutants and stop")
    parser.add_argument("--only", default="", help="whose name or promise contains this")
    parser.add_argument("--jobs", type=int, default=1, help="how many at a time")
    parser.add_argument("--trust", action="store_true", help="do not run the tests unbroken first")
    arguments = parser.parse_args()
    chosen = [m for m in MUTANTS if arguments.only in m.name or arguments.only in m.promise]
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
            sys.stderr.write(f"{verdict.outcome} {verdict.mutant.name}: {killers(verdict)}\n")
    sys.stdout.write(table(verdicts) + "\n")
    left_out = {mutant.promise for mutant in MUTANTS if mutant not in chosen}
    judged = [promise for words, promise in PROMISES.items() if words not in left_out]
    in_vain = promised_in_vain(judged, verdicts)
    for promise, test in in_vain:
        sys.stdout.write(f"{promise.words}: {test} stays green with each of its mutants.\n")
    return 1 if in_vain or any(v.outcome != "killed" for v in verdicts) else 0


if __name__ == "__main__":
    sys.exit(main())
