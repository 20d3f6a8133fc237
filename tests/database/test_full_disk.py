"""The embedded server on a disk that is full, its journal included."""

from __future__ import annotations

from pathlib import Path

import pytest
from full_disk_support import full, make_said, said, small_disk, write_until_it_ends

from pulseguard_assets.warehouse.connection import connect
from pulseguard_assets.warehouse.embedded import EmbeddedPostgres, EmbeddedPostgresError


def test_a_journal_without_room_ends_the_server_with_a_sentence_and_loses_nothing(
    folder: Path,
) -> None:
    with small_disk(folder / "small", 256) as disk:
        server = EmbeddedPostgres(disk, settings={"fsync": "off"})
        try:
            with connect(server.start()) as connection:
                make_said(connection)
                with full(disk):
                    acknowledged = write_until_it_ends(connection)
                    assert server.wait(60), "it does not go on without a journal"
                    for _ in range(2):
                        with pytest.raises(EmbeddedPostgresError, match="is full: make room on it"):
                            server.start()
            with connect(server.start()) as connection:
                assert said(connection) == acknowledged
        finally:
            server.stop()

    assert len(acknowledged) > 1
