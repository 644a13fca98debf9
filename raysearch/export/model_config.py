"""config.json of a model folder: what is packed, how, and which tensors there are."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from raysearch.errors import StorageError
from raysearch.quantizer import MAX_BITS, MIN_BITS

FORMAT = "bitstream-le"
VERSION = 1


@dataclass(frozen=True)
class PackedWeight:
    """One integer weight: `<name>.packed` holds its codes, `<name>.scale` its scales.

    A code q stands for (q − z)·scale. Where z may differ from scale to scale, `<name>.zero_point` holds it.

    Attributes:
        bits: width of a code.
        axis: channel axis of the scales; None is one scale for the whole weight.
        shape: the weight's shape.
        aliases: further names of the same weight (tied weights); it is stored once.
        zero_point: z of every code, or "stored": int8 values, one a scale.
    """

    bits: int
    axis: int | None
    shape: tuple[int, ...]
    aliases: tuple[str, ...] = ()
    zero_point: int | Literal["stored"] = 0

    @property
    def num_codes(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def num_scales(self) -> int:
        """Number of scales, and of zero points where they are stored."""
        return 1 if self.axis is None else self.shape[self.axis]

    @property
    def scale_shape(self) -> tuple[int, ...]:
        """[1, …, C, …, 1], which broadcasts to the weight, or [1]."""
        if self.axis is None:
            return (1,)
        return tuple(size if d == self.axis else 1 for d, size in enumerate(self.shape))


@dataclass(frozen=True)
class ActivationQuantizer:
    """What one activation quantizer does; the graph holds the same, this is for readers."""

    bits: int
    scale: float
    zero_point: int


@dataclass(frozen=True)
class TensorSpec:
    """Shape and safetensors dtype of a tensor that is stored as it is."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class ModelConfig:
    """The content of config.json.

    Attributes:
        architecture: class name of the exported module.
        inputs: names of the forward's positional arguments, in order.
        fixed_batch: the only batch size the graph takes, or None when any will do.
        weights: integer weights by name.
        activations: activation quantizers by id.
        tensors: every other stored tensor by name.
    """

    architecture: str
    inputs: tuple[str, ...]
    fixed_batch: int | None
    weights: Mapping[str, PackedWeight]
    activations: Mapping[str, ActivationQuantizer]
    tensors: Mapping[str, TensorSpec]

    def to_json(self) -> str:
        """The configuration as JSON text, laid out as Hugging Face does."""
        return json.dumps(
            {
                "model_type": "raysearch",
                "architectures": [self.architecture],
                "inputs": self.inputs,
                "fixed_batch": self.fixed_batch,
                "quantization_config": {
                    "quant_method": "raysearch",
                    "format": FORMAT,
                    "version": VERSION,
                    "weights": {name: asdict(weight) for name, weight in self.weights.items()},
                    "activations": {name: asdict(value) for name, value in self.activations.items()},
                },
                "tensors": {name: asdict(spec) for name, spec in self.tensors.items()},
            },
            indent=1,
        )

    @classmethod
    def from_json(cls, text: str, where: str = "config.json") -> ModelConfig:
        """Read what `to_json` wrote.

        Raises:
            StorageError: the text is damaged, of another format, or of a newer version.
        """
        try:
            data = json.loads(text)
            quantization = data["quantization_config"]
            _check_format(quantization, where)
            return cls(
                architecture=str(data["architectures"][0]),
                inputs=tuple(map(str, data["inputs"])),
                fixed_batch=None if data["fixed_batch"] is None else _size(data["fixed_batch"]),
                weights={name: _weight(name, e) for name, e in quantization["weights"].items()},
                activations={
                    name: ActivationQuantizer(**e) for name, e in quantization["activations"].items()
                },
                tensors={
                    name: TensorSpec(tuple(map(_size, e["shape"])), str(e["dtype"]))
                    for name, e in data["tensors"].items()
                },
            )
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise StorageError(
                f"{where} is damaged: {error!r}. Retrieve or export the model again."
            ) from error


def _check_format(quantization: dict[str, Any], where: str) -> None:
    if quantization["quant_method"] != "raysearch" or quantization["format"] != FORMAT:
        raise StorageError(
            f"{where} has quant_method '{quantization['quant_method']}' and format "
            f"'{quantization['format']}'; this loader reads raysearch's '{FORMAT}'."
        )
    if _size(quantization["version"]) > VERSION:
        raise StorageError(
            f"{where} has version {quantization['version']}; this raysearch reads up to {VERSION}. Update it "
            f"with `pip install --upgrade raysearch`."
        )


def _weight(name: str, entry: dict[str, Any]) -> PackedWeight:
    zero = entry["zero_point"]
    found = PackedWeight(
        _size(entry["bits"]),
        None if entry["axis"] is None else _size(entry["axis"]),
        tuple(map(_size, entry["shape"])),
        tuple(map(str, entry["aliases"])),
        "stored" if zero == "stored" else -_size(-zero),
    )
    if not MIN_BITS <= found.bits <= MAX_BITS:
        raise ValueError(f"'{name}' has {found.bits} bits; allowed: {MIN_BITS}–{MAX_BITS}")
    if found.zero_point not in ("stored", 0, -(2 ** (found.bits - 1))):
        raise ValueError(f"'{name}' has zero_point {zero!r}")
    if found.axis is not None and found.axis >= len(found.shape):
        raise ValueError(f"'{name}' has axis {found.axis} and shape {list(found.shape)}")
    return found


def _size(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is no non-negative integer")
    return value
