"""The ONNX target: a QDQ model whose weights are stored as integer codes."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from raysearch.artifacts import Storage
from raysearch.controller import StrippedWeight
from raysearch.errors import ExportError
from raysearch.evaluation import batch_size
from raysearch.export.outputs import plain
from raysearch.export.program import batch_dims, quiet, widen

FILE = "model.onnx"
EXTRA = ("onnx", "onnxscript", "onnx_ir", "ml_dtypes", "onnxruntime")
OPSET = 21
SPREAD_BITS = 7
OUTPUT_KEY = "raysearch.outputs"


def missing_packages() -> list[str]:
    """Packages of the extra `onnx` that are not installed."""
    return [name for name in EXTRA if importlib.util.find_spec(name) is None]


def require_onnx() -> None:
    """Refuse to go on without the extra.

    Raises:
        ExportError: names the packages and the command that installs them.
    """
    if missing := missing_packages():
        raise ExportError(
            f"the target 'onnx' needs {', '.join(missing)}; install them with "
            f'`pip install "raysearch[onnx]"`.'
        )


def write_onnx(
    stripped: nn.Module, weights: dict[str, StrippedWeight], example_inputs: tuple[Any, ...], path: Path
) -> int | None:
    """Write a stripped module as an ONNX file of opset 21.

    Weights become initializers of codes with DequantizeLinear: INT4 where every code fits −8 … 7, decoded
    to INT8 by nodes that runtimes fold at load, else INT8. Activations become QuantizeLinear and
    DequantizeLinear in a uint8 container at every width. The batch dimension is open where the model
    allows it.

    Args:
        stripped: the stripped module, integer form.
        weights: its integer weights.
        example_inputs: positional arguments of its forward; dimension 0 is the batch.
        path: the file.

    Returns:
        The only batch size the file takes, or None when any will do.

    Raises:
        ExportError: the extra is missing, the exporter refuses the model, or a weight did not arrive.
    """
    require_onnx()
    import onnx
    import onnx_ir as ir
    from onnx_ir.passes import Sequential, common

    for weight in weights.values():
        if weight.zero_point is not None:
            raise ExportError(
                f"the weight '{weight.name}' has zero points, which the target 'onnx' cannot hold yet; give "
                f"it a symmetric signed quantizer, or leave it float."
            )
    program, fixed_batch = _export(stripped, example_inputs)
    model = program.model
    _check_codes(model, weights)
    _narrow(model)
    Sequential(
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.ClearMetadataAndDocStringPass(),
    )(model)
    model.producer_name, model.producer_version = "raysearch", None
    proto = ir.to_proto(model)
    if proto.ByteSize() >= 2**31:
        raise ExportError("the ONNX file would exceed 2 GiB, which is not supported; export 'packed' only.")
    try:
        onnx.checker.check_model(proto, full_check=True)
    except Exception as error:
        raise ExportError(f"the ONNX checker refuses the exported file: {error}.") from error
    Storage(path.parent).write_bytes(path.name, proto.SerializeToString(deterministic=True))
    return fixed_batch


def _export(stripped: nn.Module, example_inputs: tuple[Any, ...]) -> tuple[Any, int | None]:
    widened, batch = widen(example_inputs)
    with torch.no_grad():
        outputs = plain(stripped(*example_inputs))
    names = list(outputs) if isinstance(outputs, dict) else None
    attempts: list[tuple[tuple[Any, ...], tuple[Any, ...] | None]] = [
        (widened, batch_dims(widened, batch)),
        (example_inputs, None),
    ]
    failure: Exception | None = None
    for arguments, dims in attempts:
        try:
            with quiet(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
                program = torch.onnx.export(
                    stripped,
                    arguments,
                    dynamo=True,
                    opset_version=OPSET,
                    dynamic_shapes=dims,
                    output_names=names,
                    verbose=False,
                )
        except Exception as error:
            failure = failure or error
            continue
        assert program is not None
        # The exporter fixes a dimension that it cannot keep open, and says nothing.
        fixed = not any(_is_open(value) for value in program.model.graph.inputs)
        if fixed and dims is not None:
            continue
        if names is not None:
            program.model.metadata_props[OUTPUT_KEY] = json.dumps(names)
        return program, batch_size(arguments) if fixed else None
    first = str(failure).strip().split("\n", 1)[0][:300]
    raise ExportError(
        f"{type(stripped).__name__} cannot be exported to ONNX: {first}. Try torch.onnx.export(model, "
        f"example_inputs, dynamo=True) alone and mend what it names, or leave the target 'onnx' out."
    ) from failure


def _is_open(value: Any) -> bool:
    return bool(value.shape) and not isinstance(value.shape[0], int)


def _code_initializers(model: Any) -> dict[Any, list[Any]]:
    """Initializer of int8 codes → the DequantizeLinear nodes that read it.

    Found by what the nodes read: the exporter merges equal initializers, so names would not do.
    """
    found: dict[Any, list[Any]] = {}
    for node in model.graph:
        value = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        if value is not None and value.is_initializer() and value.const_value.dtype.name == "INT8":
            found.setdefault(value, []).append(node)
    return found


def _check_codes(model: Any, weights: dict[str, StrippedWeight]) -> None:
    stored = {_identity(value.const_value.numpy()) for value in _code_initializers(model)}
    for weight in weights.values():
        if _identity(weight.codes.cpu().numpy()) not in stored:
            raise ExportError(
                f"the codes of '{weight.name}' did not reach the ONNX graph as an initializer with "
                f"DequantizeLinear. Pin the layer out with placement.ignored_scopes, or leave 'onnx' out."
            )


def _identity(codes: npt.NDArray[np.int8]) -> tuple[tuple[int, ...], bytes]:
    return codes.shape, np.ascontiguousarray(codes).tobytes()


def _narrow(model: Any) -> None:
    """Store codes in INT4 where they fit, and spread narrow codes over 7 bits with a smaller scale.

    A width is read off the codes, not off the assignment: a cast to INT4 would wrap others without a word.
    codes·2^k with scale/2^k is the same weight exactly. Integer kernels round a bias to the grid of input
    scale times weight scale, which without the shift is coarse at low widths. Seven bits, not eight: pairs of
    u8·s8 products then fit the 16 bits in which CPUs without VNNI sum them.
    """
    import ml_dtypes
    import onnx_ir as ir

    for value, readers in _code_initializers(model).items():
        codes = value.const_value.numpy()
        bits = _width(codes)
        shift = max(0, SPREAD_BITS - bits)
        if bits <= 4:
            narrow = _initializer(model, f"{value.name}.int4", codes.astype(ml_dtypes.int4), ir.DataType.INT4)
            decoded = _decode(model, narrow, shift)
        elif shift:
            spread = (codes.astype(np.int16) << shift).astype(np.int8)
            decoded = _initializer(model, f"{value.name}.int8", spread, ir.DataType.INT8)
        else:
            continue
        for index, node in enumerate(readers):
            # A new scale each: the exporter merges equal scales, and another weight may read the old one.
            scale = node.inputs[1].const_value.numpy() / np.float32(2**shift)
            name = f"{value.name}.scale{index}"
            node.replace_input_with(0, decoded)
            node.replace_input_with(1, _initializer(model, name, scale, ir.DataType.FLOAT))
        if not value.uses():
            del model.graph.initializers[value.name]


def _width(codes: npt.NDArray[np.int8]) -> int:
    """The least width that holds all codes."""
    low, high = (int(codes.min()), int(codes.max())) if codes.size else (0, 0)
    return 1 + max(high.bit_length(), (-1 - low).bit_length() if low < 0 else 0)


def _initializer(model: Any, name: str, array: npt.NDArray[Any], dtype: Any) -> Any:
    import onnx_ir as ir

    tensor = ir.Tensor(array, dtype=dtype, name=name)
    value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(array.shape), const_value=tensor)
    model.graph.register_initializer(value)
    return value


def _decode(model: Any, narrow: Any, shift: int) -> Any:
    """Nodes at the head of the graph: Cast(INT32), Mul(2^shift), Cast(INT8); runtimes fold them at load."""
    import onnx_ir as ir

    factor = _initializer(model, f"{narrow.name}.factor", np.array(2**shift, np.int32), ir.DataType.INT32)
    wide = ir.node("Cast", [narrow], attributes={"to": int(ir.DataType.INT32)})
    spread = ir.node("Mul", [wide.outputs[0], factor])
    codes = ir.node("Cast", [spread.outputs[0]], attributes={"to": int(ir.DataType.INT8)})
    for node, suffix in ((wide, "int32"), (spread, "spread"), (codes, "int8")):
        node.outputs[0].name = f"{narrow.name}.{suffix}"
    model.graph.insert_before(model.graph[0], [wide, spread, codes])
    return codes.outputs[0]


def container_notes(weights: dict[str, StrippedWeight]) -> tuple[str, ...]:
    """Statements for the manifest: which widths are stored in a wider container."""
    widths = Counter(weight.num_bits for weight in weights.values())
    notes = ["onnx: activations are stored as uint8 at every width; below 8 bits their codes are clipped."]
    for bits in sorted(widths):
        container = "INT4" if bits <= 4 else "INT8"
        if int(container[3:]) != bits:
            notes.append(
                f"onnx: {bits}-bit weights ({widths[bits]} of {len(weights)} tensors) are stored as "
                f"{container}."
            )
    return tuple(notes)
