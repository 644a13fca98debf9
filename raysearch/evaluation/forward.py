"""The default way to run a batch, and the tensor that is judged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from raysearch.determinism import GeneratorStates
from raysearch.errors import DataError, TaskError
from raysearch.evaluation.batches import Batch, own_batch
from raysearch.evaluation.model.model_state import state_as_found
from raysearch.evaluation.outputs import named_outputs

Forward = Callable[[nn.Module, Batch], Any]
Loss = Callable[[Any, Batch], Tensor]


def default_forward(model: nn.Module, batch: Batch) -> Any:
    """Run a batch the usual way.

    A tensor is the input; of a tuple or list the first element is; of a dict all but `labels` go in by
    keyword.
    """
    if isinstance(batch, Mapping):
        return model(**{name: value for name, value in batch.items() if name != "labels"})
    if isinstance(batch, tuple | list):
        return model(batch[0])
    return model(batch)


@dataclass(frozen=True)
class OnOwnBatch:
    """A forward that is given a copy of each batch, since it changes what it is given."""

    forward: Forward

    def __call__(self, model: nn.Module, batch: Batch) -> Any:
        """Run a copy of the batch."""
        return self.forward(model, own_batch(batch))


def output_tensor(outputs: Any) -> Tensor:
    """The first tensor that is judged: the output itself, its `logits`, or its first floating-point one.

    Raises:
        TaskError: there is no floating-point tensor; a task's own `forward` can return one.
    """
    named = named_outputs(outputs)
    if named:
        return next(iter(named.values()))
    output = outputs
    if isinstance(outputs, Mapping):
        output = outputs.get("logits", next(iter(outputs.values()), None))
    elif hasattr(outputs, "logits"):
        output = outputs.logits
    elif isinstance(outputs, tuple | list) and outputs:
        output = outputs[0]
    what = type(output).__name__
    if isinstance(output, Tensor):
        what = f"tensor of {output.dtype} with the shape {tuple(output.shape)}"
    raise TaskError(
        f"the model's output is a {what}, not a floating-point tensor with one row of values a sample; give "
        f"Task(forward=...) a function (model, batch) that returns the logits."
    )


def check_finite_forward(model: nn.Module, forward: Forward, batch: Batch) -> None:
    """Run one batch and refuse outputs that are not finite, naming the first layer that made one.

    Args:
        model: the float model; also its parameters and buffers are looked at.
        forward: (model, batch) → outputs.
        batch: of the calibration data.

    Raises:
        DataError: names the parameter that is not finite, or else the first module whose output is not.
        TaskError: the forward switches to inference mode.
    """
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise DataError(f"the model's '{name}' holds NaN or infinity; load intact weights.")
    for name, buffer in model.named_buffers():
        # Infinity is a fair value of a buffer: attention masks are −∞ where they mask.
        if bool(torch.isnan(buffer).any()):
            raise DataError(f"the model's '{name}' holds NaN; load intact weights.")
    bad: list[str] = []

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.is_floating_point() and not torch.isfinite(output).all():
                bad.append(name)

        return hook

    handles = [m.register_forward_hook(watch(name)) for name, m in model.named_modules() if name]
    try:
        with frozen_eval(model), torch.no_grad():
            outputs = output_tensor(forward(model, batch))
            if outputs.is_inference():
                raise TaskError(
                    "the model's forward, or the task's, runs under torch.inference_mode, whose tensors know "
                    "no gradient. Take it out: raysearch switches gradients off where it needs none."
                )
    finally:
        for handle in handles:
            handle.remove()
    if not bool(torch.isfinite(outputs).all()):
        where = f"first in the layer '{bad[0]}'" if bad else "outside any layer"
        raise DataError(
            f"the float model gives NaN or infinity on the calibration data, {where}. Mend the model or the "
            f"data; quantization cannot."
        )


@contextmanager
def frozen_eval(model: nn.Module) -> Iterator[None]:
    """Eval mode; afterwards the model and torch's generators are as before.

    Modules' flags, every `requires_grad`, and what a forward keeps on the model; see `state_as_found`.
    """
    flags = {module: module.training for module in model.modules()}
    grads = {parameter: parameter.requires_grad for parameter in model.parameters()}
    generators = GeneratorStates.now()
    model.eval()
    try:
        with state_as_found(model):
            yield
    finally:
        generators.restore()
        for module, flag in flags.items():
            module.training = flag
        for parameter, flag in grads.items():
            parameter.requires_grad_(flag)
