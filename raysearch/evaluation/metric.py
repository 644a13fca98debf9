"""A metric: a number of some outputs, and which way it gets better."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor

from raysearch.errors import TaskError
from raysearch.evaluation.batches import Batch, batch_size

Direction = Literal["maximize", "minimize"]
"""Whether more of a value is better, or less of it."""

MetricFunction = Callable[[Any, Batch], float]
"""(outputs, batch) → number, a mean over the batch."""

SampleFunction = Callable[[Any, Any], Tensor]
"""(outputs, batch) → one value a sample, [samples]."""

_MORE_IS_BETTER = (
    "accuracy acc balanced_accuracy precision average_precision recall f1 auc auroc roc_auc map iou miou "
    "mean_iou dice r2 psnr ssim bleu"
)
_LESS_IS_BETTER = (
    "error error_rate top1_error top5_error mae mse rmse mape mean_absolute_error mean_squared_error "
    "root_mean_squared_error perplexity nll cross_entropy wer cer fid"
)
WELL_KNOWN: Mapping[str, Direction] = {
    **dict.fromkeys(_MORE_IS_BETTER.split(), "maximize"),
    **dict.fromkeys(_LESS_IS_BETTER.split(), "minimize"),
}
"""Names that mean one thing everywhere; a metric of such a name need not state its direction."""

_STAGE = re.compile(r"^(?:train|val|valid|validation|eval|test)[_/]")
_COUNTED = re.compile(
    r"^(?:top[-_]?\d+(?:_(?:accuracy|acc))?|(?:acc|accuracy)[@_]\d+|f1_(?:macro|micro|weighted))$"
)


@dataclass(frozen=True)
class Metric:
    """A metric's function together with its direction.

    Attributes:
        function: (outputs, batch) → number, a mean over the batch.
        direction: "maximize" where more is better, "minimize" where less is; None: not stated.
        per_sample: the function gives a tensor of one value a sample instead, so that the mean over all
            samples is exact whatever their batches, and has a standard error.
        of_mean: what the metric is of that mean, such as `math.exp` for a perplexity; None: the mean itself.

    Raises:
        TaskError: the function cannot be called, or the direction is none.

    Example:
        >>> rmse = Metric(lambda outputs, batch: 0.5, direction="minimize")
        >>> rmse(None, None), rmse.direction
        (0.5, 'minimize')
    """

    function: MetricFunction | SampleFunction
    direction: Direction | None = None
    per_sample: bool = False
    of_mean: Callable[[float], float] | None = None

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TaskError(
                f"Metric(...) got a {type(self.function).__name__}; it must be a function (outputs, batch) "
                f"-> number."
            )
        if self.direction is not None and self.direction not in get_args(Direction):
            raise TaskError(
                f"Metric(direction={self.direction!r}) is no direction; write 'maximize' where more of it is "
                f"better, 'minimize' where less is."
            )

    def __call__(self, outputs: Any, batch: Batch) -> float:
        """The value of some outputs."""
        if self.per_sample:
            return self.value_of(float(self.samples(outputs, batch).mean()))
        value: Any = self.function(outputs, batch)
        # A tensor of one element counts as a number.
        number: float = value
        return number

    def samples(self, outputs: Any, batch: Batch) -> Tensor:
        """What the function gives of each sample, float64 [samples].

        Raises:
            TaskError: it gives something else.
        """
        values: Any = self.function(outputs, batch)
        if not isinstance(values, Tensor) or values.shape != (batch_size(batch),):
            got = f"a tensor of shape {tuple(values.shape)}" if isinstance(values, Tensor) else repr(values)
            raise TaskError(
                f"a Metric(per_sample=True) gives {got:.80} for a batch of {batch_size(batch)} samples; it "
                f"must give a tensor of one value a sample."
            )
        return values.detach().double().cpu()

    def value_of(self, mean: float) -> float:
        """The metric of the mean over samples."""
        return mean if self.of_mean is None else self.of_mean(mean)

    def error_of(self, mean: float, stderr: float) -> float:
        """The metric's standard error: half its difference between the mean ± its standard error."""
        if self.of_mean is None:
            return stderr
        return abs(self.of_mean(mean + stderr) - self.of_mean(mean - stderr)) / 2


def as_metric(function: MetricFunction) -> Metric:
    """A metric from whatever a task names one by; a `Metric` as it is.

    A function says which way is better by an attribute `higher_is_better` (as torchmetrics has it) or
    `greater_is_better` (as Hugging Face's Trainer calls it).
    """
    if isinstance(function, Metric):
        return function
    for attribute in ("higher_is_better", "greater_is_better"):
        is_better = getattr(function, attribute, None)
        if isinstance(is_better, bool):
            return Metric(function, "maximize" if is_better else "minimize")
    return Metric(function)


def direction_of(name: str, metric: MetricFunction) -> Direction | None:
    """Which way a metric gets better: as it states, else as its name says anywhere; None where neither does.

    Of names, those of `WELL_KNOWN` are understood, `top5`, `acc@1` and `f1_macro`, and whatever ends in
    "loss"; each also behind `val_`, `eval/` and the like.

    Example:
        >>> direction_of("val_accuracy", len), direction_of("rmse", len), direction_of("score", len)
        ('maximize', 'minimize', None)
    """
    stated = as_metric(metric).direction
    if stated is not None:
        return stated
    plain = _STAGE.sub("", name.strip().lower().replace(" ", "_").replace("-", "_"))
    if _COUNTED.match(plain):
        return "maximize"
    if plain == "loss" or plain.endswith("_loss"):
        return "minimize"
    return WELL_KNOWN.get(plain)
