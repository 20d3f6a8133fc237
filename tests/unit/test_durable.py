"""What is on the disk when a file has been written, or a folder been given its name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pulseguard_assets.durable import rename_durably, write_durably


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """Each sync so far: of which name, and what its folder then held."""
    done = []

    def fsync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        folder = path if path.is_dir() else path.parent
        done.append((path.name, sorted(os.listdir(folder))))

    monkeypatch.setattr("os.fsync", fsync)
    return done


def test_a_file_is_written_aside_synced_renamed_and_its_name_synced(
    tmp_path: Path, synced: list[tuple[str, list[str]]]
) -> None:
    file = tmp_path / "purpose"
    file.write_text("old")
    write_durably(file, "new")
    assert file.read_text() == "new"
    assert synced == [
        ("purpose.new", ["purpose", "purpose.new"]),
        (tmp_path.name, ["purpose"]),
    ]


def test_a_folder_gets_its_name_with_what_was_written_in_it(
    tmp_path: Path, synced: list[tuple[str, list[str]]]
) -> None:
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    (fresh / "conf").write_text("x")
    rename_durably(fresh, tmp_path / "there", content=fresh / "conf")
    assert synced == [("conf", ["conf"]), (tmp_path.name, ["there"])]
