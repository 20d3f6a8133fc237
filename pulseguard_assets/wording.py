"""Text that is fit for a line of a screen, whoever wrote it.

Belongs here: its length, and what a terminal would obey. Does not: what is said.
"""

from __future__ import annotations


def shortened(text: str, limit: int) -> str:
    """`text` in one line of at most `limit` characters, without any that a terminal would obey."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return cut(line, limit)


def cut(text: str, limit: int) -> str:
    """At most `limit` characters of `text`; an ellipsis for those that are left out."""
    return text if len(text) <= limit else f"{text[: limit - 1].rstrip()}…"
