"""What a person may put into the fields of a task: odd data, odd functions, odd models."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from tests.chaos.mutations import ODD_TEXTS, ODD_VALUES, damaged_value

FEATURES, CLASSES = 5, 3


class Net(nn.Module):
    """Two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(FEATURES, 4)
        self.two = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.relu(self.one(x)))


def tensors(count: int = 12, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features and labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    return torch.randn(count, FEATURES, generator=generator) + labels[:, None], labels


def loss(outputs: Tensor, batch: Any) -> Tensor:
    """Cross-entropy."""
    return F.cross_entropy(outputs, batch[1])


def accuracy(outputs: Tensor, batch: Any) -> float:
    """Share of right answers."""
    return (outputs.argmax(1) == batch[1]).float().mean().item()


def fields() -> dict[str, Any]:
    """A task's fields as they should be."""
    return {
        "model": Net(),
        "example_inputs": (torch.zeros(2, FEATURES),),
        "calibration": TensorDataset(*tensors()),
        "validation": TensorDataset(*tensors(seed=1)),
        "test": None,
        "train": TensorDataset(*tensors(seed=2)),
        "forward": None,
        "loss": loss,
        "metrics": {"accuracy": accuracy},
        "positions": None,
        "settings": {},
    }


class Scripted(Dataset):
    """A data set whose parts do what they are told."""

    def __init__(self, item: Callable[[int], Any], length: Callable[[], Any] = lambda: 12) -> None:
        self._item = item
        self._length = length

    def __getitem__(self, index: int) -> Any:
        return self._item(index)

    def __len__(self) -> Any:
        return self._length()


class Streamed(IterableDataset):
    """Samples of which nobody knows the number."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(*tensors(), strict=True)


def failing(error: BaseException) -> Callable[..., Any]:
    """A function that raises."""

    def function(*args: Any, **kwargs: Any) -> Any:
        raise error

    return function


def recursing(*args: Any) -> Any:
    """Never ends."""
    return recursing(*args)


def batches_until_failure() -> Iterator[tuple[Tensor, Tensor]]:
    """Two batches, and then an error."""
    yield tensors(8)
    yield tensors(8)
    raise OSError("the disk is gone")


def odd_tensors() -> list[Any]:
    """In place of a batch's features."""
    x, _ = tensors()
    return [
        x[:, :2], x[None], x[:0], x[:1], x.to(torch.int64), x.to(torch.complex64), x.double(), x.half(),
        x.bool(),
        x.to_sparse(), x.to("meta"), x.clone().fill_(float("nan")), x * float("inf"), x * 1e38, x * 0,
        torch.tensor(1.0), torch.tensor([]), x.clone().requires_grad_(), x.t(), x.expand(3, *x.shape),
        x.numpy(),
        x.tolist(), torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), nn.Parameter(x), "text", None, 3,
        [x, x],
        {"x": x}, (x,), torch.nested.nested_tensor([x[0], x[1]], layout=torch.strided),
    ]  # fmt: skip


def odd_data() -> list[Any]:
    """In place of a data set."""
    x, y = tensors()
    generator = ((x, y) for _ in range(3))
    plain = [
        0, "", "data", [], (), {}, range(10), object(), object, repr, [None], [[]], [{}], [()], [1, 2, 3],
        ["a"],
        {1, 2}, {"a": (x, y)}, b"bytes", np.zeros((4, FEATURES)), x, (x, y), [x], [(x,)], [[x, y]],
        [(x, y[:3])],
        [(x, y), (x[:, :2], y)], [(x, y), x], [(x, y), (x, y, y)], [{"x": x, "labels": y}],
        [{"x": x}, (x, y)],
        [(x, y.float())], [(x, y + 100)], [(x, y - 5)], [(x, ["a"] * 12)], [(x, None)], [(x, y), None],
        [(x, y.to("meta"))], generator, iter([(x, y)]), itertools.repeat((x, y)), batches_until_failure(),
        Streamed(),
        DataLoader(TensorDataset(x, y), batch_size=5), DataLoader(Streamed(), batch_size=5), [(x, y)] * 40,
        [(x[:1], y[:1])], [(x[:0], y[:0])], [(x, y), (x[:0], y[:0])], np.array([(1, 2)]), nn.Linear(2, 2),
        Scripted(failing(KeyError("no such sample"))), Scripted(failing(RuntimeError())), Scripted(recursing),
        Scripted(lambda index: (x[index], y[index]), lambda: -1),
        Scripted(lambda index: (x[index], y[index]), lambda: 0),
        Scripted(lambda index: (x[index], y[index]), lambda: 2**62),
        Scripted(lambda index: (x[index], y[index]), lambda: 1.5),
        Scripted(lambda index: (x[index], y[index]), failing(TypeError("no length"))),
        Scripted(lambda index: (x[index], y[index]), lambda: 20), Scripted(lambda index: None),
        Scripted(lambda index: "a"),
        Scripted(lambda index: (x[: index + 1], y[index])), Scripted(lambda index: (x[index], "label")),
        Scripted(lambda index: {"x": x[index], "y": None}), Scripted(lambda index: x[index].numpy()),
        Scripted(lambda index: (torch.randn(FEATURES), y[index])),
        Scripted(lambda index: (x[index], int(y[index]))),
    ]  # fmt: skip
    return [*plain, *([(odd, y)] for odd in odd_tensors()), *([odd] for odd in odd_tensors())]


def odd_results() -> list[Any]:
    """What a loss, a metric or a mask may give in place of a number or a mask."""
    x, y = tensors()
    return [
        None, "x", "1.0", "", [], [1.0], (1.0,), {}, {"a": 1}, True, 0, 1, -1, 10**400, 2**70, 1j,
        Fraction(1, 3),
        float("nan"), float("inf"), -float("inf"), 1e-320, np.float64(0.5), np.float32(0.5), np.array(0.5),
        np.array([0.5]), np.array([0.5, 1]), np.int64(1), torch.tensor(0.5), torch.tensor([0.5]),
        torch.tensor([0.5, 1]),
        torch.tensor(1), torch.tensor(True), torch.tensor(1j), torch.tensor(float("nan")),
        torch.tensor(0.5, device="meta"),
        torch.tensor([]), torch.tensor(0.5, requires_grad=True), x, y, x > 0,
        torch.ones(len(x), dtype=torch.bool),
        torch.zeros(len(x), dtype=torch.bool), torch.ones(1), object(), repr, range(3), x.to_sparse(), b"x",
    ]  # fmt: skip


def odd_functions() -> list[Any]:
    """In place of a loss, a metric, a forward or a mask."""
    errors = (
        KeyError("labels"), ValueError(), IndexError(1), StopIteration(), RuntimeError("CUDA"),
        NotImplementedError(),
        AssertionError(), ZeroDivisionError(), UnicodeDecodeError("utf-8", b"x", 0, 1, "odd"),
        MemoryError("too much"),
        AttributeError("\ud800"), OSError(28, "full"), Exception(), SystemExit(3),
    )  # fmt: skip
    functions: list[Any] = [
        0, 1, "loss", "", [], {}, object(), nn.Linear(2, 2), Net, Net(), nn.CrossEntropyLoss(),
        F.cross_entropy, repr, len,
        lambda: 1.0, lambda one: one, lambda one, two, three: one, lambda *args: args, lambda **kwargs: 1.0,
        recursing,
        lambda a, b: (yield 1), lambda a, b: a, lambda a, b: b, lambda a, b: b[1], lambda a, b: b[7],
        lambda a, b: b["x"],
        lambda a, b: a.sum(), lambda a, b: a.mean().item(), lambda a, b: a.detach().mean(), lambda a,
        b: b[0].mul_(0).sum(),
        lambda a, b: a.mul_(0).sum(), lambda a, b: random.random(), lambda a, b: torch.rand(()), lambda a,
        b: a.sum() * 1e300,
        lambda model, batch: model(batch[0]), lambda model, batch: model(batch[0]).argmax(1), lambda model,
        batch: model,
        lambda model, batch: (model(batch[0]), None), lambda model,
        batch: {"logits": model(batch[0]), "n": 3},
        lambda model, batch: model(batch[0])[:1], lambda model, batch: model(batch[0]).detach(),
        lambda model, batch: model(batch[0]).double(), lambda model,
        batch: model(batch[0]).to(torch.complex64),
        lambda model, batch: model(batch[0]) * float("nan"), lambda model, batch: model(batch[0]).numpy(),
        lambda model, batch: model(batch[0]).sum(), lambda model, batch: model(batch[0]).to_sparse(),
        lambda model, batch: model(batch[0], batch[1]), lambda model, batch: model(x=batch[0]),
        lambda model, batch: model(),
        lambda model, batch: model.two(batch[0]), lambda model, batch: torch.zeros(len(batch[0]), CLASSES),
        lambda model, batch: torch.zeros(len(batch[0]), 0), lambda model, batch: [], lambda model, batch: {},
    ]  # fmt: skip
    functions += [failing(error) for error in errors]
    # The value stands still, the results are many.
    return functions + [lambda a, b, value=value: value for value in odd_results()]


def odd_positions() -> list[Any]:
    """In place of which positions count."""
    functions: list[Any] = [lambda batch, value=value: value for value in odd_results()]
    functions += [
        lambda batch: batch,
        lambda batch: batch[0],
        lambda batch: batch[0] > 0,
        lambda batch: batch[1] > 0,
    ]
    functions += [
        lambda batch: batch[1][:, None] > 9,
        lambda batch: batch[0][:, 0] > 0,
        lambda batch: batch["mask"],
    ]
    return functions + odd_functions()


def odd_metrics() -> list[Any]:
    """In place of the mapping of metrics."""
    names: list[Any] = [
        "loss",
        "divergence",
        "agreement",
        "",
        " ",
        "a b",
        1,
        None,
        ("a",),
        b"x",
        True,
        1.5,
        *ODD_TEXTS,
    ]
    mappings: list[Any] = [{name: accuracy} for name in names]
    mappings += [{"accuracy": function} for function in odd_functions()]
    wrong = [
        None,
        [],
        [accuracy],
        accuracy,
        "accuracy",
        1,
        torch.ones(2),
        [("accuracy", accuracy)],
        {"a"},
        object(),
    ]
    return [*mappings, *wrong, {f"m{number}": accuracy for number in range(50)}, {"x" * 10_000: accuracy}]


class Broken(Net):
    """A model whose forward does what it is told."""

    def __init__(self, action: Callable[[Broken, Tensor], Any]) -> None:
        super().__init__()
        self.action = action

    def forward(self, x: Tensor) -> Any:
        return self.action(self, x)


def _with_weights(change: Callable[[Tensor], Tensor]) -> nn.Module:
    model = Net()
    model.one.weight = nn.Parameter(change(model.one.weight.detach()), requires_grad=False)
    return model


def odd_models() -> list[Any]:
    """In place of the model."""
    plain = Net.forward
    actions: list[Callable[[Any, Any], Any]] = [
        failing(ValueError("no")), failing(KeyError(3)), recursing, lambda m, x: None, lambda m, x: "text",
        lambda m, x: {"a": {"b": plain(m, x)}}, lambda m, x: [plain(m, x), 3, None], lambda m,
        x: plain(m, x).argmax(1),
        lambda m, x: plain(m, x).sum(), lambda m, x: plain(m, x)[:1], lambda m, x: plain(m, x) * float("nan"),
        lambda m, x: plain(m, x) + torch.rand(()), lambda m, x: plain(m, x) if x.sum() > 0 else x,
        lambda m, x: plain(m, x).tolist(), lambda m, x: plain(m, x.mul_(2)), lambda m,
        x: plain(m, x).detach(),
        lambda m, x: m, lambda m, x: plain(m, x).to(torch.complex64), lambda m,
        x: plain(m, x[:, :FEATURES].item()),
        lambda m, x: m.one.weight.data.mul_(1.01) is None or plain(m, x), lambda m,
        x: m.register_buffer("b", x) or plain(m, x),
        lambda m, x: setattr(m, "three", nn.Linear(2, 2)) or plain(m, x), lambda m,
        x: plain(m, x).cpu().numpy(),
        lambda m, x: m(x), lambda m, x: plain(m, x.view(3, -1)), lambda m, x: x, lambda m,
        x: torch.zeros(len(x), 2),
    ]  # fmt: skip
    frozen = Net().requires_grad_(False)
    tied = Net()
    tied.two.weight = nn.Parameter(torch.zeros(3, 4))
    models: list[Any] = [
        None, 0, "model", [], {}, object(), Net, nn.Linear, repr, len, lambda: None, lambda: Net(),
        lambda one: Net(),
        failing(OSError("no file")), failing(SystemExit(2)), recursing, torch.zeros(3), Net().state_dict(),
        [Net()],
        nn.Identity(), nn.ReLU(), nn.Sequential(), nn.ModuleList([Net()]), nn.ModuleDict(),
        nn.Linear(FEATURES, 0),
        nn.Linear(FEATURES, CLASSES), nn.Linear(2, 2), nn.LazyLinear(CLASSES), nn.Embedding(4, CLASSES),
        nn.LSTM(FEATURES, 3),
        nn.DataParallel(Net()), torch.jit.script(nn.Linear(FEATURES, CLASSES)), Net().half(),
        Net().double(), Net().to("meta"),
        Net().to(torch.bfloat16), Net().train(), frozen, tied, _with_weights(lambda w: w * float("nan")),
        _with_weights(lambda w: w * float("inf")), _with_weights(lambda w: w * 0),
        _with_weights(lambda w: w * 1e38),
        _with_weights(lambda w: w[:, :2]), _with_weights(lambda w: w.to(torch.complex64)),
        _with_weights(lambda w: w[:0]),
    ]  # fmt: skip
    return models + [Broken(action) for action in actions]


def odd_examples() -> list[Any]:
    """In place of the example inputs."""
    x = torch.zeros(2, FEATURES)
    wrong: list[Any] = [
        None,
        (),
        {},
        x,
        [x],
        {"x": x},
        {"y": x},
        {1: x},
        {"x": None},
        {"x": x, "y": x},
        "x",
        3,
        (x, x),
    ]
    return wrong + [(odd,) for odd in odd_tensors()]


SETTINGS: Mapping[str, Any] = {
    "search": {"num_trials": 4, "objective": "divergence", "enqueue": []},
    "placement": {"pins": {"one": 8}, "ignored_scopes": ["two"], "weight_bits": [2, 4, 8]},
    "calibration": {"num_samples": 8, "overrides": {"one": "minmax"}},
    "objective": {"output_weights": {}},
    "seed": 1,
}


def odd_fields(draw: random.Random) -> dict[str, Any]:
    """A task's fields, one or two of which are odd."""
    changed = fields()
    for name in draw.sample(sorted(ODD_FIELDS), draw.choice((1, 1, 2))):
        changed[name] = ODD_FIELDS[name](draw)
    return changed


def _one_of(make: Callable[[], list[Any]]) -> Callable[[random.Random], Any]:
    def drawn(draw: random.Random) -> Any:
        if draw.random() < 0.15:
            return draw.choice(ODD_VALUES)
        return draw.choice(make())

    return drawn


ODD_FIELDS: Mapping[str, Callable[[random.Random], Any]] = {
    "model": _one_of(odd_models),
    "example_inputs": _one_of(odd_examples),
    "calibration": _one_of(odd_data),
    "validation": _one_of(odd_data),
    "test": _one_of(odd_data),
    "train": _one_of(odd_data),
    "forward": _one_of(odd_functions),
    "loss": _one_of(odd_functions),
    "metrics": _one_of(odd_metrics),
    "positions": _one_of(odd_positions),
    "settings": lambda draw: damaged_value(dict(SETTINGS), draw),
}
"""Field → a draw of what it may hold."""
