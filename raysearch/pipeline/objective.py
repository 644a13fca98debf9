"""The label-free objective of a run, fitted to what the float model gives."""

from __future__ import annotations

import torch

from raysearch.config import ObjectiveConfig
from raysearch.evaluation import Batch, JointDivergence, Objective
from raysearch.evaluation.fit_divergence import FittedObjective, Wish, fit_divergence
from raysearch.evaluation.forward import frozen_eval
from raysearch.task import Task


def fit_objective(task: Task, settings: ObjectiveConfig, batch: Batch) -> FittedObjective:
    """The objective for the float model's outputs on one batch; costs a forward.

    Args:
        task: what the user handed over.
        settings: the section `objective`.
        batch: of the calibration data.

    Raises:
        DataError, ConfigError: see `fit_divergence`.
    """
    with frozen_eval(task.model), torch.no_grad():
        outputs = task.run(task.model, batch)
    wish = Wish(settings.divergence, settings.class_dim, settings.output_weights)
    return fit_divergence(outputs, batch, wish, task.positions)


def objective_fingerprint(divergence: Objective, settings: ObjectiveConfig) -> str:
    """What of the objective no setting says; "" for logits, as runs were before there was a choice.

    Args:
        divergence: the fitted objective.
        settings: the section `objective`.
    """
    if isinstance(divergence, JointDivergence):
        parts = [f"{part.name}:{part.divergence.kind}:{part.weight:.6g}" for part in divergence.parts]
        return ",".join(parts)
    return divergence.kind if settings.divergence == "auto" and divergence.kind != "kl" else ""
