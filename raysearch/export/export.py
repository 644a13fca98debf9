"""The export stage: write every target, run each in its own runtime, list the files with their hashes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from raysearch.artifacts import Storage, hash_file
from raysearch.config import ExportConfig
from raysearch.errors import ExportError
from raysearch.evaluation import Batch, Forward, batch_size, default_forward
from raysearch.evaluation.batches import tensors_of
from raysearch.evaluation.calls.call_form import exportable
from raysearch.export.file_names import MANIFEST
from raysearch.export.stripped_model import StrippedModel
from raysearch.export.targets.packed import weights_bytes
from raysearch.export.targets.registry import TARGETS, choose_targets
from raysearch.export.targets.target import ExportJob, Target, Verification
from raysearch.export.verification.verify import reference_outputs
from raysearch.quantizer import Quantizer
from raysearch.records import CostModel, ExportedFile, ExportManifest, TargetCheck

DEFAULTS = ExportConfig()


def export_model(
    model: StrippedModel,
    directory: str | os.PathLike[str],
    settings: ExportConfig = DEFAULTS,
    *,
    batches: Iterable[Batch] = (),
    forward: Forward = default_forward,
    source: Mapping[str, Any] | None = None,
    measure_latency: bool = False,
    graphs: dict[str, Any] | None = None,
) -> ExportManifest:
    """Write a stripped module as files, and prove that they compute what it computes.

    Every target loads its own files back and compares their outputs with the module's: see `Target.check`,
    and `OnnxTarget.check` for the ONNX file, which is run in two ways.

    Args:
        model: the stripped module and what it was stripped with.
        directory: the model folder; made if it is not there. An earlier export in it is replaced.
        settings: the targets, and how many samples they are verified on.
        batches: what the targets are verified on; none means the example inputs.
        forward: (model, batch) → outputs; it is given the loaded targets as well.
        source: "run_id" and "budget" of the run that the module is from, for config.json.
        measure_latency: whether to time the files of targets that can be timed.
        graphs: what an earlier job captured of the same model; see `ExportJob`.

    Returns:
        The manifest, which is also the last file written: manifest.json.

    Raises:
        ConfigError: a target is unknown, or none is named.
        ExportError: a target's packages are missing, a target cannot be written, differs from the stripped
            module, or the weights' bytes differ from the cost model's, or model.safetensors exceeds its
            `size`.
    """
    targets, notes = choose_targets(settings.targets, model.setup)
    _check_assignment(model)
    num_bytes = _checked_weights_bytes(model)
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    _remove_earlier(folder)
    job = ExportJob(model, folder, source or {}, graphs=graphs)
    verification = _verification(model, first_samples(batches, settings.num_samples), forward)
    checks: list[TargetCheck] = []
    latency: dict[str, float] = {}
    for target in targets:
        target_checks, target_notes = _checked(target, job, verification)
        checks.extend(target_checks)
        notes.extend(target_notes)
        if measure_latency:
            latency.update(target.latency(job))
    files = {target.name: _listed(folder, target.written_files(folder)) for target in targets}
    content = num_bytes + _bias_bytes(model.module)
    manifest = ExportManifest(
        files=tuple(file for target_files in files.values() for file in target_files),
        checks=tuple(checks),
        weights_bytes=num_bytes,
        costs=CostModel(model.setup).costs(model.assignment),
        notes=tuple(notes),
        size_ratios={name: _total_bytes(target_files) / content for name, target_files in files.items()},
        latency=latency,
    )
    Storage(folder).write_bytes(MANIFEST, manifest.to_json().encode())
    return manifest


def first_samples(batches: Iterable[Batch], count: int) -> list[Batch]:
    """Whole batches until `count` samples are reached, and one of another shape where all have the same."""
    chosen: list[Batch] = []
    num_samples = 0
    for batch in batches:
        chosen.append(batch)
        num_samples += batch_size(batch)
        if num_samples >= count and len({_shape_of(each) for each in chosen}) > 1:
            break
    enough = next(
        (end for end in range(len(chosen)) if sum(map(batch_size, chosen[: end + 1])) >= count), len(chosen)
    )
    first = chosen[: enough + 1]
    others = [batch for batch in chosen[enough + 1 :] if _shape_of(batch) != _shape_of(first[0])]
    return [*first, *others[:1]] if len({_shape_of(each) for each in first}) == 1 else first


def _shape_of(batch: Batch) -> str:
    """The shapes of a batch's tensors without the number of samples."""
    return str([(path, tuple(tensor.shape[1:])) for path, tensor in tensors_of(batch)])


def _check_assignment(model: StrippedModel) -> None:
    for name, scheme in model.assignment.per_point(model.setup).items():
        point = model.setup.points[name]
        if point.kind != "weight":
            continue
        weight = model.weights.get(name)
        if weight is None or weight.num_bits != scheme.num_bits:
            width = "float" if weight is None else weight.num_bits
            raise ExportError(
                f"'{name}' has {width} bits in the stripped module and {scheme.num_bits} in the assignment; "
                f"strip with form='integer' the model that has this assignment."
            )
        granularity = point.at(scheme).granularity.normalized(point.shape, name)
        if weight.granularity != granularity:
            raise ExportError(
                f"'{name}' has a scale {weight.granularity} in the stripped module and {granularity} in the "
                f"assignment ('{scheme}'); strip the model that has this assignment."
            )
        scale_format = point.at(scheme).scale_format
        if weight.scale_format != scale_format:
            raise ExportError(
                f"the scales of '{name}' are {weight.scale_format} in the stripped module and {scale_format} "
                f"in the setup; strip the model that was placed with this setup."
            )


def _checked_weights_bytes(model: StrippedModel) -> int:
    """Bytes of the packed weights, which must be those that the search counted."""
    num_bytes = weights_bytes(model.module, model.setup)
    expected = CostModel(model.setup).weight_bytes(model.assignment)
    if num_bytes != expected:
        raise ExportError(
            f"the packed weights take {num_bytes} bytes, but the cost model says {expected} for this "
            f"assignment: the setup is not of this model. Place the quantizers anew."
        )
    return num_bytes


def _remove_earlier(folder: Path) -> None:
    # The manifest goes first: a folder without one is no export, whatever else is still in it.
    (folder / MANIFEST).unlink(missing_ok=True)
    for target in TARGETS.values():
        if target.folder:
            shutil.rmtree(folder / target.folder, ignore_errors=True)
            continue
        for name in target.files:
            (folder / name).unlink(missing_ok=True)


def _verification(model: StrippedModel, batches: list[Batch], forward: Forward) -> Verification:
    if not batches:
        batches, forward = [model.example_inputs], call_positional
    return Verification(model.module, reference_outputs(model.module, batches, forward), forward)


def call_positional(model: nn.Module, arguments: tuple[Any, ...]) -> Any:
    """The forward function of batches that are a model's positional arguments."""
    with exportable(model):
        return model(*arguments)


def _checked(
    target: Target, job: ExportJob, verification: Verification
) -> tuple[tuple[TargetCheck, ...], list[str]]:
    """`_write_and_check`; what fails with a graph of an earlier job is tried with one of its own."""
    try:
        return _write_and_check(target, job, verification)
    except ExportError:
        if not job.graphs:
            raise
        job.graphs.clear()
        job.products.clear()
        return _write_and_check(target, job, verification)


def _write_and_check(
    target: Target, job: ExportJob, verification: Verification
) -> tuple[tuple[TargetCheck, ...], list[str]]:
    """A target's checks, and the notes on writing and running it."""
    written = target.write(job)
    notes = list(written.notes)
    fixed = written.fixed_batch
    if fixed is not None:
        verification = verification.of_size(fixed)
        notes.append(
            f"{target.name}: the model fixes its batch size; the {target.fixed_part} takes batches of "
            f"{fixed} only."
        )
    verdict = target.check(job.folder, verification)
    return verdict.checks, [*notes, *verdict.notes]


def _listed(folder: Path, names: tuple[str, ...]) -> list[ExportedFile]:
    """The manifest's entries of some files."""
    paths = {name: folder / name for name in names}
    return [ExportedFile(name, hash_file(path), path.stat().st_size) for name, path in paths.items()]


def _total_bytes(files: list[ExportedFile]) -> int:
    return sum(file.size_bytes for file in files)


def _bias_bytes(stripped: nn.Module) -> int:
    """Bytes of float parameters beside the weights; of a BatchNorm only what remains when it is folded."""
    total = 0
    for module in stripped.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            total += 4 * module.num_features
        elif not isinstance(module, Quantizer):
            parameters = module.parameters(recurse=False)
            total += sum(4 * value.numel() for value in parameters if value.is_floating_point())
    return total
