"""A stripped module as a graph of `onnx_ir`, whose layers and quantizers have names."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.export import ExportedProgram

from raysearch.controller import StrippedWeight
from raysearch.errors import ExportError
from raysearch.evaluation.calls.call_form import exportable
from raysearch.evaluation.calls.model_calls import NO_OPEN_DIMS, OpenDims
from raysearch.evaluation.quiet import quiet
from raysearch.export.onnx_qdq.file_module import OUTPUT_KEY
from raysearch.export.onnx_qdq.storage import OPSET, code_readers
from raysearch.export.onnx_qdq.values import SCOPES
from raysearch.export.open_dims import capture_open, num_open
from raysearch.quantizer import Quantizer

if TYPE_CHECKING:
    import onnx_ir as ir

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_LACKING = re.compile(r"No ONNX function found for <OpOverload\(op='([\w.:]+)'")
LAYERS = ("QuantizeLinear", "Conv", "ConvTranspose", "Gemm", "MatMul", "Gather")


def capture(
    stripped: nn.Module,
    weights: dict[str, StrippedWeight],
    example_inputs: tuple[Any, ...],
    open_dims: OpenDims = NO_OPEN_DIMS,
) -> tuple[Any, int | None]:
    """An `onnx_ir` model with named layers and quantizers, and the only batch size it takes.

    Args:
        stripped: the stripped module, integer form.
        weights: its integer weights, each of which must arrive.
        example_inputs: positional arguments of its forward; dimension 0 is the batch.
        open_dims: dimensions besides the batch that stay open.

    Raises:
        ExportError: the exporter refuses the model, or a weight did not arrive.
    """
    model, fixed_batch, _ = capture_with_program(stripped, weights, example_inputs, open_dims)
    return model, fixed_batch


def capture_with_program(
    stripped: nn.Module,
    weights: dict[str, StrippedWeight],
    example_inputs: tuple[Any, ...],
    open_dims: OpenDims = NO_OPEN_DIMS,
) -> tuple[Any, int | None, ExportedProgram]:
    """What `capture` gives, and the program of torch that the graph was made of."""
    exported, fixed_batch = _export(stripped, example_inputs, open_dims)
    model: Any = exported.model
    check_codes(model, weights)
    _name_nodes(model, _quantizer_names(stripped))
    return model, fixed_batch, exported.exported_program


def _export(
    stripped: nn.Module, example_inputs: tuple[Any, ...], open_dims: OpenDims
) -> tuple[Any, int | None]:
    with torch.no_grad(), exportable(stripped):
        outputs = stripped(*example_inputs)
    names: list[str] | None = None
    if isinstance(outputs, dict):
        # An optional field that is not set is no output of a file.
        names = [name for name, value in outputs.items() if value is not None]

    def export(arguments: tuple[Any, ...], dims: tuple[Any, ...] | None) -> Any:
        # The exporter prints its progress.
        with quiet(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad(), exportable(stripped):
            program = torch.onnx.export(
                stripped,
                arguments,
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=dims,
                output_names=names,
                verbose=False,
            )
        assert program is not None
        # It fixes a dimension that it cannot keep open, and says nothing.
        symbols = sum(_num_symbols(value) for value in program.model.graph.inputs)
        is_fixed = symbols < (num_open(dims) if open_dims else 1)
        return None if is_fixed and dims is not None else program

    try:
        exported, fixed_batch = capture_open(example_inputs, export, open_dims)
    except ExportError:
        raise
    except Exception as error:
        raise ExportError(
            f"{type(stripped).__name__} cannot be exported to ONNX: {_cause(error)}. Try "
            f"torch.onnx.export(model, example_inputs, dynamo=True) alone and mend what it names, or leave "
            f"the target 'onnx' out."
        ) from error
    if names is not None:
        exported.model.metadata_props[OUTPUT_KEY] = json.dumps(names)
    return exported, fixed_batch


def _cause(error: BaseException) -> str:
    """What an export failed of: the operation that ONNX lacks, or the first line of the innermost error."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = _COLOURS.sub("", str(error)).strip()
    lacking = _LACKING.search(text)
    if lacking is not None:
        return f"ONNX has no operation for '{lacking[1]}'"
    return text.split("\n", 1)[0][:300].rstrip(".")


def _num_symbols(value: Any) -> int:
    return sum(not isinstance(size, int) for size in value.shape or ())


def check_codes(model: ir.Model, weights: dict[str, StrippedWeight]) -> None:
    """Refuse a graph that some weight did not reach as codes.

    Raises:
        ExportError: names the weight.
    """
    stored = {codes_identity(value.const_value.numpy()) for value in code_readers(model)}
    for weight in weights.values():
        if codes_identity(weight.codes.cpu().numpy()) not in stored:
            raise ExportError(
                f"the codes of '{weight.name}' did not reach the ONNX graph as an initializer with "
                f"DequantizeLinear. Pin the layer out with placement.ignored_scopes, or leave 'onnx' out."
            )


def codes_identity(codes: npt.NDArray[np.int8]) -> tuple[tuple[int, ...], bytes]:
    """What equal codes of one shape have in common; the exporter merges them."""
    return codes.shape, np.ascontiguousarray(codes).tobytes()


def _name_nodes(model: ir.Model, quantizers: dict[str, str]) -> None:
    """Name quantizers by their ids, layers by their modules: profiles and comparisons show these names."""
    calls: Counter[str] = Counter()
    for node in model.graph:
        name = ""
        scopes = ast.literal_eval(node.metadata_props.get(SCOPES, "[]"))
        if node.op_type in LAYERS and len(scopes) > 1:
            name = quantizers.get(scopes[-2], scopes[-2])
        if name:
            calls[name] += 1
            name += f"#{calls[name]}" if calls[name] > 1 else ""
        node.name = name


def _quantizer_names(stripped: nn.Module) -> dict[str, str]:
    """Path of each quantizer's module → its id."""
    return {path: m.name for path, m in stripped.named_modules() if isinstance(m, Quantizer) and m.name}
