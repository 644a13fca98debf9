"""The export stage: write every target, run each in its own runtime, list the files with their hashes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from raysearch.artifacts import Storage, hash_file
from raysearch.controller import stripped_quantizers, stripped_weights
from raysearch.errors import ConfigError, ExportError
from raysearch.evaluation import Batch, Forward, batch_size, default_forward
from raysearch.export.file_names import FILES as PACKED_FILES
from raysearch.export.file_names import MANIFEST, WEIGHTS
from raysearch.export.load import load_model
from raysearch.export.onnx_qdq.capture import capture
from raysearch.export.onnx_qdq.floats import float_again
from raysearch.export.onnx_qdq.packages import missing_packages, require_onnx
from raysearch.export.onnx_qdq.proto import finish, write_model
from raysearch.export.onnx_qdq.session import OnnxModel
from raysearch.export.targets import onnx as onnx_target
from raysearch.export.targets import openvino as openvino_target
from raysearch.export.targets import packed
from raysearch.export.targets import pt2 as pt2_target
from raysearch.export.targets.target import check_onnx, check_openvino, check_packed, check_pt2
from raysearch.export.timing.paired import paired_seconds
from raysearch.export.verification.verify import Reference, reference_outputs
from raysearch.quantizer import Quantizer
from raysearch.records import (
    BitAssignment,
    CostModel,
    ExportedFile,
    ExportManifest,
    QuantizerSetup,
    TargetCheck,
)

TARGETS = ("packed", "onnx", "openvino", "pt2")
DEFAULT_TARGETS = ("packed", "onnx")
FILES = {
    "packed": PACKED_FILES,
    "onnx": (onnx_target.FILE,),
    "openvino": (openvino_target.FILE,),
    "pt2": (pt2_target.FILE,),
}


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
    measure_latency: bool = False,
    source: Mapping[str, Any] | None = None,
) -> ExportManifest:
    """Write a stripped module as files, and prove that they compute what it computes.

    The packed and pt2 targets must give the stripped module's outputs bit for bit. The ONNX file is run
    twice: with graph optimizations off, where it must stay within the tolerance of `verify`, and as
    onnxruntime runs it by default, where integer kernels round differently; that check is recorded, and
    noted if it is beyond. Its codes are also compared layer by layer (`count_flips`), and kernels that are
    wrong on this CPU are refused. The OpenVINO file must stay within the tolerance as it runs.

    Args:
        stripped: the model from `controller.strip_model(form="integer")`, on the CPU.
        setup: where its quantizers are.
        assignment: the widths it was stripped with.
        example_inputs: positional arguments of its forward; dimension 0 of each tensor is the batch.
        directory: the model folder; made if it is not there. An earlier export in it is replaced.
        targets: some of `TARGETS`. None means "packed", and "onnx" if its packages are installed.
        batches: what the targets are verified on; none means the example inputs.
        forward: (model, batch) → outputs; it is given the loaded targets as well.
        measure_latency: whether to time the ONNX file against the network in float.
        source: "run_id" and "budget" of the run that the module is from, for config.json.

    Returns:
        The manifest, which is also the last file written: manifest.json.

    Raises:
        ConfigError: a target is unknown, or none is named.
        ExportError: a target's packages are missing, a target cannot be written, differs from the stripped
            module, or the weights' bytes differ from the cost model's, or model.safetensors exceeds its
            `size`.
    """
    wanted, notes = _wanted(targets)
    _check_assignment(stripped, setup, assignment)
    model = CostModel(setup)
    costs, expected = model.costs(assignment), model.weight_bytes(assignment)
    num_bytes = packed.weights_bytes(stripped, setup)
    if num_bytes != expected:
        raise ExportError(
            f"the packed weights take {num_bytes} bytes, but the cost model says {expected} for this "
            f"assignment: the setup is not of this model. Place the quantizers anew."
        )
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    for name in (MANIFEST, *(file for kept in FILES.values() for file in kept)):
        (folder / name).unlink(missing_ok=True)
    data = list(batches)
    if not data:
        data, forward = [example_inputs], lambda model, arguments: model(*arguments)
    references = reference_outputs(stripped, data, forward)
    checks: list[TargetCheck] = []
    job = _Job(stripped, setup, example_inputs, folder, references, forward, notes, source, measure_latency)
    for target, write in (("packed", _packed), ("onnx", _onnx), ("openvino", _openvino), ("pt2", _pt2)):
        if target in wanted:
            checks.extend(write(job))
    if "packed" in wanted and setup.stored is not None:
        _check_size(folder / WEIGHTS, costs["size"])
    listed = {
        target: [ExportedFile(n, hash_file(folder / n), (folder / n).stat().st_size) for n in FILES[target]]
        for target in TARGETS
        if target in wanted
    }
    content = num_bytes + _bias_bytes(stripped)
    ratios = {target: sum(f.size_bytes for f in found) / content for target, found in listed.items()}
    manifest = ExportManifest(
        tuple(file for found in listed.values() for file in found),
        tuple(checks),
        num_bytes,
        costs,
        tuple(notes),
        ratios,
        job.latency,
    )
    Storage(folder).write_bytes(MANIFEST, manifest.to_json().encode())
    return manifest


def _check_size(path: Path, size: float) -> None:
    """The search kept every budget by `size`, so a file that is no larger keeps it too."""
    found = path.stat().st_size
    if found > size:
        raise ExportError(
            f"{path.name} has {found} bytes, more than the {size:.0f} that the search counted: the model "
            f"has tensors that it did not have when its quantizers were placed. Place the quantizers anew."
        )


def _wanted(targets: Sequence[str] | None) -> tuple[tuple[str, ...], list[str]]:
    if targets is None:
        missing = missing_packages()
        if not missing:
            return DEFAULT_TARGETS, []
        note = f'onnx: left out, since {", ".join(missing)} is not installed (pip install "raysearch[onnx]").'
        return tuple(name for name in DEFAULT_TARGETS if name != "onnx"), [note]
    for name in targets:
        if name not in TARGETS:
            raise ConfigError(f"the export target '{name}' is unknown; known: {', '.join(TARGETS)}.")
    if not targets:
        raise ConfigError(f"no export target is named; known: {', '.join(TARGETS)}.")
    if "onnx" in targets:
        require_onnx()
    if "openvino" in targets:
        openvino_target.require_openvino()
    return tuple(targets), []


def _check_assignment(stripped: nn.Module, setup: QuantizerSetup, assignment: BitAssignment) -> None:
    found = {name: weight.num_bits for name, weight in stripped_weights(stripped, setup).items()}
    for name, bits in assignment.per_point(setup).items():
        if setup.points[name].kind == "weight" and found.get(name) != bits:
            raise ExportError(
                f"'{name}' has {found.get(name, 'float')} bits in the stripped module and {bits} in the "
                f"assignment; strip with form='integer' the model that has this assignment."
            )


@dataclass(frozen=True)
class _Job:
    """What every target is written and verified with."""

    stripped: nn.Module
    setup: QuantizerSetup
    example_inputs: tuple[Any, ...]
    folder: Path
    references: list[Reference]
    forward: Forward
    notes: list[str]
    source: Mapping[str, Any] | None
    measure_latency: bool
    latency: dict[str, float] = field(default_factory=dict)

    @cached_property
    def captured(self) -> tuple[Any, int | None]:
        """The graph that ONNX files are made of, and its only batch size; to capture takes longest of all."""
        weights = stripped_weights(self.stripped, self.setup)
        return capture(self.stripped, weights, self.example_inputs)

    def fitting(self, target: str, fixed: int | None) -> list[Reference]:
        """The references that a file takes."""
        if fixed is None:
            return self.references
        what = "graph" if target == "packed" else "file"
        self.notes.append(
            f"{target}: the model fixes its batch size; the {what} takes batches of {fixed} only."
        )
        return _of_size(self.references, fixed)


def _packed(job: _Job) -> list[TargetCheck]:
    fixed = packed.write_packed(job.stripped, job.setup, job.example_inputs, job.folder, job.source)
    return [check_packed(load_model(job.folder), job.fitting("packed", fixed), job.forward)]


def _onnx(job: _Job) -> list[TargetCheck]:
    path = job.folder / onnx_target.FILE
    weights = stripped_weights(job.stripped, job.setup)
    model, fixed = job.captured
    write_model(finish(model.clone(), weights), path)
    job.notes.extend(onnx_target.container_notes(weights))
    checks = check_onnx(path, job.fitting("onnx", fixed), job.forward, job.notes, job.stripped)
    if job.measure_latency:
        twin = model.clone()
        float_again(twin, weights.values(), stripped_quantizers(job.stripped, job.setup))
        job.latency.update(_latency(path, finish(twin, {}), job.example_inputs))
    return checks


def _openvino(job: _Job) -> list[TargetCheck]:
    path = job.folder / openvino_target.FILE
    weights = stripped_weights(job.stripped, job.setup)
    model, fixed = job.captured
    openvino_target.write_openvino(model.clone(), weights, path)
    job.notes.extend(onnx_target.container_notes(weights, for_onnxruntime=False))
    return check_openvino(path, job.fitting("openvino", fixed), job.forward, job.notes, job.stripped)


def _pt2(job: _Job) -> list[TargetCheck]:
    path = job.folder / pt2_target.FILE
    fixed = pt2_target.write_pt2(job.stripped, job.example_inputs, path)
    job.notes.append(pt2_target.NOTE)
    return check_pt2(path, job.fitting("pt2", fixed), job.forward, job.notes, job.stripped)


def _latency(path: Path, plain: Any, example_inputs: tuple[Any, ...]) -> dict[str, float]:
    """Seconds of the file, and of the same network in float, given as a proto."""
    model = OnnxModel(path)
    model.recorded = []
    model(*example_inputs)
    with TemporaryDirectory() as scratch:
        twin = Path(scratch) / onnx_target.FILE
        write_model(plain, twin)
        return paired_seconds({"onnx": path, "float": twin}, model.recorded[0])


def _bias_bytes(stripped: nn.Module) -> int:
    """Bytes of float parameters beside the weights; of a BatchNorm only what remains when it is folded."""
    total = 0
    for module in stripped.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            total += 4 * module.num_features
        elif not isinstance(module, Quantizer):
            total += sum(4 * p.numel() for p in module.parameters(recurse=False) if p.is_floating_point())
    return total


def _of_size(references: list[Reference], fixed: int) -> list[Reference]:
    found = [reference for reference in references if batch_size(reference.batch) == fixed]
    if not found:
        raise ExportError(
            f"the captured model takes batches of {fixed} only, and no verification batch has that size. "
            f"Give data in batches of {fixed}, or make the model's forward independent of the batch size."
        )
    return found
