"""NNCF's configuration: its documented keys are read, unknown ones refused, and what is not done says why."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError
from torch import Tensor
from typing_extensions import TypedDict

from raysearch.config.placement import PlacementConfig
from raysearch.config.section import complaint, read_section
from raysearch.errors import ConfigError
from raysearch.records.typed_json import parsed, shown
from raysearch.unknown_keys import refuse_unknown

ROOT_KEYS = ("input_info", "target_device", "compression", "log_dir")
SECTION_KEYS = (
    "algorithm", "initializer", "weights", "activations", "scope_overrides", "ignored_scopes",
    "target_scopes", "preset", "params", "overflow_fix", "quantize_inputs", "quantize_outputs",
    "export_to_onnx_standard_ops", "validate_scopes",
)  # fmt: skip
KIND_KEYS = ("bits", "mode", "signed", "per_channel", "logarithm_scale")
OVERRIDE_KEYS = ("bits", "mode", "signed", "per_channel")
RANGE_KEYS = ("num_init_samples", "type", "params")
WIDTHS: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "ANY": ((8,), (8,)),
    "CPU": ((8,), (8,)),
    "GPU": ((8,), (8,)),
    "NPU": ((2, 4, 8), (4, 8)),
    "TRIAL": ((2, 3, 4, 5, 6, 7, 8), (2, 3, 4, 5, 6, 7, 8)),
}
"""Device → widths of weights and of activations, as the reference's tables have them for matrix products."""

REFUSED: Mapping[str, str] = {
    "overflow_fix": "'enable' and 'first_layer_only' halve the range of 8-bit weights, which are then 7-bit "
    "weights; ask for 7 bits, by bits or scope_overrides, and R and the size tell the truth",
    "quantize_outputs": "the model's outputs stay float; quantize what reads them",
    "quantize_inputs": "inputs are quantized where a layer reads them; name '<layer>.input' in ignored_scopes"
    " to leave one float",
    "validate_scopes": "a scope that fits nothing is always an error",
    "export_to_onnx_standard_ops": "raysearch exports standard QuantizeLinear and DequantizeLinear always",
}
_HARMLESS = {
    "overflow_fix": "disable", "quantize_outputs": False, "quantize_inputs": True, "validate_scopes": True,
    "export_to_onnx_standard_ops": True,
}  # fmt: skip


MOST_ELEMENTS = 2**28
"""Of an example input: a GiB of float32."""

Number = Annotated[int, Field(ge=0, lt=2**31)]


class KindForm(TypedDict, total=False):
    """`weights`, `activations`, and what a scope overrides."""

    bits: Number
    mode: str
    signed: bool
    per_channel: bool
    logarithm_scale: bool


class RangeForm(TypedDict, total=False):
    """`initializer.range`."""

    num_init_samples: Number
    type: str
    params: dict[str, float]


class PrecisionForm(TypedDict, total=False):
    """`initializer.precision`, as far as it says where quantizers go; `init_precision` reads the rest."""

    type: str
    bits: list[Number]


class NormForm(TypedDict, total=False):
    """`initializer.batchnorm_adaptation`."""

    num_bn_adaptation_samples: Number


def _no_list(value: Any) -> Any:
    if isinstance(value, list):
        raise ValueError(
            "a list is not supported; give one type here, and per-scope estimators by raysearch's own "
            "calibration.overrides"
        )
    return value


class InitializerForm(TypedDict, total=False):
    """`compression.initializer`."""

    range: Annotated[RangeForm, BeforeValidator(_no_list)]
    precision: PrecisionForm
    batchnorm_adaptation: NormForm


class OverridesForm(TypedDict, total=False):
    """`compression.scope_overrides`."""

    weights: dict[str, KindForm]
    activations: dict[str, KindForm]


class SectionForm(TypedDict, total=False):
    """`compression`."""

    algorithm: str
    initializer: InitializerForm
    weights: KindForm
    activations: KindForm
    scope_overrides: OverridesForm
    ignored_scopes: str | list[str]
    target_scopes: str | list[str]
    preset: str
    params: dict[str, Any]


class InputForm(TypedDict, total=False):
    """One entry of `input_info`."""

    sample_size: list[Annotated[int, Field(ge=1, lt=2**31)]]
    type: str
    filler: str
    keyword: str


@dataclass(frozen=True)
class NncfConfig:
    """What was read.

    Attributes:
        device: the target device.
        placement: admissible widths, scopes and overrides.
        kinds: "weight" and "activation" → the keys of `KIND_KEYS` that were set.
        ranges: the `range` initializer.
        norm_samples: samples for BatchNorm adaptation; 0: none.
        precision: type and params of the precision initializer; ("", {}) when there is none.
        params: the schedule.
        inputs: example inputs made from `input_info`; () when there is none.
    """

    device: str
    placement: PlacementConfig
    kinds: Mapping[str, Mapping[str, Any]]
    ranges: Mapping[str, Any]
    norm_samples: int
    precision: tuple[str, Mapping[str, Any]]
    params: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[Tensor, ...] = ()


def read_nncf_config(source: Mapping[str, Any] | str | Path) -> NncfConfig:
    """Read a mapping, or a JSON file.

    Raises:
        ConfigError: a key is unknown (the nearest is named) or not supported (the reason is told), or a value
            does not fit.
    """
    data = _load(source)
    refuse_unknown(data, ROOT_KEYS, "the configuration")
    device = str(data.get("target_device", "ANY")).upper()
    refuse_unknown([device], WIDTHS, "target_device")
    section = _section(data.get("compression", {"algorithm": "quantization"}))
    _check(SectionForm, section, "compression")
    for key, value in section.items():
        if key in REFUSED and value != _HARMLESS[key]:
            raise ConfigError(f"compression.{key} = {value!r} is not supported: {REFUSED[key]}.")
    initializer = dict(section.get("initializer", {}))
    refuse_unknown(initializer, ("range", "precision", "batchnorm_adaptation"), "compression.initializer")
    precision = dict(initializer.get("precision", {}))
    precision_type = str(precision.pop("type", "")) if precision else ""
    kinds = {name: _kind(section, name + "s") for name in ("weight", "activation")}
    _preset(section, device, kinds)
    norm = dict(initializer.get("batchnorm_adaptation", {}))
    refuse_unknown(norm, ("num_bn_adaptation_samples",), "batchnorm_adaptation")
    ranges = initializer.get("range", {})
    refuse_unknown(ranges, RANGE_KEYS, "initializer.range")
    searched = _searched_widths(precision_type, precision, device)
    return NncfConfig(
        device=device,
        placement=_placement(section, kinds, searched, device),
        kinds={
            name: {key: v for key, v in values.items() if key != "bits"} for name, values in kinds.items()
        },
        ranges=ranges,
        norm_samples=int(norm.get("num_bn_adaptation_samples", 0)),
        precision=(precision_type, precision),
        params=dict(section.get("params", {})),
        inputs=_inputs(data.get("input_info", [])),
    )


def _searched_widths(kind: str, precision: Mapping[str, Any], device: str) -> tuple[int, ...]:
    """The widths that a precision initializer chooses from; none where there is none."""
    if kind == "manual":
        return WIDTHS[device][0]
    if kind in ("hawq", "search"):
        return tuple(precision.get("bits", (2, 4, 8)))
    return ()


def _placement(
    section: Mapping[str, Any],
    kinds: Mapping[str, Mapping[str, Any]],
    searched: tuple[int, ...],
    device: str,
) -> PlacementConfig:
    bits = {
        name: _widths(values.get("bits"), searched, table, name, device)
        for (name, values), table in zip(kinds.items(), WIDTHS[device], strict=True)
    }
    values = {
        "weight_bit_widths": bits["weight"],
        "activation_bit_widths": bits["activation"],
        "ignored_scopes": [to_scope(scope) for scope in _texts(section.get("ignored_scopes", []))],
        "target_scopes": [to_scope(scope) for scope in _texts(section.get("target_scopes", []))],
        "overrides": _overrides(section.get("scope_overrides", {})),
    }
    return read_section(PlacementConfig, values, "compression")


def to_scope(text: str, activation: bool = False) -> str:
    """NNCF's scope as ours: `{re}…`, "Net/Conv2d[conv1]/conv2d_0", or a dotted name or glob as it is."""
    if text.startswith("{re}"):
        return "re:" + text.removeprefix("{re}")
    levels = re.findall(r"\[([^\]]+)\]", text) if "/" in text else []
    if levels:
        name = ".".join(levels)
        return f"{name}.input" if activation else rf"re:^{re.escape(name)}(\.|$)"
    return text


def _load(source: Mapping[str, Any] | str | Path) -> dict[str, Any]:
    if isinstance(source, Mapping):
        return dict(source)
    try:
        data = parsed(Path(source).read_bytes())
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f"the NNCF configuration '{source}' cannot be read: {error!r:.300}.") from error
    if not isinstance(data, dict):
        raise ConfigError(f"the NNCF configuration '{source}' is {shown(data)}; it must be a JSON object.")
    return data


def _check(form: Any, value: Any, where: str) -> None:
    """Refuse values of other types than a form has; keys that it does not have are looked at elsewhere.

    Raises:
        ConfigError: names the first key, its value, and what is allowed.
    """
    try:
        TypeAdapter(form).validate_python(value)
    except ValidationError as error:
        entry = error.errors(include_url=False)[0]
        key = ".".join([where, *(str(part) for part in entry["loc"])])
        text = f"{key:.200} is {shown(entry['input'])}: {complaint(entry)}."
        raise ConfigError(text) from error


def _section(value: Any) -> dict[str, Any]:
    if isinstance(value, list):
        if len(value) != 1:
            raise ConfigError("compression lists several algorithms; raysearch does 'quantization' alone.")
        value = value[0]
    if not isinstance(value, Mapping):
        raise ConfigError(f"compression is {shown(value)}; it must be a mapping, or a list of one.")
    section = dict(value)
    if section.get("algorithm", "quantization") != "quantization":
        raise ConfigError(
            f"compression.algorithm is {shown(section['algorithm'])}; raysearch does 'quantization'."
        )
    refuse_unknown(section, SECTION_KEYS, "compression")
    return section


def _kind(section: Mapping[str, Any], name: str) -> dict[str, Any]:
    values = dict(section.get(name, {}))
    refuse_unknown(values, KIND_KEYS, f"compression.{name}")
    if values.get("mode", "symmetric") not in ("symmetric", "asymmetric"):
        raise ConfigError(f"compression.{name}.mode is {values['mode']!r}; known: symmetric, asymmetric.")
    return values


def _preset(section: Mapping[str, Any], device: str, kinds: dict[str, dict[str, Any]]) -> None:
    preset = section.get("preset", "")
    if not preset:
        return
    if device == "NPU":
        raise ConfigError("preset is not for target_device 'NPU'; set weights.mode and activations.mode.")
    refuse_unknown([preset], ("performance", "mixed"), "compression.preset")
    kinds["weight"].setdefault("mode", "symmetric")
    kinds["activation"].setdefault("mode", "symmetric" if preset == "performance" else "asymmetric")


def _widths(
    bits: Any, searched: tuple[int, ...], table: tuple[int, ...], name: str, device: str
) -> tuple[int, ...]:
    """Admissible widths of a kind: the user's, else the searched ones, else 8; those the device has."""
    requested = {int(bits)} if bits is not None else set(searched) or {8}
    if name == "activation" and bits is None and not requested & set(table):
        # Widths that were searched for weights alone leave activations at 8 bits.
        requested = {8}
    admissible = tuple(sorted(requested & set(table)))
    if not admissible:
        raise ConfigError(
            f"target_device '{device}' admits {', '.join(map(str, table))} bits for a {name}, and the "
            f"configuration asks for {', '.join(map(str, sorted(requested)))}; choose NPU, TRIAL or other "
            f"bits."
        )
    return admissible


def _overrides(value: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    refuse_unknown(value, ("weights", "activations"), "compression.scope_overrides")
    result: dict[str, dict[str, Any]] = {}
    for kind, scopes in value.items():
        for scope, settings in scopes.items():
            refuse_unknown(settings, OVERRIDE_KEYS, f"scope_overrides.{kind}['{scope}']")
            entry = {k: v for k, v in settings.items() if k in ("mode", "signed")}
            if "bits" in settings:
                entry["pinned"] = settings["bits"]
            if "per_channel" in settings:
                entry["granularity"] = "per_channel" if settings["per_channel"] else "per_tensor"
            result[to_scope(scope, kind == "activations")] = entry
    return result


def _texts(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [str(v) for v in value]


def _inputs(info: Any) -> tuple[Tensor, ...]:
    entries = [info] if isinstance(info, Mapping) else info
    _check(list[InputForm], entries, "input_info")
    tensors: list[Tensor] = []
    for entry in entries:
        refuse_unknown(entry, ("sample_size", "type", "filler", "keyword"), "input_info")
        if "keyword" in entry:
            raise ConfigError(
                "input_info.keyword is not supported: give example_inputs as positional arguments."
            )
        if "sample_size" not in entry:
            raise ConfigError("input_info has no sample_size; give the shape of an input with its batch.")
        size = [int(s) for s in entry["sample_size"]]
        if prod(size) > MOST_ELEMENTS:
            raise ConfigError(
                f"input_info.sample_size is {shown(size)} with {prod(size):,} values; an example has at most "
                f"{MOST_ELEMENTS:,}. One sample is enough."
            )
        dtype = torch.int64 if entry.get("type", "float") == "long" else torch.float32
        # 1 may be no index of a small table; 0 is one of every table.
        is_zero = entry.get("filler") == "zeros" or dtype == torch.int64
        tensors.append(torch.zeros(size, dtype=dtype) if is_zero else torch.ones(size, dtype=dtype))
    return tuple(tensors)
