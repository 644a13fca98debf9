"""What the targets that are ONNX files with QuantizeLinear and DequantizeLinear have in common."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from raysearch.controller import StrippedWeight
from raysearch.export.onnx_qdq.capture import capture_with_program, check_codes
from raysearch.export.onnx_qdq.file_module import OnnxFileModule
from raysearch.export.onnx_qdq.proto import finish, write_model
from raysearch.export.onnx_qdq.session import MATMUL_ACCURACY, PRECISION
from raysearch.export.onnx_qdq.storage import SPREAD_BITS, choose_containers, code_width
from raysearch.export.onnx_qdq.template import GraphTemplate
from raysearch.export.targets.target import ExportJob, Target, Verdict, Verification, Written

GRAPH = "onnx"
"""The template of the capture among the graphs of a job."""


class QdqTarget(Target):
    """An ONNX file of standard operations; a runtime says which containers it takes.

    Attributes:
        for_onnxruntime: whether containers and rewrites that only onnxruntime takes are used.
    """

    for_onnxruntime: ClassVar[bool]

    def write(self, job: ExportJob) -> Written:
        """Write the file.

        Raises:
            ExportError: the extra is missing, the exporter refuses the model, or a weight did not arrive.
        """
        self.extra.require(self.name)
        weights = job.model.in_float32.weights
        model, fixed_batch = captured(job)
        # Each target rewrites a copy: the next one starts from the capture.
        proto = finish(model.clone(), weights, for_onnxruntime=self.for_onnxruntime)
        write_model(proto, job.folder / self.files[0])
        has_activations = bool(job.model.setup.of_kind("activation"))
        notes = container_notes(
            weights, for_onnxruntime=self.for_onnxruntime, has_activations=has_activations
        )
        half = job.model.half_type
        if half is not None:
            precision = (
                f"{self.name}: the file takes, computes and gives float32; the model, which is {half}, was "
                f"verified in float32."
            )
            notes = (*notes, precision)
        return Written(fixed_batch, notes)

    def check(self, folder: Path, verification: Verification) -> Verdict:
        """Run the file and compare its outputs with those of the module in float32; see `Target.check`."""
        return super().check(folder, verification.in_float32())

    def runtime(self, model: nn.Module) -> str:
        """Name and version of what runs the file."""
        assert isinstance(model, OnnxFileModule)
        return model.runtime


def captured(job: ExportJob) -> tuple[Any, int | None]:
    """The graph that a job's ONNX files are made of, and its only batch size; see `capture`."""
    return job.once("onnx capture", lambda: _capture(job))


def _capture(job: ExportJob) -> tuple[Any, int | None]:
    """The graph of an earlier job with this one's values, where it can take them; else a capture."""
    model = job.model.in_float32
    template = None if job.graphs is None else job.graphs.get(GRAPH)
    if template is not None and (filled := template.filled(model.module)) is not None:
        check_codes(filled, model.weights)
        return filled, template.fixed_batch
    graph, fixed_batch, program = capture_with_program(
        model.module, model.weights, model.example_inputs, model.open_dims
    )
    if job.graphs is not None:
        job.graphs[GRAPH] = GraphTemplate.of(graph, program, model.module, fixed_batch)
    return graph, fixed_batch


def container_notes(
    weights: dict[str, StrippedWeight], *, for_onnxruntime: bool = True, has_activations: bool = True
) -> tuple[str, ...]:
    """Statements for the manifest: which widths are stored in a wider container, and what runs slower.

    Args:
        weights: weight id → its codes, width and zero points.
        for_onnxruntime: whether ONNX Runtime runs the file; else OpenVINO does.
        has_activations: whether activations are quantized too.
    """
    label = "onnx" if for_onnxruntime else "openvino"
    sizes = {name: (weight.codes.numel(), _stored_width(weight)) for name, weight in weights.items()}
    containers = choose_containers(sizes, streams=for_onnxruntime)
    wider: Counter[tuple[int, str]] = Counter()
    for name, weight in weights.items():
        if containers[name].num_bits > weight.num_bits:
            wider[weight.num_bits, containers[name].kind] += 1
    notes = []
    if has_activations:
        notes.append(
            f"{label}: activations are stored as uint8 at every width; below 8 bits codes are clipped."
        )
    for (bits, kind), count in sorted(wider.items()):
        notes.append(f"{label}: {bits}-bit weights ({count} of {len(weights)} tensors) are stored as {kind}.")
    num_grouped = sum(_has_groups(weight) for weight in weights.values())
    if num_grouped:
        notes.append(
            f"{label}: {num_grouped} weights have a scale per group, which no integer kernel takes; their "
            f"layers compute in float."
        )
    num_shifted = sum(w.zero_point is not None and not _has_groups(w) for w in weights.values())
    if num_shifted:
        notes.append(f"{label}: {num_shifted} weights have zero points; integer kernels are slower for them.")
    if for_onnxruntime and num_grouped and not has_activations:
        notes.append(
            f"onnx: onnxruntime computes matrix products of such weights with inputs of 8 bits unless the "
            f"session option '{MATMUL_ACCURACY}' is '1'."
        )
    if for_onnxruntime and any(bits > SPREAD_BITS for _, bits in sizes.values()):
        option, value = PRECISION
        notes.append(
            f"onnx: 8-bit weights saturate on x86 CPUs without VNNI unless the session option '{option}' is "
            f"'{value}'; it was set for the verification."
        )
    return tuple(notes)


def _has_groups(weight: StrippedWeight) -> bool:
    return weight.granularity.kind == "per_group"


def _stored_width(weight: StrippedWeight) -> int:
    """What `store_codes` reads off a weight: with groups, zero points are of the codes' type."""
    width = code_width(weight.codes.cpu().numpy())
    if _has_groups(weight) and weight.zero_point is not None:
        return max(width, code_width(weight.zero_point.cpu().numpy()))
    return width
