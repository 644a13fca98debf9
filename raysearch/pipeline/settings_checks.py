"""Settings against each other, and against what a task has."""

from __future__ import annotations

from raysearch.config import CalibrationConfig, Config, SearchConfig
from raysearch.config.estimators import NO_TRACES
from raysearch.errors import ConfigError
from raysearch.pipeline.direction import measured_direction
from raysearch.search import check_sampler
from raysearch.task import Task


def check_against_task(task: Task, config: Config) -> None:
    """What can be said of the settings, and of what the task has for them, before anything is computed.

    Raises:
        ConfigError: two settings, or a setting and the task, contradict each other.
    """
    check_sampler(config.search.sampler)
    _check_measured(task, config.search)
    _check_batch_norm_samples(config.calibration)
    _check_surrogate(config)
    _check_loss(task, config)
    _check_finalists(task, config)
    # Refuses a global batch that the workers cannot share.
    config.training.share_of_one(config.training.num_workers)


def _check_finalists(task: Task, config: Config) -> None:
    """Refuse to train finalists where nothing is trained."""
    count = config.search.finalists_trained
    if count and (task.train is None or config.training.is_off):
        reason = "the Task has no training data" if task.train is None else "training.epochs is 0"
        raise ConfigError(
            f"search.finalists_trained is {count}, but {reason}, so nothing is trained; set it to 0."
        )


def _measured_key(search: SearchConfig) -> str:
    """The setting that names what trials are measured by."""
    return "search.objective" if search.drop is None else "search.max_drop"


def _check_measured(task: Task, search: SearchConfig) -> None:
    choices = ("divergence", "loss", *task.metrics)
    if search.measured not in choices:
        raise ConfigError(
            f"{_measured_key(search)} names '{search.measured}'; known for this task: {', '.join(choices)}."
        )
    measured_direction(task.metrics, search)


def _check_batch_norm_samples(calibration: CalibrationConfig) -> None:
    if calibration.batch_norm_samples > calibration.num_samples:
        raise ConfigError(
            f"calibration.batch_norm_samples is {calibration.batch_norm_samples}, and "
            f"calibration.num_samples only {calibration.num_samples}; raise the latter."
        )


def _check_surrogate(config: Config) -> None:
    estimator = config.sensitivity.estimator
    if config.search.surrogate == "fisher" and estimator != "fisher":
        raise ConfigError(
            f"search.surrogate is 'fisher', which needs traces of the Fisher matrix, but the traces are "
            f"measured by '{estimator}'. Set sensitivity.estimator to 'fisher', or search.surrogate to "
            f"'hawq'."
        )
    if config.search.surrogate in ("hawq", "second-moment") and estimator == NO_TRACES:
        raise ConfigError(
            f"search.surrogate is '{config.search.surrogate}', which is made of traces, but "
            f"sensitivity.estimator is '{NO_TRACES}'. Name an estimator, or set search.surrogate to "
            f"'response'."
        )
    if config.search.surrogate == "second-moment" and config.rounding.method == "nearest":
        raise ConfigError(
            "search.surrogate is 'second-moment', which needs the second moments that rounding takes, but "
            "rounding.method is 'nearest'. Set rounding.method to 'gptq', or search.surrogate to 'hawq'."
        )


def _check_loss(task: Task, config: Config) -> None:
    """Refuse settings that need the task's loss where it has none."""
    if task.loss is not None:
        return
    trains_on_loss = config.training.objective == "loss" and task.train is not None
    needs_loss = {
        _measured_key(config.search): config.search.measured == "loss",
        "training.objective": trains_on_loss,
        "sensitivity.trace_loss": config.sensitivity.trace_loss == "loss",
        "sensitivity.estimator": config.sensitivity.estimator == "fisher",
    }
    for key, is_needed in needs_loss.items():
        if is_needed:
            value = "fisher" if key == "sensitivity.estimator" else "loss"
            raise ConfigError(
                f"{key} is '{value}', but the Task has no loss; give Task(loss=...) or change it."
            )
