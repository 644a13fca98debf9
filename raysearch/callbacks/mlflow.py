"""A run in MLflow."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from raysearch.callbacks.followers import need
from raysearch.callbacks.protocol import Callback
from raysearch.callbacks.values import flat, result_values, training_values, trial_values
from raysearch.records import RunResult, SearchTrial, TrainingStatus

STATES = {"done": "FINISHED", "failed": "FAILED", "cancelled": "KILLED"}
MOST_LETTERS = 500
"""Of a parameter's value."""


class MLflowCallback(Callback):
    """Settings as parameters, trials and training as metrics, the report as an artifact.

    The run that is active in the process, if any, stays as it is.

    Args:
        experiment: made if it is not there.
        tracking_uri: where it is kept; default: MLflow's own, such as MLFLOW_TRACKING_URI.
    """

    def __init__(self, experiment: str = "raysearch", tracking_uri: str | None = None) -> None:
        need("mlflow", "mlflow")
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri)
        self._experiment = experiment
        self._run = ""

    def on_start(self, run_id: str, uri: str, settings: Mapping[str, Any]) -> None:
        """Begin a run of the experiment."""
        known = self._client.get_experiment_by_name(self._experiment)
        number = self._client.create_experiment(self._experiment) if known is None else known.experiment_id
        self._run = self._client.create_run(number, run_name=run_id).info.run_id
        for name, value in flat(settings).items():
            self._client.log_param(self._run, name, str(value)[:MOST_LETTERS])

    def on_stage(self, stage: str, seconds: float) -> None:
        """Keep its seconds."""
        self._log({f"seconds/{stage}": seconds})

    def on_trial(self, trial: SearchTrial, objective: str) -> None:
        """A point of the search."""
        self._log(trial_values(trial, objective), trial.number)

    def on_step(self, status: TrainingStatus) -> None:
        """A point of the training."""
        self._log(training_values(status), status.step)

    on_epoch = on_step

    def on_result(self, result: RunResult) -> None:
        """The answer, and the report where it lies on this machine."""
        self._log(result_values(result))
        if result.report and "://" not in result.report:
            self._client.log_artifact(self._run, result.report)

    def on_end(self, state: str, message: str = "") -> None:
        """End the run."""
        if message:
            self._client.set_tag(self._run, "message", message[:MOST_LETTERS])
        self._client.set_terminated(self._run, STATES[state])

    def _log(self, values: Mapping[str, float], step: int = 0) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self._run, metrics=metrics)
