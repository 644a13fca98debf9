"""What a model's packed file holds beside the quantized weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from raysearch.hooks.locations import module_of, quantizer_location
from raysearch.quantizer import make_quantizer
from raysearch.records import QuantizationPoint, StoredTensor
from raysearch.records.dtypes import DTYPES

TORCH_DTYPES: dict[torch.dtype, str] = {getattr(torch, name): stored for name, stored in DTYPES.items()}
"""The types that the packed file holds → their names in safetensors."""


def stored_tensors(model: nn.Module, points: Mapping[str, QuantizationPoint]) -> tuple[StoredTensor, ...]:
    """Every parameter and buffer that is no quantized weight, tied ones once, and the quantizers' scales.

    Each in its own type, under the name that the packed target gives it: its first place in the model.
    """
    weights = {
        id(getattr(module_of(model, site), site.name))
        for point in points.values()
        if point.kind == "weight"
        for site in point.sites
    }
    listed = set(weights)
    entries: list[StoredTensor] = []
    for path, module in model.named_modules():
        for name, value in _own(module):
            if id(value) not in listed:
                listed.add(id(value))
                entries.append(_entry(_join(path, name), value))
    paths = {id(module): path for path, module in model.named_modules()}
    for point in points.values():
        if point.kind == "activation":
            owner, attribute = quantizer_location(model, point.sites[0])
            path = _join(paths[id(owner)], attribute)
            for name, value in _own(make_quantizer(point)):
                entries.append(_entry(_join(path, name), value, is_quantizer=True))
    return tuple(entries)


def _own(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(recurse=False)
    yield from module.named_buffers(recurse=False)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _entry(name: str, value: Tensor, is_quantizer: bool = False) -> StoredTensor:
    dtype = TORCH_DTYPES.get(value.dtype, str(value.dtype).removeprefix("torch."))
    return StoredTensor(name, dtype, tuple(value.shape), value.numel() * value.element_size(), is_quantizer)
