"""How runs are started, and how a run whose process is gone is found out.

Belongs here: Dagster's own launcher with the one answer it lacks. Named in `dagster.yaml`.
Does not: deciding when something runs.
"""

from __future__ import annotations

from dagster import DagsterRun, DefaultRunLauncher
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.launcher.base import CheckRunHealthResult, WorkerStatus
from dagster._grpc.types import CanCancelExecutionRequest, CanCancelExecutionResult
from dagster._serdes import deserialize_value

_PATIENCE_SECONDS = 10


class WatchedRunLauncher(DefaultRunLauncher):
    """Starts runs in the code server, as the default does, and can tell whether they live.

    The default launcher cannot (dagster 1.13), so run monitoring leaves a run whose process was
    killed "started" for hours, in the queue's way. The code server knows the runs it executes,
    and one that it does not know has died with its predecessor.
    """

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Yes: this is what run monitoring asks first."""
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Whether the code server still executes `run`."""
        client = self._get_grpc_client_for_termination(run.run_id)  # type: ignore[no-untyped-call]
        if client is None:
            return CheckRunHealthResult(WorkerStatus.NOT_FOUND, "It was never given to a process.")
        try:
            answer = client.can_cancel_execution(
                CanCancelExecutionRequest(run_id=run.run_id), timeout=_PATIENCE_SECONDS
            )
        except DagsterUserCodeUnreachableError:
            # Any other answer fails the run. The code server may only be busy or restarting, and
            # when it is back it tells.
            return CheckRunHealthResult(WorkerStatus.RUNNING, "The code server does not answer.")
        if deserialize_value(answer, CanCancelExecutionResult).can_cancel:
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return CheckRunHealthResult(
            WorkerStatus.NOT_FOUND, "Its process is gone: it was killed, or PulseGuard was."
        )
