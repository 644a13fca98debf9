"""config.json of a model folder: what is packed, how, and which tensors there are."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from raysearch.errors import StorageError
from raysearch.export.checked_values import (
    checked_flag,
    checked_integer,
    checked_shape,
    checked_size,
    checked_step,
)
from raysearch.export.input_spec import InputSpec, input_spec_from
from raysearch.quantizer import MAX_BITS, MIN_BITS
from raysearch.records import Granularity, QuantizerSpec, Site
from raysearch.records.dtypes import STORED_DTYPES
from raysearch.records.scale_format import SCALE_FORMATS
from raysearch.records.scheme import Scheme

FORMAT = "bitstream-le"
VERSION = 4
GROUPS_SINCE = 2
"""First version that has scales per group; a folder without them is of version 1, which is read as well."""
SCALE_FORMATS_SINCE = 3
"""First version whose scales may be in half precision."""
MINIMA_SINCE = 4
"""First version whose weights may have minima."""
WEIGHT_DTYPES = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class PackedWeight:
    """One integer weight: `<name>.packed` holds its codes, `<name>.scale` its scales.

    A code q stands for (q − z)·scale. Where z may differ from scale to scale, `<name>.zero_point` holds it;
    `<name>.minimum` holds what is taken off every value, in the form of the scales.

    Attributes:
        bits: width of a code.
        granularity: which weights share a scale; in the file `axis`, null for one scale, and of groups
            `group_axis` and `group_size` too.
        shape: the weight's shape.
        aliases: further names of the same weight (tied weights); it is stored once.
        zero_point: z of every code, or "stored": int8 values, one a scale.
        dtype: of the weight that the codes stand for, by safetensors' name; left out of the file if "F32".
        scale_format: form in which the scales are stored; left out of the file if "float32".
        has_minima: whether there is a minimum for each scale; left out of the file if not.
    """

    bits: int
    granularity: Granularity
    shape: tuple[int, ...]
    aliases: tuple[str, ...] = ()
    zero_point: int | Literal["stored"] = 0
    dtype: str = "F32"
    scale_format: str = "float32"
    has_minima: bool = False

    @property
    def scale_dtype(self) -> str:
        """Type of the stored scales, by safetensors' name."""
        return SCALE_FORMATS[self.scale_format].dtype

    @property
    def num_stored_scales(self) -> int:
        """Elements of the tensor that holds the scales."""
        return SCALE_FORMATS[self.scale_format].num_stored(self.num_scales)

    @property
    def num_codes(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def num_scales(self) -> int:
        """Number of scales, and of zero points where they are stored."""
        return self.granularity.num_scales(self.shape)

    @property
    def scale_shape(self) -> tuple[int, ...]:
        """[1, …, C, …, 1], of groups [C, groups, 1, …], or [1]."""
        return self.granularity.scale_shape(self.shape)

    @property
    def scheme(self) -> Scheme:
        """Width, inputs of a group with all their kernel positions, and whether zero points are stored.

        With minima it is the type of GGUF whose form the scales have.
        """
        if self.has_minima:
            return Scheme.of(self.scale_format)
        axis, size = self.granularity.group_axis, self.granularity.group_size
        inputs = 0
        if axis is not None and size is not None:
            others = [n for dim, n in enumerate(self.shape) if dim not in (axis, self.granularity.axis)]
            inputs = size * math.prod(others)
        return Scheme(self.bits, inputs, self.zero_point == "stored")


@dataclass(frozen=True)
class ActivationQuantizer:
    """What one activation quantizer does, and where. The graph holds the same; a user's module needs it.

    Attributes:
        bits: width in force; None is a quantizer that is off.
        scale: its step, or one for each channel.
        zero_point: code of the value 0, or one for each channel.
        signed: whether codes are signed.
        sites: where it acts in the module.
        shape: of one sample of what it quantizes.
        axis: channel axis of that; None is one scale.
        spec: the kind of grid; None is an asymmetric one.
    """

    bits: int | None
    scale: float | tuple[float, ...]
    zero_point: int | tuple[int, ...]
    signed: bool = False
    sites: tuple[Site, ...] = ()
    shape: tuple[int, ...] = ()
    axis: int | None = None
    spec: QuantizerSpec | None = None


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
        example_inputs: what the arguments look like; None where they are not tensors in plain containers.
        versions: "raysearch" and "torch", those that wrote the folder.
        source: "run_id" and "budget" of the run it is from; empty for a model that was exported by itself.
    """

    architecture: str
    inputs: tuple[str, ...]
    fixed_batch: int | None
    weights: Mapping[str, PackedWeight]
    activations: Mapping[str, ActivationQuantizer]
    tensors: Mapping[str, TensorSpec]
    example_inputs: tuple[InputSpec, ...] | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """The configuration as JSON text, laid out as Hugging Face does."""
        version = max(map(_needed_version, self.weights.values()), default=1)
        return _lines(
            {
                "model_type": "raysearch",
                "architectures": [self.architecture],
                "inputs": self.inputs,
                "fixed_batch": self.fixed_batch,
                "quantization_config": {
                    "quant_method": "raysearch",
                    "format": FORMAT,
                    "version": version,
                    "weights": {name: _weight_entry(weight) for name, weight in self.weights.items()},
                    "activations": {name: _activation_entry(v) for name, v in self.activations.items()},
                },
                "tensors": {name: asdict(spec) for name, spec in self.tensors.items()},
                "example_inputs": None
                if self.example_inputs is None
                else [spec.to_entry() for spec in self.example_inputs],
                "versions": dict(self.versions),
                "source": dict(self.source),
            }
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
                fixed_batch=None if data["fixed_batch"] is None else checked_size(data["fixed_batch"]),
                weights={name: _weight(name, e) for name, e in quantization["weights"].items()},
                activations={name: _activation(e) for name, e in quantization["activations"].items()},
                tensors={name: _tensor(name, e) for name, e in data["tensors"].items()},
                example_inputs=_example_inputs(data.get("example_inputs")),
                versions={str(k): str(v) for k, v in data.get("versions", {}).items()},
                source=dict(data.get("source", {})),
            )
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
            raise StorageError(
                f"{where} is damaged: {error!r:.300}. Retrieve or export the model again."
            ) from error


def _needed_version(weight: PackedWeight) -> int:
    if weight.has_minima:
        return MINIMA_SINCE
    if weight.scale_format != "float32":
        return SCALE_FORMATS_SINCE
    return GROUPS_SINCE if weight.granularity.group_size else 1


def _lines(value: Any, indent: int = 0) -> str:
    """JSON with one line for each entry of the outer mappings: short, and still read by eye."""
    nested = isinstance(value, dict) and (indent < 2 or any(isinstance(v, dict) for v in value.values()))
    if not nested or not value:
        return json.dumps(value)
    pad = " " * (indent + 1)
    inner = ",\n".join(f"{pad}{json.dumps(key)}: {_lines(entry, indent + 1)}" for key, entry in value.items())
    return "{\n" + inner + "\n" + " " * indent + "}"


def _check_format(quantization: dict[str, Any], where: str) -> None:
    if quantization["quant_method"] != "raysearch" or quantization["format"] != FORMAT:
        raise StorageError(
            f"{where} has quant_method '{quantization['quant_method']!s:.50}' and format "
            f"'{quantization['format']!s:.50}'; this loader reads raysearch's '{FORMAT}'."
        )
    if checked_size(quantization["version"]) > VERSION:
        raise StorageError(
            f"{where} has schema version {quantization['version']}; this raysearch reads up to {VERSION}. "
            f"Update it with `pip install --upgrade raysearch`."
        )


def _weight_entry(value: PackedWeight) -> dict[str, Any]:
    granularity = value.granularity
    entry: dict[str, Any] = {
        "bits": value.bits,
        "axis": granularity.axis,
        "shape": value.shape,
        "aliases": value.aliases,
        "zero_point": value.zero_point,
    }
    if granularity.kind == "per_group":
        entry["group_axis"], entry["group_size"] = granularity.group_axis, granularity.group_size
    if not value.scheme.is_plain:
        # For who reads the file; what it says follows from the rest.
        entry["scheme"] = str(value.scheme)
    if value.dtype != "F32":
        entry["dtype"] = value.dtype
    if value.scale_format != "float32":
        entry["scale_format"] = value.scale_format
    if value.has_minima:
        entry["has_minima"] = True
    return entry


def _weight(name: str, entry: dict[str, Any]) -> PackedWeight:
    zero = entry["zero_point"]
    shape = checked_shape(entry["shape"], name)
    weight = PackedWeight(
        checked_size(entry["bits"]),
        _granularity(name, entry, shape),
        shape,
        tuple(map(str, entry["aliases"])),
        "stored" if zero == "stored" else -checked_size(-zero),
        entry.get("dtype", "F32"),
        entry.get("scale_format", "float32"),
        checked_flag(entry.get("has_minima", False)),
    )
    if not MIN_BITS <= weight.bits <= MAX_BITS:
        raise ValueError(f"'{name}' has {weight.bits} bits; allowed: {MIN_BITS}–{MAX_BITS}")
    if weight.zero_point not in ("stored", 0, -(2 ** (weight.bits - 1))):
        raise ValueError(f"'{name}' has zero_point {zero!r}")
    if weight.dtype not in WEIGHT_DTYPES:
        raise ValueError(f"'{name}' has dtype {weight.dtype!r:.50}; allowed: {', '.join(WEIGHT_DTYPES)}")
    if weight.scale_format not in SCALE_FORMATS:
        raise ValueError(
            f"'{name}' has scales of {weight.scale_format!r:.50}; allowed: {', '.join(SCALE_FORMATS)}"
        )
    return weight


def _granularity(name: str, entry: dict[str, Any], shape: tuple[int, ...]) -> Granularity:
    axis, group_axis, group_size = (
        None if entry.get(key) is None else checked_size(entry[key])
        for key in ("axis", "group_axis", "group_size")
    )
    for dim in (axis, group_axis):
        if dim is not None and dim >= len(shape):
            raise ValueError(f"'{name}' has axis {dim} and shape {list(shape)}")
    return Granularity(axis, group_axis, group_size)


def _activation_entry(value: ActivationQuantizer) -> dict[str, Any]:
    entry = asdict(value)
    entry["sites"] = [list(site.values()) for site in entry["sites"]]
    # By identity: an axis of 0 equals False.
    defaults = [key for key, entry_value in entry.items() if _is_default(entry_value)]
    return {key: entry_value for key, entry_value in entry.items() if key in _ALWAYS or key not in defaults}


def _is_default(value: Any) -> bool:
    return value is None or value is False or value in ([], ())


_ALWAYS = ("bits", "scale", "zero_point")


def _activation(entry: dict[str, Any]) -> ActivationQuantizer:
    spec = entry.get("spec")
    bits = entry["bits"]
    if bits is not None and not MIN_BITS <= checked_size(bits) <= MAX_BITS:
        raise ValueError(f"an activation has {bits} bits; allowed: {MIN_BITS}–{MAX_BITS}")
    scale, zero = entry["scale"], entry["zero_point"]
    return ActivationQuantizer(
        bits,
        tuple(map(checked_step, scale)) if isinstance(scale, list) else checked_step(scale),
        tuple(map(checked_integer, zero)) if isinstance(zero, list) else checked_integer(zero),
        checked_flag(entry.get("signed", False)),
        tuple(_site(site) for site in entry.get("sites", ())),
        checked_shape(entry.get("shape", ())),
        None if entry.get("axis") is None else checked_size(entry["axis"]),
        None if spec is None else _spec(spec),
    )


def _site(values: list[Any]) -> Site:
    module, role, name, occurrence, argument = values
    if role not in ("input", "add", "call") or not isinstance(module, str) or not isinstance(name, str):
        raise ValueError(f"{values!r:.100} is no place of an activation")
    return Site(module, role, name, checked_size(occurrence), checked_size(argument))


def _spec(entry: dict[str, Any]) -> QuantizerSpec:
    signed = entry["signed"]
    if entry["mode"] not in ("symmetric", "asymmetric"):
        raise ValueError(f"{entry['mode']!r:.50} is no mode of a quantizer")
    flags = {name: checked_flag(entry[name]) for name in ("narrow_range", "half_range", "logarithm_scale")}
    return QuantizerSpec(entry["mode"], None if signed is None else checked_flag(signed), **flags)


def _tensor(name: str, entry: dict[str, Any]) -> TensorSpec:
    if entry["dtype"] not in STORED_DTYPES:
        raise ValueError(
            f"'{name:.100}' is of type {entry['dtype']!r:.50}; allowed: {', '.join(STORED_DTYPES)}"
        )
    return TensorSpec(checked_shape(entry["shape"], name), entry["dtype"])


def _example_inputs(entries: list[Any] | None) -> tuple[InputSpec, ...] | None:
    return None if entries is None else tuple(map(input_spec_from, entries))
