"""The export stage: write every target, run each in its own runtime, list the files with their hashes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from raysearch.artifacts import Storage, hash_file
from raysearch.controller import stripped_weights
from raysearch.errors import ConfigError, ExportError
from raysearch.evaluation import Batch, Forward, batch_size, default_forward
from raysearch.export import onnx_target, packed
from raysearch.export.load import MANIFEST, load_model
from raysearch.export.onnx_model import OnnxModel
from raysearch.export.verify import (
    Reference,
    check_close,
    check_equal,
    compare,
    describe,
    reference_outputs,
    within_tolerance,
)
from raysearch.records import (
    BitAssignment,
    CostModel,
    ExportedFile,
    ExportManifest,
    QuantizerSetup,
    TargetCheck,
)

TARGETS = ("packed", "onnx")


def export_model(
    stripped: nn.Module,
    setup: QuantizerSetup,
    assignment: BitAssignment,
    example_inputs: tuple[Any, ...],
    directory: str | os.PathLike[str],
    *,
    targets: Sequence[str] | None = None,
    batches: Iterable[Batch] = (),
    forward: Forward = default_forward,
) -> ExportManifest:
    """Write a stripped module as files, and prove that they compute what it computes.

    The packed target must give the stripped module's outputs bit for bit. The ONNX file is run twice: with
    graph optimizations off, where it must stay within the tolerance of `verify`, and as onnxruntime runs it
    by default, where integer kernels round differently; that check is recorded, and noted if it is beyond.

    Args:
        stripped: the model from `controller.strip_model(form="integer")`, on the CPU.
        setup: where its quantizers are.
        assignment: the widths it was stripped with.
        example_inputs: positional arguments of its forward; dimension 0 of each tensor is the batch.
        directory: the model folder; made if it is not there. An earlier export in it is replaced.
        targets: some of `TARGETS`. None means all whose packages are installed.
        batches: what the targets are verified on; none means the example inputs.
        forward: (model, batch) → outputs; it is given the loaded targets as well.

    Returns:
        The manifest, which is also the last file written: manifest.json.

    Raises:
        ConfigError: a target is unknown, or none is named.
        ExportError: a target's packages are missing, a target cannot be written, differs from the stripped
            module, or the bytes differ from the cost model's `size`.
    """
    wanted, notes = _wanted(targets)
    _check_assignment(stripped, setup, assignment)
    costs = CostModel(setup).costs(assignment)
    num_bytes = packed.weights_bytes(stripped, setup)
    if num_bytes != costs["size"]:
        raise ExportError(
            f"the packed weights take {num_bytes} bytes, but the cost model says {costs['size']:.0f} for "
            f"this assignment: the setup is not of this model. Place the quantizers anew."
        )
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    for name in (MANIFEST, *packed.FILES, onnx_target.FILE):
        (folder / name).unlink(missing_ok=True)
    data = list(batches)
    if not data:
        data, forward = [example_inputs], lambda model, arguments: model(*arguments)
    references = reference_outputs(stripped, data, forward)
    files: list[str] = []
    checks: list[TargetCheck] = []
    if "packed" in wanted:
        checks.append(_packed(stripped, setup, example_inputs, folder, references, forward, notes))
        files.extend(packed.FILES)
    if "onnx" in wanted:
        checks.extend(_onnx(stripped, setup, example_inputs, folder, references, forward, notes))
        files.append(onnx_target.FILE)
    listed = [ExportedFile(n, hash_file(folder / n), (folder / n).stat().st_size) for n in files]
    manifest = ExportManifest(tuple(listed), tuple(checks), num_bytes, costs, tuple(notes))
    Storage(folder).write_bytes(MANIFEST, manifest.to_json().encode())
    return manifest


def _wanted(targets: Sequence[str] | None) -> tuple[tuple[str, ...], list[str]]:
    if targets is None:
        missing = onnx_target.missing_packages()
        if not missing:
            return TARGETS, []
        note = f'onnx: left out, since {", ".join(missing)} is not installed (pip install "raysearch[onnx]").'
        return tuple(name for name in TARGETS if name != "onnx"), [note]
    for name in targets:
        if name not in TARGETS:
            raise ConfigError(f"the export target '{name}' is unknown; known: {', '.join(TARGETS)}.")
    if not targets:
        raise ConfigError(f"no export target is named; known: {', '.join(TARGETS)}.")
    if "onnx" in targets:
        onnx_target.require_onnx()
    return tuple(targets), []


def _check_assignment(stripped: nn.Module, setup: QuantizerSetup, assignment: BitAssignment) -> None:
    found = {name: weight.num_bits for name, weight in stripped_weights(stripped, setup).items()}
    for name, bits in assignment.per_point(setup).items():
        if setup.points[name].kind == "weight" and found.get(name) != bits:
            raise ExportError(
                f"'{name}' has {found.get(name, 'float')} bits in the stripped module and {bits} in the "
                f"assignment; strip with form='integer' the model that has this assignment."
            )


def _packed(
    stripped: nn.Module,
    setup: QuantizerSetup,
    example_inputs: tuple[Any, ...],
    folder: Path,
    references: list[Reference],
    forward: Forward,
    notes: list[str],
) -> TargetCheck:
    fixed = packed.write_packed(stripped, setup, example_inputs, folder)
    if fixed is not None:
        notes.append(f"packed: the model fixes its batch size; the graph takes batches of {fixed} only.")
        references = _of_size(references, fixed)
    check = compare("packed", f"torch {torch.__version__}", load_model(folder), references, forward)
    check_equal(check)
    return check


def _onnx(
    stripped: nn.Module,
    setup: QuantizerSetup,
    example_inputs: tuple[Any, ...],
    folder: Path,
    references: list[Reference],
    forward: Forward,
    notes: list[str],
) -> list[TargetCheck]:
    path = folder / onnx_target.FILE
    weights = stripped_weights(stripped, setup)
    fixed = onnx_target.write_onnx(stripped, weights, example_inputs, path)
    notes.extend(onnx_target.container_notes(weights))
    if fixed is not None:
        notes.append(f"onnx: the model fixes its batch size; the file takes batches of {fixed} only.")
        references = _of_size(references, fixed)
    checks = []
    for optimized in (False, True):
        model = OnnxModel(path, optimized)
        check = compare("onnx", model.runtime, model, references, forward)
        if not optimized:
            check_close(check, references)
        elif not within_tolerance(check, references):
            notes.append(f"onnx: {describe(check, references)}.")
        checks.append(check)
    return checks


def _of_size(references: list[Reference], fixed: int) -> list[Reference]:
    found = [reference for reference in references if batch_size(reference.batch) == fixed]
    if not found:
        raise ExportError(
            f"the captured model takes batches of {fixed} only, and no verification batch has that size. "
            f"Give data in batches of {fixed}, or make the model's forward independent of the batch size."
        )
    return found
