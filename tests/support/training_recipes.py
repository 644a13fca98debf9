"""A toy classifier, trained at import speed, and the recipe that quantizes and trains it."""

from __future__ import annotations

import json
import os
import signal
import time
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from raysearch.calibration import calibrate
from raysearch.cluster.pool import LocalPool
from raysearch.config import TrainingConfig
from raysearch.evaluation import Divergence, Replica, default_forward
from raysearch.placement import place_quantizers
from raysearch.records import BitAssignment
from raysearch.training import Recipe
from raysearch.training.context import ProcessContext
from raysearch.training.loop import Training
from tests.support.patience import HANG_SECONDS

CLASSES = 5


class Toy(nn.Module):
    """Two layers that share one weight, BatchNorm, dropout and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 12), nn.Linear(12, 12)
        self.second.weight = self.first.weight
        self.norm, self.drop = nn.BatchNorm1d(12), nn.Dropout(0.1)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu()
        return self.head(self.drop(self.second(x).relu()))


class Plain(Toy):
    """Without what depends on the batch: normalisation and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop = nn.Identity(), nn.Identity()


class Chatty(Toy):
    """Has extra state that is no tensor."""

    def get_extra_state(self) -> Any:
        return {"note": "kept by the float model"}

    def set_extra_state(self, state: Any) -> None:
        raise AssertionError("nothing was stored")


def blobs(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Separable clusters."""
    centres = torch.randn(CLASSES, 12, generator=torch.Generator().manual_seed(99)) * 1.5
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    return centres[labels] + torch.randn(count, 12, generator=generator) * 0.7, labels


def cross_entropy(outputs: Tensor, batch: Any) -> Tensor:
    return F.cross_entropy(outputs, batch[1])


def nan_loss(outputs: Tensor, batch: Any) -> Tensor:
    # Fails in training only: evaluation runs without gradient.
    return cross_entropy(outputs, batch) * (float("nan") if outputs.requires_grad else 1.0)


def accuracy(outputs: Tensor, batch: Any) -> float:
    return float((outputs.argmax(1) == batch[1]).float().mean())


@cache
def trained_state() -> dict[str, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Toy()
        x, y = blobs(512, 1)
        optimizer = torch.optim.Adam(model.parameters(), 0.02)
        for _ in range(80):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model.state_dict()


def make_recipe(bits: int = 2, kind: type[Toy] = Toy, **changes: Any) -> Recipe:
    """A recipe at one width for all weights; settings by name, other fields too."""
    torch.set_num_threads(1)
    model = kind()
    model.load_state_dict(trained_state(), strict=False)
    model.eval()
    validation = [blobs(128, 2)]
    replica = Replica(model, default_forward, {"calibration": validation}, Divergence(), cross_entropy)
    setup = place_quantizers(model, (torch.zeros(2, 12),))
    ranges = calibrate(setup, LocalPool(replica), 1)
    names = TrainingConfig.model_fields
    settings = {"epochs": 3, "batch_size": 32, **{k: v for k, v in changes.items() if k in names}}
    fields = {
        "model": model,
        "setup": setup,
        "ranges": ranges,
        "assignment": BitAssignment.uniform(setup, bits),
        "train": TensorDataset(*blobs(192, 1)),
        "validation": validation,
        "forward": default_forward,
        "divergence": Divergence(),
        "loss": cross_entropy,
        "metrics": {"accuracy": accuracy},
        "seed": 7,
    }
    fields |= {k: v for k, v in changes.items() if k not in names}
    return Recipe(**fields, settings=TrainingConfig(**settings))


def trained(recipe: Recipe, context: ProcessContext | None = None) -> Training:
    """A training that is over."""
    training = Training(recipe, context or ProcessContext())
    training.run()
    return training


class RankSpy:
    """A forward of named batches that keeps, on each rank, the rows it trains on and the states it evaluates.

    Args:
        folder: of its files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def __call__(self, model: nn.Module, batch: Any) -> Any:
        is_quantized = hasattr(model.head, "parametrizations")
        if torch.is_grad_enabled():
            self._append("batches", batch["x"].tolist())
        elif is_quantized:
            self._append("states", float(sum(p.double().square().sum() for p in model.parameters())))
        # Only the plain model has its parts as attributes; a DDP wrapper does not.
        return model.head(model.drop(model.second(model.norm(model.first(batch["x"])).relu()).relu()))

    def _append(self, kind: str, value: Any) -> None:
        rank = distributed.get_rank() if distributed.is_initialized() else 0
        with (self.folder / f"{kind}{rank}").open("a") as file:
            file.write(json.dumps(value) + "\n")

    def states(self, rank: int) -> list[float]:
        """A hash of all parameters, at every evaluation of the quantized model."""
        return self._lines("states", rank)

    def batches(self, rank: int) -> list[list[list[float]]]:
        """The rows of every training batch."""
        return self._lines("batches", rank)

    def _lines(self, kind: str, rank: int) -> list[Any]:
        return [json.loads(line) for line in (self.folder / f"{kind}{rank}").read_text().splitlines()]


class Deadly:
    """A forward that kills a process behind the checkpoint of step 4, once.

    Args:
        folder: of the run.
        pid: whom it kills; None: the process that it runs in.
    """

    def __init__(self, folder: str, pid: int | None = None) -> None:
        self.folder = folder
        self.pid = pid

    def __call__(self, model: nn.Module, batch: Any) -> Any:
        is_due = Path(self.folder, "training", "step-00000004.safetensors").exists()
        killed = Path(self.folder, "driver-killed" if self.pid else "worker-killed")
        if is_due and not killed.exists():
            killed.write_text(str(os.getpid()))
            os.kill(self.pid or os.getpid(), signal.SIGKILL)
            # Ray ends the workers of a driver that is gone.
            time.sleep(HANG_SECONDS)
        return default_forward(model, batch)
