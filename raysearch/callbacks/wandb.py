"""A run in Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raysearch.callbacks.followers import need
from raysearch.callbacks.protocol import Callback
from raysearch.callbacks.values import result_values, training_values, trial_values
from raysearch.records import RunResult, SearchTrial, TrainingStatus

TRIAL, STEP = "search/trial", "training/step"
"""What the search is drawn over, and training."""


class WandbCallback(Callback):
    """Settings as the configuration, trials and training as curves, the answer as the summary.

    Args:
        project: the project.
        **options: further ones of `wandb.init`, such as entity, group or mode="offline".
    """

    def __init__(self, project: str = "raysearch", **options: Any) -> None:
        need("wandb", "wandb")
        self._options = {"project": project, **options}
        self._run: Any = None

    def on_start(self, run_id: str, uri: str, settings: Mapping[str, Any]) -> None:
        """Begin a run."""
        import wandb

        self._run = wandb.init(name=run_id, config={**settings, "uri": uri}, **self._options)
        self._run.define_metric("search/*", step_metric=TRIAL)
        for kind in ("training", "validation"):
            self._run.define_metric(f"{kind}/*", step_metric=STEP)

    def on_stage(self, stage: str, seconds: float) -> None:
        """Keep its seconds."""
        self._run.summary[f"seconds/{stage}"] = seconds

    def on_trial(self, trial: SearchTrial, objective: str) -> None:
        """A point of the search."""
        self._run.log({**trial_values(trial, objective), TRIAL: trial.number})

    def on_step(self, status: TrainingStatus) -> None:
        """A point of the training."""
        self._run.log({**training_values(status), STEP: status.step})

    on_epoch = on_step

    def on_result(self, result: RunResult) -> None:
        """The answer."""
        self._run.summary.update(result_values(result))

    def on_end(self, state: str, message: str = "") -> None:
        """End the run, as failed unless it is done."""
        self._run.finish(exit_code=0 if state == "done" else 1)
