"""What a user hands over, and how it is found by its name."""

from __future__ import annotations

import copy
import hashlib
import importlib
import importlib.util
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from raysearch.cluster.shipping import register_by_value
from raysearch.errors import TaskError
from raysearch.evaluation import Forward, Loss, default_forward
from raysearch.evaluation.batches import on_device
from raysearch.evaluation.metric import MetricFunction, as_metric
from raysearch.evaluation.plain_weights import with_plain_weights

T = TypeVar("T")


@dataclass
class Task:
    """A float model with its data: all that raysearch needs.

    A *batch* is a tensor, or a tuple, list or dict of tensors; dimension 0 of each tensor counts samples.

    Attributes:
        model: the float model, an `nn.Module`. It is never changed; raysearch works on copies.
        example_inputs: tuple of positional arguments for one `model(*example_inputs)`; dimension 0 is the
            batch. The graph is captured and exported with them.
        calibration: a map-style `Dataset`, or an iterable of batches: ranges and sensitivity use its first
            `calibration.num_samples` samples. No labels are needed.
        validation: the same kind: the search measures its trials on a random sample of it; float and
            quantized metrics, and the choice of the best QAT epoch. Default: the calibration samples.
        train: a `Dataset`, or batches that can be iterated every epoch. Without it there is no QAT
            (post-training quantization only), and the run says so.
        forward: `forward(model, batch) -> outputs`. Default: a tensor is the input; of a tuple or list the
            first element is; of a dict all but `labels` go in by keyword. Outputs: a tensor, or a tuple, a
            list, a dict, a dataclass or an object with `.logits` that holds tensors. Every floating-point one
            with a row a sample is judged, the first of them (`logits` where there are any) as class logits.
        loss: `loss(outputs, batch) -> scalar`, a mean over the batch. Default: none; everything is
            label-free, by the divergence to the float model's outputs.
        metrics: name → `metric(outputs, batch) -> number`, a mean over the batch, or `Metric(function,
            direction="minimize")`. A search that follows a metric must know whether more or less of it is
            better; names such as `accuracy` and `rmse` say so themselves.

    Raises:
        TaskError: a field is of the wrong type.

    Example:
        >>> import torch
        >>> data = [(torch.randn(8, 4), torch.zeros(8, dtype=torch.long))]
        >>> task = Task(torch.nn.Linear(4, 2), (torch.randn(1, 4),), calibration=data)
        >>> task.run(task.model, data[0]).shape
        torch.Size([8, 2])
    """

    model: nn.Module
    example_inputs: tuple[Any, ...]
    calibration: Any
    validation: Any = None
    train: Any = None
    forward: Forward | None = None
    loss: Loss | None = None
    metrics: Mapping[str, MetricFunction] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.model, nn.Module):
            raise TaskError(
                f"Task(model=...) is a {type(self.model).__name__}; it must be a torch.nn.Module."
            )
        if not isinstance(self.example_inputs, tuple):
            raise TaskError(
                f"Task(example_inputs=...) is a {type(self.example_inputs).__name__}; it must be a tuple of "
                f"the model's positional arguments, for example (torch.zeros(1, 3, 32, 32),)."
            )
        if self.calibration is None:
            raise TaskError(
                "Task(calibration=...) is None; pass a Dataset, a DataLoader or a list of batches."
            )
        self.metrics = dict(self.metrics or {})
        for name, function in {"forward": self.forward, "loss": self.loss, **self.metrics}.items():
            if function is not None and not callable(function):
                raise TaskError(f"the Task's {name} is a {type(function).__name__}; it must be a function.")
        self.metrics = {name: as_metric(function) for name, function in self.metrics.items()}

    @property
    def run(self) -> Forward:
        """The task's forward, or the default one."""
        return self.forward or default_forward


def on_host(task: Task) -> Task:
    """The task with plain weights, and its model and example inputs in the host's memory.

    It is the task itself where that is so already. Whoever starts a run may have no GPU, and its data come as
    CPU tensors; each worker takes its copy to its own device. The user's model stays as it is and where it
    is: a copy is changed.
    """
    model = with_plain_weights(task.model)
    tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
    if any(tensor.device.type == "cuda" for tensor in tensors):
        model = copy.deepcopy(model).cpu()
    example_inputs = on_device(task.example_inputs, "cpu")
    if model is task.model and example_inputs is task.example_inputs:
        return task
    return replace(task, model=model, example_inputs=example_inputs)


def load_task(spec: str | Task) -> Task:
    """Find a task: `path/to/file.py:factory`, `package.module:factory`, or a `Task` as it is.

    The factory takes no argument and returns a `Task`. A file is imported with its folder on the path, and
    what it defines is shipped to workers by value, so that they need not have the file.

    Raises:
        TaskError: no such file, module or factory, or it does not return a Task.
    """
    if isinstance(spec, Task):
        return spec
    location, separator, name = spec.rpartition(":")
    if not separator or not location or not name:
        raise TaskError(
            f"the task '{spec}' cannot be read; write path/to/file.py:factory or package.module:factory."
        )
    module = _from_file(location) if location.endswith(".py") else _from_module(location)
    factory = getattr(module, name, None)
    if not callable(factory):
        names = ", ".join(_functions(module)) or "none"
        raise TaskError(f"'{location}' has no factory '{name}'; functions there: {names}.")
    try:
        task = factory()
    except TaskError:
        raise
    except Exception as error:
        raise TaskError(f"the factory '{spec}' failed: {type(error).__name__}: {error}") from error
    if not isinstance(task, Task):
        raise TaskError(
            f"the factory '{spec}' returned a {type(task).__name__}; it must return a raysearch.Task."
        )
    return task


def _from_file(location: str) -> types.ModuleType:
    path = Path(location).expanduser().resolve()
    if not path.is_file():
        raise TaskError(f"the task file '{location}' does not exist (looked at {path}).")
    name = f"raysearch_task_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise TaskError(f"the task file '{location}' is no Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent))
    loader = spec.loader
    try:
        _import(lambda: loader.exec_module(module), location)
    finally:
        sys.path.remove(str(path.parent))
    register_by_value(module)
    # Modules beside the task file are as unknown to workers as the file itself.
    for other in list(sys.modules.values()):
        file = getattr(other, "__file__", None)
        if other is not module and file and Path(file).resolve().parent == path.parent:
            register_by_value(other)
    return module


def _from_module(name: str) -> types.ModuleType:
    return _import(lambda: importlib.import_module(name), name)


def _import(action: Callable[[], T], location: str) -> T:
    """Import, where anything may go wrong: the code is the user's."""
    try:
        return action()
    except Exception as error:
        raise TaskError(f"'{location}' cannot be imported: {type(error).__name__}: {error}") from error


def _functions(module: types.ModuleType) -> list[str]:
    """Names of the functions that a module defines itself, not those that it imports."""
    names: list[str] = []
    for name, value in vars(module).items():
        if isinstance(value, types.FunctionType) and value.__module__ == module.__name__:
            names.append(name)
    return sorted(names)
