"""Each target's file, run in its runtime against the reference: what is refused and what is noted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from raysearch.evaluation import Forward
from raysearch.export.onnx_qdq.session import OnnxModel
from raysearch.export.targets.openvino import OpenVinoModel
from raysearch.export.targets.pt2 import load_pt2
from raysearch.export.verification.code_flips import count_flips
from raysearch.export.verification.verify import (
    Reference,
    check_close,
    check_equal,
    check_flips,
    compare,
    describe,
    within_tolerance,
)
from raysearch.export.verification.worst_layer import compare_layers, tell_worst
from raysearch.records import TargetCheck


def check_packed(model: nn.Module, references: list[Reference], forward: Forward) -> TargetCheck:
    """The loaded packed model must equal the reference bit for bit.

    Raises:
        ExportError: it does not, or cannot run.
    """
    check = compare("packed", f"torch {torch.__version__}", model, references, forward)
    check_equal(check)
    return check


def check_onnx(
    path: Path, references: list[Reference], forward: Forward, notes: list[str], module: nn.Module
) -> list[TargetCheck]:
    """The file as it says (optimizations off) must be close; as onnxruntime runs it, flips are judged.

    Where it is not close, its layers are compared with those of `module`, which gave the references.

    Work: four forwards a batch.

    Raises:
        ExportError: the file is not close, kernels are wrong, or the extra is missing.
        StorageError: onnxruntime cannot load it.
    """
    model = OnnxModel(path, optimized=False)
    model.recorded = []
    plain = compare("onnx", model.runtime, model, references, forward)
    batches, feeds = [reference.batch for reference in references], model.recorded

    def where() -> str:
        return tell_worst(compare_layers(path, module, batches, feeds, forward))

    check_close(plain, references, where)
    fused_model = OnnxModel(path)
    fused = compare("onnx", fused_model.runtime, fused_model, references, forward)
    fused = replace(fused, layers=count_flips(path, feeds))
    if note := check_flips(fused):
        notes.append(f"onnx: {note}")
    if not within_tolerance(fused, references):
        notes.append(f"onnx: {describe(fused, references)}.")
    return [plain, fused]


def check_openvino(
    path: Path, references: list[Reference], forward: Forward, notes: list[str], module: nn.Module
) -> list[TargetCheck]:
    """The file must be close as OpenVINO runs it.

    Raises:
        ExportError: it is not, or the extra is missing.
        StorageError: OpenVINO cannot load it.
    """
    model = OpenVinoModel(path)
    check = compare("openvino", model.runtime, model, references, forward)
    check_close(check, references)
    return [check]


def check_pt2(
    path: Path, references: list[Reference], forward: Forward, notes: list[str], module: nn.Module
) -> list[TargetCheck]:
    """The program must equal the reference bit for bit.

    Raises:
        ExportError: it does not, or cannot run.
        StorageError: it cannot be read, or is refused.
    """
    check = compare("pt2", f"torch {torch.__version__}", load_pt2(path), references, forward)
    check_equal(check)
    return [check]
