"""Where the files that are not Python lie: `sql`, `workspace.yaml`, `dagster.yaml`.

Belongs here: finding them. Does not: reading or interpreting them.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
# The package first: beside an installed wheel lies `site-packages`, where a folder called `sql`
# could belong to anybody.
_PLACES = (_PACKAGE / "shipped", _PACKAGE.parent)


def shipped(name: str) -> Path:
    """Return the path of a file or folder that travels with PulseGuard.

    Args:
        name: `sql`, `workspace.yaml` or `dagster.yaml`.

    Raises:
        FileNotFoundError: the installation is incomplete.
    """
    for place in _PLACES:
        if (place / name).exists():
            return place / name
    raise FileNotFoundError(
        f"{name} is missing from this installation of PulseGuard (looked in "
        f"{' and '.join(map(str, _PLACES))}). Install it again, or run it from a whole checkout."
    )
