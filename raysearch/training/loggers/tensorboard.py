"""Curves for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from raysearch.artifacts import Storage
from raysearch.errors import ConfigError
from raysearch.records import TrainingStatus


class TensorBoardLogger:
    """Event files below the run's folder, for `tensorboard --logdir`.

    Args:
        storage: the run's folder; see `check`.
    """

    def __init__(self, storage: Storage) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(Path(storage.local_path("tensorboard"))))

    @staticmethod
    def check(storage: Storage) -> None:
        """Refuse what cannot be made.

        Raises:
            ConfigError: tensorboardX is not installed, or the run's folder is on no local disk.
        """
        try:
            import tensorboardX  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                "training.loggers names 'tensorboard', which needs tensorboardX: `pip install tensorboardX`."
            ) from error
        if not storage.is_local:
            raise ConfigError(
                "training.loggers names 'tensorboard', which writes to a local disk, and the run's folder is "
                "elsewhere; `training.parquet` has the same numbers."
            )

    def log(self, status: TrainingStatus) -> None:
        """Add the points of a step, or of a validation."""
        values: Mapping[str, float] = {
            f"validation/{name}": value for name, value in status.validation.items()
        }
        if status.loss is not None:
            values = {"training/loss": status.loss, "training/learning_rate": status.learning_rate}
        for name, value in values.items():
            self._writer.add_scalar(name, value, status.step)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()
