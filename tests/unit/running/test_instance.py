"""The data folder: who may use it, for what, and what is cleared away."""

from __future__ import annotations

import os
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from pulseguard_assets.resources import shipped
from pulseguard_assets.running.instance import (
    REAL,
    SIMULATED,
    AlreadyRunning,
    Folders,
    InstanceError,
    claim,
    forget_old_compute_logs,
    locked,
    prepare,
    running_pid,
)

NOW = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)


def test_a_folder_serves_one_platform_at_a_time_and_says_whose(tmp_path: Path) -> None:
    folders = Folders(tmp_path / "new" / "data")
    assert running_pid(folders) is None
    with locked(folders):
        assert running_pid(folders) == os.getpid()
        refusal = rf"process {os.getpid()}\).*PULSEGUARD_DATA_DIR"
        with pytest.raises(AlreadyRunning, match=refusal), locked(folders):
            pass
    assert running_pid(folders) is None
    with locked(folders):
        pass


def test_a_folder_whose_owner_died_says_that_its_processes_are_still_stopping(
    tmp_path: Path,
) -> None:
    folders = Folders(tmp_path)
    with locked(folders):
        # No process has the number after the largest one.
        folders.lock.write_text("4194305\n")
        assert running_pid(folders) is None
        with pytest.raises(AlreadyRunning, match="Try again in a few seconds"), locked(folders):
            pass


def test_a_folder_that_cannot_be_made_is_refused_with_the_setting_to_change(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").touch()
    impossible = Folders(tmp_path / "file" / "data")
    with pytest.raises(InstanceError, match="PULSEGUARD_DATA_DIR"), locked(impossible):
        pass


@pytest.mark.parametrize(("first", "second"), [(REAL, SIMULATED), (SIMULATED, REAL)])
def test_a_folder_is_for_real_or_for_simulated_prices(
    tmp_path: Path, first: str, second: str
) -> None:
    folders = Folders(tmp_path)
    claim(folders, first)
    claim(folders, first)
    with pytest.raises(InstanceError, match=f"holds {first} prices.*PULSEGUARD_DATA_DIR"):
        claim(folders, second)


def test_a_purpose_that_lost_its_content_in_a_power_cut_is_written_again(tmp_path: Path) -> None:
    folders = Folders(tmp_path)
    folders.purpose.touch()
    claim(folders, REAL)
    with pytest.raises(InstanceError, match="holds real prices"):
        claim(folders, SIMULATED)
    assert list(tmp_path.iterdir()) == [folders.purpose]


def test_dagsters_folder_gets_the_shipped_configuration_whatever_was_there(tmp_path: Path) -> None:
    folders = Folders(tmp_path)
    prepare(folders)
    (folders.dagster_home / "dagster.yaml").write_text("telemetry: {enabled: true}")
    prepare(folders)
    assert (folders.dagster_home / "dagster.yaml").read_bytes() == shipped(
        "dagster.yaml"
    ).read_bytes()
    assert folders.logs.stat().st_mode & 0o077 == 0


def test_the_socket_lies_in_the_data_folder_if_the_path_fits_and_is_always_the_same() -> None:
    near, far = Folders(Path("/srv/pulseguard")), Folders(Path("/srv") / ("long" * 30))
    assert near.code_server_socket == Path("/srv/pulseguard/dagster/code-server.sock")
    assert far.code_server_socket == Folders(far.root).code_server_socket
    assert far.code_server_socket != Folders(Path("/srv") / ("more" * 30)).code_server_socket
    assert len(os.fsencode(far.code_server_socket)) < 104


def test_what_runs_printed_is_forgotten_after_a_week_but_not_while_they_print(
    tmp_path: Path,
) -> None:
    folders = Folders(tmp_path)
    ages = {"old": timedelta(days=8), "fresh": timedelta(days=6), "long": timedelta(days=9)}
    for name, age in ages.items():
        run = folders.compute_logs / name
        (run / "compute_logs").mkdir(parents=True)
        (run / "compute_logs" / "step.err").write_text("x")
        for path in (run / "compute_logs" / "step.err", run / "compute_logs", run):
            os.utime(path, ((NOW - age).timestamp(),) * 2)
    os.utime(folders.compute_logs / "long" / "compute_logs" / "step.err", (NOW.timestamp(),) * 2)
    assert forget_old_compute_logs(folders, NOW) == 1
    assert sorted(run.name for run in folders.compute_logs.iterdir()) == ["fresh", "long"]


def test_there_may_be_nothing_to_forget(tmp_path: Path) -> None:
    assert forget_old_compute_logs(Folders(tmp_path), NOW) == 0
