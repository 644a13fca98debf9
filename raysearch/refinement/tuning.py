"""Tuning without labels: scales, norms and biases follow the float model on the calibration data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raysearch.cluster.pool import UnitValue
from raysearch.config.rounding import RoundingConfig
from raysearch.errors import DataError
from raysearch.evaluation import Batch, DataSet, Replica, batch_size, run_in_microbatches, shard_name
from raysearch.evaluation.forward import frozen_eval
from raysearch.records.refinement import Candidate, Refinement
from raysearch.records.winner import Winner
from raysearch.refinement.tunable_model import TunableModel
from raysearch.rounding.layers import Geometry, where_counted

TUNED = "tuned"

DIVERGENCE_SHARE = 0.1
"""What the divergence of the outputs counts beside the modules' error, in units of where both start. More of
it fits a few hundred samples alone: see benchmarks/results/refinement.md."""


@dataclass(frozen=True)
class Work:
    """What all units of refinement share.

    Attributes:
        winner: what is refined.
        settings: how weights are refined.
        num_shards: calibration shards.
        seed: of the order in which they come.
    """

    winner: Winner
    settings: RoundingConfig
    num_shards: int
    seed: int


def tune(replica: Replica, work: Work, start: Candidate) -> UnitValue:
    """Unit: a candidate with its scales, norms and biases tuned, as the bytes of a record.

    `rounding.refine_steps` steps of Adam, a calibration shard each, in an order drawn anew whenever all were
    seen; the rate falls to 0 along a cosine, and counts in sizes of each parameter. A step minimises

        0.1·D/D₀ + E/E₀,    E = mean over modules of ‖y − y⁰‖²/‖y⁰ − mean y⁰‖²

    D the divergence of the outputs from those of the float model, y what the modules whose norms or biases
    are tuned give, y⁰ what they give in the float model; D₀ and E₀ are their values before the first step. A
    model without such modules follows the divergence alone. The codes stand still.

    There is no early stop: samples to stop on would have to be kept from rounding too, and samples are what
    rounding is short of. Whether tuning helped is judged afterwards, on validation data.

    Cost: a step is a forward and a backward of the quantized model and a forward of the float one. Memory: of
    one shard's backward, and the outputs of those modules.

    Args:
        replica: holds the float model and the calibration shards.
        work: the winner and the settings.
        start: where it begins.

    Raises:
        DataError: the objective becomes NaN or infinite.
    """
    model = TunableModel(replica.model, work.winner, start)
    rate = work.settings.refine_learning_rate
    groups = [{"params": [parameter], "lr": rate * size} for parameter, size in model.learned.items()]
    optimizer = torch.optim.Adam(groups)
    bases = [float(group["lr"]) for group in optimizer.param_groups]
    modules = model.tuned_modules()
    num_steps = work.settings.refine_steps
    with frozen_eval(replica.model):
        weights = _shares(replica.device) / _start_terms(replica, model, modules, 0)
        for step, index in enumerate(_order(work.num_shards, num_steps, work.seed)):
            factor = 0.5 * (1 + math.cos(math.pi * step / num_steps))
            for group, base in zip(optimizer.param_groups, bases, strict=True):
                group["lr"] = base * factor
            gradients = _gradients(replica, model, modules, index, weights)
            for parameter, gradient in zip(model.learned, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
    name = f"{start.name}, {TUNED}"
    record = Refinement(model.candidate(name), {}, {}, 0)
    return {"candidate": np.frombuffer(record.to_bytes(), np.uint8)}


def _shares(device: torch.device | str) -> Tensor:
    return torch.tensor([DIVERGENCE_SHARE, 1.0], dtype=torch.float64, device=device)


def candidate_from(value: UnitValue) -> Candidate:
    """Read what `tune` gave."""
    return Refinement.from_bytes(value["candidate"].tobytes()).best


def _order(num_shards: int, num_steps: int, seed: int) -> Iterator[int]:
    generator = torch.Generator().manual_seed(seed % 2**63)
    waiting: list[int] = []
    for _ in range(num_steps):
        if not waiting:
            waiting = torch.randperm(num_shards, generator=generator).tolist()
        yield waiting.pop(0)


def _start_terms(replica: Replica, model: TunableModel, modules: Sequence[str], index: int) -> Tensor:
    """Both terms on one shard before the first step, 1 in place of 0: what each counts by."""

    def of_part(part: Batch) -> Tensor:
        with torch.no_grad():
            return terms_of(replica, model.model, modules, part) * batch_size(part)

    shard = replica.shard(DataSet.CALIBRATION, index)
    name = shard_name(DataSet.CALIBRATION, index)
    terms = run_in_microbatches(of_part, shard, replica.microbatches("tuning"), combine=_total, name=name)
    means = terms / batch_size(shard)
    return torch.where(means > 0, means, torch.ones_like(means))


def _total(parts: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(parts)).sum(0)


def _gradients(
    replica: Replica, model: TunableModel, modules: Sequence[str], index: int, weights: Tensor
) -> list[Tensor | None]:
    """Of the mean objective over one shard; a shard that does not fit is taken in pieces.

    Args:
        replica: holds the shards.
        model: what is tuned.
        modules: whose outputs are compared.
        index: of the shard.
        weights: of the two terms.

    Raises:
        DataError: the objective is NaN or infinite.
    """
    shard = replica.shard(DataSet.CALIBRATION, index)
    total = batch_size(shard)
    parameters = list(model.learned)

    def of_part(part: Batch) -> list[Tensor | None]:
        with torch.enable_grad():
            terms = terms_of(replica, model.model, modules, part)
            objective = (weights * terms).sum() * (batch_size(part) / total)
        if not bool(torch.isfinite(objective)):
            raise DataError(
                f"tuning the quantized model reaches an objective of {objective.item()}; lower "
                f"rounding.refine_learning_rate, or set rounding.refine without 'tune'."
            )
        return list(torch.autograd.grad(objective, parameters, allow_unused=True))

    return run_in_microbatches(
        of_part,
        shard,
        replica.microbatches("tuning"),
        combine=_summed,
        name=shard_name(DataSet.CALIBRATION, index),
    )


def _summed(parts: Sequence[list[Tensor | None]]) -> list[Tensor | None]:
    total = parts[0]
    for part in parts[1:]:
        total = [_sum(one, other) for one, other in zip(total, part, strict=True)]
    return total


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other


def terms_of(replica: Replica, model: nn.Module, modules: Sequence[str], batch: Batch) -> Tensor:
    """The divergence of the outputs and the error of the modules' outputs, means over samples, [2].

    Of modules too the outputs at positions that do not count are left out.
    """
    with _outputs_of(replica.model, modules) as targets, torch.no_grad():
        reference = replica.divergence.judged(replica.forward(replica.model, batch), batch)
    with _outputs_of(model, modules) as outputs:
        judged = replica.divergence.judged(replica.forward(model, batch), batch)
    divergence = replica.divergence.per_sample(judged, reference).mean()
    if not outputs or set(outputs) != set(targets):
        return torch.stack([divergence, torch.zeros_like(divergence)])
    counted = replica.counted(batch)
    errors = []
    for name, output in outputs.items():
        own, target = (where_counted(Geometry("linear"), each, counted) for each in (output, targets[name]))
        errors.append(_error(own, target))
    return torch.stack([divergence, torch.stack(errors).mean()])


def _error(outputs: Tensor, targets: Tensor) -> Tensor:
    """The squared error over the variance; 0 where the float outputs do not vary."""
    variance = targets.double().var(correction=0)
    if not bool(variance > 0):
        return variance.new_zeros(())
    return (outputs.double() - targets.double()).square().mean() / variance


@contextmanager
def _outputs_of(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """While active, keeps what the named modules give: of several calls the last."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.is_floating_point() and output.numel():
                outputs[name] = output

        return hook

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names if name]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
