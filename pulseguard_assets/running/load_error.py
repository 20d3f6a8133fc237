"""Why the code server does not start, in the words of the error itself.

Belongs here: reading the end of its log, which `up` keeps. Does not: what follows from it
(`children.py`, `alerts/lookout.py`), nor writing the log (`running/logs.py`).

Python prints a chain of errors from the first to the last, and Dagster puts its own at the end:
"Error occurred during the loading of Dagster definitions in executable_path=...". What somebody
has to mend is in the first one of the chain.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pulseguard_assets.wording import shortened

# A traceback of Dagster's has 10 KB; a start says hardly anything else.
_READ = 256 * 1024
_LONGEST = 300

# Notes of the supervisor among the lines of its child.
_NOTE = "[pulseguard] "
_STARTED = f"{_NOTE}started as process"

_TRACEBACK = "Traceback (most recent call last):"
_CAUSE = "The above exception was the direct cause of the following exception:"
_MEANWHILE = "During handling of the above exception, another exception occurred:"
_PLACE = re.compile(r'  File "(?P<file>[^"]+)", line (?P<line>\d+)')


def load_error(log: Path, *, starts: int = 2) -> str | None:
    """The error that ended the newest start that was ended by one, in a line.

    Args:
        log: `code-server.log`.
        starts: how many of the newest starts are looked at. Of the newest there may be no word yet.

    Returns:
        Such as `ModuleNotFoundError: No module named 'pandaz' (prices.py, line 6)`; None where none
        of these starts has left a traceback.
    """
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _READ))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return None
    for start in reversed(_starts(text.splitlines())[-starts:]):
        found = _innermost(start)
        if found is not None:
            return found
    return None


def _starts(lines: Sequence[str]) -> list[list[str]]:
    starts: list[list[str]] = [[]]
    for line in lines:
        if line.startswith(_STARTED):
            starts.append([])
        elif not line.startswith(_NOTE):
            starts[-1].append(line)
    return starts


def _innermost(lines: Sequence[str]) -> str | None:
    """The first error of the last chain in these lines."""
    heads = [number for number, line in enumerate(lines) if line == _TRACEBACK]
    if not heads:
        return None
    head = heads.pop()
    # Only causes: what was raised while another error was handled is no consequence of that one.
    while heads and _CAUSE in lines[heads[-1] : head]:
        head = heads.pop()
    return _error_of(lines[head + 1 :])


def _error_of(lines: Sequence[str]) -> str:
    place, said = "", list[str]()
    for line in lines:
        if line in (_CAUSE, _MEANWHILE, _TRACEBACK):
            break
        if said or not line.startswith(" "):
            said.append(line)
        elif found := _PLACE.match(line):
            place = _in_words(found["file"], found["line"])
    sentence = _without_modules(" ".join(said))
    return shortened(sentence, _LONGEST - len(place)).rstrip(".") + place


def _in_words(file: str, line: str) -> str:
    """Where to look, unless that is in code of somebody else's."""
    foreign = file.startswith("<") or "site-packages" in file
    return "" if foreign else f" ({Path(file).name}, line {line})"


def _without_modules(sentence: str) -> str:
    """`SettingsError: ...` of `pulseguard_assets.settings.SettingsError: ...`."""
    name, colon, rest = sentence.partition(":")
    return f"{name.rpartition('.')[2]}{colon}{rest}" if re.fullmatch(r"[\w.]+", name) else sentence
