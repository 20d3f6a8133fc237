"""What is installed is what was locked, and the lock is what pyproject.toml allows."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
LINES = (ROOT / "requirements.lock").read_text("utf-8").splitlines()
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
# Made by the environment itself, not by the lock.
NOT_LOCKED = {"pip", "setuptools", "wheel", "pulseguard"}
# What may be used, linked to and passed on by whoever runs this; not GPL, AGPL or "see website".
LICENCES = re.compile(
    r"MIT|BSD|Apache|PSF|Python Software Foundation|MPL.2\.0|LGPL|ISC|Unlicense|HPND|0BSD"
)


def locked_for(python: str) -> dict[str, str]:
    """Name -> version, as one of the Pythons installs them."""
    environment = {**default_environment(), "python_version": python}
    found = {}
    for requirement in map(Requirement, LINES):
        if requirement.marker is None or requirement.marker.evaluate(environment):  # type: ignore[arg-type]
            name = canonicalize_name(requirement.name)
            assert name not in found, f"{name} twice for Python {python}"
            (only,) = requirement.specifier
            found[name] = only.version
    return found


def installed() -> dict[str, metadata.Distribution]:
    """What is installed here, by name."""
    return {canonicalize_name(each.metadata["Name"]): each for each in metadata.distributions()}


def test_the_lock_names_versions_and_no_place_to_get_them_from() -> None:
    version = r"[0-9][0-9A-Za-z.]*"
    marker = r'( ; python_version (<|>=) "3\.\d+")?'
    assert len(LINES) > 100
    assert [ln for ln in LINES if not re.fullmatch(rf"[a-z0-9-]+=={version}{marker}", ln)] == []


@pytest.mark.soak
@pytest.mark.parametrize("python", PYTHONS)
def test_each_python_can_install_what_is_locked_for_it(python: str, tmp_path: Path) -> None:
    # In a file of its own: pip goes by the markers for the Python that it runs on.
    locked, wheels = tmp_path / "locked.txt", tmp_path / "wheels"
    locked.write_text("\n".join(f"{n}=={v}" for n, v in locked_for(python).items()), "utf-8")
    done = subprocess.run(
        [
            # Not a dry run of `install`, which compares with the Python that it runs on once more.
            *(sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"),
            *("--python-version", python, "--requirement", str(locked), "--dest", str(wheels)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(list(wheels.iterdir())) == len(locked_for(python))
    shutil.rmtree(wheels)


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_keeps_to_what_the_project_allows(python: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    locked = locked_for(python)
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    assert len(wanted) > 20
    for requirement in map(Requirement, wanted):
        version = locked[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} and {version}"
        assert any(each.operator == "<" for each in requirement.specifier), (
            f"{requirement}: the next major version is another library"
        )


def test_what_is_installed_is_what_was_locked() -> None:
    locked = locked_for(f"{sys.version_info.major}.{sys.version_info.minor}")
    found = {name: each.version for name, each in installed().items() if name not in NOT_LOCKED}
    assert found == {name: locked[name] for name in found if name in locked}
    assert "dagster" in found


def test_every_library_has_a_licence_that_this_one_can_be_passed_on_with() -> None:
    strange = {}
    for name, each in installed().items():
        kinds = [
            kind.removeprefix("License :: ")
            for kind in each.metadata.get_all("Classifier") or ()
            if kind.startswith("License :: OSI")
        ]
        licence = each.metadata.get("License-Expression") or "; ".join(kinds)
        licence = licence or str(each.metadata.get("License") or "").partition("\n")[0]
        without = LICENCES.sub("", licence)
        if without == licence or re.search(r"\bA?GPL", without):
            strange[name] = licence
    assert strange == {}


# --- asking for known vulnerabilities ---


@contextmanager
def _serving(answer: Any, status: int = 200) -> Iterator[str]:
    """The address of a database that answers so, to as many packages as it is asked for."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            queries = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["queries"]
            body = json.dumps(answer(queries) if callable(answer) else answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def _ask(url: str, patience: int = 30) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, str(ROOT / ".ci" / "advisories.py")],
        env={**os.environ, "ADVISORIES_URL": url, "ADVISORIES_PATIENCE": str(patience)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout


def test_a_known_vulnerability_fails_the_audit_and_is_named() -> None:
    def answer(queries: list[dict[str, Any]]) -> dict[str, Any]:
        assert {"package": {"ecosystem": "PyPI", "name": "jinja2"}, "version": "3.1.6"} in queries
        assert len(queries) == len({line.partition(" ")[0] for line in LINES})
        return {
            "results": [
                {"vulns": [{"id": "GHSA-1"}, {"id": "CVE-2"}]}
                if query["package"]["name"] == "jinja2"
                else {}
                for query in queries
            ]
        }

    with _serving(answer) as url:
        code, said = _ask(url)
    assert code == 1
    assert "jinja2 3.1.6: GHSA-1, CVE-2" in said


def test_an_audit_that_finds_nothing_says_how_much_it_asked_for() -> None:
    with _serving(lambda queries: {"results": [{} for _ in queries]}) as url:
        code, said = _ask(url)
    assert code == 0
    assert re.search(r"\d+ locked versions, 0 with known", said)


@pytest.mark.parametrize(("answer", "status"), [({"results": []}, 200), ([], 200), ({}, 503)])
def test_an_answer_that_is_none_counts_as_not_asked(answer: Any, status: int) -> None:
    with _serving(answer, status) as url:
        code, said = _ask(url)
    assert (code, "were NOT asked for" in said) == (0, True)


def test_without_a_network_the_audit_says_so_and_does_not_hang() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        code, said = _ask(f"http://127.0.0.1:{unused.getsockname()[1]}")
    assert (code, "were NOT asked for" in said) == (0, True)

    with socket.create_server(("127.0.0.1", 0)) as silent:
        begun = time.monotonic()
        code, said = _ask(f"http://127.0.0.1:{silent.getsockname()[1]}", patience=1)
        assert time.monotonic() - begun < 60
    assert (code, "no answer within 1 seconds" in said) == (0, True)
