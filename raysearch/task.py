"""What a user hands over, and how it is found by its name."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import types
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import parse_qsl

from torch import nn

from raysearch.cluster.by_value import register_by_value
from raysearch.config import load_config
from raysearch.errors import ConfigError, RaysearchError, TaskError
from raysearch.evaluation import Forward, Loss, default_forward
from raysearch.evaluation.batches import check_dense, host_copy
from raysearch.evaluation.calls.call_form import in_order
from raysearch.evaluation.measure import RESERVED
from raysearch.evaluation.metric import MetricFunction, as_metric
from raysearch.evaluation.model.model_source import ModelFactory, called
from raysearch.evaluation.model.private_model import private_model, refuse_compiled, unwrapped
from raysearch.evaluation.positions import Positions

T = TypeVar("T")


@dataclass
class Task:
    """A float model with its data: all that raysearch needs.

    A *batch* is a tensor, or a tuple, list or dict of tensors; dimension 0 of each tensor counts samples.

    Attributes:
        model: the float model, an `nn.Module`. It is never changed; raysearch works on copies. Or a function
            without arguments that gives it: it is called here and on every worker, so that weights are read
            from files that all nodes have and are not sent to them. What it gives must be the same each time.
        example_inputs: the arguments of one call of the model: a tuple by place, or a dict by name, which
            becomes a tuple in the order of the forward's arguments; dimension 0 is the batch. The graph is
            captured and exported with them; sizes that differ between the data's batches stay open.
        calibration: a map-style `Dataset`, or an iterable of batches: ranges and sensitivity use its first
            `calibration.num_samples` samples. No labels are needed.
        validation: the same kind: the search measures its trials on a random sample of it; float and
            quantized metrics, and the choice of the best QAT epoch. Default: the calibration samples.
        test: the same kind: the float and the quantized model are judged on it at the end, with standard
            errors, and nothing is chosen by it. Default: none.
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
        positions: `positions(batch) -> bool [samples, …]`, such as `batch["attention_mask"].bool()`: which
            positions of a sample count. Outputs are judged at these alone, and second moments are taken of
            what layers read there. Default: all.
        settings: nested settings that suit the task, in place of the defaults; what a run sets itself wins.
        factory: the function that `model` was given as; not to be set.

    Raises:
        TaskError: a field is of the wrong type.
        ConfigError: the settings do not fit, or are of the machines that a run has.

    Example:
        >>> import torch
        >>> data = [(torch.randn(8, 4), torch.zeros(8, dtype=torch.long))]
        >>> task = Task(torch.nn.Linear(4, 2), (torch.randn(1, 4),), calibration=data)
        >>> task.run(task.model, data[0]).shape
        torch.Size([8, 2])
    """

    model: nn.Module
    example_inputs: Any
    calibration: Any
    validation: Any = None
    train: Any = None
    forward: Forward | None = None
    loss: Loss | None = None
    metrics: Mapping[str, MetricFunction] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    positions: Positions | None = None
    test: Any = None
    factory: ModelFactory | None = None

    def __post_init__(self) -> None:
        model: object = self.model
        if not isinstance(model, nn.Module) and callable(model):
            self.factory = cast(ModelFactory, model)
            self.model = called(self.factory)
        if not isinstance(self.model, nn.Module):
            raise TaskError(
                f"Task(model=...) is a {type(self.model).__name__}; it must be a torch.nn.Module, or a "
                f"function that gives one."
            )
        if isinstance(self.example_inputs, Mapping):
            self.example_inputs = in_order(
                unwrapped(self.model), (), self.example_inputs, "Task(example_inputs=...)"
            )
        if not isinstance(self.example_inputs, tuple):
            raise TaskError(
                f"Task(example_inputs=...) is a {type(self.example_inputs).__name__}; it must be a tuple of "
                f"the model's positional arguments, for example (torch.zeros(1, 3, 32, 32),), or a dict of "
                f"arguments by name."
            )
        if self.calibration is None:
            raise TaskError(
                "Task(calibration=...) is None; pass a Dataset, a DataLoader or a list of batches."
            )
        refuse_compiled(self.model)
        _check_settings(self.settings)
        self.metrics = _named_metrics(self.metrics)
        functions = {"forward": self.forward, "loss": self.loss, "positions": self.positions}
        for name, function in {**functions, **self.metrics}.items():
            if function is not None and not callable(function):
                raise TaskError(f"the Task's {name} is a {type(function).__name__}; it must be a function.")
        self.metrics = {name: as_metric(function) for name, function in self.metrics.items()}

    @property
    def run(self) -> Forward:
        """The task's forward, or the default one."""
        return self.forward or default_forward


def private_task(task: Task) -> Task:
    """The task with a model and example inputs of raysearch's own, in the host's memory.

    Whoever starts a run may have no GPU, and its data come as CPU tensors; each worker takes its copy to its
    own device. The user's model is never run: a forward may change what it runs on; see `private_model`.

    Raises:
        CaptureError: the model does not run on its example inputs.
        DataError: these are no dense tensors.
        TaskError: the model cannot be copied, or holds no values.
    """
    inner = unwrapped(task.model)
    if inner is not task.model:
        warnings.warn(
            f"Task(model=...) is a {type(task.model).__name__}; raysearch works on the "
            f"{type(inner).__name__} inside it.",
            stacklevel=2,
        )
    check_dense(task.example_inputs, "Task(example_inputs=...)")
    example_inputs = host_copy(task.example_inputs)
    model = private_model(task.model, example_inputs)
    return replace(task, model=model, example_inputs=example_inputs)


def load_task(spec: str | Task) -> Task:
    """Find a task: `path/to/file.py:factory`, `package.module:factory`, or a `Task` as it is.

    The factory returns a `Task`. It is given what follows its name, `factory?name=value&…`, as texts; nothing
    where nothing does. A file is imported with its folder on the path, where
    it stays, as Python does with a script's. What it defines, and what modules and packages beside it do, is
    shipped to workers by value, so that they need not have the files.

    Raises:
        TaskError: no such file, module or factory, or it does not return a Task.
    """
    if isinstance(spec, Task):
        return spec
    path, _, query = spec.partition("?")
    location, separator, name = path.rpartition(":")
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
        task = factory(**dict(parse_qsl(query, keep_blank_values=True)))
    except RaysearchError:
        raise
    except SystemExit as error:
        raise TaskError(f"the factory '{spec}' {_ended(error)}") from error
    except Exception as error:
        raise TaskError(f"the factory '{spec}' failed: {type(error).__name__}: {error}") from error
    # What the factory imported is known only now.
    if location.endswith(".py"):
        _ship_neighbours(Path(str(module.__file__)).parent)
    if not isinstance(task, Task):
        raise TaskError(
            f"the factory '{spec}' returned a {type(task).__name__}; it must return a raysearch.Task."
        )
    return task


def _from_file(location: str) -> types.ModuleType:
    try:
        path = Path(location).expanduser().resolve()
        is_file = path.is_file()
    # A NUL, no UTF-8, a name too long, a user without a home.
    except (OSError, ValueError, RuntimeError) as error:
        raise TaskError(f"the task file {location!r:.200} cannot be looked up: {error}.") from error
    if not is_file:
        raise TaskError(f"the task file '{location}' does not exist (looked at {path}).")
    name = f"raysearch_task_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise TaskError(f"the task file '{location}' is no Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    loader = spec.loader
    _import(lambda: loader.exec_module(module), location)
    register_by_value(module)
    _ship_neighbours(path.parent)
    return module


def _ship_neighbours(folder: Path) -> None:
    """Ship the modules and packages in a task file's folder by value: workers know them as little."""
    for name, module in list(sys.modules.items()):
        if "." not in name and name not in ("raysearch", "__main__") and folder in _parents(module):
            register_by_value(module)


def _parents(module: types.ModuleType) -> list[Path]:
    """The folders that a top-level module or package lies in."""
    # A package without __init__.py has no file, only its places.
    places = [str(place) for place in getattr(module, "__path__", ())]
    file = getattr(module, "__file__", None)
    if not places and file:
        places = [file]
    return [Path(place).resolve().parent for place in places]


def _from_module(name: str) -> types.ModuleType:
    return _import(lambda: importlib.import_module(name), name)


def _import(action: Callable[[], T], location: str) -> T:
    """Import, where anything may go wrong: the code is the user's."""
    try:
        return action()
    except SystemExit as error:
        raise TaskError(f"'{location}' cannot be imported: it {_ended(error)}") from error
    except Exception as error:
        raise TaskError(f"'{location}' cannot be imported: {type(error).__name__}: {error}") from error


def _ended(error: SystemExit) -> str:
    return (
        f"ended the process (SystemExit: {error.code}), as `sys.exit` and argparse's `parse_args` do. Put "
        f"what belongs to a script under `if __name__ == '__main__':`."
    )


def _check_settings(settings: object) -> None:
    """Refuse settings that nobody could take, or that are no matter of a task."""
    if not isinstance(settings, Mapping):
        raise TaskError(
            f"Task(settings=...) is a {type(settings).__name__}; it must be a nested mapping of settings, "
            f"for example {{'placement': {{'activation_bit_widths': ()}}}}."
        )
    if "cluster" in settings or "seed" in settings:
        raise ConfigError(
            "Task(settings=...) holds 'cluster' or 'seed', which are a run's own: they count before the task "
            "is there. Give them to the run."
        )
    load_config(overrides=settings)


def _named_metrics(metrics: object) -> dict[str, MetricFunction]:
    """The metrics as a dictionary, whose names are texts that nothing else has.

    Raises:
        TaskError: they are no mapping, or a name is no text, empty or reserved.
    """
    if metrics is None:
        return {}
    if not isinstance(metrics, Mapping):
        raise TaskError(
            f"Task(metrics=...) is a {type(metrics).__name__}; it must be a mapping of names to functions, "
            f"for example {{'accuracy': accuracy}}."
        )
    for name in metrics:
        if not isinstance(name, str) or not name.strip():
            raise TaskError(
                f"Task(metrics=...) has the name {name!r}, a {type(name).__name__}; a name is a text that is "
                f"not empty."
            )
        if name.strip().lower() in RESERVED:
            raise TaskError(
                f"Task(metrics=...) has the name '{name}', which is reserved for what raysearch measures "
                f"itself ({', '.join(RESERVED)}); give the metric another, such as 'my_{name.strip()}'."
            )
    return dict(metrics)


def _functions(module: types.ModuleType) -> list[str]:
    """Names of the functions that a module defines itself, not those that it imports."""
    names: list[str] = []
    for name, value in vars(module).items():
        if isinstance(value, types.FunctionType) and value.__module__ == module.__name__:
            names.append(name)
    return sorted(names)
