"""A captured graph as the proto that is written: kernels fused, codes stored small, values named shortly."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysearch.artifacts import Storage
from raysearch.controller import StrippedWeight
from raysearch.errors import ExportError
from raysearch.export.onnx_qdq.groups import flatten_groups
from raysearch.export.onnx_qdq.rewrites import fuse_regions
from raysearch.export.onnx_qdq.storage import separate_zero_points, store_codes

if TYPE_CHECKING:
    import onnx_ir as ir

CODE_SUFFIXES = ("", ".int8", ".int4", ".int2", ".bits")
"""What `store_codes` adds to a weight's name for the container of its codes."""


def finish(model: ir.Model, weights: dict[str, StrippedWeight], *, for_onnxruntime: bool = True) -> Any:
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
    flatten_groups(model)
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


def _shorten_names(model: ir.Model, weights: set[str]) -> None:
    """Give values short names, which a file repeats at each use; codes are named after their weights.

    Args:
        model: changed in place.
        weights: names that stay as they are.
    """
    graph = model.graph
    # What a caller of the file names.
    fixed = {*graph.inputs, *graph.outputs}
    taken = {value.name for value in fixed} | weights
    fresh = (name for index in itertools.count() if (name := f"v{index:x}") not in taken)
    for name, value in list(graph.initializers.items()):
        if value in fixed or name in weights:
            continue
        # "fc.parametrizations.weight.original.int4" becomes "fc.weight.int4".
        path, _, suffix = name.replace(".parametrizations.", ".").partition(".original")
        is_code = ".original" in name and suffix in CODE_SUFFIXES
        value.name = f"{path}{suffix}" if is_code else next(fresh)
    for node in graph:
        for value in node.outputs:
            if value not in fixed:
                value.name = next(fresh)
