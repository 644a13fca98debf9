"""The pt2 target: the stripped module as a program of torch.export, to be run by torch alone."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from raysearch.artifacts import Storage
from raysearch.errors import ExportError
from raysearch.evaluation.calls.call_form import exportable
from raysearch.evaluation.calls.model_calls import NO_OPEN_DIMS, OpenDims
from raysearch.evaluation.quiet import quiet
from raysearch.export.load import is_no_matter
from raysearch.export.open_dims import capture_open, stays_open
from raysearch.export.program import load_program, program_bytes
from raysearch.export.targets.capability import EVERY_MODE, EVERY_WIDTH, Capability
from raysearch.export.targets.target import ExportJob, Target, Written


class Pt2Target(Target):
    """A program of torch.export with its tensors inside; it must equal the stripped module bit for bit."""

    name = "pt2"
    files = ("model.pt2",)
    capability = Capability(dict.fromkeys(EVERY_WIDTH, 8), weight_modes=EVERY_MODE)
    exact = True

    def write(self, job: ExportJob) -> Written:
        """Write the program, its batch dimension open where the model allows it.

        Raises:
            ExportError: torch.export does not take the model.
        """
        fixed_batch = write_pt2(
            job.model.module, job.model.example_inputs, job.folder / self.files[0], job.model.open_dims
        )
        note = "pt2: codes are stored as int8 at every width, and torch computes in float."
        return Written(fixed_batch, (note,))

    def load(self, folder: Path) -> nn.Module:
        """The program as a module."""
        return load_pt2(folder / self.files[0])


def write_pt2(
    stripped: nn.Module, example_inputs: tuple[Any, ...], path: Path, open_dims: OpenDims = NO_OPEN_DIMS
) -> int | None:
    """Write a stripped module as a program, its batch dimension open where the model allows it.

    Args:
        stripped: the stripped module, integer form.
        example_inputs: positional arguments of its forward; dimension 0 is the batch.
        path: the file.
        open_dims: dimensions besides the batch that stay open.

    Returns:
        The only batch size the program takes, or None when any will do.

    Raises:
        ExportError: torch.export does not take the model.
    """

    def capture(arguments: tuple[Any, ...], dims: tuple[Any, ...] | None) -> ExportedProgram | None:
        with quiet(), torch.no_grad(), exportable(stripped):
            program = torch.export.export(stripped, arguments, dynamic_shapes=dims, strict=False)
        return program if not open_dims or stays_open(program, dims) else None

    try:
        program, fixed_batch = capture_open(example_inputs, capture, open_dims)
    except ExportError:
        raise
    except Exception as error:
        first_line = str(error).strip().split("\n", 1)[0][:300]
        raise ExportError(
            f"{type(stripped).__name__} cannot be captured for the target 'pt2': {first_line}. Try "
            f"torch.export.export(model, example_inputs, strict=False) on the stripped model alone."
        ) from error
    Storage(path.parent).write_bytes(path.name, program_bytes(program))
    return fixed_batch


def load_pt2(path: Path) -> nn.Module:
    """The program as a module; see `load_program` for what is refused."""
    return _Program(load_program(path.read_bytes(), str(path)))


class _Program(nn.Module):
    """Captured programs refuse `train` and `eval`, which the verification calls."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        # In a tuple, so that the program is no submodule and `eval` does not reach it.
        self._program = (program,)
        self.training = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        program = self._program[0]
        if kwargs:
            # The program takes its arguments by place only, None where one was not given.
            names = list(inspect.signature(program.forward).parameters)[len(args) :]
            args = (*args, *(kwargs.pop(name, None) for name in names))
            kwargs = {name: value for name, value in kwargs.items() if not is_no_matter(name, value)}
        return program(*args, **kwargs)
