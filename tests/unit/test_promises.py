"""The promises of the README are held to the code: each has tests that exist, and mutants."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from catalogue import MUTANTS, Mutant
from promises import Promise, promises_in

CHECKOUT = Path(__file__).resolve().parents[2]
COLLECT = (sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider")
PROMISES = promises_in((CHECKOUT / "README.md").read_text(encoding="utf-8"))


def defined_again(mutant: Mutant) -> list[str]:
    """Later migrations that replace the function in question: broken here, nothing would be."""
    path = CHECKOUT / mutant.file
    before = path.read_text(encoding="utf-8").partition(mutant.old)[0]
    *_, latest = [
        None,
        *re.finditer(r"^CREATE (?:OR REPLACE )?FUNCTION (\w+)\(", before, re.MULTILINE),
    ]
    if path.parent.name != "sql" or latest is None or "$$;" in before[latest.start() :]:
        return []
    again = re.compile(rf"^CREATE (?:OR REPLACE )?FUNCTION {latest[1]}\(", re.MULTILINE)
    return [
        later.name
        for later in sorted(path.parent.glob("*.sql"))
        if later.name > path.name and again.search(later.read_text(encoding="utf-8"))
    ]


def words(promise: Promise) -> str:
    return promise.words


def test_the_promises_are_read_as_they_are_written() -> None:
    readme = (
        "| promise | tests |\n| --- | --- |\n"
        "| **No lie.** It is true. | [a lie is red](tests/unit/test_a.py), "
        "[two lies](tests/test_b.py) |\n"
    )
    assert promises_in(readme) == (
        Promise(
            "No lie", ("tests/unit/test_a.py::test_a_lie_is_red", "tests/test_b.py::test_two_lies")
        ),
    )
    section = (CHECKOUT / "README.md").read_text("utf-8").partition("## Promises")[2]
    rows = section.partition("\n## ")[0].count("\n| **")
    assert len(PROMISES) == rows > 20
    assert set(Counter(map(words, PROMISES)).values()) == {1}


def test_every_test_that_is_named_is_collected() -> None:
    """Also those of the mutants; those that are long, or gone, would not be."""
    named = {test for promise in PROMISES for test in promise.tests}
    named |= {test for mutant in MUTANTS for test in mutant.killers}
    done = subprocess.run(
        [*COLLECT, *sorted(named)],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    collected = {line.partition("[")[0] for line in done.stdout.splitlines() if "::" in line}
    collected |= {test.partition("::")[0] for test in collected}
    assert named - collected == set()


@pytest.mark.parametrize("promise", PROMISES, ids=words)
def test_a_promise_names_tests_and_is_broken_by_a_mutant(promise: Promise) -> None:
    assert promise.tests
    assert [mutant.name for mutant in MUTANTS if mutant.promise == promise.words] != []


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_breaks_a_promise_where_the_rule_is_written(mutant: Mutant) -> None:
    assert mutant.promise in map(words, PROMISES)
    assert mutant.killers
    assert (CHECKOUT / mutant.file).read_text(encoding="utf-8").count(mutant.old) == 1
    assert defined_again(mutant) == []


def test_mutants_are_told_apart_by_their_names() -> None:
    assert [name for name, n in Counter(m.name for m in MUTANTS).items() if n > 1] == []
