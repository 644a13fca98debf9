"""A target, run in its own runtime, against the stripped module."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from raysearch.errors import ExportError
from raysearch.evaluation import Batch, Forward, batch_size, output_tensor
from raysearch.evaluation.forward import frozen_eval
from raysearch.export.outputs import tensor_leaves
from raysearch.records import TargetCheck

MEAN_TOLERANCE = 0.02
"""Mean absolute difference that another runtime may have, as a share of the outputs' range.

Where two runtimes sum in another order, a value on the edge between two codes flips by one step, and the
following layers amplify it: torch against itself with other kernels differs by up to 0.0019 of the range on
8-bit networks. With 4-bit activations, where a step is a fifteenth of a range, a small residual network
differs by 0.006: the mean of values on the grid often falls right between two codes. A file that is wrong
(a scale of another layer, codes that wrapped around) is off by a tenth of the range and more.
"""

LOOSE_MEAN_TOLERANCE = 0.05
MIN_AGREEMENT = 0.98
"""Up to `LOOSE_MEAN_TOLERANCE` is accepted where this share of samples keeps its argmax: at 2–4 bits flips
are coarse, and what counts is whether the answer stays."""


MAX_FLIP_RATE = 0.002
"""Share of a layer's codes that integer kernels may round differently. More flips of a single step are ties
(a mean of codes often falls right between two) and are noted; more flips that reach further are refused."""


@dataclass(frozen=True)
class Reference:
    """What the stripped module gives on one batch: all its tensors, and the judged one."""

    batch: Batch
    tensors: tuple[Tensor, ...]
    judged: Tensor


def reference_outputs(stripped: nn.Module, batches: Iterable[Batch], forward: Forward) -> list[Reference]:
    """Run the stripped module once on every batch.

    Args:
        stripped: the module.
        batches: what to run on.
        forward: (model, batch) → outputs.

    Raises:
        ExportError: there is no batch.
    """
    references = [Reference(batch, *_run(stripped, batch, forward)) for batch in batches]
    if not references:
        raise ExportError("there is no batch to verify the export on; give at least one.")
    return references


def references_of_size(references: list[Reference], size: int) -> list[Reference]:
    """The references whose batch has a size, for files that take no other.

    Raises:
        ExportError: there is none.
    """
    check_size([reference.batch for reference in references], size)
    return [reference for reference in references if batch_size(reference.batch) == size]


def check_size(batches: Iterable[Batch], size: int) -> None:
    """Refuse batches of which none has the only size that a file takes.

    Raises:
        ExportError: states the size and what to do.
    """
    if not any(batch_size(batch) == size for batch in batches):
        raise ExportError(
            f"the captured model takes batches of {size} only, and no verification batch has that size. "
            f"Give data in batches of {size}, or make the model's forward independent of the batch size."
        )


def compare(
    target: str, runtime: str, model: nn.Module, references: list[Reference], forward: Forward
) -> TargetCheck:
    """Run a target on the batches of the references.

    Args:
        target: its name.
        runtime: name and version of what runs it.
        model: the loaded target.
        references: what the stripped module gives, and on what.
        forward: (model, batch) → outputs.

    Returns:
        The greatest and the mean absolute difference over all outputs, and the share of rows of the judged
        output with the same argmax, where it has rows of several values.

    Raises:
        ExportError: it cannot run a batch, or gives other shapes or another number of outputs.
    """
    greatest = total = 0.0
    num_values = num_same = num_rows = num_samples = 0
    for reference in references:
        try:
            tensors, output = _run(model, reference.batch, forward)
        except Exception as error:
            raise ExportError(
                f"the target '{target}' cannot run a verification batch in {runtime}: {error!r:.300}. If "
                f"your forward function needs more of the model than a call, change it."
            ) from error
        expected = reference.tensors
        if [t.shape for t in tensors] != [t.shape for t in expected]:
            raise ExportError(
                f"the target '{target}' gives outputs of shape {[list(t.shape) for t in tensors]} in "
                f"{runtime}; the stripped module gives {[list(t.shape) for t in expected]}."
            )
        for ours, theirs in zip(expected, tensors, strict=True):
            difference = _difference(ours, theirs)
            if difference.numel():
                greatest = max(greatest, float(difference.max()))
                total += float(difference.sum())
                num_values += difference.numel()
        same, rows = _agreement(reference.judged, output)
        num_same += same
        num_rows += rows
        num_samples += batch_size(list(expected))
    mean = total / max(num_values, 1)
    agreement = num_same / num_rows if num_rows else 1.0
    return TargetCheck(target, runtime, greatest, mean, agreement, num_samples)


def check_equal(check: TargetCheck) -> None:
    """Refuse a target that must equal the stripped module bit for bit and does not.

    Raises:
        ExportError: states the difference.
    """
    if check.max_abs_difference != 0.0:
        raise ExportError(
            f"the target '{check.target}' differs from the stripped module in {check.runtime} by up to "
            f"{check.max_abs_difference:.3g} (mean {check.mean_abs_difference:.3g}); it must be equal. The "
            f"model may compute differently when captured: compare it with torch.export of itself."
        )


def within_tolerance(check: TargetCheck, references: list[Reference]) -> bool:
    """Whether another runtime's difference is no more than flips of single steps explain."""
    relative = check.mean_abs_difference / outputs_range(references)
    if relative <= MEAN_TOLERANCE:
        return True
    # Of a single output a row has no argmax to agree on.
    has_rows = any(r.judged.ndim > 1 and r.judged.shape[-1] > 1 for r in references)
    return has_rows and relative <= LOOSE_MEAN_TOLERANCE and check.agreement >= MIN_AGREEMENT


def check_close(check: TargetCheck, references: list[Reference], where: Callable[[], str] = str) -> None:
    """Refuse a target whose difference is beyond the tolerance.

    Args:
        check: the figures.
        references: what it was compared with.
        where: finds out where it arises, as a sentence without its full stop; called in this case only.

    Raises:
        ExportError: states the figures and the tolerance.
    """
    if not within_tolerance(check, references):
        place = where()
        at = f"{place}. " if place else ""
        raise ExportError(
            f"{describe(check, references)}. {at}Export without '{check.target}', or report the model."
        )


def check_flips(check: TargetCheck) -> str:
    """Refuse kernels that give other codes than the file says.

    Returns:
        A note on the worst layer if single steps flip more often than `MAX_FLIP_RATE`; else "".

    Raises:
        ExportError: codes of a layer are off by more than one step, and more often than that.
    """
    beyond = [layer for layer in check.layers if layer.rate > MAX_FLIP_RATE]
    if not beyond:
        return ""
    # Kernels that are wrong come before ties, however many there are.
    worst = max(beyond, key=lambda layer: (layer.max_steps > 1, layer.rate))
    figures = (
        f"the worst layer of the target '{check.target}' in {check.runtime} is '{worst.name}': "
        f"{worst.num_flips} of {worst.num_codes} codes differ from what the file says, by up to "
        f"{worst.max_steps} steps; allowed is {MAX_FLIP_RATE:.1%}"
    )
    if worst.max_steps > 1:
        raise ExportError(
            f"{figures}. Integer kernels are wrong on this CPU: update onnxruntime, or pin the layers before "
            f"it to 7 bits or less."
        )
    return f"{figures}, unless by single steps."


def describe(check: TargetCheck, references: list[Reference]) -> str:
    """The figures of a check beside the tolerance, as one statement."""
    return (
        f"the target '{check.target}' differs from the stripped module in {check.runtime}: mean "
        f"{check.mean_abs_difference:.3g}, max {check.max_abs_difference:.3g}, outputs range over "
        f"{outputs_range(references):.3g}, agreement {check.agreement:.4f}; allowed is a mean of "
        f"{MEAN_TOLERANCE:.0%} of the range, or {LOOSE_MEAN_TOLERANCE:.0%} with agreement {MIN_AGREEMENT:.2f}"
    )


def _run(model: nn.Module, batch: Batch, forward: Forward) -> tuple[tuple[Tensor, ...], Tensor]:
    with frozen_eval(model), torch.no_grad():
        outputs: Any = forward(model, batch)
    return tuple(tensor_leaves(outputs)), output_tensor(outputs)


def _difference(ours: Tensor, theirs: Tensor) -> Tensor:
    a, b = ours.double(), theirs.double()
    equal = (a == b) | (a.isnan() & b.isnan())
    # A NaN or infinity on one side only is an infinite difference, not an unknown one.
    return torch.where(equal, 0.0, (a - b).abs().nan_to_num(nan=torch.inf, posinf=torch.inf))


def _agreement(ours: Tensor, theirs: Tensor) -> tuple[int, int]:
    """Rows with the same argmax, and all rows; none where a row is a single value."""
    if ours.ndim < 2 or ours.shape[-1] < 2:
        return 0, 0
    same = ours.argmax(-1) == theirs.argmax(-1)
    return int(same.sum()), same.numel()


def outputs_range(references: list[Reference]) -> float:
    """Greatest less smallest finite value of all outputs; 1 where they are all the same."""
    values = torch.cat([t.double().reshape(-1) for r in references for t in r.tensors])
    values = values[torch.isfinite(values)]
    width = float(values.max() - values.min()) if values.numel() else 0.0
    return width if width > 0 else 1.0
