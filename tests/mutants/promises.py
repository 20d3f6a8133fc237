"""The promises of the README, read from there, so that what users are told is what is proven.

Belongs here: reading them. Does not: breaking them (`catalogue.py`, `run.py`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# | **Words.** The rest of it. | [a test in words](its/file.py), [another](its/file.py) |
_ROW = re.compile(r"^\| \*\*(?P<words>[^*]+)\.\*\* .+ \| (?P<tests>.+) \|$", re.MULTILINE)
_TEST = re.compile(r"\[([a-z0-9 ]+)\]\((tests/\w+(?:/\w+)*\.py)\)")


@dataclass(frozen=True)
class Promise:
    """What users may rely on.

    Attributes:
        words: those it begins with, by which mutants name it.
        tests: those that turn red when it is broken, as pytest names them.
    """

    words: str
    tests: tuple[str, ...]


def promises_in(readme: str) -> tuple[Promise, ...]:
    """The promises in the text of the README, in their order."""
    return tuple(
        Promise(
            row["words"],
            tuple(
                f"{file}::test_{name.replace(' ', '_')}"
                for name, file in _TEST.findall(row["tests"])
            ),
        )
        for row in _ROW.finditer(readme)
    )
