"""How a model's outputs are judged, found from what it gives on the first calibration shard."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from raysearch.errors import ConfigError, DataError
from raysearch.evaluation.batches import Batch, batch_size, tensors_of
from raysearch.evaluation.divergence import Divergence, DivergenceKind, check_outputs
from raysearch.evaluation.forward import output_tensor
from raysearch.evaluation.joint_divergence import JointDivergence, Objective, OutputPart
from raysearch.evaluation.outputs import named_outputs
from raysearch.evaluation.positions import Masked, Positions, masked, values_of

DENSE_NDIM = 4
"""Outputs of so many dimensions are maps of an image or a volume, whose classes seldom come last."""

_TARGETS = ("labels", "label", "targets", "target", "y")


@dataclass(frozen=True)
class Wish:
    """What the settings say of the objective.

    Attributes:
        kind: of divergence; "auto": "kl" for logits, "nmse" for other outputs.
        class_dim: dimension of the classes; None where nothing is said.
        weights: output → what it counts; 1 for those not named.
    """

    kind: DivergenceKind | str = "auto"
    class_dim: int | None = None
    weights: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class FittedObjective:
    """The objective, and what a user should know of how it was chosen.

    Attributes:
        divergence: fitted to the float outputs.
        notes: plain statements.
    """

    divergence: Objective
    notes: tuple[str, ...] = ()


def fit_divergence(
    outputs: Any, batch: Batch, wish: Wish = Wish(), positions: Positions | None = None
) -> FittedObjective:
    """Decide which outputs of a model are judged, and how.

    Every floating-point output with one row a sample is. With "auto" the first is taken for class logits,
    unless it has one column or its target in the batch is real-valued; of the others those are that have
    "logits" in their name or the shape of the first. What is no logits is compared by "nmse". A kind that is
    set counts for each output that it suits.

    Args:
        outputs: of the float model.
        batch: what it was run on.
        wish: the settings.
        positions: which positions of a batch count; None: all.

    Raises:
        TaskError: there is no floating-point output.
        ConfigError: a weight names no output, or dense outputs leave open which dimension counts classes.
        DataError: the kind that is set does not suit the first output.
    """
    first = output_tensor(outputs)
    size = batch_size(batch)
    named = {name: tensor for name, tensor in named_outputs(outputs).items() if len(tensor) == size}
    _check_weights(wish.weights, list(named_outputs(outputs)))
    judged = {
        name: masked(tensor, batch, positions)
        for name, tensor in named.items()
        if wish.weights.get(name, 1.0) > 0
    }
    if not judged and not named:
        judged = {next(iter(named_outputs(outputs))): first}
    if not judged:
        raise ConfigError(
            f"objective.output_weights leaves no output to judge, of {', '.join(named)}; let one be above 0."
        )
    primary, *others = judged
    divergence, note = _fit_first(primary, judged[primary], batch, wish)
    notes = [note] if note else []
    parts = [(primary, divergence)]
    for name in others:
        fitted = _fit_other(name, judged[name], judged[primary], divergence, wish)
        if fitted is None:
            notes.append(
                f"The output '{name}' is not finite, or does not vary on the first calibration shard, and is "
                f"not judged."
            )
        else:
            parts.append((name, fitted))
    parts = [(name, replace(each, positions=positions)) for name, each in parts]
    if len(parts) == 1 and named.get(primary, first) is first:
        return FittedObjective(parts[0][1], tuple(notes))
    total = sum(wish.weights.get(name, 1.0) for name, _ in parts)
    joint = JointDivergence(
        tuple(OutputPart(name, each, wish.weights.get(name, 1.0) / total) for name, each in parts)
    )
    listed = ", ".join(f"{part.name} ({part.divergence.kind}, {part.weight:.3g})" for part in joint.parts)
    notes.append(
        f"Outputs that are judged, each with its kind of divergence and its share: {listed}. Set "
        f"objective.output_weights for other shares; 0 leaves an output out."
    )
    return FittedObjective(joint, tuple(notes))


def _check_weights(weights: Mapping[str, float], names: list[str]) -> None:
    unknown = [name for name in weights if name not in names]
    if unknown:
        raise ConfigError(
            f"objective.output_weights names '{unknown[0]}'; the model's outputs are {', '.join(names)}."
        )


def _fit_first(name: str, judged: Tensor | Masked, batch: Batch, wish: Wish) -> tuple[Divergence, str]:
    """How the first output is judged, and what is said of it."""
    outputs = values_of(judged)
    shape = tuple(outputs.shape)
    reason = _no_logits(outputs, batch) if wish.kind == "auto" and wish.class_dim is None else ""
    if reason:
        fitted = _squared(judged) or Divergence("mse")
        return fitted, (
            f"Outputs are compared by '{fitted.kind}', since '{name}' of shape {shape} is no tensor of class "
            f"logits: {reason}. Set objective.divergence for another comparison."
        )
    kind: Any = "kl" if wish.kind == "auto" else wish.kind
    divergence = Divergence(kind, -1 if wish.class_dim is None else wish.class_dim)
    if wish.class_dim is None and outputs.ndim >= DENSE_NDIM and not divergence.is_squared:
        what = "counts the classes" if kind == "kl" else "holds the vectors"
        raise ConfigError(
            f"the model's output '{name}' has the shape {shape}, and nothing says which of its dimensions "
            f"{what}. Set objective.class_dim: 1 for maps [N, C, H, W], which would be {shape[1]} here, -1 "
            f"for [N, H, W, C], which would be {shape[-1]}. Outputs that are no class logits: set "
            f"objective.divergence to 'nmse'."
        )
    problem = check_outputs(outputs, divergence)
    if problem:
        raise DataError(
            f"{problem}, so objective.divergence '{divergence.kind}' has no meaning; set it to 'nmse' or "
            f"'mse', or set objective.class_dim, or give Task(forward=...) that returns logits."
        )
    return divergence.fitted(judged), ""


def _no_logits(outputs: Tensor, batch: Batch) -> str:
    """Why an output is no tensor of class logits; "" where it may be one."""
    if outputs.ndim < 2 or outputs.shape[-1] < 2:
        return "it has one value a position"
    for target in _targets(batch):
        if target.shape == outputs.shape and target.is_floating_point() and not _is_distribution(target):
            return "the batch holds real-valued targets of the same shape"
    return ""


def _targets(batch: Batch) -> list[Tensor]:
    """What a batch brings beside the model's input."""
    if isinstance(batch, Mapping):
        values = [batch[name] for name in _TARGETS if name in batch]
    elif isinstance(batch, tuple | list):
        values = list(batch[1:])
    else:
        values = []
    return [tensor for value in values for _, tensor in tensors_of(value)]


def _is_distribution(target: Tensor) -> bool:
    """Whether rows are probabilities of classes: soft labels."""
    sums = target.double().sum(-1)
    return bool((target >= 0).all()) and bool(torch.isclose(sums, torch.ones_like(sums), atol=1e-3).all())


def _fit_other(
    name: str, judged: Tensor | Masked, first: Tensor | Masked, divergence: Divergence, wish: Wish
) -> Divergence | None:
    """How a further output is judged; None where nothing can be said of it.

    Args:
        name: its path.
        judged: on the first calibration shard.
        first: the first output.
        divergence: how that one is judged.
        wish: the settings.
    """
    outputs = values_of(judged)
    if not bool(torch.isfinite(outputs).all()):
        return None
    is_alike = "logits" in name.rsplit(".", 1)[-1] or outputs.shape[1:] == values_of(first).shape[1:]
    is_map = outputs.ndim >= DENSE_NDIM and wish.class_dim is None
    is_set = wish.kind in ("kl", "cosine")
    has_classes = not divergence.is_squared and (is_alike or is_set) and not is_map
    if has_classes and not check_outputs(outputs, divergence):
        return divergence
    if divergence.kind == "mse" and wish.kind == "mse":
        return divergence
    return _squared(judged)


def _squared(judged: Tensor | Masked) -> Divergence | None:
    """Of kind "nmse", with the variance of these outputs; None where they do not vary."""
    try:
        return Divergence("nmse").fitted(judged)
    except DataError:
        return None
