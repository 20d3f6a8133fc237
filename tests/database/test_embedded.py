"""The embedded server: made, started, killed in every way, and started again.

These tests run their own servers, in folders of their own.
"""

from __future__ import annotations

import os
import pwd
import select
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from pulseguard_assets.warehouse import account as accounts
from pulseguard_assets.warehouse import embedded as module
from pulseguard_assets.warehouse.account import ACCOUNT_NAME, Account, bundled_installation
from pulseguard_assets.warehouse.connection import connect
from pulseguard_assets.warehouse.embedded import (
    EmbeddedPostgres,
    EmbeddedPostgresError,
    FolderInUse,
    running_dsn,
)
from pulseguard_assets.warehouse.postmaster import end_leftovers, processes_in

FAST = {"fsync": "off"}


def server_in(folder: Path, **more: object) -> EmbeddedPostgres:
    return EmbeddedPostgres(folder, **{"settings": FAST, **more})  # type: ignore[arg-type]


def remember(dsn: str, number: int) -> None:
    with connect(dsn) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS kept (n int)")
        connection.execute("INSERT INTO kept VALUES (%s)", (number,))


def remembered(dsn: str) -> list[int]:
    with connect(dsn) as connection:
        return [row[0] for row in connection.execute("SELECT n FROM kept ORDER BY n")]


def gone(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, timeout=20)[1]


# A PulseGuard that can be killed: starts a server, stores a row, says its URL, and waits.
STARTER = """
import sys
from pathlib import Path
from pulseguard_assets.warehouse.connection import connect
from pulseguard_assets.warehouse.embedded import EmbeddedPostgres
with EmbeddedPostgres(Path(sys.argv[1]), settings={"fsync": "off"}) as dsn:
    with connect(dsn) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 1 AS n")
    print(dsn, flush=True)
    sys.stdin.read()
"""

Starter = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def other_starter(folder: Path) -> Iterator[Starter]:
    """Start another PulseGuard on `folder` and wait until its server runs."""
    started: list[subprocess.Popen[str]] = []

    def start(*prefix: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*prefix, sys.executable, "-c", STARTER, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline().startswith("postgresql://")
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
    end_leftovers(folder / "postgres")


def test_the_cluster_is_as_the_platform_needs_it(folder: Path) -> None:
    with server_in(folder, settings={}) as dsn, connect(dsn) as connection:
        wanted = {
            "server_encoding": "UTF8",
            "lc_collate": "C",
            "TimeZone": "UTC",
            "log_timezone": "UTC",
            "data_checksums": "on",
            "listen_addresses": "",
            "fsync": "on",
            "synchronous_commit": "on",
            "autovacuum": "on",
            "logging_collector": "on",
            "max_connections": "100",
            "max_locks_per_transaction": "256",
        }
        asked = "SELECT name, setting FROM pg_settings WHERE name = ANY(%s)"
        got = dict(connection.execute(asked, (list(wanted),)).fetchall())
        collate = "SELECT datcollate FROM pg_database WHERE datname = 'pulseguard'"
        got["lc_collate"] = connection.execute(collate).fetchone()[0]  # type: ignore[index]
        assert got == wanted
        assert connection.info.server_version // 10_000 == 18
    assert list((folder / "postgres" / "log").glob("postgresql-*.log"))


def test_data_is_kept_over_a_stop_and_the_folder_may_move(folder: Path) -> None:
    with server_in(folder / "one") as dsn:
        remember(dsn, 1)
    (folder / "one").rename(folder / "two")
    with server_in(folder / "two") as dsn:
        assert remembered(dsn) == [1]
        with connect(dsn) as connection:
            locks = connection.execute("SHOW max_locks_per_transaction").fetchone()
        assert locks == ("256",)


def test_nothing_is_left_running_after_a_stop(folder: Path) -> None:
    server = server_in(folder)
    server.start()
    processes = processes_in(folder / "postgres")
    assert server.running
    assert server.pid in {process.pid for process in processes}
    server.stop()
    assert gone(processes)
    assert not server.running
    assert server.pid is None
    server.stop()


def test_starting_twice_is_refused_and_leaves_the_first_running(folder: Path) -> None:
    server = server_in(folder)
    dsn = server.start()
    try:
        with pytest.raises(EmbeddedPostgresError, match="already started"):
            server.start()
        remember(dsn, 1)
    finally:
        server.stop()


def test_a_user_may_tune_what_is_not_relied_upon(folder: Path) -> None:
    with server_in(folder) as dsn, connect(dsn) as connection:
        connection.execute("ALTER SYSTEM SET shared_buffers = '32MB'")
        connection.execute("ALTER SYSTEM SET listen_addresses = '*'")
    with server_in(folder) as dsn, connect(dsn) as connection:
        assert connection.execute("SHOW shared_buffers").fetchone() == ("32MB",)
        assert connection.execute("SHOW listen_addresses").fetchone() == ("",)


def test_no_variable_of_ours_reaches_the_server(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "PULSEGUARD_API_KEY": "hush",
        "PGPORT": "6543",
        "PGTZ": "Asia/Kolkata",
        "PGDATA": "/nowhere",
        "TZ": "Asia/Kolkata",
    }.items():
        monkeypatch.setenv(name, value)
    server = server_in(folder)
    with server as dsn:
        remember(dsn, 1)
        environment = psutil.Process(server.pid).environ()
        assert "PULSEGUARD_API_KEY" not in environment
        assert environment["TZ"] == "UTC"


def test_a_server_that_was_killed_is_noticed_and_started_again_with_its_data(folder: Path) -> None:
    server = server_in(folder)
    remember(server.start(), 1)
    # The last word of the seventh line of the lock file.
    lock = (folder / "postgres" / "postmaster.pid").read_text("ascii").splitlines()
    segment = lock[6].split()[-1]
    assert segment in shared_memory_segments()
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    assert server.wait(20)
    assert not server.running
    with server as dsn:
        assert remembered(dsn) == [1]
    assert segment not in shared_memory_segments()


def shared_memory_segments() -> set[str]:
    """Numbers of all that there are, of other servers too."""
    lines = Path("/proc/sysvipc/shm").read_text("ascii").splitlines()
    return {line.split()[1] for line in lines[1:]}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's end")
def test_the_server_ends_by_itself_when_we_are_killed(folder: Path, other_starter: Starter) -> None:
    starter = other_starter()
    processes = processes_in(folder / "postgres")
    assert processes
    starter.kill()
    starter.wait()
    assert gone(processes)
    with server_in(folder) as dsn:
        assert remembered(dsn) == [1]


def test_a_start_right_after_the_kill_waits_for_the_old_server(
    folder: Path, other_starter: Starter
) -> None:
    starter = other_starter()
    starter.kill()
    starter.wait()
    with server_in(folder) as dsn:
        assert remembered(dsn) == [1]


@pytest.fixture
def orphan(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server on `folder` that nobody owns, with one row in it."""
    with server_in(folder) as dsn:
        remember(dsn, 1)
    yield from run_orphan(folder)


def run_orphan(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    owner = (folder / "postgres").stat()
    program = bundled_installation() / "bin" / "postgres"
    who = {"user": owner.st_uid, "group": owner.st_gid} if os.geteuid() == 0 else {}
    socket_dir = folder / "postgres-socket"
    arguments = ["-D", str(folder / "postgres"), "-k", str(socket_dir), "-h", "", "-F"]
    process = subprocess.Popen(  # type: ignore[call-overload]
        [str(program), *arguments], stderr=subprocess.PIPE, env={}, cwd="/", **who
    )
    try:
        for line in process.stderr:
            if b"ready to accept connections" in line or b"redirecting" in line:
                break
        yield process
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
        end_leftovers(folder / "postgres")


def reap(process: subprocess.Popen[bytes]) -> threading.Thread:
    """Take the exit code of a child as soon as there is one, as init does for an orphan."""
    thread = threading.Thread(target=process.wait, daemon=True)
    thread.start()
    return thread


def test_an_orphaned_server_is_ended_before_the_next_one_starts(
    folder: Path, orphan: subprocess.Popen[bytes]
) -> None:
    reaper = reap(orphan)
    told: list[str] = []
    with server_in(folder, progress=told.append) as dsn:
        assert remembered(dsn) == [1]
        reaper.join(20)
        assert orphan.returncode == 0  # the clean way
    assert "Ending the server that a killed PulseGuard left running" in told


def test_the_rest_of_a_beheaded_server_is_ended_too(
    folder: Path, orphan: subprocess.Popen[bytes]
) -> None:
    rest = [process for process in processes_in(folder / "postgres") if process.pid != orphan.pid]
    for process in rest:
        process.suspend()  # so that it cannot notice by itself
    orphan.kill()
    orphan.wait()
    assert rest
    with server_in(folder) as dsn:
        assert remembered(dsn) == [1]
    assert gone(rest)


def test_root_without_the_right_to_look_still_finds_the_orphan(
    as_root: None, folder: Path, orphan: subprocess.Popen[bytes]
) -> None:
    reap(orphan)
    program = (
        "import sys; from pathlib import Path\n"
        "from pulseguard_assets.warehouse.postmaster import processes_in\n"
        "found = processes_in(Path(sys.argv[1]))\n"
        "assert all(process.info['cwd'] is None for process in found), found\n"
        "print(*sorted(process.pid for process in found))\n"
    )
    pgdata = folder / "postgres"
    expected = sorted(process.pid for process in processes_in(pgdata))
    said = subprocess.run(
        ["setpriv", "--bounding-set=-sys_ptrace", sys.executable, "-c", program, str(pgdata)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.stderr == ""
    assert [int(pid) for pid in said.stdout.split()] == expected
    assert len(expected) > 3


@pytest.fixture
def stranger(folder: Path) -> Iterator[int]:
    """The pid of a process that is no server, of the account that servers run as."""
    who = {"user": ACCOUNT_NAME, "group": ACCOUNT_NAME} if os.geteuid() == 0 else {}
    with server_in(folder) as dsn:
        remember(dsn, 1)
    process = subprocess.Popen(["sleep", "600"], cwd="/", **who)  # type: ignore[call-overload]
    yield process.pid
    assert process.poll() is None, "the stranger was hurt"
    process.kill()
    process.wait()


def test_a_stale_lock_with_a_recycled_pid_does_not_stop_the_next_start(
    folder: Path, stranger: int
) -> None:
    owner = (folder / "postgres").stat()
    stale = {
        folder / "postgres" / "postmaster.pid": f"{stranger}\n{folder}/postgres\n1\n5432\n",
        folder / "postgres-socket" / ".s.PGSQL.5432.lock": f"{stranger}\n",
    }
    for path, text in stale.items():
        path.write_text(text, "ascii")
        os.chown(path, owner.st_uid, owner.st_gid)
    with server_in(folder) as dsn:
        assert remembered(dsn) == [1]


def test_an_empty_lock_file_does_not_stop_the_next_start(folder: Path, stranger: int) -> None:
    (folder / "postgres" / "postmaster.pid").touch()
    (folder / "postgres-socket" / ".s.PGSQL.5432.lock").touch()
    (folder / "postgres-socket" / ".s.PGSQL.5432").touch()
    with server_in(folder) as dsn:
        assert remembered(dsn) == [1]


def test_two_starters_on_one_folder_are_refused_with_the_pid_of_the_first(
    folder: Path, other_starter: Starter
) -> None:
    starter = other_starter()
    with pytest.raises(FolderInUse, match=rf"process {starter.pid}\).*PULSEGUARD_DATA_DIR"):
        server_in(folder).start()
    dsn = running_dsn(folder)
    assert dsn is not None
    assert remembered(dsn) == [1]
    starter.communicate("")  # a clean end
    assert running_dsn(folder) is None
    with server_in(folder) as dsn:
        assert remembered(dsn) == [1]
        assert running_dsn(folder) == dsn


def test_the_refusal_holds_within_one_process_too(folder: Path) -> None:
    with server_in(folder), pytest.raises(FolderInUse, match=f"process {os.getpid()}"):
        server_in(folder).start()


def test_no_running_server_is_seen_where_there_is_only_its_file(
    folder: Path, stranger: int
) -> None:
    assert running_dsn(folder) is None
    pid_file = folder / "postgres" / "postmaster.pid"
    pid_file.write_text(f"{stranger}\n{folder}\n1\n5432\n{folder}\n\n1 2\nready\n", "ascii")
    assert running_dsn(folder) is None


def test_ctrl_c_in_the_terminal_is_not_for_the_server(folder: Path) -> None:
    server = server_in(folder)
    with server:
        assert server.pid is not None
        assert os.getsid(server.pid) == server.pid != os.getsid(0)


def test_the_thread_that_started_the_server_may_end(folder: Path) -> None:
    server = server_in(folder)
    dsns: list[str] = []
    thread = threading.Thread(target=lambda: dsns.append(server.start()))
    thread.start()
    thread.join()
    try:
        assert not server.wait(1)
        remember(dsns[0], 1)
    finally:
        server.stop()


def test_a_half_made_cluster_is_made_again(folder: Path) -> None:
    (folder / "postgres.new-x" / "base").mkdir(parents=True)
    with server_in(folder) as dsn:
        remember(dsn, 1)
    assert not list(folder.glob("postgres.new-*"))


def test_files_that_are_no_database_are_left_alone(folder: Path) -> None:
    diary = folder / "postgres" / "diary.txt"
    diary.parent.mkdir()
    if os.geteuid() == 0:
        os.chown(diary.parent, 65534, 65534)
    diary.touch()
    with pytest.raises(EmbeddedPostgresError, match=r"no database.*PULSEGUARD_DATA_DIR"):
        server_in(folder).start()
    assert diary.exists()


def test_data_of_another_major_version_is_refused(folder: Path) -> None:
    with server_in(folder):
        pass
    (folder / "postgres" / "PG_VERSION").write_text("16\n", "ascii")
    with pytest.raises(EmbeddedPostgresError, match=r"of PostgreSQL 16, .*18.*pg_dump"):
        server_in(folder).start()


def test_a_server_that_ends_at_once_says_why_and_frees_the_folder(folder: Path) -> None:
    with pytest.raises(
        EmbeddedPostgresError, match=r"outside the valid range for parameter .shared_buffers"
    ):
        server_in(folder, settings={**FAST, "shared_buffers": "-5"}).start()
    with server_in(folder) as dsn:
        remember(dsn, 1)


@pytest.fixture
def mute_installation(folder: Path) -> Path:
    """A `postgres` that has the right version and never becomes ready."""
    with server_in(folder):
        pass
    program = folder / "mute" / "bin" / "postgres"
    program.parent.mkdir(parents=True)
    program.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo "postgres (PostgreSQL) 18.0" && exit\n'
        "exec sleep 600\n",
        "ascii",
    )
    program.chmod(0o755)
    return program.parent.parent


def test_a_server_that_never_gets_ready_is_given_up_and_ended(
    folder: Path, mute_installation: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_REPORT_EVERY_SECONDS", 0.2)
    told: list[str] = []
    server = server_in(
        folder, installation=mute_installation, start_timeout=0.7, progress=told.append
    )
    with pytest.raises(EmbeddedPostgresError, match="not ready after 1 s"):
        server.start()
    assert sum("replays its journal" in sentence for sentence in told) >= 2
    children = psutil.Process().children(recursive=True)
    assert not [child for child in children if child.name() == "sleep"]
    with server_in(folder) as dsn:
        remember(dsn, 1)


def test_a_server_deaf_to_the_first_signal_gets_the_second(tmp_path: Path) -> None:
    script = "trap '' INT; trap 'exit 0' QUIT; echo ready; while :; do read line; done"
    reading, writing = os.pipe()
    os.close(reading)
    output = tmp_path / "output"
    os.mkfifo(output)
    # A shell cannot trap what it was started to ignore, as a shell's background jobs are.
    shell = ["env", "--default-signal=INT,QUIT", "/bin/sh"]
    keeper = module._Keeper([*shell, "-c", "sleep 600 & " + script], output)
    keeper.start()
    with output.open("rb") as said:
        assert select.select([said], [], [], 20)[0]
        assert keeper.end(patience=2.0)
    os.close(writing)


def test_a_socket_path_that_is_too_long_moves_to_a_short_folder(folder: Path) -> None:
    deep = folder / ("d" * 100)
    with server_in(deep) as dsn:
        remember(dsn, 1)
        assert running_dsn(deep) == dsn
        with connect(dsn) as connection:
            socket_dir = Path(connection.info.host)
        assert socket_dir.name.startswith("pulseguard-")
        assert not socket_dir.is_relative_to(deep)
    assert not socket_dir.exists()


@pytest.mark.parametrize("name", ["a,b", "it's", 'say "so"', "with blank", "überall", "100%"])
def test_any_name_will_do_for_a_data_folder(folder: Path, name: str) -> None:
    with server_in(folder / name) as dsn:
        remember(dsn, 1)
        assert remembered(dsn) == [1]


def test_a_socket_folder_that_others_can_enter_is_refused(folder: Path) -> None:
    (folder / "postgres-socket").mkdir()
    (folder / "postgres-socket").chmod(0o777)
    with pytest.raises(EmbeddedPostgresError, match=r"only .* can enter\. Remove it"):
        server_in(folder).start()


def test_a_folder_that_cannot_be_made_names_the_setting(folder: Path) -> None:
    (folder / "file").touch()
    with pytest.raises(EmbeddedPostgresError, match="PULSEGUARD_DATA_DIR"):
        server_in(folder / "file" / "data").start()


# As root.


def test_root_runs_the_server_as_somebody_else_and_is_let_in(as_root: None, folder: Path) -> None:
    old_umask = os.umask(0o077)
    try:
        server = server_in(folder / "new" / "data")
        with server as dsn:
            remember(dsn, 1)
            assert psutil.Process(server.pid).uids().real == pwd.getpwnam(ACCOUNT_NAME).pw_uid
            assert psutil.Process(server.pid).gids().real != 0
    finally:
        os.umask(old_umask)


def test_data_stays_with_the_account_that_owns_it(as_root: None, folder: Path) -> None:
    with server_in(folder) as dsn:
        remember(dsn, 1)
    nobody = pwd.getpwnam("nobody")
    for path in (folder / "postgres", *(folder / "postgres").rglob("*")):
        os.chown(path, nobody.pw_uid, nobody.pw_gid)
    shutil.rmtree(folder / "postgres-socket")
    server = server_in(folder)
    with server as dsn:
        assert remembered(dsn) == [1]
        assert psutil.Process(server.pid).uids().real == nobody.pw_uid


def test_data_that_belongs_to_root_is_refused_with_the_command_to_run(
    as_root: None, folder: Path
) -> None:
    with server_in(folder):
        pass
    os.chown(folder / "postgres", 0, 0)
    with pytest.raises(EmbeddedPostgresError, match="chown -R pulseguard"):
        server_in(folder).start()


def test_a_data_folder_below_a_closed_one_is_refused_by_name(as_root: None, folder: Path) -> None:
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(EmbeddedPostgresError, match=rf"{closed} is closed.*PULSEGUARD_DATA_DIR"):
        server_in(closed / "data").start()
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700


def test_programs_in_a_closed_folder_are_copied_once_and_the_folder_stays_closed(
    as_root: None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    wheel = bundled_installation().parent
    inside = closed / wheel.name / "pginstall18"
    shutil.copytree(wheel / "pginstall18", inside)
    shutil.copytree(f"{wheel}.libs", closed / f"{wheel.name}.libs")
    monkeypatch.setattr(module, "bundled_installation", lambda: inside)
    stale = folder / "data" / "postgres-programs" / "0.0.1" / "old"
    stale.mkdir(parents=True)
    for path in (folder / "data", *stale.parents[:2]):
        path.chmod(0o755)
    server = server_in(folder / "data")
    with server as dsn:
        remember(dsn, 1)
        assert "/postgres-programs/" in psutil.Process(server.pid).exe()
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700
    assert not stale.exists()
    copied = (folder / "data" / "postgres-programs").stat().st_mtime_ns
    with server as dsn:
        assert remembered(dsn) == [1]
    assert (folder / "data" / "postgres-programs").stat().st_mtime_ns == copied


def test_a_container_that_may_not_change_users_is_told_so(
    as_root: None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Account, *command: str) -> None:
        raise PermissionError("setuid")

    monkeypatch.setattr(accounts.Account, "run", refuse)
    with pytest.raises(EmbeddedPostgresError, match=r"may not become .*PULSEGUARD_DATABASE_URL"):
        server_in(folder).start()


def test_an_account_is_made_where_there_is_none(
    as_root: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    called = tmp_path / "called"
    fake = tmp_path / "useradd"
    fake.write_text(f'#!/bin/sh\necho "$@" > {called}\n', "ascii")
    fake.chmod(0o755)
    postgres_account = pwd.getpwnam("nobody")
    monkeypatch.setattr(accounts.shutil, "which", lambda *_, **__: str(fake))
    monkeypatch.setattr(
        accounts, "_find", {ACCOUNT_NAME: None, "postgres": postgres_account}.__getitem__
    )
    chosen = accounts.choose_account(tmp_path / "none")
    assert called.read_text("ascii").split()[-1] == ACCOUNT_NAME
    assert "--system" in called.read_text("ascii")
    assert chosen.uid == postgres_account.pw_uid


# As an ordinary user.


def test_an_ordinary_user_needs_no_other_account(as_root: None, folder: Path) -> None:
    account = Account("nobody", *pwd.getpwnam("nobody")[2:4], switch=True)
    interpreters = (shutil.which("python3", path=place) for place in ("/usr/bin", "/usr/local/bin"))
    interpreter = next((one for one in interpreters if one and account.succeeds(one, "-V")), None)
    if interpreter is None or not account.can("r", bundled_installation() / "bin" / "postgres"):
        pytest.skip("an ordinary user can reach no Python and PostgreSQL here")
    os.chown(folder, account.uid, account.gid)
    # Imported first: the environment of the tests may be closed to ordinary users.
    program = f"""
        import os, sys, encodings.idna
        from pathlib import Path
        from pulseguard_assets.warehouse.connection import connect
        from pulseguard_assets.warehouse.embedded import EmbeddedPostgres
        os.setgroups([]); os.setgid({account.gid}); os.setuid({account.uid})
        sys.executable = {interpreter!r}
        server = EmbeddedPostgres(Path({str(folder / "data")!r}), settings={FAST!r})
        with server as dsn, connect(dsn) as connection:
            owner = os.stat(f"/proc/{{server.pid}}").st_uid
            print(connection.execute("SELECT 1").fetchone(), owner)
        """
    said = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.stdout == f"(1,) {account.uid}\n", said.stderr
    assert stat.S_IMODE((folder / "data").stat().st_mode) == 0o700


def test_data_of_somebody_else_is_refused_to_an_ordinary_user(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = folder.stat().st_uid
    monkeypatch.setattr(accounts.os, "geteuid", lambda: owner + 4321)
    with pytest.raises(EmbeddedPostgresError, match=r"belongs to .*PULSEGUARD_DATA_DIR"):
        accounts.choose_account(folder)


def test_the_socket_lets_nobody_else_in(as_root: None, folder: Path) -> None:
    stranger = Account("nobody", *pwd.getpwnam("nobody")[2:4], switch=True)
    with server_in(folder) as dsn:
        with psycopg.connect(dsn):
            assert not stranger.can("x", folder / "postgres-socket")
        assert stat.S_IMODE((folder / "postgres-socket" / ".s.PGSQL.5432").stat().st_mode) == 0o700
