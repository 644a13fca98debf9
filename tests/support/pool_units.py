"""Replicas and units for the tests of pools; they must be importable, or shipped, on workers."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from raysearch.cluster.pool import Pool, UnitValue
from raysearch.errors import DataError
from raysearch.seeding import derive_seed
from tests.support.patience import wait_until


def small_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


class SlowModel(nn.Linear):
    """Tells that it is on its way to a worker, and arrives when it may."""

    def __init__(self, folder: Path) -> None:
        super().__init__(2, 2)
        self.folder = folder

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        (self.folder / "on its way").touch()
        wait_until((self.folder / "may arrive").exists)


class BrokenReplica:
    """Raises, or ends the process, on its way out of pickle."""

    def __init__(self, is_fatal: bool) -> None:
        self.is_fatal = is_fatal

    def __setstate__(self, state: dict[str, Any]) -> None:
        if state["is_fatal"]:
            os._exit(1)
        raise FloatingPointError("this replica never works")


def trace(model: nn.Module, scale: float, layer: str, low: int, high: int) -> dict[str, np.ndarray]:
    """Something with the shape of a probe chunk: random draws against the model's own weights."""
    probes = []
    for probe in range(low, high):
        generator = torch.Generator().manual_seed(derive_seed(7, "traces", layer, probe))
        x = torch.randn(32, 8, generator=generator)
        probes.append(model(x).pow(2).mean().item() * scale)
    return {"probes": np.array(probes)}


def trace_units(num_layers: int = 4, num_chunks: int = 3) -> dict[tuple[str | int, ...], tuple[Any, ...]]:
    return {
        (f"layer{layer}", 2 * chunk): (f"layer{layer}", 2 * chunk, 2 * chunk + 2)
        for layer in range(num_layers)
        for chunk in range(num_chunks)
    }


def trace_with_trouble(
    model: nn.Module,
    scale: float,
    trouble: dict[tuple[str, int], str],
    folder: str,
    layer: str,
    low: int,
    high: int,
) -> dict[str, np.ndarray]:
    """`trace`, but a unit named in `trouble` dies or hangs the first time it runs; its marker says so."""
    marker = Path(folder, f"{layer}-{low}")
    if (layer, low) in trouble and not marker.exists():
        marker.touch()
        if trouble[layer, low] == "die":
            os._exit(1)
        hang(model)
    return trace(model, scale, layer, low, high)


def hang(_: Any) -> dict[str, np.ndarray]:
    """A unit that never answers."""
    while True:
        time.sleep(1000)


def die_if(_: Any, is_poison: bool) -> dict[str, np.ndarray]:
    if is_poison:
        os._exit(1)
    return {"ok": np.array(True)}


def double(_: Any, number: float) -> dict[str, np.ndarray]:
    return {"double": np.array(2 * number)}


def double_or_hang(_: Any, number: float | None) -> dict[str, np.ndarray]:
    return hang(_) if number is None else double(_, number)


def add(_: Any, first: np.ndarray, second: np.ndarray) -> dict[str, np.ndarray]:
    return {"sum": first + second}


def weights(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in model.state_dict().items()}


def meet(_: Any, folder: str, count: int) -> dict[str, np.ndarray]:
    """Answers when so many workers are in this unit at once, with facts about its own."""
    (Path(folder) / str(os.getpid())).touch()
    wait_until(lambda: len(list(Path(folder).iterdir())) >= count)
    return {
        "pid": np.array(os.getpid()),
        "threads": np.array(torch.get_num_threads()),
        "is_deterministic": np.array(torch.are_deterministic_algorithms_enabled()),
        "gpus": np.array(os.environ.get("CUDA_VISIBLE_DEVICES", "unset")),
    }


def meet_workers(pool: Pool, count: int) -> list[UnitValue]:
    """The facts of each of so many workers, all of which take part: none can do another's unit."""
    with tempfile.TemporaryDirectory() as folder:
        meeting = pool.run(meet, {("meet", number): (folder, count) for number in range(count)})
        return [value for _, value in meeting]


def raise_value_error(_: Any, number: int, folder: str) -> dict[str, np.ndarray]:
    with Path(folder, "calls").open("a") as file:
        file.write(f"{number}\n")
    if number == 2:
        raise ValueError("two is not a number I like")
    return {"number": np.array(number)}


def raise_data_error(_: Any) -> dict[str, np.ndarray]:
    raise DataError("batch 3 has a NaN")


def answer_a_tensor(_: Any) -> Any:
    return {"tensor": torch.zeros(1)}


def answer_nothing(_: Any) -> Any:
    return None
