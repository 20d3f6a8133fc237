"""Which database the settings come to, for whoever runs beside the platform or in it.

Belongs here: choosing between the one that is named and the embedded one that runs. Does not:
starting a server (`embedded.py`), nor connecting (`connection.py`).
"""

from __future__ import annotations

from pulseguard_assets.settings import Settings
from pulseguard_assets.warehouse.connection import DatabaseUnavailable
from pulseguard_assets.warehouse.embedded import running_dsn


def dsn_at_hand(settings: Settings) -> str | None:
    """The URL of the database in use; None when it is an embedded one that does not run."""
    if settings.database_url is not None:
        return settings.database_url.get_secret_value()
    return running_dsn(settings.data_dir)


def dsn_in_use(settings: Settings) -> str:
    """The URL of the database in use.

    Raises:
        DatabaseUnavailable: none is named, and none runs in the data folder.
    """
    dsn = dsn_at_hand(settings)
    if dsn is None:
        raise DatabaseUnavailable(
            f"No database is named, and none runs in {settings.data_dir}. Start the platform with "
            "`pulseguard up`, which brings its own, or set PULSEGUARD_DATABASE_URL (or "
            "PULSEGUARD_DATA_DIR, if it runs in another folder)."
        )
    return dsn
