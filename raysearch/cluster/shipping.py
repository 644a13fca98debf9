"""Objects on their way to another process, with their tensors as numpy arrays.

Ray maps numpy arrays straight from its object store, but copies torch tensors through pickle several
times. A `Shipment` therefore holds every tensor as an array beside the pickled rest. Whoever unpacks it
gets private, writable copies: arrays in the store are read-only and shared by all workers of a node. Large
arrays of bytes, which codes of weights are, may stay there, so that a node holds them once.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from types import FunctionType, GeneratorType, ModuleType
from typing import Any

import numpy as np
import torch
from ray import cloudpickle
from torch import nn

from raysearch.cluster.by_value import tell_ray
from raysearch.errors import TaskError

_CARRIERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_DEEPEST_CULPRIT = 8
_LARGE_BYTES = 2**16

# Ray's own pickler is in use from here on, with whatever was registered before.
tell_ray()


@dataclass(frozen=True)
class TensorForm:
    """What an array does not say about the tensor it came from."""

    dtype: torch.dtype
    stride: tuple[int, ...]
    is_parameter: bool
    requires_grad: bool


@dataclass(frozen=True)
class Shipment:
    """An object taken apart: pickled bytes that refer to tensors by their place in `arrays`.

    The arrays alias the tensors they came from until something copies the shipment. An array without a form
    was one.
    """

    payload: bytes
    arrays: tuple[np.ndarray, ...]
    forms: tuple[TensorForm | None, ...]


def dumps(obj: Any, name: str = "the object") -> Shipment:
    """Take an object apart so that another process can put it together.

    A tensor that occurs twice stays one tensor, a parameter stays a parameter, and strides (so
    channels_last) are kept; tensors of any device arrive on the CPU. Gradients are not shipped, nor is
    memory that two different tensor objects share.

    Args:
        obj: anything cloudpickle can pickle, with any tensors inside.
        name: what to call it in an error.

    Raises:
        TaskError: something inside cannot be pickled; the message says what and where.

    Example:
        >>> twice = torch.ones(2)
        >>> first, second = loads(dumps([twice, twice]))
        >>> first is second, first.tolist()
        (True, [1.0, 1.0])
    """
    try:
        return _pack(obj)
    except Exception as error:
        path, culprit = _culprit(obj, name)
        reason = (str(error) or repr(error)).splitlines()[0]
        raise TaskError(
            f"{path}, a {type(culprit).__name__}, cannot be shipped to workers: {reason}. "
            f"{_remedy(error, culprit)}"
        ) from error


def loads(shipment: Shipment, *, codes_in_place: bool = False) -> Any:
    """Put a shipped object together, with private and writable tensors on the CPU.

    Args:
        shipment: what `dumps` gave.
        codes_in_place: whether large arrays of bytes stay where the shipment has them, read-only.
    """
    return _Unpickler(shipment, codes_in_place).load()


def _pack(obj: Any) -> Shipment:
    tell_ray()
    stream = io.BytesIO()
    pickler = _Pickler(stream, protocol=pickle.HIGHEST_PROTOCOL)
    pickler.dump(obj)  # type: ignore[no-untyped-call]
    tensors = pickler.tensors
    return Shipment(
        stream.getvalue(),
        tuple(_array_of(tensor) for tensor in tensors),
        tuple(_form_of(tensor) for tensor in tensors),
    )


class _Pickler(cloudpickle.CloudPickler):
    def __init__(self, stream: io.BytesIO, protocol: int) -> None:
        super().__init__(stream, protocol=protocol)  # type: ignore[no-untyped-call]
        self.tensors: list[torch.Tensor | np.ndarray] = []
        self._place: dict[int, int] = {}

    def persistent_id(self, obj: Any) -> int | None:
        if _is_large_bytes(obj):
            return self._place_of(obj)
        # Subclasses and tensors with attributes of their own go through torch's pickling, which comes
        # back here with the plain tensor inside them.
        if type(obj) not in (torch.Tensor, nn.Parameter) or obj.__dict__:
            return None
        if obj.layout is not torch.strided or obj.is_quantized or obj.is_meta:
            return None
        return self._place_of(obj)

    def _place_of(self, obj: torch.Tensor | np.ndarray) -> int:
        if id(obj) not in self._place:
            # The list keeps the tensor alive, so its id cannot be given to another one meanwhile.
            self._place[id(obj)] = len(self.tensors)
            self.tensors.append(obj)
        return self._place[id(obj)]


class _Unpickler(pickle.Unpickler):
    def __init__(self, shipment: Shipment, codes_in_place: bool) -> None:
        super().__init__(io.BytesIO(shipment.payload))
        self._shipment = shipment
        self._codes_in_place = codes_in_place
        self._tensors: dict[int, torch.Tensor | np.ndarray] = {}

    def persistent_load(self, pid: Any) -> torch.Tensor | np.ndarray:
        if pid not in self._tensors:
            array, form = self._shipment.arrays[pid], self._shipment.forms[pid]
            if form is not None:
                self._tensors[pid] = _tensor_of(array, form)
            else:
                self._tensors[pid] = array if self._codes_in_place else array.copy()
        return self._tensors[pid]


def _is_large_bytes(obj: Any) -> bool:
    return type(obj) is np.ndarray and obj.dtype in (np.int8, np.uint8) and obj.nbytes >= _LARGE_BYTES


def _array_of(tensor: torch.Tensor | np.ndarray) -> np.ndarray:
    if isinstance(tensor, np.ndarray):
        return tensor
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    array: np.ndarray = plain.view(_carrier_of(tensor.dtype)).numpy()
    return array


def _form_of(tensor: torch.Tensor | np.ndarray) -> TensorForm | None:
    if isinstance(tensor, np.ndarray):
        return None
    # An empty copy on no device tells which strides a dense copy of this tensor has.
    stride = torch.empty_like(tensor, device="meta", memory_format=torch.preserve_format).stride()
    return TensorForm(tensor.dtype, stride, isinstance(tensor, nn.Parameter), tensor.requires_grad)


def _tensor_of(array: np.ndarray, form: TensorForm) -> torch.Tensor:
    tensor = torch.empty_strided(array.shape, form.stride, dtype=form.dtype)
    # numpy copies out of read-only memory; torch.from_numpy would warn about it.
    tensor.view(_carrier_of(form.dtype)).numpy()[...] = array
    if form.is_parameter:
        return nn.Parameter(tensor, requires_grad=form.requires_grad)
    return tensor.requires_grad_(form.requires_grad)


@cache
def _carrier_of(dtype: torch.dtype) -> torch.dtype:
    """The dtype under which numpy can hold tensors of `dtype`: itself, or integers of its width."""
    try:
        torch.empty(0, dtype=dtype).numpy()
    except TypeError:
        return _CARRIERS[dtype.itemsize]
    return dtype


def _culprit(obj: Any, path: str, depth: int = 0) -> tuple[str, Any]:
    """The innermost part of `obj` that cannot be pickled, and the way to it."""
    if depth < _DEEPEST_CULPRIT:
        for child_path, child in _parts(obj, path):
            try:
                _pack(child)
            except Exception:
                return _culprit(child, child_path, depth + 1)
    return path, obj


def _parts(obj: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(obj, dict):
        yield from ((f"{path}[{key!r}]", value) for key, value in obj.items())
    elif isinstance(obj, list | tuple | set | frozenset):
        yield from ((f"{path}[{place}]", value) for place, value in enumerate(obj))
    elif isinstance(obj, FunctionType):
        cells = zip(obj.__code__.co_freevars, obj.__closure__ or (), strict=True)
        yield from ((f"{name} in {path}", cell.cell_contents) for name, cell in cells)
    elif not isinstance(obj, type | ModuleType):
        yield from ((f"{path}.{name}", value) for name, value in getattr(obj, "__dict__", {}).items())


def _remedy(error: Exception, culprit: Any) -> str:
    if isinstance(culprit, GeneratorType):
        return "Give a list, or an object whose __iter__ makes a new generator each time"
    if isinstance(culprit, nn.Module) and "parametrized" in str(error):
        return "Call torch.nn.utils.parametrize.remove_parametrizations on it first"
    return "Leave it out, or create it where it is first used, so that each worker makes its own"
