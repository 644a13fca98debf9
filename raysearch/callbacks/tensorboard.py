"""A run in TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raysearch.callbacks.followers import need
from raysearch.callbacks.protocol import Callback
from raysearch.callbacks.values import flat, result_values, training_values, trial_values
from raysearch.records import RunResult, SearchTrial, TrainingStatus


class TensorBoardCallback(Callback):
    """Trials and training as curves, settings and the answer as the run's hyperparameters.

    Args:
        folder: each run has a folder of its name in it, for `tensorboard --logdir`.
    """

    def __init__(self, folder: str = "tensorboard") -> None:
        need("tensorboardX", "tensorboard")
        self._folder = Path(folder)
        self._settings: dict[str, Any] = {}
        self._writer: Any = None

    def on_start(self, run_id: str, uri: str, settings: Mapping[str, Any]) -> None:
        """Open the run's folder."""
        from tensorboardX import SummaryWriter

        self._settings = {name: str(value) for name, value in flat(settings).items()}
        self._writer = SummaryWriter(str(self._folder / run_id))

    def on_stage(self, stage: str, seconds: float) -> None:
        """Keep its seconds."""
        self._add({f"seconds/{stage}": seconds}, 0)

    def on_trial(self, trial: SearchTrial, objective: str) -> None:
        """A point of the search."""
        self._add(trial_values(trial, objective), trial.number)

    def on_step(self, status: TrainingStatus) -> None:
        """A point of the training."""
        self._add(training_values(status), status.step)

    on_epoch = on_step

    def on_result(self, result: RunResult) -> None:
        """The answer."""
        self._writer.add_hparams(self._settings, result_values(result), name="result")

    def on_end(self, state: str, message: str = "") -> None:
        """Write what is left."""
        self._writer.close()

    def _add(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
