"""The table of results."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass


@dataclass(frozen=True)
class Row:
    """One figure: what was measured, what came out, what it must reach, and what stands behind."""

    what: str
    result: str
    target: str
    behind: str


def render(rows: Iterable[Row]) -> str:
    """The rows as a Markdown table."""
    lines = ["| what | measured | must reach | behind it |", "| --- | --- | --- | --- |"]
    lines += ["| " + " | ".join(astuple(row)) + " |" for row in rows]
    return "\n".join(lines)
