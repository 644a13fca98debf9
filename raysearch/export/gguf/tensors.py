"""The tensors of a stripped language model as llama.cpp names, orders and stores them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from raysearch.controller import StrippedWeight
from raysearch.errors import ExportError
from raysearch.export.gguf.architectures import Architecture, rotary_factors
from raysearch.export.gguf.blocks import pack_blocks
from raysearch.export.gguf.language_model import LanguageModel
from raysearch.export.stripped_model import StrippedModel
from raysearch.records.block_types import BLOCK_TYPES, BlockType

FLOAT_TYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


@dataclass(frozen=True)
class FileTensor:
    """A tensor of the file.

    Attributes:
        name: llama.cpp's.
        type: of GGML, in capitals.
        data: uint8, [rows, bytes of a row], or the values of a vector.
        values: what the data stand for, float32, as the stripped module has them.
    """

    name: str
    type: str
    data: npt.NDArray[Any]
    values: npt.NDArray[np.float32]


def file_tensors(
    model: StrippedModel, language: LanguageModel, architecture: Architecture
) -> Iterator[FileTensor]:
    """Every tensor of the file, one after another.

    Args:
        model: the stripped model.
        language: the language model in it.
        architecture: of the language model.

    Raises:
        ExportError: a tensor has no place in the architecture, or its scheme is no type of GGUF.
    """
    names = _Names(language, architecture)
    types = _block_types(model)
    weights = {alias: weight for weight in model.weights.values() for alias in _aliases(weight)}
    if (factors := rotary_factors(language.config)) is not None:
        yield FileTensor("rope_freqs.weight", "F32", factors, factors)
    done: set[int] = set()
    for name, value in _slots(model.module, set(weights)):
        weight = weights.get(name)
        own = value if weight is None else weight.codes
        if id(own) in done:
            # A head that is tied to the embedding: llama.cpp computes with the embedding where there is none.
            continue
        done.add(id(own))
        order = names.row_order(name, own.shape[0])
        target = names.of(name)
        if weight is None:
            yield _float_tensor(target, own[order], names.offset(name))
        else:
            yield _block_tensor(target, weight, types.get(weight.name), order)


def _slots(module: nn.Module, quantized: set[str]) -> Iterator[tuple[str, Tensor]]:
    """Names and values of the parameters, in the module's order; of quantized ones an empty tensor."""
    for prefix, part in module.named_modules(remove_duplicate=False):
        place = f"{prefix}." if prefix else ""
        own = {f"{place}{key}": value for key, value in part._parameters.items() if value is not None}
        for key in getattr(part, "parametrizations", {}):
            own[f"{place}{key}"] = torch.empty(0)
        for name, value in own.items():
            if name in quantized or ".parametrizations." not in name:
                yield name, value


def _aliases(weight: StrippedWeight) -> tuple[str, ...]:
    return (weight.name, *weight.aliases)


def _block_types(model: StrippedModel) -> dict[str, BlockType]:
    """Quantizer id → its type, where its scheme is one."""
    types: dict[str, BlockType] = {}
    for name, scheme in model.assignment.per_point(model.setup).items():
        block_type = model.setup.points[name].at(scheme).block_type(scheme.num_bits)
        if block_type is not None:
            types[name] = block_type
    return types


class _Names:
    """llama.cpp's names of a model's tensors, and the order of their rows."""

    def __init__(self, language: LanguageModel, architecture: Architecture) -> None:
        import gguf

        self._language = language
        self._architecture = architecture
        kind = next(k for k, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture.name)
        self._names = gguf.get_tensor_name_map(kind, language.config["num_hidden_layers"])

    def of(self, name: str) -> str:
        """The name of a parameter.

        Raises:
            ExportError: the architecture has no such tensor.
        """
        inner = name.removeprefix(self._language.prefix)
        target = self._names.get_name(inner, try_suffixes=(".weight", ".bias"))
        if target is None or not name.startswith(self._language.prefix):
            raise ExportError(
                f"'{name}' has no place in llama.cpp's architecture '{self._architecture.name}'. Leave "
                f"'gguf' out of export.targets."
            )
        return str(target)

    def row_order(self, name: str, rows: int) -> slice | Tensor:
        """The order that a tensor's rows are written in."""
        heads = 0
        if ".q_proj." in name:
            heads = self._language.config["num_attention_heads"]
        elif ".k_proj." in name:
            heads = self._language.config["num_key_value_heads"]
        if not self._architecture.interleaves_rotary or not heads:
            return slice(None)
        # The two halves of a head, which transformers rotates together, become neighbours.
        return torch.arange(rows).reshape(heads, 2, -1).transpose(1, 2).reshape(-1)

    def offset(self, name: str) -> float:
        """What is added to a tensor."""
        return self._architecture.norm_offset if name.endswith("norm.weight") else 0.0


def _float_tensor(name: str, value: Tensor, offset: float) -> FileTensor:
    """A tensor as it is; norms and biases are float32, which llama.cpp computes them in."""
    value = value.detach().cpu()
    values = value.float().numpy() + np.float32(offset)
    if value.ndim < 2 or value.dtype == torch.float32:
        return FileTensor(name, "F32", np.ascontiguousarray(values), values)
    type_name = FLOAT_TYPES.get(value.dtype)
    if type_name is None:
        raise ExportError(f"'{name}' is of type {value.dtype}, which the target 'gguf' does not write.")
    if type_name == "F16":
        return FileTensor(name, type_name, value.contiguous().numpy(), values)
    return FileTensor(name, type_name, value.contiguous().view(torch.uint8).numpy(), values)


def _block_tensor(
    name: str, weight: StrippedWeight, block_type: BlockType | None, order: slice | Tensor
) -> FileTensor:
    """A quantized weight in blocks.

    Args:
        name: in the file.
        weight: with codes and scales.
        block_type: its type.
        order: that its rows are written in.

    Raises:
        ExportError: its scheme is no type of GGUF.
    """
    if block_type is None:
        raise ExportError(
            f"'{weight.name}' has {weight.num_bits} bits with a scale {weight.granularity}, which is no type "
            f"of GGUF; give it one of {', '.join(BLOCK_TYPES)} in placement.weight_schemes."
        )
    codes = weight.codes.cpu()[order].numpy()
    scale = weight.scale.detach().cpu()[order].numpy()
    minimum = None if weight.minimum is None else weight.minimum.detach().cpu()[order].numpy()
    # Codes without a sign, as the type has them; strip moved them down to int8.
    offset = 0 if weight.zero_point is None else int(weight.zero_point.reshape(-1)[0])
    codes = codes.astype(np.int16) - offset
    data = pack_blocks(block_type, codes, scale, minimum, weight.name)
    values = codes.astype(np.float32) * np.repeat(scale, block_type.group_size, axis=1)
    if minimum is not None:
        values = values - np.repeat(minimum, block_type.group_size, axis=1)
    return FileTensor(name, block_type.name.upper(), data, values)
