"""A complaint that is made once, however long its cause lasts.

Belongs here: when something is said. Does not: what.
"""

from __future__ import annotations

from collections.abc import Callable

Say = Callable[[str], None]


class Complaint:
    """Says when something begins and when it ends, and nothing in between.

    Args:
        say: takes a sentence without any secret.
        over: what is said when it ends.
    """

    def __init__(self, say: Say, *, over: str) -> None:
        self._say = say
        self._over = over
        self._lasts = False

    def lasts(self, sentence: str) -> None:
        """It does; `sentence` says how."""
        if not self._lasts:
            self._say(sentence)
        self._lasts = True

    def ends(self) -> None:
        """It does not."""
        if self._lasts:
            self._say(self._over)
        self._lasts = False
