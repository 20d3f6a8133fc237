"""The children's output: lines, whole, bounded."""

from __future__ import annotations

from pathlib import Path

import pytest

from pulseguard_assets.running import logs
from pulseguard_assets.running.logs import ChildLog


def test_lines_are_put_together_however_the_bytes_come(tmp_path: Path) -> None:
    echoed: list[str] = []
    log = ChildLog(tmp_path / "logs", "daemon", echo=echoed.append)
    for piece in (b"one\ntw", "o\r\nth\u00e9".encode()[:-1], "\u00e9".encode()[1:], b"\n"):
        log.write(piece)
    log.write(b"no end")
    log.close()
    assert log.path.read_text("utf-8") == "one\ntwo\nth\u00e9\nno end\n"
    assert echoed == [f"daemon       | {line}" for line in ("one", "two", "th\u00e9", "no end")]


def test_colours_are_left_out_and_percent_signs_are_only_that(tmp_path: Path) -> None:
    log = ChildLog(tmp_path, "daemon")
    log.write(b"\x1b[34mINFO\x1b[0m 100% of %s\n")
    log.close()
    assert log.path.read_text("utf-8") == "INFO 100% of %s\n"


def test_bytes_that_are_no_text_do_not_stop_the_log(tmp_path: Path) -> None:
    log = ChildLog(tmp_path, "daemon")
    log.write(b"\xff\xfe\nnext\n")
    log.close()
    assert log.path.read_text("utf-8").splitlines()[1] == "next"


def test_the_files_together_stay_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MAX_BYTES", 1000)
    log = ChildLog(tmp_path, "daemon")
    for number in range(1000):
        log.write(f"line {number}\n".encode())
    log.close()
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["daemon.log", "daemon.log.1", "daemon.log.2"]
    assert sum(file.stat().st_size for file in files) <= 3 * 1000
    assert log.path.read_text("utf-8").splitlines()[-1] == "line 999"


def test_a_line_without_an_end_does_not_pile_up(tmp_path: Path) -> None:
    log = ChildLog(tmp_path, "daemon")
    log.write(b"x" * (logs.MAX_LINE_BYTES + 1))
    assert len(log.tail()[0]) == logs.MAX_LINE_BYTES + 1
    log.close()


def test_the_tail_is_the_last_lines_without_blank_ones(tmp_path: Path) -> None:
    log = ChildLog(tmp_path, "daemon")
    log.write(b"".join(b"%d\n" % number for number in range(100)) + b"\n\n")
    assert log.tail()[-1] == "99"
    assert len(log.tail()) <= logs.TAIL_LINES
    log.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full disk to be had here")
def test_a_full_disk_is_said_once_without_a_traceback_and_lines_are_kept_again_after_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    kept = tmp_path / "child.log"
    kept.symlink_to("/dev/full")
    log = ChildLog(tmp_path, "child", say=said.append)
    log.write(b"one\ntwo\nthree\n")
    log.close()

    assert said == [f"{kept} cannot be written: No space left on device. Make room there."]
    assert log.tail() == ["one", "two", "three"]
    assert capsys.readouterr().err == ""
