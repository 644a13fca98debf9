"""How an ONNX file stores codes: INT2, INT4, INT8, or a bit stream that runtimes decode once, at load."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from raysearch.export.onnx_qdq.groups import drop_zero_points, own_codes
from raysearch.export.onnx_qdq.values import add_initializer, constant, is_grouped
from raysearch.export.packing import pack_codes

if TYPE_CHECKING:
    import onnx_ir as ir

DOMAIN = "raysearch"
SPREAD_BITS = 7
NARROW = ("INT4", "INT2")
STREAM_WIDTHS = (3, 5, 6, 7)
STREAM_BYTES = 60
"""What a decoded weight costs beyond its container: a call of a function, and its names."""

OPSET, IR_VERSION = 21, 10
INT2_OPSET, INT2_IR_VERSION = 25, 13

Codes = npt.NDArray[np.int8]


@dataclass(frozen=True)
class Container:
    """How codes of one width are stored: "INT2", "INT4", "INT8" or "bits"; and the bits a code takes."""

    kind: str
    num_bits: int


def code_readers(model: ir.Model) -> dict[Any, list[Any]]:
    """Initializer of int8 codes → the DequantizeLinear nodes that read it, perhaps transposed.

    Found by what the nodes read: the exporter merges equal initializers, so names would not do.
    """
    readers: dict[Any, list[Any]] = {}
    for node in model.graph:
        if node.op_type != "DequantizeLinear":
            continue
        value = node.inputs[0]
        maker = value.producer() if value is not None else None
        if maker is not None and maker.op_type == "Transpose":
            value = maker.inputs[0]
        codes = constant(value)
        if codes is not None and codes.dtype == np.int8:
            readers.setdefault(value, []).append(node)
    return readers


def code_width(codes: Codes) -> int:
    """The least width that holds all codes."""
    if not codes.size:
        return 1
    low, high = int(codes.min()), int(codes.max())
    # −1 − low needs as many bits as a negative low does beside its sign.
    below = (-1 - low).bit_length() if low < 0 else 0
    return 1 + max(high.bit_length(), below)


def choose_containers(sizes: Mapping[str, tuple[int, int]], *, streams: bool = True) -> dict[str, Container]:
    """Name → container, by bytes.

    A bit stream of b bits a code is taken where it is smaller than the next wider integer type by more than
    its call costs, and all of a width together by more than the function that decodes them.

    Args:
        sizes: name → (number of codes, width).
        streams: whether bit streams and INT2 may be used; runtimes other than onnxruntime do not fold them.
    """
    chosen: dict[str, Container] = {}
    saved: dict[int, int] = defaultdict(int)
    for name, (count, bits) in sizes.items():
        wide = _integer_width(bits, has_int2=streams)
        chosen[name] = Container(f"INT{wide}", wide)
        gain = count * (wide - bits) // 8 - STREAM_BYTES
        if streams and bits in STREAM_WIDTHS and gain > 0:
            chosen[name] = Container("bits", bits)
            saved[bits] += gain
    for name, (_, bits) in sizes.items():
        if chosen[name].kind == "bits" and saved[bits] <= _decoder(bits, OPSET).ByteSize():
            # Every width of a stream is above 2, so INT2 does not come into question.
            wide = _integer_width(bits, has_int2=False)
            chosen[name] = Container(f"INT{wide}", wide)
    return chosen


def _integer_width(bits: int, *, has_int2: bool) -> int:
    """Bits of the narrowest integer type of ONNX that holds codes of a width."""
    if bits > 4:
        return 8
    return 2 if bits <= 2 and has_int2 else 4


def store_codes(model: ir.Model, *, streams: bool = True) -> list[Any]:
    """Store codes in the container that takes the fewest bytes, spread over 7 bits with a smaller scale.

    A width is read off the codes, not off the assignment: a cast to INT4 would wrap others without a word.
    codes·2^k with scale/2^k is the same weight exactly. Integer kernels round a bias to the grid of input
    scale times weight scale, which without the shift is coarse at low widths. Seven bits, not eight: pairs of
    u8·s8 products then fit the 16 bits in which CPUs without VNNI sum them.

    Args:
        model: an `onnx_ir` model; its opset and IR version are raised where INT2 is used.
        streams: see `choose_containers`. Without, codes are not spread either: other runtimes keep biases
            in float.

    Returns:
        The functions that the model calls, to be added to its proto.
    """
    own_codes(model)
    readers = code_readers(model)
    sizes = {v.name: (v.const_value.size, _stored_width(v, nodes)) for v, nodes in readers.items()}
    containers = choose_containers(sizes, streams=streams)
    two = any(container.kind == "INT2" for container in containers.values())
    opset = INT2_OPSET if two else OPSET
    called: dict[str, Any] = {}
    for value, nodes in readers.items():
        bits, container = sizes[value.name][1], containers[value.name]
        grouped = is_grouped(nodes[0])
        if grouped and container.kind in NARROW:
            _read_narrow(model.graph, value, nodes, container)
            continue
        # There is no integer kernel of groups.
        shift = max(0, SPREAD_BITS - bits) if streams and not grouped else 0
        decoded = _stored(model, value, container, shift, opset, called)
        if decoded is None:
            continue
        for node in nodes:
            _read_spread(model, node, value, decoded, shift)
        if not value.uses():
            del model.graph.initializers[value.name]
    drop_zero_points(model)
    if called:
        model.graph.opset_imports[DOMAIN] = 1
    model.graph.opset_imports[""] = opset
    model.ir_version = INT2_IR_VERSION if two else IR_VERSION
    return list(called.values())


def _stored_width(value: Any, nodes: list[Any]) -> int:
    """The least width that holds the codes of a weight and, with groups, its zero points too."""
    width = code_width(value.const_value.numpy())
    for node in nodes:
        zero = constant(node.inputs[2]) if is_grouped(node) else None
        if zero is not None:
            width = max(width, code_width(zero))
    return width


def _read_narrow(graph: ir.Graph, value: Any, nodes: list[Any], container: Container) -> None:
    """Let the readers of a weight with groups read INT4 or INT2 as it is stored.

    Runtimes compute with it in that form: onnxruntime's MatMulNBits and OpenVINO's compressed weights.
    """
    import ml_dtypes
    import onnx_ir as ir

    numpy_type = {"INT4": ml_dtypes.int4, "INT2": ml_dtypes.int2}[container.kind]
    onnx_type = ir.DataType[container.kind]
    suffix = container.kind.lower()
    codes = value.const_value.numpy().astype(numpy_type)
    narrow = add_initializer(graph, f"{value.name}.{suffix}", codes, onnx_type)
    for node in nodes:
        zero = constant(node.inputs[2])
        assert zero is not None
        node.replace_input_with(0, narrow)
        name = f"{node.inputs[2].name}.{suffix}"
        node.replace_input_with(2, add_initializer(graph, name, zero.astype(numpy_type), onnx_type))
    del graph.initializers[value.name]


def _stored(
    model: ir.Model, value: Any, container: Container, shift: int, opset: int, called: dict[str, Any]
) -> Any:
    """The int8 value of codes·2^shift, or None where the initializer is that already."""
    import ml_dtypes
    import onnx_ir as ir

    codes, graph = value.const_value.numpy(), model.graph
    if container.kind == "INT8":
        spread = (codes.astype(np.int16) << shift).astype(np.int8)
        return add_initializer(graph, f"{value.name}.int8", spread) if shift else None
    if container.kind == "INT4" and not shift:
        # Runtimes that compute with integers past a plain Cast only; see `streams`.
        array = codes.astype(ml_dtypes.int4)
        plain = ir.node(
            "Cast",
            [add_initializer(graph, f"{value.name}.int4", array, ir.DataType.INT4)],
            attributes={"to": int(ir.DataType.INT8)},
        )
        return _typed(graph, plain, f"{value.name}.codes", codes.shape)
    factor = add_initializer(graph, f"factor{shift}", np.array(2**shift, np.int32))
    attributes: dict[str, Any] = {}
    if container.kind == "bits":
        # Groups of 8 codes fill whole rows; the rest of the last row is never read.
        stream = pack_codes(codes, container.num_bits, value.name)
        padded = np.zeros(-(-codes.size // 8) * container.num_bits, np.uint8)
        padded[: stream.size] = stream
        narrow = add_initializer(graph, f"{value.name}.bits", padded.reshape(-1, container.num_bits))
        function = _decoder(container.num_bits, opset)
        attributes = {"count": [codes.size], "shape": list(codes.shape)}
    else:
        four = container.kind == "INT4"
        array = codes.astype(ml_dtypes.int4 if four else ml_dtypes.int2)
        name = f"{value.name}.{container.kind.lower()}"
        narrow = add_initializer(graph, name, array, ir.DataType.INT4 if four else ir.DataType.INT2)
        function = _widener(opset)
    called[function.name] = function
    node = ir.node(function.name, [narrow, factor], domain=DOMAIN, attributes=attributes)
    return _typed(graph, node, f"{value.name}.codes", codes.shape)


def _typed(graph: ir.Graph, node: Any, name: str, shape: tuple[int, ...]) -> Any:
    """Put a node that gives codes at the head of the graph."""
    import onnx_ir as ir

    result = node.outputs[0]
    result.name, result.type, result.shape = name, ir.TensorType(ir.DataType.INT8), ir.Shape(shape)
    graph.insert_before(graph[0], node)
    return result


def separate_zero_points(model: ir.Model) -> None:
    """Give each reader of 8-bit codes a zero point of its own; to be called when nothing is merged any more.

    For CPUs without VNNI onnxruntime turns such weights to unsigned ones, with their zero points, and fails
    where two weights share one.
    """
    taken: set[Any] = set()
    for codes, nodes in code_readers(model).items():
        if code_width(codes.const_value.numpy()) <= SPREAD_BITS:
            continue
        for node in nodes:
            zero, array = node.inputs[2], constant(node.inputs[2])
            if zero in taken and array is not None:
                node.replace_input_with(2, add_initializer(model.graph, f"{zero.name}.own", array))
            taken.add(zero)


def _read_spread(model: ir.Model, node: Any, old: Any, decoded: Any, shift: int) -> None:
    maker = node.inputs[0].producer()
    if maker is None:
        node.replace_input_with(0, decoded)
    elif maker.inputs[0] is old:
        maker.replace_input_with(0, decoded)
    if not shift:
        return
    # New ones each: the exporter merges equal scales, and another weight may read the old one.
    scale, zero = constant(node.inputs[1]), constant(node.inputs[2])
    assert scale is not None
    assert zero is not None
    smaller = add_initializer(model.graph, f"{old.name}.spread", scale / np.float32(2**shift))
    node.replace_input_with(1, smaller)
    if zero.any():
        moved = (zero.astype(np.int16) << shift).astype(np.int8)
        node.replace_input_with(2, add_initializer(model.graph, f"{old.name}.zero", moved))


@cache
def _widener(opset: int) -> Any:
    return _function(
        opset,
        "Widen (narrow, factor) => (codes)",
        "wide = Cast <to = 6> (narrow)",
        "spread = Mul (wide, factor)",
        "codes = Cast <to = 3> (spread)",
    )


@cache
def _decoder(num_bits: int, opset: int) -> Any:
    """Rows of b bytes → 8 codes: code i starts at bit b·i and lies within a window of two bytes."""
    starts = [num_bits * index for index in range(8)]
    first = [start // 8 for start in starts]
    second = [min(index + 1, num_bits - 1) for index in first]
    return _function(
        opset,
        f"Decode{num_bits} <count, shape> (stream, factor) => (codes)",
        f"first = Constant <value = int64[8] {{{_listed(first)}}}> ()",
        f"second = Constant <value = int64[8] {{{_listed(second)}}}> ()",
        f"offset = Constant <value = int32[8] {{{_listed([2 ** (start % 8) for start in starts])}}}> ()",
        f"modulus = Constant <value = int32 {{{2**num_bits}}}> ()",
        f"middle = Constant <value = int32 {{{2 ** (num_bits - 1)}}}> ()",
        "byte = Constant <value = int32 {256}> ()",
        "start = Constant <value = int64[1] {0}> ()",
        "flat = Constant <value = int64[1] {-1}> ()",
        "end = Constant <value_ints: ints = @count> ()",
        "target = Constant <value_ints: ints = @shape> ()",
        "wide = Cast <to = 6> (stream)",
        "low = Gather <axis = 1> (wide, first)",
        "next = Gather <axis = 1> (wide, second)",
        "high = Mul (next, byte)",
        "window = Add (low, high)",
        "shifted = Div (window, offset)",
        "unsigned = Mod (shifted, modulus)",
        "signed = Sub (unsigned, middle)",
        "spread = Mul (signed, factor)",
        "narrow = Cast <to = 3> (spread)",
        "line = Reshape (narrow, flat)",
        "kept = Slice (line, start, end)",
        "codes = Reshape (kept, target)",
    )


def _function(opset: int, head: str, *lines: str) -> Any:
    import onnx.parser

    text = f'<opset_import: ["" : {opset}], domain: "{DOMAIN}">\n{head} {{\n{chr(10).join(lines)}\n}}'
    return onnx.parser.parse_function(text)


def _listed(values: list[int]) -> str:
    return ", ".join(map(str, values))
