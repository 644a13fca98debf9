"""The ONNX target: a QDQ model whose weights are stored as integer codes."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import io
import itertools
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
from raysearch.export.onnx_qdq.rewrites import fuse_regions
from raysearch.export.onnx_qdq.storage import (
    OPSET,
    SPREAD_BITS,
    choose_containers,
    code_readers,
    code_width,
    separate_zero_points,
    store_codes,
)
from raysearch.export.outputs import plain
from raysearch.export.program import batch_dims, quiet, widen
from raysearch.quantizer import Quantizer

FILE = "model.onnx"
EXTRA = ("onnx", "onnxscript", "onnx_ir", "ml_dtypes", "onnxruntime")
OUTPUT_KEY = "raysearch.outputs"
PRECISION = ("session.x64quantprecision", "1")
SCOPES = "pkg.torch.onnx.name_scopes"
LAYERS = ("QuantizeLinear", "Conv", "ConvTranspose", "Gemm", "MatMul", "Gather")


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
    """Write a stripped module as an ONNX file for onnxruntime, of opset 21, or 25 where it holds INT2.

    Weights become initializers of codes with DequantizeLinear: INT2, INT4, INT8, or a bit stream at 3, 5, 6
    and 7 bits, decoded by functions that onnxruntime folds at load. Activations become QuantizeLinear and
    DequantizeLinear in a uint8 container at every width. BatchNorm goes into scales and biases. The batch
    dimension is open where the model allows it. Quantizers keep their ids as names of QuantizeLinear nodes.

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
    model, fixed_batch = capture(stripped, weights, example_inputs)
    write_model(finish(model, weights), path)
    return fixed_batch


def capture(
    stripped: nn.Module, weights: dict[str, StrippedWeight], example_inputs: tuple[Any, ...]
) -> tuple[Any, int | None]:
    """An `onnx_ir` model with named layers and quantizers, and the only batch size it takes.

    Raises:
        ExportError: the exporter refuses the model, or a weight did not arrive.
    """
    program, fixed_batch = _export(stripped, example_inputs)
    model = program.model
    _check_codes(model, weights)
    _name_nodes(model, _quantizer_names(stripped))
    return model, fixed_batch


def finish(model: Any, weights: dict[str, StrippedWeight], *, for_onnxruntime: bool = True) -> Any:
    """The proto of a captured model, which is changed in place: kernels fused, codes stored small.

    Args:
        model: of `capture`.
        weights: its integer weights.
        for_onnxruntime: whether containers and rewrites that only onnxruntime takes may be used.
    """
    import onnx_ir as ir
    from onnx_ir.passes import Sequential, common

    common.CommonSubexpressionEliminationPass()(model)
    fuse_regions(model, codes_move=for_onnxruntime)
    functions = store_codes(model, streams=for_onnxruntime)
    Sequential(
        common.CommonSubexpressionEliminationPass(),
        common.DeduplicateInitializersPass(size_limit=2**20),
        common.RemoveUnusedNodesPass(),
        common.ClearMetadataAndDocStringPass(),
    )(model)
    separate_zero_points(model)
    _shorten_names(model, {weight.name for weight in weights.values()})
    model.producer_name, model.producer_version = "raysearch", None
    proto = ir.to_proto(model)
    proto.functions.extend(functions)
    del proto.graph.value_info[:]
    return proto


def write_model(proto: Any, path: Path) -> None:
    """Check a model by ONNX's own checker, and write it.

    Raises:
        ExportError: the checker refuses it, or it exceeds 2 GiB.
    """
    import onnx

    if proto.ByteSize() >= 2**31:
        raise ExportError("the ONNX file would exceed 2 GiB, which is not supported; export 'packed' only.")
    try:
        onnx.checker.check_model(proto, full_check=True)
    except Exception as error:
        raise ExportError(f"the ONNX checker refuses the exported file: {error}.") from error
    Storage(path.parent).write_bytes(path.name, proto.SerializeToString(deterministic=True))


def _quantizer_names(stripped: nn.Module) -> dict[str, str]:
    """Path of each quantizer's module → its id."""
    return {path: m.name for path, m in stripped.named_modules() if isinstance(m, Quantizer) and m.name}


def _name_nodes(model: Any, quantizers: dict[str, str]) -> None:
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


def _shorten_names(model: Any, kept: set[str]) -> None:
    """Give values short names, which a file repeats at each use; codes are named after their weights."""
    graph = model.graph
    fixed = {*graph.inputs, *graph.outputs}
    taken = {value.name for value in fixed} | kept
    fresh = (name for index in itertools.count() if (name := f"v{index:x}") not in taken)
    for value in list(graph.initializers.values()):
        if value not in fixed:
            short = value.name.replace(".parametrizations.", ".").split(".original", 1)
            is_code = len(short) == 2 and short[1] in ("", ".int8", ".int4", ".int2", ".bits")
            if value.name not in kept:
                value.name = "".join(short) if is_code else next(fresh)
    for node in graph:
        for value in node.outputs:
            if value not in fixed:
                value.name = next(fresh)


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


def _check_codes(model: Any, weights: dict[str, StrippedWeight]) -> None:
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


def container_notes(weights: dict[str, StrippedWeight], *, for_onnxruntime: bool = True) -> tuple[str, ...]:
    """Statements for the manifest: which widths are stored in a wider container, and what runs slower."""
    label = "onnx" if for_onnxruntime else "openvino"
    sizes = {name: (w.codes.numel(), code_width(w.codes.cpu().numpy())) for name, w in weights.items()}
    containers = choose_containers(sizes, streams=for_onnxruntime)
    wider: Counter[tuple[int, str]] = Counter()
    for name, weight in weights.items():
        if containers[name].num_bits > weight.num_bits:
            wider[weight.num_bits, containers[name].kind] += 1
    notes = [f"{label}: activations are stored as uint8 at every width; below 8 bits codes are clipped."]
    for (bits, kind), count in sorted(wider.items()):
        notes.append(f"{label}: {bits}-bit weights ({count} of {len(weights)} tensors) are stored as {kind}.")
    shifted = sum(weight.zero_point is not None for weight in weights.values())
    if shifted:
        notes.append(f"{label}: {shifted} weights have zero points; integer kernels are slower for them.")
    if for_onnxruntime and any(bits > SPREAD_BITS for _, bits in sizes.values()):
        notes.append(
            f"onnx: 8-bit weights saturate on x86 CPUs without VNNI unless the session option "
            f"'{PRECISION[0]}' is '{PRECISION[1]}'; it was set for the verification."
        )
    return tuple(notes)
