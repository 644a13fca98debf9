"""The pt2 target: the stripped module as a program of torch.export, to be run by torch alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from raysearch.artifacts import Storage
from raysearch.errors import ExportError
from raysearch.export.program import batch_dims, load_program, program_bytes, quiet, widen

FILE = "model.pt2"
NOTE = "pt2: codes are stored as int8 at every width, and torch computes in float."


def write_pt2(stripped: nn.Module, example_inputs: tuple[Any, ...], path: Path) -> int | None:
    """Write a stripped module as a program, its batch dimension open where the model allows it.

    Returns:
        The only batch size the program takes, or None when any will do.

    Raises:
        ExportError: torch.export does not take the model.
    """
    widened, batch = widen(example_inputs)
    attempts: list[tuple[tuple[Any, ...], Any]] = [
        (widened, batch_dims(widened, batch)),
        (example_inputs, None),
    ]
    failure: Exception | None = None
    for arguments, dims in attempts:
        try:
            with quiet(), torch.no_grad():
                program = torch.export.export(stripped, arguments, dynamic_shapes=dims, strict=False)
        except Exception as error:
            failure = failure or error
            continue
        Storage(path.parent).write_bytes(path.name, program_bytes(program))
        return None if dims is not None else _batch(example_inputs)
    first = str(failure).strip().split("\n", 1)[0][:300]
    raise ExportError(
        f"{type(stripped).__name__} cannot be captured for the target 'pt2': {first}. Try "
        f"torch.export.export(model, example_inputs, strict=False) on the stripped model alone."
    ) from failure


def load_pt2(path: Path) -> nn.Module:
    """The program as a module; see `load_program` for what is refused."""
    return _Program(load_program(path.read_bytes(), str(path)))


class _Program(nn.Module):
    """Captured programs refuse `train` and `eval`, which the verification calls."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.held = (program,)
        self.training = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.held[0](*args, **kwargs)


def _batch(example_inputs: tuple[Any, ...]) -> int:
    sizes = [t.shape[0] for t in pytree.tree_leaves(example_inputs) if isinstance(t, torch.Tensor) and t.ndim]
    return int(sizes[0])
