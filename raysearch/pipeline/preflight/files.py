"""The model at its lowest schemes as every file that is to be written, loaded and run."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from raysearch.errors import ConfigError, RaysearchError
from raysearch.evaluation import batch_size
from raysearch.evaluation.batches import take
from raysearch.export import StrippedModel
from raysearch.export.export import first_samples
from raysearch.export.targets.registry import choose_targets
from raysearch.export.targets.target import ExportJob, Target
from raysearch.export.verification.verify import check_size
from raysearch.pipeline.inputs import Inputs
from raysearch.pipeline.samples import one_of_each_form
from raysearch.pipeline.user_code import user_code
from raysearch.records import BitAssignment
from raysearch.temporary import scratch_folder

FEW = 4
"""Samples of each batch that the files are run on."""


def check_files(inputs: Inputs, stripped: nn.Module, assignment: BitAssignment) -> dict[str, Any]:
    """Write every target, load it as its users will, and run it on a few samples of the validation data.

    What it computes is compared at the end of the run, with the ranges and widths that were found; here it
    must run.

    Args:
        inputs: the run's.
        stripped: the model at some widths.
        assignment: those widths.

    Returns:
        What was captured for the files, which the export of the run need not capture again.

    Raises:
        ConfigError: a target cannot be written, loaded or run; names it and what to do.
    """
    model = StrippedModel(stripped, inputs.setup, assignment, inputs.task.example_inputs, inputs.open_dims)
    targets, _ = choose_targets(inputs.config.export.targets, inputs.setup)
    graphs: dict[str, Any] = {}
    with scratch_folder() as folder:
        job = ExportJob(model, folder, graphs=graphs)
        for target in targets:
            try:
                _check(target, job, inputs)
            except Exception as error:
                reason = str(error).strip()
                if not isinstance(error, RaysearchError):
                    first_line = reason.split("\n", 1)[0]
                    reason = f"{type(error).__name__}: {first_line}."
                others = ", ".join(f"'{other.name}'" for other in targets if other is not target) or "others"
                raise ConfigError(
                    f"the export target '{target.name}' cannot hold this model: {reason} This was tried "
                    f"before the run; to go on without it, set export.targets to {others}."
                ) from error
    return graphs


def _check(target: Target, job: ExportJob, inputs: Inputs) -> None:
    fixed = target.write(job).fixed_batch
    if fixed is not None:
        check_size(first_samples(inputs.samples.validation, inputs.config.export.num_samples), fixed)
    loaded = target.load(job.folder)
    for index, batch in one_of_each_form(inputs.samples.validation):
        size = min(batch_size(batch), fixed or FEW)
        if fixed is not None and size != fixed:
            continue
        name = f"shard {index} of the validation data ({size} samples)"
        with user_code(f"its file, run on {name},"), torch.no_grad():
            inputs.task.run(loaded, take(batch, 0, size))
