"""The web interface that shows everything and changes nothing: the real server, asked over HTTP."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pulseguard_assets.running import children
from pulseguard_assets.running.instance import Folders
from pulseguard_assets.settings import load_settings

Ask = Callable[..., dict[str, Any]]

SELECTOR = '{repositoryLocationName: "pulseguard", repositoryName: "__repository__"'
# What somebody who clicks could do harm with.
MUTATIONS = {
    "launchRun": f"launchRun(executionParams: {{selector: {SELECTOR}, pipelineName: "
    '"__ASSET_JOB"}, mode: "default"})',
    "launchPartitionBackfill": "launchPartitionBackfill(backfillParams: {allPartitions: true, "
    'assetSelection: [{path: ["minute_close"]}]})',
    "startSensor": f'startSensor(sensorSelector: {SELECTOR}, sensorName: "x"}})',
    "stopSensor": 'stopSensor(jobOriginId: "x", jobSelectorId: "y")',
    "setSensorCursor": f'setSensorCursor(sensorSelector: {SELECTOR}, sensorName: "x"}})',
    "startSchedule": f'startSchedule(scheduleSelector: {SELECTOR}, scheduleName: "x"}})',
    "stopRunningSchedule": 'stopRunningSchedule(scheduleOriginId: "x", scheduleSelectorId: "y")',
    "terminateRun": 'terminateRun(runId: "x")',
    "deleteRun": 'deleteRun(runId: "x")',
    "wipeAssets": 'wipeAssets(assetPartitionRanges: [{assetKey: {path: ["minute_close"]}}])',
    "reportRunlessAssetEvents": "reportRunlessAssetEvents(eventParams: {eventType: "
    'ASSET_MATERIALIZATION, assetKey: {path: ["minute_close"]}})',
    "shutdownRepositoryLocation": 'shutdownRepositoryLocation(repositoryLocationName: "x")',
}


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """`ask("{ version }")`: the answer of a server that is read-only, on an instance of its own."""
    root = tmp_path_factory.mktemp("read-only")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = load_settings(data_dir=root, port=port, ui_read_only="yes")
    folders = Folders(root)
    folders.dagster_home.mkdir()
    (folders.dagster_home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    variables = children.environment(settings, folders, "postgresql://nobody@127.0.0.1/none")
    spec = children.webserver(settings, folders, variables)

    def ask(query: str, path: str = "graphql") -> dict[str, Any]:
        url, body = f"http://127.0.0.1:{port}/{path}", json.dumps({"query": query}).encode()
        request = urllib.request.Request(url, body, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    log = root / "webserver.log"
    with (
        log.open("wb") as output,
        subprocess.Popen(
            spec.command,
            env=dict(spec.environment),
            cwd=spec.directory,
            stdout=output,
            stderr=output,
        ) as server,
    ):
        try:
            _wait_until_it_serves(server, port, log)
            yield ask
        finally:
            server.kill()


def _wait_until_it_serves(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 120
    while True:
        assert server.poll() is None, log.read_text("utf-8")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert time.monotonic() < deadline, log.read_text("utf-8")
            time.sleep(0.1)
        else:
            return


def test_it_shows_and_grants_no_permission(ask: Ask) -> None:
    found = ask("{ version permissions { permission value } }")["data"]
    assert found["version"].startswith("1.")
    assert len(found["permissions"]) > 10
    assert [each for each in found["permissions"] if each["value"]] == []


@pytest.mark.parametrize("name", MUTATIONS)
def test_it_refuses(ask: Ask, name: str) -> None:
    answer = ask(f"mutation {{ {MUTATIONS[name]} {{ __typename }} }}")
    assert "errors" not in answer, "the question is wrong, or it was not refused by permission"
    assert answer["data"][name]["__typename"] == "UnauthorizedError"


@pytest.mark.parametrize("what", ["materialization", "check", "observation"])
def test_it_takes_no_report_of_another_program(ask: Ask, what: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        ask("", path=f"report_asset_{what}/minute_close?check_name=coverage&passed=true")
    with refused.value:
        assert refused.value.code == 401
