"""Archives of torch.export: checked and written anew before torch reads them, so that no foreign code runs.

`torch.export.load` unpickles example inputs and some constants, looks operations up by name in `torch`,
`operator` and `math`, imports modules that tree specs name, and evaluates sizes as Python. `operator.call`
and `operator.attrgetter` alone would let a file run anything. So a file is parsed here first, whatever
raysearch does not write is refused, and torch is given an archive that was made of the parsed members: what
was checked is what is read, even if another zip reader would see other members in the file.
"""

from __future__ import annotations

import io
import json
import math
import re
import zipfile
from functools import cache
from typing import Any

import torch

from raysearch.errors import ExportError, StorageError

MAX_GRAPH_BYTES = 64 << 20
"""A graph's JSON text; 20 kB a layer are usual."""

_STAMP = (1980, 1, 1, 0, 0, 0)
# Operations that torch itself brings; a library of own operations would be user code.
_ATEN = re.compile(r"torch\.ops\.(aten|prims)\.[A-Za-z_]\w*(\.\w+)?")
_REFUSED = re.compile(r"torch\.ops\.\w+\.(from_file|_print|record_stream|set_|set_data|resize\w*)(\.\w+)?")
_CONTROL = re.compile(
    r"torch\.ops\.higher_order\.(wrap_with_set_grad_enabled|wrap_with_autocast|cond|while_loop|scan|"
    r"associative_scan|map_impl)"
)
_SYMBOLIC = re.compile(
    r"_operator\.(eq|ne|le|ge|lt|gt|neg|pos|mul|add|sub|floordiv|mod|pow|truediv|and_|or_|getitem|"
    r"lshift|rshift)|math\.(trunc|ceil|floor)|torch\.sym_(not|int|float|ite|max|min|sqrt|sum)"
)
# Sizes as sympy prints its objects; torch reads them by evaluating them.
_EXPRESSION = re.compile(r"(?:[A-Z]\w*+|[a-z_]++=|True|False|'\w*+'|-?\d{1,18}+(?![\d.])|[(), ])*+")
_NAMES = {
    "Symbol", "Integer", "Add", "Mul", "Mod", "PythonMod", "ModularIndexing", "FloorDiv", "CleanDiv",
    "CeilDiv", "Max", "Min", "True", "False", "Equality", "Unequality", "StrictLessThan", "LessThan",
    "StrictGreaterThan", "GreaterThan", "TruncToInt", "CeilToInt", "FloorToInt", "ToFloat", "IntTrueDiv",
}  # fmt: skip
_MAX_EXPRESSION = 4000
_MEMBERS = re.compile(
    r"models/model\.json|data/(weights|constants)/model_\w+_config\.json|data/constants/tensor_\d+|"
    r"data/weights/weight_\d+|data/sample_inputs/model\.pt|archive_format|archive_version|byteorder|version|"
    r"\.data/\w+"
)
_TREES = {"builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict", None}
_STORED_TYPES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 2, 7: 4, 8: 8, 10: 8, 12: 1, 13: 2}
"""torch.export's numbers of dtypes → bytes of an element: uint8 … float64, complex64, bool, bfloat16."""


def compact_archive(data: bytes) -> bytes:
    """A program file with its members compressed, which torch reads as well, the same bytes each time.

    Raises:
        ExportError: the graph is larger than the loader takes.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    for name, content in members:
        if name.endswith(".json") and len(content) > MAX_GRAPH_BYTES:
            raise ExportError(
                f"the captured graph takes {len(content)} bytes as text; at most {MAX_GRAPH_BYTES} are "
                f"loaded again. Export the target 'onnx' alone."
            )
    return _write(members, zipfile.ZIP_DEFLATED)


def checked_archive(data: bytes, where: str) -> bytes:
    """The members of a program file in a new archive, after a check of every one.

    Nothing is decompressed before its size is known: a graph may take `MAX_GRAPH_BYTES`, all other members
    together as much as the file itself.

    Raises:
        StorageError: a member, an operation, a size or a pickle that raysearch never writes.
        zipfile.BadZipFile, ValueError, KeyError, TypeError: the file is damaged.
    """
    members: dict[str, bytes] = {}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        left = len(data)
        for entry in archive.infolist():
            root, _, name = entry.filename.partition("/")
            if root != "archive" or not _MEMBERS.fullmatch(name) or name in members:
                raise _refused(where, f"the member '{entry.filename:.200}'")
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise _refused(where, f"the compression {entry.compress_type} of '{name}'")
            if name.endswith(".pt") and entry.file_size:
                raise _refused(where, f"the pickled member '{name}'")
            left -= 0 if name.endswith(".json") else entry.file_size
            if left < 0 or entry.file_size > max(len(data), MAX_GRAPH_BYTES):
                raise _refused(where, f"{entry.file_size} bytes as '{name}'")
            members[name] = archive.read(entry)
    for name, content in members.items():
        if name.endswith(".json"):
            parsed = json.loads(content.decode("utf-8"))
            if name == "models/model.json":
                _check_graph(parsed, where)
            else:
                _check_payloads(parsed["config"], members, name.rsplit("/", 1)[0], where)
            # Written anew, so that torch reads what was checked.
            members[name] = json.dumps(parsed).encode()
    return _write([(f"archive/{name}", content) for name, content in members.items()], zipfile.ZIP_STORED)


def _write(members: list[tuple[str, bytes]], compression: int) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", compression, compresslevel=9) as archive:
        for name, content in members:
            entry = zipfile.ZipInfo(name, _STAMP)
            entry.compress_type = compression
            archive.writestr(entry, content)
    return sink.getvalue()


def _check_payloads(payloads: dict[str, Any], members: dict[str, bytes], folder: str, where: str) -> None:
    prefix = "tensor_" if folder.endswith("constants") else "weight_"
    for payload in payloads.values():
        path = str(payload["path_name"])
        if payload["use_pickle"] is not False or not re.fullmatch(prefix + r"\d+", path):
            raise _refused(where, f"the pickled constant '{path:.200}'")
        meta, content = payload["tensor_meta"], members[f"{folder}/{path}"]
        sizes = [_length(size) for size in meta["sizes"]]
        itemsize = _STORED_TYPES.get(meta["dtype"])
        # An empty record stands for zeros of any size, which torch would allocate.
        if itemsize is None or len(sizes) > 16 or math.prod(sizes) * itemsize > len(content):
            raise _refused(where, f"'{path}' of shape {sizes[:16]} in {len(content)} bytes")
        if meta["device"]["type"] != "cpu":
            raise _refused(where, f"'{path}' on another device than the CPU")


def _length(size: dict[str, Any]) -> int:
    length = size["as_int"]
    if type(length) is not int or not 0 <= length < 1 << 48:
        raise ValueError(f"a size is {length!r:.50}")
    return length


def _check_graph(value: Any, where: str) -> None:
    if isinstance(value, list):
        for entry in value:
            _check_graph(entry, where)
    elif isinstance(value, dict):
        for key, entry in value.items():
            _check_entry(key, entry, value, where)
            _check_graph(entry, where)


def _check_entry(key: str, entry: Any, value: dict[str, Any], where: str) -> None:
    called = key == "as_operator" or (key == "target" and "inputs" in value)
    if called and not is_operation(str(entry)):
        raise _refused(where, f"the operation '{entry!s:.200}'")
    if key == "expr_str" and not _is_expression(str(entry)):
        raise _refused(where, f"the size '{entry!s:.200}'")
    if key in ("in_spec", "out_spec") and entry:
        _check_tree(json.loads(entry)[1], where)
    if key in ("guards_code", "treespec_namedtuple_fields", "custom_obj_values") and entry:
        raise _refused(where, f"code of guards or foreign types ('{key}')")
    if key == "metadata" and entry and {"torch_fn", "nn_module_stack", "source_fn_stack"} & set(entry):
        raise _refused(where, "traces of a module's code")
    if key == "type" and "index" in value and entry != "cpu":
        raise _refused(where, f"the device '{entry!s:.50}'")


def is_operation(name: str) -> bool:
    """Whether a graph may call it, such as `torch.ops.aten.add.Tensor`."""
    if _REFUSED.fullmatch(name):
        return False
    # Such as `aten.__and__.Tensor`; other names of this kind are attributes of Python's objects.
    if "__" in name and name not in _dunder_operations():
        return False
    return any(pattern.fullmatch(name) for pattern in (_ATEN, _CONTROL, _SYMBOLIC))


@cache
def _dunder_operations() -> frozenset[str]:
    """Operations of torch whose names hold two underscores, as a graph names them."""
    names = set()
    for registered in torch._C._dispatch_get_all_op_names():
        library, _, operation = registered.partition("::")
        name, _, overload = operation.partition(".")
        if "__" in operation and library == "aten":
            names.add(f"torch.ops.aten.{name}.{overload or 'default'}")
    return frozenset(names)


def _is_expression(text: str) -> bool:
    if len(text) > _MAX_EXPRESSION or "__" in text or not _EXPRESSION.fullmatch(text):
        return False
    plain = re.sub(r"'\w*'", "", text)
    # A power only of a size, and a small one: a tower of powers would never be evaluated.
    plain = re.sub(r"Pow\(Symbol\([^()]*\), Integer\(-?\d\)\)", "", plain)
    return set(re.findall(r"[A-Z]\w*", plain)) <= _NAMES


def _check_tree(spec: Any, where: str) -> None:
    if spec["type"] not in _TREES or "__enum__" in str(spec["context"]):
        raise _refused(where, f"arguments of the type '{spec['type']!s:.200}'")
    for child in spec["children_spec"]:
        _check_tree(child, where)


def _refused(where: str, what: str) -> StorageError:
    return StorageError(
        f"{where} holds {what}, which raysearch never writes and does not load. Retrieve the file again from "
        f"where it was exported."
    )
