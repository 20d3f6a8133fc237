"""Does a version in requirements.lock have a known vulnerability? Asks the OSV database.

Exit code 1 and a line for each if so. Where the database cannot be reached, as on a machine without
internet, it says that nothing was asked, and exits with 0: the tests do not depend on others. What
is to hold offline is held by `pip check` and `tests/unit/test_dependencies.py`.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import httpx

LOCK = Path(__file__).parents[1] / "requirements.lock"
DATABASE = os.environ.get("ADVISORIES_URL", "https://api.osv.dev")
# In all. A server that answers a byte at a time is as good as none.
PATIENCE_SECONDS = int(os.environ.get("ADVISORIES_PATIENCE", "30"))


class NotAsked(Exception):  # noqa: N818 - reads as what it says
    """The database gave no answer; the message says why."""


def locked() -> list[tuple[str, str]]:
    """Name and version of every package in the lock, for whatever Python it is."""
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^ ;\n]+)", LOCK.read_text("utf-8"), re.MULTILINE)
    return sorted(set(found))


def advisories(packages: list[tuple[str, str]]) -> dict[tuple[str, str], list[str]]:
    """By package: the ids of what is known about that version. Those without are left out.

    Raises:
        NotAsked: nobody answered, not in time, or not what was asked for.
    """
    queries = [
        {"package": {"ecosystem": "PyPI", "name": name}, "version": version}
        for name, version in packages
    ]
    try:
        answer = httpx.post(f"{DATABASE}/v1/querybatch", json={"queries": queries}, timeout=10)
        answer.raise_for_status()
        results: list[dict[str, Any]] = answer.json()["results"]
        known = [[each["id"] for each in result.get("vulns", [])] for result in results]
    except (httpx.HTTPError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise NotAsked(f"{type(error).__name__}: {error}") from error
    if len(known) != len(packages):
        raise NotAsked(f"{len(packages)} packages were asked for, {len(known)} answered")
    return {package: ids for package, ids in zip(packages, known, strict=True) if ids}


def _give_up(*_: object) -> None:
    raise NotAsked(f"no answer within {PATIENCE_SECONDS} seconds")


def main() -> int:
    """Ask, and say what came of it."""
    packages = locked()
    signal.signal(signal.SIGALRM, _give_up)
    signal.alarm(PATIENCE_SECONDS)
    try:
        found = advisories(packages)
    except NotAsked as why:
        print(f"Known vulnerabilities were NOT asked for: {DATABASE} cannot be reached ({why}).")
        return 0
    finally:
        signal.alarm(0)
    for (name, version), ids in found.items():
        print(f"{name} {version}: {', '.join(ids)}")
    print(f"{len(packages)} locked versions, {len(found)} with known vulnerabilities.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
